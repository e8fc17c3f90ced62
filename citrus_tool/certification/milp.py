"""The group MILP over one shared perturbation, and the only module that talks to PuLP.

Zeng et al., "Towards robustness certification against universal perturbations" (ICLR 2023), the MILP over input
planes. Differs from the paper in:
  1. the maximised quantity is the number of fooled inputs, sum z_ij, with one binary per open (input, rival),
     exact M_ij from the box instead of 1e6, and no flags for inputs that are proven already;
  2. only the solver's DUAL bound is used. The paper's code returns the incumbent on a time-out, which is unsound.

With planes margin_ij(x_i + u) >= L_ij . u + b_ij on |u|_inf <= eps, any u that fools input i with rival j obeys
L_ij . u + b_ij <= 0, so the number of open inputs that one u can fool is at most

    max  sum_ij z_ij    s.t.  L_ij . u + b_ij <= M_ij (1 - z_ij),   sum_j z_ij <= 1,   -eps <= u <= eps,   z binary

with M_ij = b_ij + eps ||L_ij||_1, the plane's maximum over the box.

What is trusted: that the solver's dual bound is right up to its own tolerances. The model is built so that tolerances
stay on the valid side: u is scaled to v = u / eps in [-1, 1], every row is divided by eps ||L_ij||_1, and then relaxed
by ROW_SLACK, ten times the loosest primal tolerance in use (HiGHS 1e-6, CBC 1e-7); coefficients below
SMALLEST_COEFFICIENT, which solvers may drop, are moved into the constant at their worst value. Before a dual bound is
rounded down it is raised by DUAL_SLACK, for integrality tolerances (1e-6 per binary), and by DUAL_TOLERANCE times the
range 2 of every pixel, for reduced costs. Nothing is trusted that contradicts what is known: see `bound_fooled`.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final

import highspy
import numpy as np
import pulp
from numpy.typing import NDArray

from citrus_tool.choices import SolverName
from citrus_tool.errors import SoundnessError, UsageError

ROW_SLACK: Final = 1e-5
"""Every plane's row is relaxed by this fraction of the plane's half range eps ||L||_1."""
DUAL_SLACK: Final = 1e-3
"""Added to a dual bound (a count) before rounding down; the count's step is 1."""
DUAL_TOLERANCE: Final = 1e-7
"""Wrong sign of a reduced cost that solvers let pass as 0 (HiGHS and CBC: 1e-7)."""
SMALLEST_COEFFICIENT: Final = 1e-8
"""Scaled coefficients below this leave the row at their worst value (HiGHS drops those below 1e-9)."""

COUNT_TOLERANCE: Final = 0.5
"""Counts of two solvers that are further apart are different counts."""

SEARCH_STEPS: Final = 200
"""Steps of the search that may spare the solver."""
SEARCH_MARGIN: Final = 1e-6
"""How far below 0 the search aims, as a fraction of a plane's half range."""

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class GroupPlanes:
    """margin(owner, rival)(u) >= coefficient . u + offset for all |u|_inf <= eps, for open (input, rival) pairs.

    `owner` (m,) numbers the open inputs of one group from 0; `rival` (m,); `coefficient` (m, d); `offset` (m,).
    A pair may have several planes; all of them then hold at once.
    """

    owner: NDArray[np.int64]
    rival: NDArray[np.int64]
    coefficient: Array
    offset: Array

    def __post_init__(self) -> None:
        m = len(self.owner)
        if (
            self.rival.shape != (m,)
            or self.offset.shape != (m,)
            or self.coefficient.shape[:1] != (m,)
            or self.coefficient.ndim != 2
        ):
            raise ValueError("planes need owner (m,), rival (m,), coefficient (m, d) and offset (m,).")

    def fooled(self, u: Array) -> int:
        """Number of inputs that the planes allow to be fooled at u (d,): some rival with all its planes <= 0.

        Evaluated in float64 with the terms' rounding error bounded, so that a pair counts only if its planes are <= 0
        in exact arithmetic: a lower bound of the MILP's optimum for every |u| <= eps.
        """
        terms = self.coefficient.shape[1] + 2
        with np.errstate(invalid="ignore"):  # a plane that is not finite compares as False
            value = self.coefficient @ u + self.offset
            error = terms * 2.0**-52 * (np.abs(self.coefficient) @ np.abs(u) + np.abs(self.offset))
            allowed = value + error <= 0
        pairs = np.stack([self.owner, self.rival], axis=1)
        blocked = {(int(i), int(j)) for i, j in pairs[~allowed]}
        return len({int(i) for i, j in pairs if (int(i), int(j)) not in blocked})


