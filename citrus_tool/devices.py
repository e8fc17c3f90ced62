"""Where tensors live: the words of --device, the device of a network, and whether a GPU may round products to TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from citrus_tool.choices import Device
from citrus_tool.context import RunContext
from citrus_tool.errors import UsageError


def resolve_device(name: Device) -> Literal["cpu", "cuda"]:
    """`auto` is `cuda` when torch sees a GPU and `cpu` otherwise; raises UsageError for a `cuda` that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch sees no GPU; use --device cpu or auto.")
    return name


def resolved(context: RunContext) -> RunContext:
    """The context with `cpu` or `cuda` as its device, once torch has its threads; raises as `resolve_device`."""
    if context.threads is not None:
        torch.set_num_threads(context.threads)
    return replace(context, device=resolve_device(context.device))


def device_of(network: nn.Module) -> torch.device:
    """Where the network's tensors lie; the CPU for one that has none."""
    return next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))


@contextmanager
def tf32(*, allowed: bool) -> Iterator[None]:
    """Inside the block float32 products on a GPU may (or must not) be rounded to TF32; the setting returns after it."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
