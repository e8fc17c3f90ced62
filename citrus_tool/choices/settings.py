"""What is chosen of a certification, an attack and a search, beside the network, the data and the threat."""

from __future__ import annotations

from dataclasses import dataclass

from citrus_tool.choices import (
    ARITHMETICS,
    BOUNDS,
    INTERMEDIATES,
    PROTOCOLS,
    QUICK_BOUNDS,
    SCOPES,
    SOLVERS,
    Arithmetic,
    BoundsName,
    Intermediate,
    Protocol,
    QuickBounds,
    Scope,
    SolverName,
)
from citrus_tool.choices.fields import Rule, check, like, one_of, option


def _from(least: int) -> Rule:
    return Rule(whole=True, low=least, demand=f"it must be an integer of at least {least}.")


_SECONDS = Rule(low=0.0, open_low=True, demand="it must be a positive number of seconds.")


@dataclass(frozen=True, kw_only=True)
class CertifySettings:
    """What `certify_uap` does beside the network, the data and eps. Raises UsageError for values that make no sense.

    Attributes:
        group_size: inputs that share one perturbation; the last group may be smaller.
        protocol: `all` inputs in order, misclassified ones count as lost; or `correct`: of the first 3 * limit inputs
            the misclassified ones are dropped and the first `limit` others kept (RaVeN, RACoon, RABBit).
        scope: one perturbation for each of the consecutive `groups`, or one for the whole `dataset`, whose certificate
            is never below that of the groups (dataset.py).
        bounds: the strongest bounds in use; `ibp` stops after IBP, `crown` runs IBP, CROWN and the MILP, `alpha` puts
            alpha-CROWN before the MILP, `full` alpha-CROWN, branch and bound on each input, and the cross-execution
            loop in place of the MILP (networks that branch and bound cannot split keep the MILP).
        branch_nodes: parts of the box that branch and bound may bound for one input; this budget is deterministic.
        branch_seconds: seconds that it may take for one input that CROWN leaves open, on average over a batch; a result
            that this limit cuts short depends on the machine.
        arithmetic: what is certified: every run of the file in `float32`, or the network in `real` arithmetic.
        intermediate: bounds of hidden neurons, by CROWN intersected with IBP, or by CROWN alone (as published).
        solver, threads: of the MILP.
        time_limit: seconds a group that the MILP or the cross-execution loop may take; the search across groups may
            take as much for each group with an open input.
        attack_steps, attack_restarts, seed: of the attack on the shared perturbation.
        limit: how many inputs are judged; None: all.
    """

    group_size: int = option(5, rule=_from(1), help="How many inputs share one perturbation.")
    protocol: Protocol = option(
        "all",
        rule=one_of(PROTOCOLS),
        help="Judge all inputs, or only those that are classified correctly without a perturbation.",
    )
    scope: Scope = option(
        "groups",
        rule=one_of(SCOPES),
        help="One perturbation for each group of inputs, or one for all of them.",
    )
    bounds: BoundsName = option(
        "crown",
        rule=one_of(BOUNDS),
        help="The strongest bounds in use; full is alpha-CROWN and branch and bound.",
    )
    arithmetic: Arithmetic = option(
        "float32",
        rule=one_of(ARITHMETICS),
        help="What is certified: every run of the file in float32, or the network in real arithmetic.",
    )
    intermediate: Intermediate = option(
        "intersect",
        rule=one_of(INTERMEDIATES[::-1], f"choose one of {', '.join(INTERMEDIATES)}."),  # --help: the default first
        help="Bounds inside the network: CROWN's, or their intersection with IBP's.",
    )
    branch_nodes: int = option(
        4000,
        rule=_from(1),
        help="With --bounds full: parts of the box that branch and bound may look at for one input.",
    )
    branch_seconds: float = option(
        60.0,
        rule=_SECONDS,
        help="With --bounds alpha or full: seconds for one input that CROWN leaves open, on average.",
    )
    solver: SolverName = option(
        "cbc",
        rule=one_of(SOLVERS),
        help="MILP solver; both runs two, and stops with an error where they disagree.",
    )
    time_limit: float = option(60.0, rule=_SECONDS, help="Seconds for one group's MILP or cross-execution loop.")
    threads: int = option(1, rule=_from(1))
    attack_steps: int = option(50, rule=_from(0), help="Gradient steps of the attack for each restart.")
    attack_restarts: int = option(6, rule=_from(0), help="Restarts of the attack.")
    seed: int = option(0, rule=_from(0), help="Draws splits, batches and starting points.")
    limit: int | None = option(None, rule=_from(1), help="How many inputs are judged, in order.", unset="all")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """The effort of an attack and on what it is spent (docs/attack.md).

    Attributes:
        group_size: inputs that share one perturbation, consecutive ones; None: all of them share one.
        steps, restarts: as attacks.universal.attack_groups takes them, or for more than GROWN inputs in a group,
            attacks.dataset.attack_dataset.
        arithmetic: what is attacked: the file, as onnxruntime runs it in `float32`, or the network in `real`
            arithmetic.
        seed: draws the starting points.
        limit: how many inputs are attacked; None: all.
    """

    group_size: int | None = like(CertifySettings, "group_size")
    steps: int = like(CertifySettings, "attack_steps")
    restarts: int = like(CertifySettings, "attack_restarts")
    arithmetic: Arithmetic = like(
        CertifySettings,
        "arithmetic",
        help="What is attacked: the file as onnxruntime runs it in float32, or the network in real arithmetic.",
    )
    seed: int = like(CertifySettings, "seed")
    limit: int | None = like(CertifySettings, "limit")


def _tuned(least: int) -> Rule:
    return Rule(whole=True, low=least, demand=f"it must be at least {least}.")


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How a search for recipes is made. Raises UsageError for values that make no sense.

    Attributes:
        trials: how many recipes are tried, those before a resume included.
        inputs: the first inputs of the validation split, whose certified UAP accuracy is the second objective.
        bounds, group_size, arithmetic: of that certificate.
        weight: what a point of certified accuracy counts against one of standard accuracy where one recipe is chosen:
            the choice maximises (1 - weight) * standard + weight * certified.
        prune: give poor trials up.
        seed: draws the recipes.
    """

    trials: int = option(20, rule=_tuned(1), help="Recipes to try, resumed ones included.")
    inputs: int = like(CertifySettings, "limit", default=500, rule=_tuned(1))
    bounds: QuickBounds = option(
        "crown", rule=one_of(QUICK_BOUNDS), help="What proves the certified accuracy that is maximised."
    )
    group_size: int = like(CertifySettings, "group_size", rule=_tuned(1))
    arithmetic: Arithmetic = like(CertifySettings, "arithmetic")
    weight: float = option(
        0.5,
        rule=Rule(low=0.0, high=1.0, demand="it must lie in [0, 1]."),
        help="Share of certified accuracy in the score that chooses one recipe of the front.",
    )
    prune: bool = option(True, help="Give poor trials up early.")
    seed: int = like(CertifySettings, "seed", rule=_tuned(0))

    def __post_init__(self) -> None:
        check(self)