def search(planes: GroupPlanes, *, inputs: int, eps: float, starts: Sequence[Array]) -> Array | None:
    """Looks for one |u| <= eps (d,) at which the planes allow all `inputs` to be fooled; None when it finds none.

    Signed-subgradient descent on sum_i max(0, min_j max_p plane_ijp(u)). Such a u shows that the MILP's optimum is
    `inputs`, so that no solver is needed.
    """
    reach = np.abs(planes.coefficient).sum(axis=1)
    a = planes.coefficient / np.where(reach > 0, reach, 1.0)[:, None]
    b = planes.offset / np.where(reach > 0, reach, 1.0) + SEARCH_MARGIN * eps
    pairs, pair_of = np.unique(np.stack([planes.owner, planes.rival], axis=1), axis=0, return_inverse=True)
    for start in starts:
        u = np.clip(start, -eps, eps)
        for step in range(SEARCH_STEPS):
            value = a @ u + b
            of_pair = np.full(len(pairs), -np.inf)
            np.maximum.at(of_pair, pair_of, value)
            of_input = np.full(inputs, np.inf)
            np.minimum.at(of_input, pairs[:, 0], of_pair)
            if of_input.max() <= 0 and planes.fooled(u) == inputs:
                return u
            # the planes that decide an input that is not fooled yet
            active = (value > 0) & (value == of_pair[pair_of]) & (of_pair == of_input[pairs[:, 0]])[pair_of]
            u = np.clip(u - eps * (1 - step / SEARCH_STEPS) * np.sign(value[active] @ a[active]), -eps, eps)
    return None


class Ending(Enum):
    """How a solver run ended, each with its sentence for the user."""

    OPTIMAL = "the solver proved its dual bound optimal"
    TIME_LIMIT = "the solver reached its time limit; its dual bound at that moment is used"
    NO_BOUND = "the solver gave no dual bound that can be trusted; every open input counts as lost"


@dataclass(frozen=True, kw_only=True)
class SolverAnswer:
    """What a solver says about a maximisation: how it ended, its dual (upper) bound, its incumbent's objective.

    `dual_bound` is None when the solver gave none; `words` are the solver's own, for messages.
    The variables' values (LpVariable.varValue) are a proposal only.
    """

    ending: Ending
    dual_bound: float | None
    objective: float | None
    words: str

    @property
    def usable(self) -> bool:
        """Whether there is a dual bound that is a number."""
        return self.ending is not Ending.NO_BOUND and self.dual_bound is not None and not math.isnan(self.dual_bound)

    @property
    def bound(self) -> float:
        """The dual bound, where it is usable; infinite otherwise."""
        return self.dual_bound if self.usable and self.dual_bound is not None else math.inf


class Solver(ABC):
    """One MILP solver behind PuLP."""

    @abstractmethod
    def solve(self, problem: pulp.LpProblem, *, time_limit: float, threads: int) -> SolverAnswer:
        """Maximises `problem`, gap 0, within `time_limit` seconds. May raise pulp.PulpSolverError when it crashes."""


@dataclass(frozen=True, kw_only=True)
class MilpBound:
    """The MILP's result for one group.

    `fooled_upper`: no |u| <= eps fools more of the group's open inputs. `proposal`: a u (d,) within eps worth attacking
    from, or None. `words`: what happened, for the certificate.
    """

    fooled_upper: int
    ending: Ending
    words: str
    proposal: Array | None
    seconds: float


