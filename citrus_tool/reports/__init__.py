"""Reports: what runs wrote -> records (data.py) -> replays on onnxruntime (replay.py) -> one HTML file (render.py).

The names are loaded on first use: `citrus_tool` imports this folder, and must stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from citrus_tool.reports.data import Run as Run
    from citrus_tool.reports.data import parse as parse
    from citrus_tool.reports.data import read as read
    from citrus_tool.reports.write import write_report as write_report

_HOME = {"Run": "data", "parse": "data", "read": "data", "write_report": "write"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'citrus_tool.report' has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
