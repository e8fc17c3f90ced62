"""The journal of measured runs: one JSON object a line, only ever appended to, small enough to be committed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from citrus_tool.errors import InputFileError
from citrus_tool.results import lines
from citrus_tool.results.record import Place, from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished run. Accuracies in percent; `standard` of the full test set, the others of the first `inputs`.

    Attributes:
        recipe: digest of the recipe (contests.Job), or the file's name for a published network.
        certifier: digest of the certifier's settings.
        certified, attacked: bounds of the worst-case UAP accuracy from below and above; individually: of the inputs
            alone; ibp: by interval bounds.
        train_seconds, certify_seconds: wall time on `machine`, which may have had other work.
        model: sha256 of the ONNX file.
    """

    contest: str
    method: str
    recipe: str
    seed: int
    certifier: str
    standard: float
    certified: float
    attacked: float
    individually: float
    ibp: float
    inputs: int
    best_epoch: int
    train_seconds: float
    certify_seconds: float
    model: str
    command: str
    commit: str
    machine: str
    versions: dict[str, str]

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What makes two runs the same."""
        return (self.contest, self.method, self.recipe, self.seed, self.certifier)


@dataclass(frozen=True, kw_only=True)
class BoxLosses:
    """The paper's Fig. 4 on one trained network: mean box losses over `inputs` training inputs, see box_sizes.py.

    Attributes:
        own: of the box at an input's own perturbation; total, largest: sum and largest of those at the others'.
        recipe, seed: of the run whose network it is.
    """

    contest: str
    method: str
    recipe: str
    seed: int
    own: float
    total: float
    largest: float
    inputs: int
    command: str
    commit: str
    machine: str
    versions: dict[str, str]


_KIND = "kind"
_BOXES = "box losses"


def read(path: Path) -> list[Entry]:
    """The runs of a journal, in order; none when there is no file. Raises InputFileError naming a bad line."""
    return [entry for entry in _read(path) if isinstance(entry, Entry)]


def read_boxes(path: Path) -> list[BoxLosses]:
    """The box losses of a journal; otherwise as `read`."""
    return [entry for entry in _read(path) if isinstance(entry, BoxLosses)]


def _read(path: Path) -> list[Entry | BoxLosses]:
    found: list[Entry | BoxLosses] = []
    for number, plain in enumerate(lines.read(path, damaged="is no run ({reason}); mend or remove the line."), 1):
        try:
            kind = plain.pop(_KIND, None)
            if kind not in (None, _BOXES):
                raise ValueError(f"unknown kind {kind!r}")
            row: type[Entry | BoxLosses] = Entry if kind is None else BoxLosses
            found.append(from_json(row, plain, Place(where="", remedy="")))
        except (ValueError, InputFileError) as error:
            raise InputFileError(f"{path}, line {number}: is no run ({error}); mend or remove the line.") from None
    return found


def append(path: Path, entry: Entry | BoxLosses) -> None:
    """Adds one line, flushed to the disk. Raises InputFileError when the file cannot be written."""
    plain = to_json(entry) | ({_KIND: _BOXES} if isinstance(entry, BoxLosses) else {})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lines.Writer(path, keep=True, durable=True) as file:
            file.write(plain)
    except OSError as error:
        raise InputFileError(f"{path}: cannot be written ({error.strerror or error}); name another journal.") from None
