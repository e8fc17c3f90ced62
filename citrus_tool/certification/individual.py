"""The stages that judge inputs one by one, in batches: clean, IBP, CROWN, branch and bound.

What they prove leaves the group problem.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from citrus_tool.bounds.crown import crown, only
from citrus_tool.bounds.rounding import enclosures, exact_products, outward_margins
from citrus_tool.certification.branch import Budget, RivalProof, branch_and_bound
from citrus_tool.choices import BoundsName, Intermediate
from citrus_tool.data import Dataset
from citrus_tool.devices import device_of
from citrus_tool.errors import DataError
from citrus_tool.network import Network
from citrus_tool.onnx_io import OnnxRunner
from citrus_tool.records import joined, select
from citrus_tool.threat import Threat

FORWARD_BATCH: Final = 256
"""Inputs that are run, or bounded by intervals, together: enough to keep a device busy, in little memory."""
BATCH_BYTES: Final = 2**27
"""Size of the margin planes of one CROWN batch, in bytes."""


@dataclass(frozen=True, kw_only=True)
class Clean:
    """What inputs are without a perturbation.

    Attributes:
        correct: classified correctly.
        held: not lost: the same, but for a target class: the target does not win.
        reference: the class that must stay above its rivals: the label; with a target, the strongest class beside it.
    """

    correct: Bool[Tensor, " n"]
    held: Bool[Tensor, " n"]
    reference: Int[Tensor, " n"]


@dataclass(frozen=True, kw_only=True)
class RivalPlanes:
    """Planes of an unproven input for the rivals that may win: margin(u) >= coefficient . u + offset.

    `rivals` (r,), `coefficient` (r, d), `offset` (r,).
    """

    rivals: NDArray[np.int64]
    coefficient: NDArray[np.float64]
    offset: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class IndividualBounds:
    """What IBP proves, what any stage proves, and the planes of the inputs that stay open (by position in the batch).

    `planes` is empty when only IBP ran. `seconds`: by stage. For inputs that IBP leaves open: `excluded`, the rivals
    that bounds over the whole box exclude, and `proofs` of others, if recorded.
    """

    ibp: Bool[Tensor, " n"]
    proven: Bool[Tensor, " n"]
    planes: dict[int, RivalPlanes]
    excluded: dict[int, tuple[int, ...]]
    proofs: dict[int, tuple[RivalProof, ...]]
    seconds: dict[str, float]

    def allows(self, position: int, rivals: NDArray[np.int64], u: NDArray[np.float64]) -> bool:
        """Whether the bounds of an unproven input leave open that all these rivals win at u (d,)."""
        entry = self.planes.get(position)
        if entry is None:  # IBP only: nothing is known about an unproven input
            return True
        return bool(np.isin(rivals, entry.rivals[entry.coefficient @ u + entry.offset <= 0]).all())

    def select(self, part: Int[Tensor, " m"]) -> IndividualBounds:
        """The same for the inputs at these positions, which are counted from 0 then; without `seconds`."""
        places = {position: place for place, position in enumerate(part.tolist())}
        return IndividualBounds(
            ibp=self.ibp[part],
            proven=self.proven[part],
            planes={places[old]: one for old, one in self.planes.items() if old in places},
            excluded={places[old]: one for old, one in self.excluded.items() if old in places},
            proofs={places[old]: one for old, one in self.proofs.items() if old in places},
            seconds={},
        )


def judged(data: Dataset, target: int | None) -> Int[Tensor, " n"]:
    """Indices of the inputs that are judged: all, or those with another label than the target class.

    Raises DataError when none is left.
    """
    if target is None:
        return torch.arange(len(data))
    left = torch.nonzero(data.labels != target).flatten()
    if len(left) == 0:
        raise DataError(
            f"data {data.name} ({data.split}): every input has the label {target}, which is the target, so nothing is"
            " left to judge; choose another target or other data."
        )
    return left


def held(logits: NDArray[np.floating], labels: NDArray[np.int64], target: int | None = None) -> NDArray[np.bool_]:
    """Flags (n,): the true class's logit is above every other one, or the target's below some other; NaN is lost."""
    return smallest_margin(logits, labels, target) > 0


def smallest_margin(
    logits: NDArray[np.floating], labels: NDArray[np.int64], target: int | None = None
) -> NDArray[np.floating]:
    """f_y - max over c != y of f_c, (n,); for a target t: max over c != t of f_c - f_t."""
    rows, one = np.arange(len(labels)), labels if target is None else np.full_like(labels, target)
    others = logits.copy()
    others[rows, one] = -np.inf
    margin = np.asarray(logits[rows, one] - others.max(axis=1))
    return margin if target is None else -margin


def clean_stage(
    network: Network,
    runner: OnnxRunner,
    x: Float[Tensor, "n C H W"],
    labels: Int[Tensor, " n"],
    target: int | None = None,
) -> Clean:
    """Judges inputs `x` (float32 pixels, on the CPU) without a perturbation.

    An input is correct (held) if the runs that `network.evaluation` speaks of say so: the file on onnxruntime for
    float32, `network` in float64 for real arithmetic. Ties are lost.
    """
    parts = []
    device = device_of(network)
    for start in range(0, len(x), FORWARD_BATCH):
        part = slice(start, start + FORWARD_BATCH)
        truth = labels[part].numpy()
        with torch.no_grad(), exact_products():
            logits = network(x[part].to(device, torch.float64)).cpu().numpy()
        if network.evaluation.arithmetic == "float32":
            logits = runner.logits(x[part])
        correct = held(logits, truth)
        safe, reference = correct, truth
        if target is not None:
            safe = held(logits, truth, target)
            reference = np.where(np.arange(logits.shape[1]) == target, -np.inf, logits).argmax(axis=1)
        flags = (torch.from_numpy(flag) for flag in (correct, safe, reference))
        parts.append(Clean(**dict(zip(("correct", "held", "reference"), flags, strict=True))))
    return joined(parts)


def bound_individually(
    network: Network,
    x: Float[Tensor, "n C H W"],
    clean: Clean,
    threat: Threat,
    *,
    bounds: BoundsName,
    intermediate: Intermediate,
    budget: Budget | None = None,
    generator: torch.Generator | None = None,
    record: bool = False,
) -> IndividualBounds:
    """IBP on the inputs of a batch that are held, CROWN on those that IBP leaves open, and so on up to `bounds`.

    What is bounded are the margins of `clean.reference` over every other class, or over the target alone: where the
    target wins, its logit is at or above the reference's.

    Args:
        budget: of branch and bound; `seconds` are those of one input that CROWN leaves open, on average.
        generator: of branch and bound's attack.
        record: keeps branch and bound's proofs.
        network: float64, evaluation mode; its device is used.
        x: float32 pixels; u is added to them exactly.
    """
    device = device_of(network)
    seconds = dict.fromkeys(("ibp", "crown", "branch"), 0.0)
    ibp = torch.zeros(len(x), dtype=torch.bool)
    start = time.monotonic()
    for batch in torch.split(torch.nonzero(clean.held).flatten(), FORWARD_BATCH):
        least = interval_margins(network, x[batch].to(device), clean.reference[batch].to(device), threat)
        ibp[batch] = least > 0
    seconds["ibp"] = time.monotonic() - start
    proven, planes = ibp.clone(), {}
    excluded: dict[int, tuple[int, ...]] = {}
    proofs: dict[int, tuple[RivalProof, ...]] = {}
    row_bytes = 8 * network.num_classes * math.prod(network.input_shape)
    size = max(1, min(FORWARD_BATCH, BATCH_BYTES // row_bytes))
    budget = budget or Budget()
    if bounds == "alpha":
        budget = replace(budget, nodes=0, plane_nodes=0)
    for batch in torch.split(torch.nonzero(clean.held & ~ibp).flatten(), size) if bounds != "ibp" else ():
        images, truth = x[batch].to(device), clean.reference[batch].to(device)
        start = time.monotonic()
        found = crown(network, threat.enclosure(images), truth, intermediate=intermediate, target=threat.target)
        seconds["crown"] += time.monotonic() - start
        above = found.lower.cpu() > 0
        for position, row in zip(batch.tolist(), above, strict=True):
            excluded[position] = tuple(torch.nonzero(row).flatten().tolist())
        left = torch.nonzero(~above.all(dim=1)).flatten()
        proven[batch] = True
        found = select(found, left.to(device))
        if bounds != "crown" and len(left):
            start = time.monotonic()
            branched = branch_and_bound(
                network,
                images[left.to(device)],
                truth[left.to(device)],
                threat,
                known=found,
                generator=generator or torch.Generator(),
                record=record,
                budget=replace(budget, seconds=None if budget.seconds is None else budget.seconds * len(left)),
            )
            found = branched.margins
            proofs.update(zip(batch[left].tolist(), branched.proofs, strict=True))
            seconds["branch"] += time.monotonic() - start
        lower, offset = found.lower.cpu(), found.offset.cpu()
        for row, position in enumerate(batch[left].tolist()):
            rivals = torch.nonzero(~(lower[row] > 0)).flatten()
            proven[position] = not len(rivals)
            if len(rivals):
                planes[position] = RivalPlanes(
                    rivals=rivals.numpy(),
                    coefficient=found.coefficient[row].cpu()[rivals].flatten(1).numpy(),
                    offset=offset[row, rivals].numpy(),
                )
    return IndividualBounds(ibp=ibp, proven=proven, planes=planes, excluded=excluded, proofs=proofs, seconds=seconds)


def interval_margins(network: Network, x: Tensor, reference: Tensor, threat: Threat) -> Float[Tensor, " n"]:
    """The smallest outward IBP margin, or that over the target, of each input x (n, C, H, W); on the CPU."""
    with torch.no_grad(), exact_products():
        found = enclosures(network, threat.enclosure(x))
        return only(outward_margins(network, *found, reference), threat.target).amin(dim=1).cpu()
