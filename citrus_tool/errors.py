"""The errors that a user can meet, each with its exit code.

Inner code raises terse errors; the public boundary adds file, node and remedy once. A message is
one sentence or two: what is wrong, where, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class CitrusError(Exception):
    """Base of every error that citrus raises on purpose. `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 3


class AccuracyWarning(UserWarning):
    """A network does so badly on the data that its normalisation, layout or labels are probably not those given."""


class UsageError(CitrusError):
    """An option or argument makes no sense: eps below 0, an unknown name, options that exclude each other."""

    exit_code = 2


class InputFileError(CitrusError):
    """A file that the user named is missing, unreadable or not what it should be (ONNX, data, journal)."""

    exit_code = 3


class UnsupportedNetworkError(CitrusError):
    """The network uses an operator, attribute or shape that citrus cannot read soundly."""

    exit_code = 3


class DataError(InputFileError):
    """A data set is missing, empty or out of contract (pixels outside [0,1], labels out of range)."""


class CheckFailedError(CitrusError):
    """A check did not hold: parity with onnxruntime, a certificate, a replayed witness."""

    exit_code = 4


class SoundnessError(CheckFailedError):
    """A lower bound lies above an upper bound. Never clipped away: the run stops (house rule: soundness first)."""


class InterruptedRunError(CitrusError):
    """The user stopped a long run; what is done is saved and `--resume` continues it."""

    exit_code = 5