def bound_fooled(
    planes: GroupPlanes,
    *,
    inputs: int,
    eps: float,
    known: Sequence[Array],
    solver: Solver,
    time_limit: float,
    threads: int = 1,
) -> MilpBound:
    """An upper bound on how many of `inputs` open inputs one |u|_inf <= eps can fool.

    What each ending returns, and why that is on the valid side:
        optimal, time limit: floor(dual bound + tolerances), at most `inputs`. Any dual bound is an upper bound of the
            maximum, and the maximum is an integer. The incumbent, which is a LOWER bound, is never used.
        anything else (infeasible, which cannot be since z = 0 is feasible, and which CBC nevertheless reports when its
            time limit falls into preprocessing; unbounded; crash; no bound; NaN; a bound below a known point, or below
            the incumbent that the solver itself reports): `inputs`, all open inputs lost.

    Args:
        planes: at least one for every open input 0 .. inputs-1 (an input without one would never count as fooled).
        eps: in pixel space.
        time_limit: seconds that the solver may take.
        known: perturbations (d,) with |u| <= eps that were tried already. Each gives a lower bound of the MILP's
            optimum (GroupPlanes.fooled), so a solver whose dual bound lies below it is wrong and is not believed.

    Raises:
        ValueError: an open input without planes. UsageError: a time limit that is not a positive number.
    """
    if set(planes.owner.tolist()) != set(range(inputs)):
        raise ValueError("every open input needs at least one plane.")
    if not time_limit > 0:
        raise UsageError(f"the time limit is {time_limit!r}; it must be a positive number of seconds.")
    start = time.monotonic()
    found = search(planes, inputs=inputs, eps=eps, starts=[*known, np.zeros(planes.coefficient.shape[1])])
    if found is not None:
        return MilpBound(
            fooled_upper=inputs,
            ending=Ending.OPTIMAL,
            words="no MILP: the bounds allow one perturbation to fool every open input",
            proposal=found,
            seconds=time.monotonic() - start,
        )
    problem, variables = _model(planes, eps)
    answer = _answer(solver, problem, time_limit, threads)
    try:
        proposal = _proposal(variables, planes.coefficient.shape[1], eps)
    except ValueError:
        proposal = None
    floor = max((planes.fooled(u) for u in [*known, *([] if proposal is None else [proposal])]), default=0)
    slack = DUAL_SLACK + 2 * DUAL_TOLERANCE * planes.coefficient.shape[1]
    distrust = _distrust(answer, floor, slack)
    if distrust is None:
        assert answer.dual_bound is not None
        fooled_upper = math.floor(min(answer.dual_bound + slack, inputs))  # a bound of +inf (time-out) says nothing
        ending, words = answer.ending, answer.words
    else:
        fooled_upper, ending, words = inputs, Ending.NO_BOUND, f"{distrust} ({answer.words})"
    return MilpBound(
        fooled_upper=fooled_upper, ending=ending, words=words, proposal=proposal, seconds=time.monotonic() - start
    )


def _answer(solver: Solver, problem: pulp.LpProblem, time_limit: float, threads: int) -> SolverAnswer:
    """The solver's answer; a crash is one without a bound."""
    try:
        return solver.solve(problem, time_limit=time_limit, threads=threads)
    except (pulp.PulpError, OSError, ValueError) as error:
        return SolverAnswer(
            ending=Ending.NO_BOUND, dual_bound=None, objective=None, words=f"the solver failed: {error}"
        )


def _distrust(answer: SolverAnswer, floor: int, slack: float) -> str | None:
    """Why the answer's dual bound, `slack` included, cannot be used, or None.

    `floor`: a count that the MILP certainly reaches.
    """
    dual = answer.dual_bound
    if answer.ending is Ending.NO_BOUND or dual is None:
        return "no dual bound"
    if math.isnan(dual):
        return "the dual bound is not a number"
    if dual + slack < floor:
        return f"the dual bound {dual:g} lies below {floor}, which a known perturbation reaches"
    if answer.objective is not None and not dual + slack >= answer.objective:
        return f"the dual bound {dual:g} lies below the solver's own incumbent {answer.objective:g}"
    return None


