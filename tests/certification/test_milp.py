from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pulp
import pytest
from scipy import optimize
from scipy.optimize import Bounds, LinearConstraint

from citrus_tool.certification import milp
from citrus_tool.certification.milp import (
    SOLVERS,
    Array,
    Both,
    Ending,
    GroupPlanes,
    MilpBound,
    Solver,
    SolverAnswer,
    bound_fooled,
    read_cbc_log,
    search,
)
from citrus_tool.choices import SolverName
from citrus_tool.errors import SoundnessError, UsageError

EPS = 0.1


def random_planes(
    seed: int, *, inputs: int = 4, rivals: int = 2, dimension: int = 2, height: float = 0.4
) -> GroupPlanes:
    """Planes whose value at u = 0 is `height` times their half range, give or take."""
    rng = np.random.default_rng(seed)
    coefficient = rng.normal(size=(inputs * rivals, dimension))
    share = height * rng.uniform(0.5, 1.5, size=inputs * rivals)
    return GroupPlanes(
        owner=np.repeat(np.arange(inputs), rivals),
        rival=np.tile(np.arange(rivals), inputs),
        coefficient=coefficient,
        offset=share * EPS * np.abs(coefficient).sum(axis=1),
    )


def on_grid(planes: GroupPlanes, steps: int = 201) -> int:
    """The most inputs that any point of a dense grid over the box allows to be fooled (d = 2)."""
    axis = np.linspace(-EPS, EPS, steps)
    points = np.array(list(product(axis, axis)))
    allowed = points @ planes.coefficient.T + planes.offset <= 0  # (points, planes)
    counts = np.zeros(len(points), dtype=int)
    for owner in np.unique(planes.owner):
        pairs = [
            allowed[:, (planes.owner == owner) & (planes.rival == label)].all(axis=1)
            for label in np.unique(planes.rival[planes.owner == owner])
        ]
        counts += np.any(pairs, axis=0)
    return int(counts.max())


def exact(planes: GroupPlanes, inputs: int, eps: float = EPS) -> int:
    """The same MILP in u itself, with a crude M and no relaxation, by SciPy."""
    m, d = planes.coefficient.shape
    big = np.abs(planes.coefficient).sum(axis=1) * eps + np.abs(planes.offset) + 1
    rows = np.hstack([planes.coefficient, np.diag(big)])
    one = np.zeros((inputs, d + m))
    one[planes.owner, d + np.arange(m)] = 1
    found = optimize.milp(
        np.r_[np.zeros(d), -np.ones(m)],
        constraints=[LinearConstraint(rows, ub=big - planes.offset), LinearConstraint(one, ub=1)],
        integrality=np.r_[np.zeros(d), np.ones(m)],
        bounds=Bounds(np.r_[-eps * np.ones(d), np.zeros(m)], np.r_[eps * np.ones(d), np.ones(m)]),
        options={"mip_rel_gap": 0.0},
    )
    return round(-found.fun)


