"""Curves as SVG by Matplotlib, in the page's own colours and font.

Matplotlib draws with the placeholders of PAINT; they become CSS variables, so that one drawing serves the light and the
dark theme and print. Text stays text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAINT: Final[Mapping[str, str]] = {
    "ink": "#010101",
    "muted": "#020202",
    "grid": "#030303",
    "certified": "#040404",
    "attacked": "#050505",
    "standard": "#060606",
    "unknown": "#070707",
    "extra1": "#080808",
    "extra2": "#090909",
    "extra3": "#0a0a0a",
}
"""CSS variable -> the colour that stands for it while Matplotlib draws."""
SIZE: Final = (5.2, 3.1)
"""Inches; the page scales the drawing to its column."""
STYLE: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "citrus",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PAINT["muted"],
    "axes.labelcolor": PAINT["ink"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PAINT["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": PAINT["muted"],
    "ytick.color": PAINT["muted"],
    "xtick.labelcolor": PAINT["ink"],
    "ytick.labelcolor": PAINT["ink"],
    "text.color": PAINT["ink"],
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.transparent": True,
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve; places without a value are None. `paint`: a name of PAINT; `dash`: Matplotlib's line style."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    paint: str
    dash: str = "-"
    marker: str = ""


def curves(
    key: str,
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    mark: tuple[float, str] | None = None,
    shade: tuple[int, int] | None = None,
    percent: bool = False,
    whole: bool = False,
) -> Markup:
    """Lines over a common axis.

    Args:
        key: unique on the page.
        mark: a place on the x axis with its words.
        shade: two of `series`, by number, between which the area is filled.
        percent: the y axis ends at 100 and begins at 0 or at a multiple of ten below all values.
        whole: ticks of the x axis are whole numbers.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style: Any = {**mpl.rcParamsDefault, **STYLE}
    with mpl.rc_context(style):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        for one in series:
            _draw(axes, one)
        if shade is not None:
            low, high = series[shade[0]], series[shade[1]]
            values = [[value if value is not None else float("nan") for value in one.y] for one in (low, high)]
            axes.fill_between(list(low.x), values[0], values[1], color=PAINT["unknown"], alpha=0.35, linewidth=0)
        if mark is not None:
            axes.axvline(mark[0], color=PAINT["muted"], linewidth=1, linestyle=":")
            low_down = percent  # accuracies run along the top
            axes.annotate(
                mark[1],
                (mark[0], 0 if low_down else 1),
                xycoords=("data", "axes fraction"),
                xytext=(-4, 4 if low_down else -2),
                textcoords="offset points",
                ha="right",
                va="bottom" if low_down else "top",
                color=PAINT["muted"],
                fontsize=9,
            )
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if percent:
            lowest = min((value for one in series for value in one.y if value is not None), default=0.0)
            axes.set_ylim(max(0.0, 10 * math.floor((lowest - 5) / 10)), 101)
        elif all(value is None or value >= 0 for one in series for value in one.y):
            axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=min(len(series), 3), fontsize=9, handlelength=1.8)
        return _svg(figure, key, title)


def _draw(axes: Axes, one: Series) -> None:
    points = [(x, y) for x, y in zip(one.x, one.y, strict=True) if y is not None]
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        label=one.name,
        color=PAINT[one.paint],
        linestyle=one.dash,
        marker=one.marker or ("o" if len(points) == 1 else None),
        markersize=4.5,
        gid=f"series-{one.name}",
    )


def _svg(figure: Figure, key: str, title: str) -> Markup:
    metadata: Any = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for name, colour in PAINT.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font: \1px var(--sans)", text)
    text = re.sub(r"\b(id=\"|href=\"#|url\(#)", rf"\g<1>{key}-", text)
    opening = re.match(r"<svg[^>]*viewBox=\"([^\"]+)\"[^>]*>", text)
    if opening is None:
        raise AssertionError("Matplotlib writes a viewBox")
    head = f'<svg viewBox="{opening[1]}" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="'
    return Markup(head) + escape(title) + Markup('">') + Markup(text[opening.end() :])
