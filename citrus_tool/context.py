"""How one run is carried out: on which device, in which folder, with how many processes. It changes no result but by
rounding; what is computed stands in the settings and in the threat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from citrus_tool.choices import Device
from citrus_tool.progress import Progress, Silent


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What every verb needs to know of its run, passed as one argument.

    Attributes:
        device: `auto` takes a GPU when torch sees one.
        run_dir: folder of journals, checkpoints and reports; None: nothing is kept.
        resume: an interrupted run in `run_dir` is continued.
        workers: processes that independent tasks are spread over.
        threads: CPU threads of torch; None leaves torch's own choice.
        seed: draws splits and starting points where no settings hold a seed of their own.
        progress: is told how far the work has come.
        effective: the command's options by flag, which are saved in `run_dir` for --config.
    """

    device: Device = "auto"
    run_dir: Path | None = None
    resume: bool = False
    workers: int = 1
    threads: int | None = None
    seed: int = 0
    progress: Progress = Silent()  # noqa: RUF009 - it has no state
    effective: Mapping[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """`run_dir` of a run that cannot do without one; raises ValueError where it has none."""
        if self.run_dir is None:
            raise ValueError("this run needs a run_dir")
        return self.run_dir


ON_CPU = RunContext(device="cpu")
"""A run on the CPU that keeps nothing and says nothing."""