def solve(planes: GroupPlanes, inputs: int, solver: Solver, **options: float) -> MilpBound:
    return bound_fooled(
        planes, inputs=inputs, eps=EPS, known=[], solver=solver, time_limit=options.get("time_limit", 300.0)
    )


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every problem goes to the solver."""
    monkeypatch.setattr(milp, "search", lambda *args, **kwargs: None)


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("seed", range(6))
def test_solvers_find_the_maximum(name: SolverName, seed: int) -> None:
    planes = random_planes(seed)
    bound = solve(planes, 4, SOLVERS[name])
    assert bound.ending is Ending.OPTIMAL
    assert bound.fooled_upper == exact(planes, 4)
    assert bound.fooled_upper >= on_grid(planes)
    assert bound.proposal is not None
    assert np.abs(bound.proposal).max() <= EPS


@pytest.mark.usefixtures("no_search")
def test_solvers_agree_on_larger_problems() -> None:
    for seed in range(3):
        planes = random_planes(seed, inputs=6, rivals=2, dimension=10, height=0.5)
        counts = {solve(planes, 6, solver).fooled_upper for solver in SOLVERS.values()}
        assert counts == {exact(planes, 6)}


@pytest.mark.parametrize("seed", range(8))
def test_search_never_claims_more_than_there_is(seed: int) -> None:
    planes = random_planes(seed, inputs=3, height=0.3)
    found = search(planes, inputs=3, eps=EPS, starts=[np.zeros(2)])
    if found is not None:
        assert np.abs(found).max() <= EPS
        assert planes.fooled(found) == 3 == exact(planes, 3)


def test_search_spares_the_solver() -> None:
    class Untouched(Solver):
        def solve(self, problem: pulp.LpProblem, *, time_limit: float, threads: int) -> SolverAnswer:
            raise AssertionError("the solver was called")

    bound = solve(random_planes(0, height=0.05), 4, Untouched())
    assert bound.fooled_upper == 4
    assert bound.words.startswith("no MILP")


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize("name", list(SOLVERS))
def test_several_planes_of_one_pair_hold_at_once(name: SolverName) -> None:
    # input 0: u0 <= -0.05 and u0 >= 0.05 contradict; input 1 alone can be fooled
    planes = GroupPlanes(
        owner=np.array([0, 0, 1]),
        rival=np.array([1, 1, 1]),
        coefficient=np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]),
        offset=np.array([0.05, 0.05, 0.05]),
    )
    assert solve(planes, 2, SOLVERS[name]).fooled_upper == 1


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize("name", list(SOLVERS))
def test_a_tie_in_one_corner_counts_as_fooled(name: SolverName) -> None:
    rng = np.random.default_rng(0)
    sign = rng.choice([-1.0, 1.0], size=50)
    coefficient = sign * rng.uniform(0.1, 10, size=(3, 50))
    touching = GroupPlanes(
        owner=np.arange(3),
        rival=np.ones(3, dtype=np.int64),
        coefficient=coefficient,
        offset=EPS * np.abs(coefficient).sum(axis=1),  # 0 at u = -eps * sign only
    )
    assert solve(touching, 3, SOLVERS[name]).fooled_upper == 3


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_units_of_the_margins_do_not_matter(name: SolverName, scale: float) -> None:
    planes = random_planes(1)
    scaled = GroupPlanes(
        owner=planes.owner,
        rival=planes.rival,
        coefficient=planes.coefficient * scale,
        offset=planes.offset * scale,
    )
    assert solve(scaled, 4, SOLVERS[name]).fooled_upper == exact(planes, 4)


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_planes_that_are_not_finite_count_as_fooled(name: SolverName, bad: float) -> None:
    planes = GroupPlanes(
        owner=np.array([0, 1]),
        rival=np.array([1, 1]),
        coefficient=np.array([[bad, 0.0], [1.0, 0.0]]),
        offset=np.array([5.0, 0.05]),
    )
    assert solve(planes, 2, SOLVERS[name]).fooled_upper == 2


@pytest.mark.parametrize("name", list(SOLVERS))
def test_eps_0_loses_every_open_input(name: SolverName) -> None:
    planes = random_planes(0)
    closed = GroupPlanes(
        owner=planes.owner, rival=planes.rival, coefficient=planes.coefficient, offset=0 * planes.offset
    )
    bound = bound_fooled(closed, inputs=4, eps=0.0, known=[], solver=SOLVERS[name], time_limit=5)
    assert bound.fooled_upper == 4


def test_tiny_coefficients_leave_the_row_on_the_valid_side(no_search: None) -> None:
    # 2000 coefficients too small for a solver, together enough to reach the plane's zero
    small = 0.9 * milp.SMALLEST_COEFFICIENT
    coefficient = np.r_[1.0, np.full(2000, small)][None].repeat(2, axis=0)
    reach = EPS * np.abs(coefficient).sum(axis=1)
    planes = GroupPlanes(
        owner=np.arange(2), rival=np.ones(2, dtype=np.int64), coefficient=coefficient, offset=reach * (1 - 1e-9)
    )
    for solver in SOLVERS.values():
        assert solve(planes, 2, solver).fooled_upper == 2


@dataclass(frozen=True)
class Fake(Solver):
    """Says what it is told, and may leave values in the problem's variables."""

    answer: SolverAnswer | Exception
    value: float | None = None

    def solve(self, problem: pulp.LpProblem, *, time_limit: float, threads: int) -> SolverAnswer:
        for variable in problem.variables():
            variable.varValue = self.value
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def says(ending: Ending, dual: float | None, objective: float | None = None) -> SolverAnswer:
    return SolverAnswer(ending=ending, dual_bound=dual, objective=objective, words="fake")


