"""Plots as SVG or PNG files, by matplotlib, which is loaded only when a plot is made."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

from citrus_tool.errors import UsageError
from citrus_tool.files import require_writable_file, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")


def require(path: Path) -> None:
    """Raises UsageError without matplotlib or for another suffix, InputFileError where no file can be made."""
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: plots are written as {' or '.join(FORMATS)}; name such a file.")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("plots need matplotlib, which is missing; install citrus-tool again.")
    require_writable_file(path)


def new(width: float = 6.4, height: float = 4.0) -> Figure:
    """An empty figure of that size in inches, with its layout left to matplotlib."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Writes the file whole or not at all; the same figure gives the same bytes. Raises as `require`."""
    require(path)
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "citrus", "svg.fonttype": "none"}):
        figure.savefig(
            buffer, format=path.suffix[1:], dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None
        )
    write_bytes(path, buffer.getvalue())
