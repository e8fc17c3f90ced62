"""Reports: what runs wrote -> records (data.py) -> replays on onnxruntime (replay.py) -> one HTML file (render.py)."""

from __future__ import annotations

from citrus_tool.report.data import Run as Run
from citrus_tool.report.data import parse as parse
from citrus_tool.report.data import read as read
from citrus_tool.report.write import write_report as write_report
