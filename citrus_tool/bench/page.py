"""Tables from the journal: rows with the paper's figures beside ours, and the page docs/results.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from citrus_tool.bench.claims import CLAIM_HEADER, CLAIMS
from citrus_tool.bench.contests import PAPER, SCALES, TABLES, Contest, jobs
from citrus_tool.bench.journal import Entry
from citrus_tool.bench.run import certifier_digest


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows under one heading; `contest` is the one whose setting stands there."""

    contest: Contest
    rows: list[list[str]]

    @property
    def measured(self) -> bool:
        """Whether any row has a run."""
        return any(row[-1] != "0" for row in self.rows)


HEADER = ["method", "paper std", "paper ucert", "std", "ucert", "attacked", "alone", "IBP", "train", "seeds"]


def rows(table: str, scale: str, contest: Contest, entries: Sequence[Entry]) -> list[list[str]]:
    """One row for each method of the table and each published network; methods without a run say so.

    Entries of other recipes or certifiers than the current ones are left out.
    """
    certifier = certifier_digest(SCALES[scale].certifier)
    current = [entry for entry in entries if entry.contest == contest.name and entry.certifier == certifier]
    wanted = {(job.method, job.digest): None for job in jobs(table, contest)}
    found = [
        _row(contest, method, [e for e in current if (e.method, e.recipe) == (method, digest)])
        for method, digest in wanted
    ]
    for network in contest.published:
        mine = [e for e in entries if (e.method, e.recipe, e.certifier) == (network.label, network.file, certifier)]
        found.append(_row(contest, network.label, mine))
    return found


def _row(contest: Contest, method: str, entries: Sequence[Entry]) -> list[str]:
    paper = PAPER.get((contest.name, method))
    quoted = [f"{value:.2f}" for value in paper] if paper else ["", ""]
    if not entries:
        return [method, *quoted, "not run", "", "", "", "", "", "0"]
    measured = [
        _spread([getattr(e, name) for e in entries])
        for name in ("standard", "certified", "attacked", "individually", "ibp")
    ]
    seconds = statistics.mean(e.train_seconds for e in entries)
    return [method, *quoted, *measured, f"{seconds / 60:.0f} min" if seconds else "", str(len(entries))]


def _spread(values: Sequence[float]) -> str:
    """Mean, and the sample standard deviation where there are several."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def sections(name: str, scale: str, contests: Sequence[Contest], entries: Sequence[Entry]) -> list[Section]:
    """A table as it is shown: one section for each contest, or one for all of a sweep, named by contest."""
    if not TABLES[name].sweep:
        return [Section(contest=contest, rows=rows(name, scale, contest, entries)) for contest in contests]
    every = [[contest.name, *row[1:]] for contest in contests for row in rows(name, scale, contest, entries)]
    return [Section(contest=contests[0], rows=every)] if contests else []


def page(entries: Sequence[Entry]) -> str:
    """docs/results.md: every table that has runs."""
    parts = [_INTRODUCTION]
    for scale, entry in SCALES.items():
        for name, table in TABLES.items():
            about = [contest for contest in entry.contests if jobs(name, contest)]
            shown = [section for section in sections(name, scale, about, entries) if section.measured]
            parts += [f"## {table.title}, scale {scale}\n"] if shown else []
            parts += [_markdown(name, scale, section) for section in shown]
    parts.append(f"## Orderings, scale cpu\n\n{_table(CLAIM_HEADER, [claim.row(entries) for claim in CLAIMS])}\n")
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _markdown(name: str, scale: str, section: Section) -> str:
    contest, recipe = section.contest, section.contest.recipe
    command = f"citrus bench {name} --scale {scale} --data {contest.data} --eps {contest.eps}"
    lines = [
        f"### {contest.data} at eps {contest.eps}\n",
        f"{contest.architecture}, {recipe.epochs} epochs ({recipe.warmup_epochs} warm-up, {recipe.ramp_epochs} ramp),"
        f" {recipe.pgd_steps} PGD steps. `{command}`\n",
        _table(HEADER, section.rows),
    ]
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (header, *body)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


_INTRODUCTION = """# Results

Made from `results/journal.jsonl` by `citrus bench results --out docs/results.md`; do not edit. Percent. std: standard
accuracy on the full test set, by the ONNX file on onnxruntime. The others, at scale cpu of the first 1000 test inputs,
are of groups of 5, all inputs counted: ucert is the certified worst-case UAP accuracy (branch and bound of at most 500
nodes an input, then joint proofs of what one shared perturbation can fool), attacked the accuracy under the strongest
shared perturbations found (an upper bound of it), alone what is proven for the inputs one by one, IBP by interval
bounds. Mean ± standard deviation over seeds. train: wall time of a run on one thread of a machine that other work
shared.

The paper's figures are of CNN7, a network with some hundred times the weights, trained for 492 to 3583 minutes on an
RTX 3090 and judged on the full test sets; they show the order, not a goal for these runs. Rows named "published" are
the paper group's own networks of this architecture, under the same certifier.
"""
