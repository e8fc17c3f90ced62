"""Tables: as aligned text in a terminal, as HTML in a notebook; CSV for spreadsheets, LaTeX (booktabs) for papers."""

from __future__ import annotations

import csv
import html
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Cell = str | int | float | None

_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}


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


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under column titles; `title` says what the table is about."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it holds numbers only (these are set flush right)."""
        return [all(_is_number(row[i]) for row in self.rows) for i in range(len(self.columns))]

    def lines(self) -> list[str]:
        """Column titles and rows as aligned plain text, without the title."""
        lines = (self.columns, *self.rows)
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        return [
            "  ".join(
                cell.rjust(w) if right else cell.ljust(w)
                for cell, w, right in zip(line, widths, self.numeric, strict=True)
            ).rstrip()
            for line in lines
        ]

    def html(self) -> str:
        """One <table> element, every cell escaped."""
        sides = ["right" if right else "left" for right in self.numeric]

        def line(tag: str, cells: Sequence[str]) -> str:
            return "".join(
                f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
                for cell, side in zip(cells, sides, strict=True)
            )

        body = "".join(f"<tr>{line('td', row)}</tr>" for row in self.rows)
        return (
            f"<table><caption>{html.escape(self.title)}</caption>"
            f"<thead><tr>{line('th', self.columns)}</tr></thead><tbody>{body}</tbody></table>"
        )


class Tabular(ABC):
    """A result that shows itself as a table: by `repr` as text, in a notebook as HTML."""

    @abstractmethod
    def table(self) -> Table:
        """What is worth seeing of it."""

    def __repr__(self) -> str:
        table = self.table()
        return "\n".join([table.title, *table.lines()])

    def _repr_html_(self) -> str:
        return self.table().html()


def clock(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def percent(value: float) -> str:
    """A percentage with two decimals."""
    return f"{value:.2f}"


def _is_number(text: str) -> bool:
    try:
        float(text.removesuffix("%"))
    except ValueError:
        return text in ("", "-")
    return True
