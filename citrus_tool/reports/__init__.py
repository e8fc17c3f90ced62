"""Reports: what runs wrote -> records (data.py) -> replays on onnxruntime (replay.py) -> one HTML file (render.py).

The names are loaded on first use: `citrus_tool` imports this folder, and must stay quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from citrus_tool.names import on_first_use

if TYPE_CHECKING:
    from citrus_tool.reports.data import Reported as Reported
    from citrus_tool.reports.data import parse as parse
    from citrus_tool.reports.data import read as read
    from citrus_tool.reports.write import write_report as write_report

__getattr__ = on_first_use(
    __name__,
    {
        "Reported": "citrus_tool.reports.data",
        "parse": "citrus_tool.reports.data",
        "read": "citrus_tool.reports.data",
        "write_report": "citrus_tool.reports.write",
    },
)
