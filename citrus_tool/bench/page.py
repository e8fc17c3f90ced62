"""Tables from the journal: rows with the paper's figures beside ours, and the page docs/results.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from citrus_tool.bench.claims import CLAIM_HEADER, orderings, reasons
from citrus_tool.bench.contests import (
    PAPER,
    PAPER_MINUTES,
    PAPER_OVER_SABR,
    SCALES,
    TABLES,
    Contest,
    Job,
    certifier,
    jobs,
)
from citrus_tool.bench.run import certifier_digest
from citrus_tool.results.measurements import BoxLosses, Entry


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows under one heading; `contest` is the one whose setting stands there. The last column counts runs."""

    contest: Contest
    header: Sequence[str]
    rows: list[list[str]]

    @property
    def measured(self) -> bool:
        """Whether any row has a run."""
        return any(row[-1] != "0" for row in self.rows)


HEADER = ["method", "paper std", "paper ucert", "std", "ucert", "attacked", "alone", "IBP", "train", "seeds"]
TIME_HEADER = ["contest", "paper min", "paper over sabr", "citrus min", "sabr min", "citrus over sabr", "runs"]
BOXES_HEADER = ["contest", "own box", "sum of others", "largest", "own / sum", "largest / sum", "inputs", "runs"]


def rows(table: str, scale: str, contest: Contest, entries: Sequence[Entry]) -> list[list[str]]:
    """One row for each method of the table and each published network; methods without a run say so.

    Entries of other recipes or certifiers than the current ones are left out.
    """
    judge = certifier_digest(certifier(table, scale, contest))
    current = [entry for entry in entries if entry.contest == contest.name and entry.certifier == judge]
    wanted = {(job.method, job.digest): None for job in jobs(table, contest)}
    found = [
        _row(contest, method, [e for e in current if (e.method, e.recipe) == (method, digest)])
        for method, digest in wanted
    ]
    for network in contest.published:
        mine = [e for e in entries if (e.method, e.recipe, e.certifier) == (network.label, network.file, judge)]
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


def time_row(scale: str, contest: Contest, entries: Sequence[Entry]) -> list[str]:
    """Minutes that training took by CITRUS and by SABR, means over seeds, beside the paper's."""
    paper = [f"{table[contest.name]:g}" if contest.name in table else "" for table in (PAPER_MINUTES, PAPER_OVER_SABR)]
    judge = certifier_digest(SCALES[scale].certifier)
    found: list[list[float]] = []
    for method in ("citrus", "sabr"):
        key = (contest.name, method, Job(contest=contest, method=method, seed=0).digest, judge)
        mine = [e for e in entries if (e.contest, e.method, e.recipe, e.certifier) == key]
        found.append([entry.train_seconds / 60 for entry in mine])
    minutes = [f"{statistics.mean(each):.1f}" if each else "not run" for each in found]
    ratio = f"{statistics.mean(found[0]) / statistics.mean(found[1]):.2f}" if all(found) else ""
    return [contest.name, *paper, *minutes, ratio, str(sum(map(len, found)))]


def boxes_row(contest: Contest, losses: Sequence[BoxLosses]) -> list[str]:
    """The losses of Fig. 4, means over seeds."""
    digest = Job(contest=contest, method="citrus", seed=0).digest
    mine = [each for each in losses if (each.contest, each.method, each.recipe) == (contest.name, "citrus", digest)]
    if not mine:
        return [contest.name, "not run", "", "", "", "", "", "0"]
    own, total, largest = (statistics.mean(getattr(each, name) for each in mine) for name in BOX_FIGURES)
    shown = [f"{own:.3f}", f"{total:.3f}", f"{largest:.3f}", f"{own / total:.2f}", f"{largest / total:.2f}"]
    return [contest.name, *shown, str(mine[0].inputs), str(len(mine))]


BOX_FIGURES = ("own", "total", "largest")


def sections(
    name: str, scale: str, contests: Sequence[Contest], entries: Sequence[Entry], losses: Sequence[BoxLosses] = ()
) -> list[Section]:
    """A table as it is shown: one section for each contest, or one for all, by the table's layout."""
    layout = TABLES[name].layout
    if layout == "methods":
        every = [rows(name, scale, contest, entries) for contest in contests]
        return [Section(contest=c, header=HEADER, rows=each) for c, each in zip(contests, every, strict=True)]
    if layout == "sweep":
        header, body = HEADER, [[c.name, *row[1:]] for c in contests for row in rows(name, scale, c, entries)]
    elif layout == "time":
        header, body = TIME_HEADER, [time_row(scale, contest, entries) for contest in contests]
    else:
        header, body = BOXES_HEADER, [boxes_row(contest, losses) for contest in contests]
    return [Section(contest=contests[0], header=header, rows=body)] if contests else []


