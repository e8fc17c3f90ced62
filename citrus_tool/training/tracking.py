"""Training curves for experiment trackers, written by the trackers' own libraries (extra `track`), loaded only here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from citrus_tool.choices import Tracker
from citrus_tool.errors import UsageError

Track = Callable[[Mapping[str, Any]], None]


@contextmanager
def tracking(
    tracker: Tracker | None, folder: Path, *, name: str, settings: Mapping[str, Any]
) -> Iterator[Track | None]:
    """Inside the block: what `on_epoch` of a training run takes, and sends every number of an epoch to the tracker.

    Nothing is written before the first epoch is over.

    Args:
        tracker: tensorboard writes event files to `folder`/tensorboard; mlflow writes a run to $MLFLOW_TRACKING_URI,
            by MLflow's own default a local store. None: yields None.
        name: of the run, for mlflow.
        settings: of the run; entries that are None are left out.

    Epochs are the steps. Losses are means over an epoch, accuracies percent, eps and tau in pixel space, seconds wall
    time.

    Raises UsageError for an unknown tracker, or one whose library is not installed.
    """
    if tracker is None:
        yield None
        return
    if tracker not in _TRACKERS:
        raise UsageError(f"tracker {tracker!r} is unknown; choose one of {', '.join(_TRACKERS)}.")
    module, run = _TRACKERS[tracker]
    try:
        library = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"tracker {tracker} needs a package that is not installed ({error}); pip install 'citrus-tool[track]'."
        ) from None
    given = {key: value for key, value in settings.items() if value is not None}
    with ExitStack() as stack:
        opened: list[Track] = []

        def track(entry: Mapping[str, Any]) -> None:
            if not opened:
                opened.append(stack.enter_context(run(library, folder, name, given)))
            opened[0](entry)

        yield track


@contextmanager
def _tensorboard(library: Any, folder: Path, name: str, settings: Mapping[str, Any]) -> Iterator[Track]:
    with library.SummaryWriter(log_dir=str(folder / "tensorboard")) as writer:
        writer.add_text("settings", "\n\n".join(f"{key}: {value}" for key, value in settings.items()))

        def track(entry: Mapping[str, Any]) -> None:
            for key, value in numbers(entry).items():
                writer.add_scalar(key, value, entry["epoch"])
            writer.flush()

        yield track


@contextmanager
def _mlflow(library: Any, folder: Path, name: str, settings: Mapping[str, Any]) -> Iterator[Track]:
    with library.start_run(run_name=name):
        library.log_params(dict(settings))
        yield lambda entry: library.log_metrics(numbers(entry), step=entry["epoch"])


_TRACKERS = {"tensorboard": ("torch.utils.tensorboard", _tensorboard), "mlflow": ("mlflow", _mlflow)}
"""Tracker -> the module of its library, and what opens a run with it."""


def numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an epoch's history entry; what was not measured (None) and words are left out."""
    return {
        key: float(value)
        for key, value in entry.items()
        if key != "epoch" and isinstance(value, int | float) and not isinstance(value, bool)
    }