BLOCKED = GroupPlanes(  # input 0 and 1 exclude each other, input 2 is free: the maximum is 2 of 3
    owner=np.arange(3),
    rival=np.ones(3, dtype=np.int64),
    coefficient=np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]),
    offset=np.array([0.05, 0.05, 0.05]),
)


@pytest.mark.parametrize(
    ("answer", "fooled", "ending"),
    [
        (says(Ending.OPTIMAL, 2.0, 2.0), 2, Ending.OPTIMAL),
        (says(Ending.OPTIMAL, 1.9999999, 1.9999999), 2, Ending.OPTIMAL),  # integrality tolerance
        (says(Ending.TIME_LIMIT, 2.7, 1.0), 2, Ending.TIME_LIMIT),
        (says(Ending.TIME_LIMIT, 3.0, 1.0), 3, Ending.TIME_LIMIT),  # a wrong (too low) incumbent changes nothing
        (says(Ending.TIME_LIMIT, 1e9, 0.0), 3, Ending.TIME_LIMIT),
        (says(Ending.TIME_LIMIT, math.inf, None), 3, Ending.TIME_LIMIT),
        (says(Ending.TIME_LIMIT, None, 1.0), 3, Ending.NO_BOUND),
        (says(Ending.OPTIMAL, None, 1.0), 3, Ending.NO_BOUND),
        (says(Ending.OPTIMAL, math.nan, 1.0), 3, Ending.NO_BOUND),
        (says(Ending.OPTIMAL, -math.inf, None), 3, Ending.NO_BOUND),
        (says(Ending.OPTIMAL, -1.0, None), 3, Ending.NO_BOUND),
        (says(Ending.OPTIMAL, 1.0, 2.0), 3, Ending.NO_BOUND),  # incumbent better than the bound
        (says(Ending.OPTIMAL, 1.0, math.nan), 3, Ending.NO_BOUND),
        (says(Ending.NO_BOUND, 0.0, 0.0), 3, Ending.NO_BOUND),  # "Infeasible"
        (pulp.PulpSolverError("killed"), 3, Ending.NO_BOUND),
        (OSError("no such solver"), 3, Ending.NO_BOUND),
    ],
)
def test_nothing_that_a_solver_says_raises_the_count_above_the_truth(
    answer: SolverAnswer | Exception, fooled: int, ending: Ending
) -> None:
    assert exact(BLOCKED, 3) == 2
    bound = solve(BLOCKED, 3, Fake(answer))
    assert (bound.fooled_upper, bound.ending) == (fooled, ending)
    assert bound.fooled_upper >= 2


def test_tolerances_grow_with_the_number_of_pixels() -> None:
    """12,288 pixels, each with a reduced cost that is off by 1e-7: the dual bound may lie 2.4e-3 too low."""
    wide = replace(BLOCKED, coefficient=np.pad(BLOCKED.coefficient, ((0, 0), (0, 12286))))
    assert solve(wide, 3, Fake(says(Ending.OPTIMAL, 1.998, 1.998))).fooled_upper == 2


def test_a_bound_below_a_known_perturbation_is_not_believed() -> None:
    fools_two = np.array([-EPS, -EPS])
    assert BLOCKED.fooled(fools_two) == 2
    bound = bound_fooled(
        BLOCKED, inputs=3, eps=EPS, known=[fools_two], solver=Fake(says(Ending.OPTIMAL, 1.0)), time_limit=1
    )
    assert (bound.fooled_upper, bound.ending) == (3, Ending.NO_BOUND)
    assert "a known perturbation reaches" in bound.words