def page(entries: Sequence[Entry], losses: Sequence[BoxLosses] = (), plots: Mapping[str, str] | None = None) -> str:
    """docs/results.md: every table that has runs; `plots` are links to images, by table."""
    parts = [_INTRODUCTION]
    links = plots or {}
    for scale, entry in SCALES.items():
        for name, table in TABLES.items():
            about = [contest for contest in entry.contests if jobs(name, contest)]
            shown = [section for section in sections(name, scale, about, entries, losses) if section.measured]
            parts += [f"## {table.title}, scale {scale}\n"] if shown else []
            for section in shown:
                parts.append(_markdown(name, scale, section))
                if name == "published" and (left := others(name, scale, section.contest, entries)):
                    parts.append(f"Also run (std / ucert / attacked on so many inputs): {'; '.join(left)}.\n")
            if shown and scale == "cpu" and name == "published":
                parts.append(_IN_WORDS)
            if shown and scale == "cpu" and name in links:
                parts.append(f"![{table.title}]({links[name]})\n")
    claimed = orderings(entries, losses)
    parts.append(f"## Orderings, scale cpu\n\n{_table(CLAIM_HEADER, claimed)}\n")
    why = "".join(f"- {ordering}: {reason}\n" for ordering, reason in reasons(claimed))
    parts += [f"Why some do not hold here, as far as it is known:\n\n{why}"] if why else []
    parts.append(_ELSEWHERE)
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _markdown(name: str, scale: str, section: Section) -> str:
    contest, recipe = section.contest, section.contest.recipe
    command = f"citrus bench {name} --scale {scale}"
    if TABLES[name].layout == "time":
        return f"{_TIMES} `{command}`\n\n{_table(section.header, section.rows)}\n"
    lines = [
        f"### {contest.data} at eps {contest.eps}\n",
        f"{contest.architecture}, {recipe.epochs} epochs ({recipe.warmup_epochs} warm-up, {recipe.ramp_epochs} ramp),"
        f" {_steps(name, contest)}{_apart(name, contest)}. `{command} --data {contest.data} --eps {contest.eps}`\n",
        *([f"{_judged(name, scale, contest)}\n"] if TABLES[name].judged or contest.judged else []),
        *([f"{_BOXES}\n"] if TABLES[name].layout == "boxes" else []),
        _table(section.header, section.rows),
    ]
    return "\n".join(lines) + "\n"


def others(table: str, scale: str, contest: Contest, entries: Sequence[Entry]) -> list[str]:
    """Runs of the contest, and of its published networks, that `rows` leaves out: other recipes or other certifiers."""
    judge = certifier_digest(certifier(table, scale, contest))
    current = {(job.method, job.digest) for job in jobs(table, contest)}
    published = {(network.label, network.file) for network in contest.published}
    return [
        f"{e.method} ({e.recipe}) {e.standard:.2f} / {e.certified:.2f} / {e.attacked:.2f} on {e.inputs}"
        for e in entries
        if (e.contest == contest.name or (e.method, e.recipe) in published)
        and not (e.certifier == judge and (e.method, e.recipe) in current | published)
    ]


def _steps(name: str, contest: Contest) -> str:
    """How often PGD steps, and the methods where that differs."""
    shared = contest.recipe.pgd_steps
    own = {job.method: job.recipe.pgd_steps for job in jobs(name, contest) if job.recipe.pgd_steps != shared}
    others = "".join(f", {method} {steps}" for method, steps in own.items())
    return f"{shared} PGD steps{others}"


