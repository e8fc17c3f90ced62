"""PGD (Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks").

Differs from the paper in: (1) the step shrinks on a schedule, as in SABR (Mueller et al. 2022, C.2);
(2) no clipping to [0, 1], the threat model's inputs are x + v; (3) the last iterate is returned.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from citrus_tool.choices.recipe import SABR_STEPS, StepSchedule
from citrus_tool.convolution import conv2d
from citrus_tool.devices import tf32
from citrus_tool.network import CONCRETE, Network, Rules, walk


def pgd(
    network: Network,
    x: Tensor,
    labels: Tensor,
    *,
    radius: float | Tensor,
    steps: int,
    step_size: StepSchedule = SABR_STEPS,
    generator: torch.Generator | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Perturbations v (n, C, H, W), |v|_inf <= radius in pixel space, that raise the cross entropy of x + v; detached.

    The network is read in evaluation mode with its weights held constant: only gradients at the input are computed.

    Args:
        x: (n, C, H, W) in pixel space.  labels: (n,) classes.
        radius: a number or a tensor that broadcasts to x.
        generator: draws the uniform start in the ball; None starts at 0.
        dtype: torch.bfloat16 runs the network under autocast. The attack then only proposes other points of the
            same ball, so whatever is proven about them is unaffected.
    """
    size = torch.as_tensor(radius, dtype=x.dtype, device=x.device)
    if generator is None:
        v = torch.zeros_like(x)
    else:
        v = (torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) * 2 - 1) * size
    with tf32(allowed=True) if x.is_cuda else nullcontext():
        for fraction in step_size.sizes(steps):
            v.requires_grad_(True)
            with torch.enable_grad(), torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
                loss = F.cross_entropy(walk(network, ATTACKED, x + v).to(x.dtype), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, v)
            v = torch.clamp(v.detach().addcmul_(gradient.sign_(), size, value=fraction), -size, size)
    return v


def _constant(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach()


def _conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return conv2d(layer, x, layer.weight.detach(), _constant(layer.bias))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.detach(), _constant(layer.bias))


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    mean, variance = _constant(layer.running_mean), _constant(layer.running_var)
    return F.batch_norm(
        x, mean, variance, _constant(layer.weight), _constant(layer.bias), training=False, eps=layer.eps
    )


ATTACKED: Rules = {
    **CONCRETE,
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
}
"""The concrete reading with constant weights and running statistics, whatever mode the network is in."""