def test_the_solvers_own_point_counts_as_known() -> None:
    bound = solve(BLOCKED, 3, Fake(says(Ending.OPTIMAL, 1.0, 1.0), value=-1.0))  # v = -1: u = (-eps, -eps)
    assert (bound.fooled_upper, bound.ending) == (3, Ending.NO_BOUND)


def test_a_proposal_is_clamped_into_the_box_and_nan_is_dropped() -> None:
    wild = solve(BLOCKED, 3, Fake(says(Ending.TIME_LIMIT, 3.0), value=7.0)).proposal
    assert wild is not None
    assert np.abs(wild).max() == EPS
    assert solve(BLOCKED, 3, Fake(says(Ending.TIME_LIMIT, 3.0), value=math.nan)).proposal is None
    assert solve(BLOCKED, 3, Fake(says(Ending.TIME_LIMIT, 3.0), value=None)).proposal is None


def both(first: SolverAnswer | Exception, second: SolverAnswer | Exception) -> MilpBound:
    return solve(BLOCKED, 3, Both(first=Fake(first), second=Fake(second)))


def test_of_two_solvers_the_lower_bound_counts() -> None:
    late = says(Ending.TIME_LIMIT, 3.0, 1.0)
    for pair in ((late, says(Ending.OPTIMAL, 2.0, 2.0)), (says(Ending.OPTIMAL, 2.0, 2.0), late)):
        bound = both(*pair)
        assert (bound.fooled_upper, bound.ending, bound.words) == (2, Ending.OPTIMAL, "fake; fake")


@pytest.mark.parametrize(
    "silent",
    [
        says(Ending.NO_BOUND, 0.0, 0.0),
        says(Ending.OPTIMAL, None, 1.0),
        says(Ending.OPTIMAL, math.nan, 1.0),
        pulp.PulpSolverError("killed"),
    ],
)
def test_a_solver_without_a_bound_has_no_say(silent: SolverAnswer | Exception) -> None:
    good = says(Ending.OPTIMAL, 2.0, 2.0)
    assert both(good, silent).fooled_upper == both(silent, good).fooled_upper == 2
    assert both(silent, silent).fooled_upper == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (says(Ending.OPTIMAL, 1.0, 1.0), says(Ending.OPTIMAL, 2.0, 2.0)),
        (says(Ending.OPTIMAL, 2.0, 2.0), says(Ending.TIME_LIMIT, 1.2, 0.0)),
        (says(Ending.OPTIMAL, -math.inf, None), says(Ending.OPTIMAL, 2.0, 2.0)),
    ],
)
def test_solvers_that_disagree_stop_the_run_with_both_answers(one: SolverAnswer, other: SolverAnswer) -> None:
    with pytest.raises(SoundnessError, match=r"the MILP solvers disagree: one says that at most .* the other reaches"):
        both(one, other)


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("limit", [0.001, 0.005, 0.02, 0.1])
def test_real_time_limits_stay_on_the_valid_side(name: SolverName, limit: float) -> None:
    planes = random_planes(0, inputs=30, rivals=3, dimension=3, height=0.6)
    truth = 21
    bound = solve(planes, 30, SOLVERS[name], time_limit=limit)
    assert truth <= bound.fooled_upper <= 30
    assert bound.seconds < 10


def test_the_truth_of_the_time_limit_test() -> None:
    assert exact(random_planes(0, inputs=30, rivals=3, dimension=3, height=0.6), 30) == 21


@pytest.mark.parametrize("name", list(SOLVERS))
def test_after_a_time_limit_the_bound_is_the_dual_one(name: SolverName) -> None:
    """A problem that neither solver closes in minutes: the incumbent is about half of the dual bound."""
    problem, _ = milp._model(random_planes(0, inputs=60, rivals=3, dimension=20, height=0.3), EPS)
    answer = SOLVERS[name].solve(problem, time_limit=1.5, threads=1)
    assert answer.ending is Ending.TIME_LIMIT
    assert answer.dual_bound is not None
    assert answer.objective is not None
    assert answer.objective + 5 < answer.dual_bound <= 60.001


