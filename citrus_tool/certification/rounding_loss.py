"""Which layers' float32 rounding keeps inputs from being proven that the same bounds prove in real arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from citrus_tool.bounds.crown import crown, only, relax
from citrus_tool.bounds.float32 import HOPELESS
from citrus_tool.bounds.fold import margin_rows
from citrus_tool.bounds.linear import RelaxedNetwork, concretise, to_input
from citrus_tool.bounds.rounding import enclosures, exact_products, outward_margins
from citrus_tool.choices import Intermediate
from citrus_tool.network import INPUT, REAL, Network
from citrus_tool.threat import Threat

LOOKED_AT: Final = 32
"""Unproven inputs that are looked at: enough to name a layer, in a small part of a certificate's time."""
MATTERS: Final = 0.1
"""Share of what a margin lacks from which on its rounding is worth another CROWN pass in real arithmetic."""


def rounding_losses(
    network: Network,
    x: Tensor,
    reference: Sequence[int],
    threat: Threat,
    *,
    intervals_alone: bool,
    intermediate: Intermediate,
) -> dict[str, int]:
    """By node, how many of the first LOOKED_AT inputs are lost to rounding, most of which arises at that node.

    An input counts where real arithmetic would prove it: by CROWN, or by intervals where these are all that is in use.
    The node is that of the ONNX file; INPUT stands for the rounding of x + u.

    Args:
        network: in float64, with evaluation `float32`.
        x: (n, C, H, W) pixels of unproven inputs, on the network's device.
    """
    exact = network.frozen(dtype=torch.float64, device=x.device, evaluation=REAL)
    found: Counter[str] = Counter()
    with torch.no_grad(), exact_products():
        for one, label in zip(torch.split(x[:LOOKED_AT], 1), reference, strict=False):
            box, own = threat.enclosure(one), torch.tensor([label], device=x.device)
            relaxed = relax(network, box, intermediate=intermediate)
            classes = torch.tensor([c for c in range(network.num_classes) if c != label], device=x.device)
            if threat.target is not None:
                classes = classes[classes == threat.target]
            lower = _lower(relaxed, label, classes)
            unpaid = _lower(replace(relaxed, file_errors={}), label, classes)
            if float((unpaid - lower).amax()) < MATTERS * -float(lower.amin()):
                continue
            if intervals_alone:
                proven = bool((only(outward_margins(exact, *enclosures(exact, box), own), threat.target) > 0).all())
            else:
                again = crown(exact, box, own, intermediate=intermediate, target=threat.target)
                proven = bool((unpaid > 0).all()) or bool(again.verified)
            if proven:
                found[_node(relaxed, label, classes[[int(lower.argmin())]])] += 1
    return dict(found.most_common())


def _lower(relaxed: RelaxedNetwork, label: int, classes: Tensor) -> Tensor:
    """(r,) CROWN's lower bounds of the margins over `classes`."""
    network, box = relaxed.network, relaxed.box
    rows = margin_rows(network, label, classes, box)
    return concretise(relaxed, to_input(relaxed, rows, start=network.output_name), box).lower


def _node(relaxed: RelaxedNetwork, label: int, rival: Tensor) -> str:
    """The node whose error costs the margin most, or the first whose values may overflow."""
    errors = relaxed.file_errors
    for name in errors:
        if float(errors[name].amax()) >= HOPELESS:
            return name
    ends = {name: float(_lower(replace(relaxed, file_errors={name: errors[name]}), label, rival)) for name in errors}
    return min(ends, key=ends.__getitem__, default=INPUT)
