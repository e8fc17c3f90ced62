"""Batch normalisation in certified training: statistics of one clean forward, reused by attack and boxes.

As in Shi et al. 2021, section 3.3 and SABR: the clean batch (all groups together) sets mean and variance, gradients
flow through them, and every box of the step is normalised by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from citrus_tool.bounds.interval import batch_norm_affine
from citrus_tool.convolution import conv2d
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import CONCRETE, Network, Rules, walk

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def _batch_norms(network: Network) -> list[BatchNorm]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dim=[axis for axis in range(x.dim()) if axis != 1], unbiased=False)
    return mean, variance


@contextmanager
def batch_statistics(network: Network, x: Tensor) -> Iterator[None]:
    """Inside the block every BatchNorm holds the statistics of x (n, C, H, W), differentiable in the weights.

    The layers' own statistics come back afterwards, unchanged. Without a BatchNorm nothing is computed.
    """
    layers = _batch_norms(network)
    own = [held(layer) for layer in layers]

    def measure(layer: BatchNorm, z: Tensor) -> Tensor:
        layer.running_mean, layer.running_var = _moments(z)
        return _normalise(layer, z)

    try:
        if layers:
            walk(network, {**CLEAN, nn.BatchNorm1d: measure, nn.BatchNorm2d: measure}, x)
        yield
    finally:
        for layer, (mean, variance) in zip(layers, own, strict=True):
            layer.running_mean, layer.running_var = mean, variance


def estimate(network: Network, batches: Iterable[Tensor]) -> None:
    """Sets every BatchNorm's statistics, in place, to those of all `batches` (n, C, H, W) of equal weight.

    The variance is the mean variance within batches plus the variance of their means. Batches are not read when the
    network has no BatchNorm.
    """
    layers = _batch_norms(network)
    if not layers:
        return
    sums = [[torch.zeros(()) for _ in range(3)] for _ in layers]
    count = 0
    with torch.no_grad():
        for x in batches:
            with batch_statistics(network, x):
                for index, layer in enumerate(layers):
                    mean, variance = held(layer)
                    parts = (mean, mean.square(), variance)
                    sums[index] = [total.to(part) + part for total, part in zip(sums[index], parts, strict=True)]
            count += 1
        for layer, (mean, square, variance) in zip(layers, sums, strict=True):
            own_mean, own_variance = held(layer)
            own_mean.copy_(mean / count)
            own_variance.copy_((variance + square) / count - (mean / count).square())


def held(layer: BatchNorm) -> tuple[Tensor, Tensor]:
    """(mean, variance) that the layer normalises by; raises UnsupportedNetworkError when it tracks none."""
    if layer.running_mean is None or layer.running_var is None:
        raise UnsupportedNetworkError("BatchNorm without running statistics is no fixed function; track them.")
    return layer.running_mean, layer.running_var


def _normalise(layer: BatchNorm, x: Tensor) -> Tensor:
    scale, shift = batch_norm_affine(layer, x.dim() - 1)
    return x * scale + shift


def _conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return conv2d(layer, x, layer.weight, layer.bias)


CLEAN: Rules = {
    **CONCRETE,
    nn.Conv2d: _conv,
    nn.BatchNorm1d: _normalise,
    nn.BatchNorm2d: _normalise,
}
"""The concrete reading for training: BatchNorm by the statistics it holds, differentiable in them."""