def _model(planes: GroupPlanes, eps: float) -> tuple[pulp.LpProblem, dict[int, pulp.LpVariable]]:
    """The scaled MILP and its variables v_d = u_d / eps for the dimensions that occur."""
    coefficient = eps * planes.coefficient
    reach = np.abs(coefficient).sum(axis=1)
    # A row restricts u only if the plane is positive somewhere: reach + offset > 0. GroupPlanes that are not finite, or
    # that have no slope, never restrict; their z stays free, so that the pair counts as fooled.
    binding = np.isfinite(reach) & np.isfinite(planes.offset) & (reach > 0) & (reach + planes.offset > 0)
    scale = np.where(binding, reach, 1.0)
    a = np.where(binding[:, None], coefficient, 0.0) / scale[:, None]
    b = np.where(binding, planes.offset, 0.0) / scale
    small = np.abs(a) < SMALLEST_COEFFICIENT
    b = b - np.abs(np.where(small, a, 0.0)).sum(axis=1) - ROW_SLACK
    a[small] = 0.0

    problem = pulp.LpProblem("group", pulp.LpMaximize)
    v = {int(d): problem.add_variable(f"v{d}", -1, 1) for d in np.flatnonzero(np.any(a != 0, axis=0))}
    z: dict[int, dict[int, pulp.LpVariable]] = {}
    for owner, rival in zip(planes.owner.tolist(), planes.rival.tolist(), strict=True):
        rivals = z.setdefault(owner, {})
        if rival not in rivals:
            rivals[rival] = problem.add_variable(f"z{owner}_{rival}", cat=pulp.LpBinary)
    problem += pulp.lpSum(variable for rivals in z.values() for variable in rivals.values())
    for rivals in z.values():
        problem += pulp.lpSum(rivals.values()) <= 1
    for row in np.flatnonzero(binding):
        # exact M of the unrelaxed plane: with z = 0 the relaxed row is slack by at least ROW_SLACK for every v
        big = float(1.0 + planes.offset[row] / scale[row])
        terms = [(v[int(d)], float(a[row, d])) for d in np.flatnonzero(a[row])]
        terms.append((z[int(planes.owner[row])][int(planes.rival[row])], big))
        problem += pulp.LpAffineExpression(terms) <= big - float(b[row])
    return problem, v


def _proposal(variables: dict[int, pulp.LpVariable], dimension: int, eps: float) -> Array | None:
    """The solver's u, clamped into the box; None when it holds no values."""
    u = np.zeros(dimension)
    for d, variable in variables.items():
        if variable.varValue is None:
            return None
        u[d] = eps * float(variable.varValue)
    return np.clip(u, -eps, eps) if np.isfinite(u).all() else None


_LINE = re.compile(r"^(Result - |Objective value:|Upper bound:|Lower bound:)\s*(\S.*?)\s*$", re.MULTILINE)


def read_cbc_log(log: str) -> SolverAnswer:
    """CBC's answer to a maximisation, from its log (measured on the CBC 2.10.3 that PuLP 3.3.2 bundles).

    Its status cannot be used: on a time limit with an incumbent PuLP reports 1 "Optimal". The log is unambiguous and
    prints a maximisation's numbers with their own sign:
        "Result - Optimal solution found" and "Objective value:" once each -> OPTIMAL, dual bound = objective value,
            since relative and absolute gap are 0 and the search tree is exhausted;
        "Result - Stopped on time limit" and "Upper bound:" once each -> TIME_LIMIT with that bound, the largest bound
            among open nodes; printed to 3 decimals, which is monotone and keeps integers, so that rounding down stays
            valid. "Objective value:" is the incumbent there, and is missing when there is none;
        anything else ("(within gap tolerance)", "Problem proven infeasible", "Linear relaxation infeasible", no
            "Result" line as after "Pre-processing says infeasible or unbounded", "Lower bound:", torn or doubled
            lines) -> NO_BOUND.
    """
    found: dict[str, list[str]] = {}
    for key, value in _LINE.findall(log):
        found.setdefault(key.strip(" -:"), []).append(value)
    result = found.get("Result", [])
    objective, upper = _single(found.get("Objective value")), _single(found.get("Upper bound"))
    words = "CBC: " + (result[0] if len(result) == 1 else "no single result in its log")
    if (
        result == ["Optimal solution found"]
        and objective is not None
        and not found.keys() & {"Upper bound", "Lower bound"}
    ):
        return SolverAnswer(ending=Ending.OPTIMAL, dual_bound=objective, objective=objective, words=words)
    if result == ["Stopped on time limit"] and upper is not None and "Lower bound" not in found:
        return SolverAnswer(ending=Ending.TIME_LIMIT, dual_bound=upper, objective=objective, words=words)
    return SolverAnswer(ending=Ending.NO_BOUND, dual_bound=None, objective=objective, words=words)


