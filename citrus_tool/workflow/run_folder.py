"""What a run leaves behind: its settings, its results, and what a written network says about its origin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from citrus_tool import __version__
from citrus_tool.choices.recipe import Recipe
from citrus_tool.errors import UsageError
from citrus_tool.files import require_writable_file, require_writable_folder, toml_value, write_text
from citrus_tool.sources import DataSource
from citrus_tool.training import checkpoint


def require_outputs(out: Path, run_dir: Path, *, fresh: bool) -> None:
    """Both must be writable; `out` may lie in the run folder, which is made when it is first written to.

    A `fresh` run does not overwrite the checkpoints of another one.
    """
    require_writable_folder(run_dir)
    if fresh and checkpoint.exists(run_dir):
        raise UsageError(f"run folder {run_dir} already holds a run; add --resume or choose another --run-dir.")
    if out.parent.absolute() != run_dir.absolute() or run_dir.is_dir():
        require_writable_file(out)


def save_settings(run_dir: Path, settings: Mapping[str, Any] | None) -> None:
    """Writes the effective options as TOML that --config reads; options that are not set are left out."""
    run_dir.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} = {toml_value(value)}" for key, value in (settings or {}).items() if value is not None]
    write_text(run_dir / "settings.toml", "\n".join(lines) + "\n")


def metadata(recipe: Recipe, choice: DataSource) -> dict[str, str]:
    """What the written file says about its origin (metadata_props)."""
    return {
        "citrus_version": __version__,
        "method": recipe.method,
        "eps": repr(recipe.eps),
        "tau": repr(recipe.tau_ratio * recipe.eps),
        "group_size": str(recipe.group_size),
        "epochs": str(recipe.epochs),
        **({"pretrain": f"{recipe.pretrain}, {recipe.pretrain_epochs} epochs"} if recipe.pretrain else {}),
        **({"train_on": recipe.train_on} if recipe.train_on != "train" else {}),
        "seed": str(recipe.seed),
        "data": choice.name,
    }
