"""Distillation from the network that a run begins with (Hinton et al. 2015, "Distilling the Knowledge", section 2).

The term is T^2 KL(softmax(t(x) / T) || softmax(f(x) / T)) at the clean inputs, for the given network t as it was before
training and temperature T; the recipe's `distil` times it is added to the loss of any method, warm-up included.

Differs from the paper in: (1) student and teacher have one architecture, and the student may begin with the teacher's
weights; (2) the hard labels are those of the method's own loss.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from citrus_tool.network import Network, walk
from citrus_tool.training.batch_norm_statistics import CLEAN


def distillation(network: Network, teacher: Network, x: Tensor, temperature: float) -> Tensor:
    """The mean of the term over x (n, C, H, W); differentiable in the network's parameters alone.

    BatchNorm is read with the statistics that either network holds.
    """
    with torch.no_grad():
        wanted = F.log_softmax(teacher(x) / temperature, dim=1)
    own = F.log_softmax(walk(network, CLEAN, x) / temperature, dim=1)
    return temperature**2 * F.kl_div(own, wanted, reduction="batchmean", log_target=True)
