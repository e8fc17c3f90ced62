"""Planted bugs: each makes some part of the prover, or of the checker, wrong, and has to be found by the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from citrus_tool.bounds import claims, crown, curves, duals, float32, interval, relaxation, rounding
from citrus_tool.certification import branch, conflicts, group, individual, milp, search, setup
from citrus_tool.checker import counting, intervals
from citrus_tool.checker.check import check
from citrus_tool.errors import CheckFailedError
from citrus_tool.network import MatMul, Multiply
from citrus_tool.threat import Box, Threat
from citrus_tool.threat.clip import clipped
from tests.soundness.cases import Case, Family, violations

Patches = list[tuple[Any, str, Any]]


def _wrong_slope() -> Patches:
    def lines(lower: Tensor, upper: Tensor, slope: float) -> relaxation.Lines:
        found = HONEST_LINES(lower, upper, slope)
        return replace(found, upper_offset=found.upper_offset * 0.5)

    return [(relaxation, "leaky_lines", lines)]


def _dropped_bias() -> Patches:
    def linear(layer: nn.Linear, box: Box) -> Box:
        return Box(
            centre=functional.linear(box.centre, layer.weight),
            radius=functional.linear(box.radius, layer.weight.abs()),
        )

    table = {**interval.INTERVAL, nn.Linear: linear}
    return [(rounding, "INTERVAL", table)]


def _signed_radius() -> Patches:
    def linear(layer: nn.Linear, box: Box) -> Box:
        return Box(centre=layer(box.centre), radius=functional.linear(box.radius, layer.weight).abs())

    return [(rounding, "INTERVAL", {**interval.INTERVAL, nn.Linear: linear})]


def _half_eps() -> Patches:
    def enclosure(self: Threat, x: Tensor) -> Box:
        return Box(centre=x.double(), radius=torch.full_like(x, self.outer / 2, dtype=torch.float64))

    return [(Threat, "enclosure", enclosure)]


def _missing_rival() -> Patches:
    def margins(*arguments: Any) -> Tensor:
        found: Tensor = rounding.outward_margins(*arguments)
        return found.index_fill(1, torch.tensor([found.shape[1] - 1]), torch.inf)

    return [(individual, "outward_margins", margins), (crown, "outward_margins", margins)]


def _incumbent() -> Patches:
    def answer(*arguments: Any) -> milp.SolverAnswer:
        return replace(HONEST_ANSWER(*arguments), dual_bound=0.0)

    return [(milp, "_answer", answer), (milp, "_distrust", lambda *_: None), (milp, "search", lambda *_, **__: None)]


def _one_more() -> Patches:
    honest = group.OpenGroup.result

    def result(self: group.OpenGroup, fooled_upper: int, *rest: Any) -> Any:
        return honest(self, max(0, fooled_upper - 1), *rest)

    return [(group.OpenGroup, "result", result)]


def _no_rounding() -> Patches:
    return [(float32.FileErrors, "at", lambda *_: None), (float32.FileErrors, "at_input", lambda *_: None)]


def _always_clipped() -> Patches:
    return [(setup, "perturbed_network", lambda network, threat: clipped(network))]


def _stale_sign() -> Patches:
    def stale(*arguments: Any) -> Any:
        found = duals.children(*arguments)
        return replace(found, side=found.side.index_fill(0, torch.tensor([len(found.side) - 1]), 1.0))

    return [(search, "children", stale)]


def _swapped_strides() -> Patches:
    def conv(layer: nn.Conv2d, box: Box) -> Box:
        turned = copy(layer)
        turned.stride = layer.stride[::-1]  # type: ignore[assignment]
        found: Box = interval.INTERVAL[nn.Conv2d](turned, box)
        return found

    return [(rounding, "INTERVAL", {**interval.INTERVAL, nn.Conv2d: conv})]


def _two_corners() -> Patches:
    def product(layer: nn.Module, x: Box, y: Box) -> Box:
        low, high = layer(x.lower, y.lower), layer(x.upper, y.upper)
        return Box.from_bounds(torch.minimum(low, high), torch.maximum(low, high))

    return [(rounding, "INTERVAL", {**interval.INTERVAL, Multiply: product, MatMul: product})]


def _no_spread() -> Patches:
    def planes(*arguments: Any) -> relaxation.ProductRelaxation:
        found = HONEST_PRODUCT(*arguments)
        return replace(found, spread=torch.zeros_like(found.spread))

    return [(crown, "RELAXATIONS", {**relaxation.RELAXATIONS, Multiply: planes, MatMul: planes})]


def _nearer_lines() -> Patches:
    def lines(*arguments: Any) -> curves.CurveLines:
        found = HONEST_CURVES(*arguments)
        return found._replace(lower_offset=0.5 * (found.lower_offset + found.upper_offset))

    return [(relaxation, "curve_lines", lines)]


def _wrong_multiplier() -> Patches:
    honest = claims.least_above

    def least(planes: Any, slope: Tensor, box: Box) -> Tensor:
        half = Box(centre=box.centre, radius=box.radius * 0.5)
        return honest(planes, slope, half)

    return [(claims, "least_above", least), (branch, "least_above", least)]


def _too_few_chosen() -> Patches:
    honest = conflicts.Conflicts.largest

    def largest(self: Any, *arguments: Any, **options: Any) -> Any:
        found = honest(self, *arguments, **options)
        return replace(found, bound=max(0, found.bound - 1))

    return [(conflicts.Conflicts, "largest", largest)]


HONEST_LINES, HONEST_ANSWER = relaxation.leaky_lines, milp._answer
HONEST_CURVES, HONEST_PRODUCT = relaxation.curve_lines, relaxation.RELAXATIONS[Multiply]
PROVER: dict[str, Callable[[], Patches]] = {
    "a line above with half its offset": _wrong_slope,
    "a bias that is dropped": _dropped_bias,
    "a radius by signed weights": _signed_radius,
    "half of eps": _half_eps,
    "a rival that is left out": _missing_rival,
    "the incumbent as a bound of the MILP": _incumbent,
    "one fooled input too few": _one_more,
    "float32 errors left out": _no_rounding,
    "bounds of the clipped network where nothing is clipped": _always_clipped,
    "half of the reach of a plane": _wrong_multiplier,
    "one input too few in the largest choice": _too_few_chosen,
    "one half of a split in place of the other": _stale_sign,
    "strides that are swapped": _swapped_strides,
    "two corners of a product": _two_corners,
    "the product of radii left out": _no_spread,
    "a line below a curve that is moved up": _nearer_lines,
}
"""Name -> what is replaced in the prover."""
FAMILIES: Mapping[str, Family] = {
    "one half of a split in place of the other": "deep",
    "strides that are swapped": "strided",
    "two corners of a product": "gated",
    "the product of radii left out": "gated",
    "a line below a curve that is moved up": "gated",
}
"""The networks that a bug is looked for on, where it shows on some only."""


@contextmanager
def planted(patches: Patches) -> Iterator[None]:
    """The bug, inside the block."""
    with ExitStack() as stack:
        for place, name, wrong in patches:
            stack.enter_context(patch.object(place, name, wrong))
        yield


def found_by(name: str, folder: Path, seeds: range) -> tuple[int, str] | None:
    """The first case (seed, words) whose violation gives the bug away; the bounds are those of the seed, in turn."""
    for seed in seeds:
        with planted(PROVER[name]()):
            words = next(violations(Case(seed=seed, family=FAMILIES.get(name, "any")), folder), None)
        if words is not None:
            return seed, words
    return None


def _certified_wrongly(folder: Path, patches: Patches, seeds: range) -> Iterator[tuple[Path, Path]]:
    """Proofs of a prover with a bug, with their networks."""
    from citrus_tool.certification.uap import certify_uap
    from tests.certification.toys import as_onnx

    for seed in seeds:
        case = Case(seed=seed, bounds="full", arithmetic="float32")
        try:
            model = as_onnx(case.network, folder, f"{seed}.onnx")
            with planted(patches):
                certify_uap(model, case.data, case.threat, replace(case.settings, scope="groups"), proof=folder / "p")
        except Exception:  # the prover's own checks found it, or the network has no proofs
            continue
        yield folder / "p", model.path


CHECKER: dict[str, tuple[Callable[[], Patches], Patches]] = {
    "the checker leaves float32 errors out": (
        _no_rounding,
        [(intervals, "gamma32", lambda terms: 0.0), (intervals, "FLOOR", 0.0)],
    ),
    "the checker counts too large a choice as impossible": (
        _too_few_chosen,
        [(counting, "choosable", lambda *_: False)],
    ),
}
"""Name -> a bug of the prover that the checker catches, and the bug of the checker with which it no longer does."""


def missed_by_the_checker(name: str, folder: Path, seeds: range) -> tuple[int, str] | None:
    """A proof that the checker refuses and, with its own bug planted, accepts: the difference gives it away."""
    prover, checker = CHECKER[name]
    for number, (proof, model) in enumerate(_certified_wrongly(folder, prover(), seeds)):
        try:
            check(proof, model)
        except CheckFailedError as refused:
            try:
                with planted(checker):
                    check(proof, model)
            except CheckFailedError:
                continue
            return number, str(refused)
    return None
