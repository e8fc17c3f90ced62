"""Records whose tensors have an axis in common, such as a batch: some of the entries, or several records joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Record = TypeVar("Record", bound=_Dataclass)


def select(record: Record, index: Any, *, last: bool = False) -> Record:
    """The record with only the entries `index` (positions, a mask or a slice) of every tensor, along its first axis, or
    along its last one; fields that are no tensors stay as they are.
    """
    where = (..., index) if last else index
    return replace(record, **{name: value[where] for name, value in _tensors(record).items()})


def joined(records: Sequence[Record]) -> Record:
    """The entries of several records one after the other, along the first axis; other fields are those of the first."""
    values = [_tensors(record) for record in records]
    return replace(records[0], **{name: torch.cat([one[name] for one in values]) for name in values[0]})


def _tensors(record: Record) -> dict[str, Tensor]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
