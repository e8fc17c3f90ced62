"""Functions of one number that networks apply entry by entry (`network.Pointwise`), in forms that hold their precision.

The kinds are named as in ONNX and torch: `gelu` is Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", with the
exact normal distribution, `gelu_tanh` its approximation by tanh; `silu` is z sigmoid(z) (Swish), `mish` is
z tanh(softplus(z)) (Misra 2020), `hardswish` is z relu6(z + 3) / 6 (Howard et al. 2019), `elu` has alpha 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

Function = Callable[[Tensor], Tensor]

GELU_SCALE = math.sqrt(2.0 / math.pi)
GELU_CUBE = 0.044715
"""gelu_tanh(z) = z (1 + tanh(GELU_SCALE (z + GELU_CUBE z^3))) / 2."""


def gelu(z: Tensor) -> Tensor:
    """z times the normal distribution function, by its complement, which does not cancel; z of any shape."""
    return 0.5 * z * torch.erfc(-math.sqrt(0.5) * z)


def gelu_tanh(z: Tensor) -> Tensor:
    """z (1 + tanh t) / 2 = z sigmoid(2 t), t as in `GELU_CUBE`; z of any shape."""
    return z * torch.sigmoid(2 * GELU_SCALE * z * (1 + GELU_CUBE * z.square()))


def hardswish(z: Tensor) -> Tensor:
    """z relu6(z + 3) / 6; z of any shape."""
    return z * ((z + 3).clamp(0, 6) / 6)


def softplus(z: Tensor) -> Tensor:
    """log(1 + exp z); torch's own is z above 20, which is off by 2e-9; z of any shape."""
    return torch.logaddexp(z, torch.zeros_like(z))


FUNCTIONS: Mapping[str, Function] = {
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal,
    "rsqrt": torch.rsqrt,
    "square": torch.square,
    "cube": lambda z: z * z * z,
    "erf": torch.erf,
    "softplus": softplus,
    "elu": functional.elu,
    "silu": functional.silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "hardswish": hardswish,
    "mish": functional.mish,
}
"""Kind -> function, elementwise on tensors of any shape."""