def _apart(name: str, contest: Contest) -> str:
    """The methods with another length, radius, augmentation or training data than the contest, or with pretraining."""
    shared, found = contest.recipe, {}
    for job in jobs(name, contest):
        recipe, words = job.recipe, []
        if (own := (recipe.epochs, recipe.warmup_epochs, recipe.ramp_epochs)) != (
            shared.epochs,
            shared.warmup_epochs,
            shared.ramp_epochs,
        ):
            words.append("{} epochs ({} warm-up, {} ramp)".format(*own))
        if recipe.pretrain:
            words.append(f"the first {recipe.pretrain_epochs} of {recipe.epochs} by {recipe.pretrain}")
        if recipe.eps != shared.eps:
            words.append(f"trained at {recipe.eps / shared.eps:g} times the radius")
        if (recipe.flip, recipe.crop_padding) != (shared.flip, shared.crop_padding):
            words.append(f"images shifted by up to {recipe.crop_padding} px{', mirrored' if recipe.flip else ''}")
        if recipe.train_on != shared.train_on:
            also = recipe.train_on == "all"
            words.append(f"trained {'on the validation split too' if also else 'without the validation split'}")
        if words:
            found[job.method] = ", ".join(words)
    return "".join(f"; {method}: {words}" for method, words in found.items())


def _judged(name: str, scale: str, contest: Contest) -> str:
    judge = certifier(name, scale, contest)
    inputs = "all test inputs" if judge.limit is None else f"the first {judge.limit} test inputs"
    return f"Judged on {inputs}, at most {judge.time_limit:g} s a group for joint proofs."


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (header, *body)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


_TIMES = """Minutes of a training run, validation included; means over seeds. The paper's are of CNN7, 20 PGD steps and
the published epochs on an RTX 3090; ours of this scale's recipe, on a machine that other work shared, so that the ratio
of two runs made at different hours says little (`benchmarks/train_step.py` times steps side by side)."""
_BOXES = """Mean box losses over the inputs of the last epoch, as it was drawn and augmented, at the weights that the
run kept: of the box at an input's own perturbation, and sum and largest of the boxes at the others'. Centres lie within
eps - tau of the input: at tau .7 eps the boxes of an input nearly coincide, and so do their losses."""
_IN_WORDS = """In words, with what the journal does not say:

- **CIFAR-10 at 2/255.** The paper group's own ConvSmall has 63.25 % standard accuracy, and 50.63 % of the 10,000 test
  images are certified under any shared perturbation. `citrus bench published --data cifar10 --methods citrus-plus`
  trains one with 66.34 % and 52.05 % in 35 minutes on one thread, judged by the same certifier.
- **MNIST at .1.** With `--data mnist` citrus-plus has 98.81 % and 96.23 % against 98.64 % and 96.15 %, eight images, in
  31 minutes.
- **CITRUS itself in the last epochs after another method** (`--methods citrus`; 18 of 60 after SABR on MNIST, 3 of 80
  after MTL-IBP on CIFAR-10) matches both: 98.76 % and 96.21 % in 20 minutes, 63.52 % and 51.06 % in 30 minutes, the
  latter trained on the validation images too, by the sixth recipe tried at full length
  ([history](training-history.md)).
- **How sure that is.** Each is one seed; on validation two runs of the latter's kind lay 1.4 points of PGD accuracy
  apart.
- **Where they are behind.** On the first 1000 test images alone two are behind: citrus-plus on MNIST (95.3 % certified
  against 95.8 %), CITRUS on CIFAR-10 (51.9 % against 52.9 %).
"""
_ELSEWHERE = """## Measured elsewhere

In [other measurements](measurements.md): randomized smoothing for the same threat, with its different guarantee;
Theorem 1's sequence of bounds and tighter regions than intervals on a trained network; speed. In the
[history of the recipes](training-history.md): how citrus-plus and the recipes were chosen. In PERFORMANCE.md at the
top: the published settings of RACoon, and all 10,000 MNIST images. None of it is in the journal."""
_INTRODUCTION = """# Results

Made from `results/journal.jsonl` by `citrus bench results --out docs/results.md`; do not edit. Percent. std: standard
accuracy on the full test set, by the ONNX file on onnxruntime. The others, at scale cpu of the first 1000 test inputs
where nothing else stands, are of groups of 5, all inputs counted: ucert is the certified worst-case UAP accuracy
(branch and bound of at most 500 nodes an input, then joint proofs of what one shared perturbation can fool), attacked
the accuracy under the strongest shared perturbations found (an upper bound of it), alone what is proven for the inputs
one by one, IBP by interval bounds. Mean ± standard deviation over seeds. train: wall time of a run on one thread of a
machine that other work shared, pauses of a stopped process included.

The paper's figures are of CNN7, a network with some hundred times the weights, trained for 492 to 3583 minutes on an
RTX 3090 and judged on the full test sets; they show the order, not a goal for these runs. Rows named "published" are
the paper group's own networks of this architecture, under the same certifier.
"""