HEAD = "Welcome to the CBC MILP Solver\nContinuous objective value is 6 - 0.00 seconds\n"
OPTIMAL = "\nResult - Optimal solution found\n\nObjective value:                5.00000000\nEnumerated nodes:  0\n"
STOPPED = (
    "\nResult - Stopped on time limit\n\nObjective value:                35.00000000\n"
    "Upper bound:                    59.612\nGap:                            -0.42\n"
)
NO_INCUMBENT = (
    "\nResult - Stopped on time limit\n\nNo feasible solution found\nUpper bound:                    60.000\n"
)


@pytest.mark.parametrize(
    ("log", "ending", "dual", "objective"),
    [
        (HEAD + OPTIMAL, Ending.OPTIMAL, 5.0, 5.0),
        (HEAD + STOPPED, Ending.TIME_LIMIT, 59.612, 35.0),
        (HEAD + NO_INCUMBENT, Ending.TIME_LIMIT, 60.0, None),
        (HEAD + "Pre-processing says infeasible or unbounded\n", Ending.NO_BOUND, None, None),
        (HEAD + "\nResult - Problem proven infeasible\n\nNo feasible solution found\n", Ending.NO_BOUND, None, None),
        (HEAD + OPTIMAL.replace("found", "found (within gap tolerance)"), Ending.NO_BOUND, None, 5.0),
        (HEAD + OPTIMAL + "Lower bound:   4.000\n", Ending.NO_BOUND, None, 5.0),
        (HEAD + OPTIMAL + OPTIMAL, Ending.NO_BOUND, None, None),
        (HEAD + STOPPED.replace("Upper", "Lower"), Ending.NO_BOUND, None, 35.0),
        (HEAD + STOPPED.replace("59.612", "5x.612"), Ending.NO_BOUND, None, 35.0),
        (HEAD + STOPPED.split("Upper")[0], Ending.NO_BOUND, None, 35.0),
        (HEAD, Ending.NO_BOUND, None, None),
        ("", Ending.NO_BOUND, None, None),
    ],
)
def test_cbc_logs(log: str, ending: Ending, dual: float | None, objective: float | None) -> None:
    answer = read_cbc_log(log)
    assert (answer.ending, answer.dual_bound, answer.objective) == (ending, dual, objective)


def test_fooled_is_a_lower_bound_in_exact_arithmetic() -> None:
    # 0.1 + 0.2 - 0.3 is not 0 in float64: a plane this close to 0 is not counted
    planes = GroupPlanes(
        owner=np.array([0]),
        rival=np.array([1]),
        coefficient=np.array([[1.0, 1.0]]),
        offset=np.array([-0.3]),
    )
    assert planes.fooled(np.array([0.1, 0.2])) == 0
    assert planes.fooled(np.array([0.1, 0.1])) == 1


def _planes(**change: Array) -> Callable[[], GroupPlanes]:
    parts = {"owner": np.arange(2), "rival": np.arange(2), "coefficient": np.ones((2, 3)), "offset": np.ones(2)}
    return lambda: GroupPlanes(**{**parts, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"offset": np.ones(3)}, {"rival": np.ones(1)}, {"coefficient": np.ones(2)}])
def test_planes_of_unequal_length(change: dict[str, Array]) -> None:
    with pytest.raises(ValueError, match="planes need owner"):
        _planes(**change)()


def test_an_open_input_without_planes_is_an_error() -> None:
    with pytest.raises(ValueError, match="every open input needs at least one plane"):
        solve(random_planes(0), 5, SOLVERS["cbc"])


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_the_time_limit_must_be_positive(limit: float) -> None:
    with pytest.raises(UsageError, match="it must be a positive number of seconds"):
        solve(random_planes(0), 4, SOLVERS["cbc"], time_limit=limit)
