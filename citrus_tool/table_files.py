"""Tables for files: CSV for spreadsheets and plots, LaTeX (booktabs) for papers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Final

Cell = str | int | float | None

_LATEX: Final = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}  # fmt: skip


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """RFC 4180 with a header line and LF; None is an empty field, floats are written so that they read back equal."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    return text.getvalue()


def to_latex(columns: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    r"""A tabular with booktabs' rules and `note` as a comment above it; needs \usepackage{booktabs}.

    Columns of numbers are set flush right; a rule parts rows whose first cells differ if some are alike.
    """
    numeric = [all(re.fullmatch(r"-?[\d.]+(e-?\d+)?|-|", row[i]) for row in rows) for i in range(len(columns))]
    blocks = len({row[0] for row in rows}) < len(rows)
    lines = [f"% {line}" for line in note.splitlines()]
    lines += [rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}", r"\toprule"]
    lines += [_line(columns), r"\midrule"]
    for number, row in enumerate(rows):
        if blocks and number and row[0] != rows[number - 1][0]:
            lines.append(r"\midrule")
        lines.append(_line(row))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return " & ".join("".join(_LATEX.get(mark, mark) for mark in cell) for cell in cells) + r" \\"