def _single(values: list[str] | None) -> float | None:
    if values is None or len(values) != 1:
        return None
    try:
        return float(values[0])
    except ValueError:
        return None


def _cbc(**options: Any) -> pulp.PULP_CBC_CMD:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP 4 moves the bundled CBC to another package
        return pulp.PULP_CBC_CMD(msg=False, gapRel=0, gapAbs=0, **options)


@dataclass(frozen=True, kw_only=True)
class Cbc(Solver):
    """CBC through PuLP. The answer is read from the log, see `read_cbc_log`; PuLP's status is not used.

    With one thread CBC runs its serial, deterministic search.
    """

    def solve(self, problem: pulp.LpProblem, *, time_limit: float, threads: int) -> SolverAnswer:
        with tempfile.TemporaryDirectory(prefix="citrus-cbc-") as folder:
            log = Path(folder) / "log.txt"
            command = _cbc(timeLimit=time_limit, threads=threads if threads > 1 else None, logPath=str(log))
            command.tmpDir = folder
            problem.solve(command)
            return read_cbc_log(log.read_text(errors="replace"))


@dataclass(frozen=True, kw_only=True)
class Highs(Solver):
    """HiGHS through PuLP, which negates a maximisation: its numbers are read with the sign flipped.

    Model status kOptimal -> OPTIMAL, kTimeLimit -> TIME_LIMIT, both with dual bound -mip_dual_bound (relative and
    absolute gap 0). Any other status (kInfeasible, kUnbounded, kSolveError, ...) -> NO_BOUND.
    """

    def solve(self, problem: pulp.LpProblem, *, time_limit: float, threads: int) -> SolverAnswer:
        problem.solve(pulp.HiGHS(msg=False, timeLimit=time_limit, gapRel=0.0, gapAbs=0.0, threads=threads))
        status, info = problem.solverModel.getModelStatus(), problem.solverModel.getInfo()
        words = f"HiGHS: {problem.solverModel.modelStatusToString(status)}"
        objective = -float(info.objective_function_value)
        endings = {
            highspy.HighsModelStatus.kOptimal: Ending.OPTIMAL,
            highspy.HighsModelStatus.kTimeLimit: Ending.TIME_LIMIT,
        }
        ending = endings.get(status, Ending.NO_BOUND)
        return SolverAnswer(
            ending=ending,
            dual_bound=None if ending is Ending.NO_BOUND else -float(info.mip_dual_bound),
            objective=objective if math.isfinite(objective) else None,
            words=words,
        )


@dataclass(frozen=True, kw_only=True)
class Both(Solver):
    """Two solvers, each with the whole time limit, whose answers must be able to hold together.

    They do not where one's dual bound is below what the other says it reaches, or where both claim the optimum and mean
    different counts. A solver without a bound has no answer to compare.
    """

    first: Solver
    second: Solver

    def solve(self, problem: pulp.LpProblem, *, time_limit: float, threads: int) -> SolverAnswer:
        """The lower of the two dual bounds. Raises SoundnessError, with both answers, where the solvers disagree."""
        one, other = (_answer(some, problem, time_limit, threads) for some in (self.first, self.second))
        for low, high in ((one, other), (other, one)):
            if high.objective is not None and high.usable and low.bound + COUNT_TOLERANCE < high.objective:
                raise SoundnessError(
                    f"the MILP solvers disagree: one says that at most {low.bound:g} inputs can be fooled"
                    f" ({low.words}), the other reaches {high.objective:g} ({high.words}); the certificate is void,"
                    " please report the network and the settings."
                )
        best = min((one, other), key=lambda answer: (not answer.usable, answer.bound))
        return replace(best, words=f"{one.words}; {other.words}")


SOLVERS: Final[dict[SolverName, Solver]] = {
    "cbc": Cbc(),
    "highs": Highs(),
    "both": Both(first=Cbc(), second=Highs()),
}
"""The solvers by the name that `--solver` takes."""


def named(name: SolverName) -> Solver:
    """The solver of that name. Raises UsageError for CBC where PuLP brings no executable for this machine."""
    if name != "highs" and not _cbc().available():
        raise UsageError("PuLP has no CBC executable for this machine; use --solver highs.")
    return SOLVERS[name]
