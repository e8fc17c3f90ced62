"""The study: Optuna's record of what was asked for and what came out, an SQLite file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler

from citrus_tool.choices.space import Range, Scalar, Values
from citrus_tool.errors import InputFileError, UsageError
from citrus_tool.files import require_writable_folder
from citrus_tool.names import differing

NAME: Final = "citrus"
"""The study's name in its file."""
RANDOM_TRIALS: Final = 8
"""Trials before the sampler reads the results of earlier ones; Optuna's own 10 are half of a search of 20."""
SQLITE: Final = b"SQLite format 3\x00"
"""What an SQLite file begins with."""


def require_place(storage: Path, trials: Path, *, resume: bool) -> None:
    """Makes the folder of `storage`; raises UsageError unless the study is new, or there and to be resumed.

    `trials` is the folder of the trials, which a new study must not find. InputFileError: the file is no study.
    """
    if storage.exists() and not resume:
        raise UsageError(f"{storage} already holds a search; add --resume or choose another --run-dir.")
    if not storage.exists():
        if resume:
            raise UsageError(f"{storage} does not exist, so there is no search to continue; leave out --resume.")
        if trials.exists():
            raise UsageError(f"{trials.parent} already holds another search's trials; choose another --run-dir.")
        require_writable_folder(storage.parent)
        storage.parent.mkdir(parents=True, exist_ok=True)
        return
    with storage.open("rb") as file:
        if file.read(len(SQLITE)) not in (SQLITE, b""):
            raise InputFileError(f"{storage}: is no study; name another --storage.")


def opened(storage: Path, origin: Mapping[str, Any], first: Mapping[str, Scalar]) -> optuna.study.Study:
    """The study, made when there is none, with `first` as its first trial.

    Raises UsageError naming what first differs from its `origin`, everything that its trials depend on.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{storage.absolute()}",
        study_name=NAME,
        directions=["maximize", "maximize"],
        load_if_exists=True,
    )
    before = study.user_attrs.get("origin")
    if before is None:
        study.set_user_attr("origin", dict(origin))
        study.enqueue_trial(dict(first))
    if (name := differing(before or origin, dict(sorted(origin.items())))) is not None:
        raise UsageError(f"{storage} holds another search: {name} differs; start a new --run-dir instead.")
    return study


def sampler(seed: int, number: int) -> TPESampler:
    """The sampler that asks for trial `number`."""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return TPESampler(seed=int.from_bytes(digest[:4], "big"), n_startup_trials=RANDOM_TRIALS)


def distribution(values: Range | Values) -> BaseDistribution:
    """What the sampler draws a field from."""
    if isinstance(values, Values):
        return CategoricalDistribution(values.values)
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)
