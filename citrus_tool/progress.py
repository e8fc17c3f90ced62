"""How long work reports on itself. Library functions take a Progress; the command line draws it on stderr."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Progress(ABC):
    """Receives stage starts and advances. Implementations must be cheap: called up to some hundred times a second."""

    @abstractmethod
    def start(self, stage: str, total: int | None, unit: str) -> None:
        """A stage of `total` units (None: unknown) begins; the previous one is over."""

    @abstractmethod
    def advance(self, amount: int = 1, note: str = "") -> None:
        """`amount` more units are done; `note` is a short status such as the current bracket or loss."""

    @abstractmethod
    def finish(self) -> None:
        """The last stage is over."""


class Silent(Progress):
    """Reports nothing."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        return None

    def advance(self, amount: int = 1, note: str = "") -> None:
        return None

    def finish(self) -> None:
        return None


class Staged(Progress):
    """Passes progress on with a word in front of each stage's name."""

    def __init__(self, inner: Progress, prefix: str) -> None:
        self._inner, self._prefix = inner, prefix

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self._inner.start(self._prefix + stage, total, unit)

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._inner.advance(amount, note)

    def finish(self) -> None:
        self._inner.finish()
