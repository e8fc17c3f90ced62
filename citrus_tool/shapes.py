"""Shape aliases (jaxtyping) and the index legend that einsum strings and docstrings use.

Index legend
    n  input (sample) in a batch         g  group of inputs that share one perturbation
    k  input within its group            b  box (region) in a batch of boxes
    r  row: one linear function to bound c  class or output logit
    C H W  channels, height, width       d  flattened input dimension
Boxes and bounds are in the units of the tensor they bound; eps and tau are in pixel space [0, 1].
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

Images = Float[Tensor, "n C H W"]  # pixel space [0, 1]
Labels = Int[Tensor, " n"]  # class index
Logits = Float[Tensor, "n c"]
Margins = Float[Tensor, "n c"]  # f_y - f_c; the entry of the true class is +inf where stated
Perturbations = Float[Tensor, "g C H W"]  # one shared u for each group
Flags = Bool[Tensor, " n"]

__all__ = ["Flags", "Images", "Labels", "Logits", "Margins", "Perturbations"]
