"""The shapes that signatures state are checked while tests run (pyproject.toml, --jaxtyping-packages)."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from citrus_tool import architectures
from citrus_tool.attacks.margin import margins


@pytest.mark.parametrize(("images", "labels"), [((3, 1, 8), (3,)), ((3, 1, 8, 8), (2,)), ((3, 1, 8, 8), (3, 1))])
def test_a_wrong_shape_is_refused(images: tuple[int, ...], labels: tuple[int, ...]) -> None:
    network = architectures.build("convtiny", (1, 8, 8), 10, seed=0)
    assert margins(network, torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.long)).shape == (3,)
    with pytest.raises(TypeCheckError):
        margins(network, torch.zeros(images), torch.zeros(labels, dtype=torch.long))
