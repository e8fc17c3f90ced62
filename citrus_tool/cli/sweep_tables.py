"""The table of certificates at several eps, and its files."""

from __future__ import annotations

from collections.abc import Sequence

from citrus_tool.cli import terminal
from citrus_tool.cli.gathered import Outputs
from citrus_tool.files import write_text
from citrus_tool.results.certificate import Certificate, clean_name
from citrus_tool.results.sweep import COLUMNS, csv_rows, percents
from citrus_tool.results.sweep import judged as judged
from citrus_tool.tables import to_csv, to_latex
from citrus_tool.threat import spelled


def sweep_table(certificates: Sequence[Certificate], target: int | None) -> tuple[list[str], list[list[str]]]:
    """Headings and one row for each certificate: eps, the counts in percent, seconds."""
    headings = ["eps", *COLUMNS.values(), "seconds"]
    headings[1] = clean_name(target)
    return headings, [
        [spelled(one.threat.eps), *(terminal.percent(share) for share in percents(one).values()), f"{one.seconds:.1f}"]
        for one in certificates
    ]


def write_tables(
    outputs: Outputs, certificates: Sequence[Certificate], table: tuple[list[str], list[list[str]]]
) -> None:
    """Writes the files of --csv (counts and percentages) and --latex (`table`)."""
    if outputs.csv is not None:
        write_text(outputs.csv, to_csv(*csv_rows(certificates)))
    if outputs.latex is not None:
        one = certificates[0]
        note = f"{one.model}: percent of {judged(one)}, protocol {one.settings['protocol']}; citrus {one.version}"
        write_text(outputs.latex, to_latex(*table, note))
