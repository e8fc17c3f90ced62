"""Variants of citrus-plus on a subset, judged on the validation split: the ablation, and how its parts were chosen.

    python benchmarks/ablation.py mnist-0.1 --subset 10000 --epochs 8 --seeds 3 --threads 1
    python benchmarks/ablation.py digits --epochs 50 --seeds 3 --threads 1
    python benchmarks/ablation.py cifar10-2 --variant citrus='{}' --variant citrus-plus='{"worst": 0}'
    python benchmarks/ablation.py cifar10-2-long --subset 45000 --epochs 80 --seeds 1 --variant citrus='{"alpha": 0.02}'

A variant is a method and the fields of the contest's recipe (bench/contests.py) that it changes; without --variant it
is every one of VARIANTS. Epochs are scaled with `Recipe.with_epochs`; the validation split is never trained on,
whatever the recipe says. Standard accuracy and PGD accuracy (an input's own perturbation) are of the whole validation
split, certified and attacked UAP accuracy of its first --inputs under the contest's certifier; the test split is never
read. A variant that distils learns from a network of the same seed that plain training made (--teacher-epochs). Every
finished run is a line of --journal and is not done again, and the table shows what there is: mean and sample standard
deviation over seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from citrus_tool import architectures, data, onnx_io
from citrus_tool.bench.contests import CERTIFIER, CPU, CPU_LONG, Contest, Job
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices.recipe import Recipe
from citrus_tool.context import RunContext
from citrus_tool.data import Dataset
from citrus_tool.network import Network
from citrus_tool.threat import Threat, parse_eps
from citrus_tool.training import trainer
from citrus_tool.training.recipes import named
from citrus_tool.workflow.figures import pgd_accuracy

PGD_STEPS = 20
"""PGD accuracy costs seconds on the whole split, so that it tells variants apart that some hundred proofs do not."""
INPUTS = 500
"""Validation inputs that are certified, unless --inputs says otherwise."""
FIGURES = ("standard", "pgd", "certified", "attacked", "ibp")
"""The table's columns; lines from before it was measured have no "pgd"."""
DIGITS = Contest(
    name="digits",
    data="digits",
    eps="0.08",
    architecture="convtiny",
    normalisation=((0.3,), (0.4,)),
    recipe=dataclasses.replace(named("digits").with_epochs(50), eps=0.08, warmup_epochs=1, init="shi", pgd_steps=5),
    changes={"citrus-plus": {"alpha": 0.3, "worst": 1}},
)
"""A contest of seconds, with nothing tuned for it."""
CONTESTS = (*CPU, *CPU_LONG, DIGITS)
VARIANTS = (
    "citrus={}",
    "citrus-plus={}",
    'citrus-plus={"worst": 0}',
    'citrus-plus={"alpha": 1.0}',
    'citrus-plus={"pool": 1}',
    'citrus-plus={"pool": 5}',
    'citrus-plus={"tau_from": 1.0}',
    'citrus-plus={"average": 0.99}',
    'citrus-plus={"distil": 0.5}',
)
"""CITRUS, citrus-plus, and it without one of its parts (selection of boxes, mixture) or with one more."""


def teacher(network: Network, train: Dataset, validation: Dataset, recipe: Recipe, epochs: int) -> Network:
    """The network after plain training, with the recipe's augmentation."""
    plain = dataclasses.replace(
        named("standard").with_epochs(epochs), flip=recipe.flip, crop_padding=recipe.crop_padding, seed=recipe.seed
    )
    return trainer.fit(network, train, validation, plain).network


def judged(
    contest: Contest, recipe: Recipe, subset: int, inputs: int, teacher_epochs: int, root: Path | None
) -> dict[str, float]:
    """Trains by the recipe on the first `subset` training inputs and judges the last epoch."""
    train, validation = (data.load(contest.data, split=split, root=root) for split in ("train", "validation"))
    network = architectures.build(
        contest.architecture, train.shape, train.num_classes, seed=recipe.seed, normalisation=contest.normalisation
    )
    if recipe.distil > 0:
        network = teacher(network, train.take(subset), validation, recipe, teacher_epochs)
    result = trainer.fit(network, train.take(subset), validation, recipe)
    with tempfile.TemporaryDirectory() as folder:
        model = onnx_io.export(onnx_io.fold_batch_norm(result.network), Path(folder) / "m.onnx", metadata={})
        settings = dataclasses.replace(CERTIFIER, limit=inputs)
        found = certify_uap(model, validation, Threat(eps=parse_eps(contest.eps)), settings).to_json()
    judged_inputs = found["inputs"]
    threat = Threat(eps=parse_eps(contest.eps))
    return {
        "standard": trainer.accuracy(result.network, validation),
        "pgd": pgd_accuracy(result.network, validation, threat, PGD_STEPS, RunContext(device="cpu")),
        "certified": 100 * found["certified"] / judged_inputs,
        "attacked": 100 * found["attacked"] / judged_inputs,
        "ibp": 100 * found["ibp_certified"] / judged_inputs,
        "seconds": result.seconds,
    }


def main() -> None:
    """Does what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contest", choices=[contest.name for contest in CONTESTS])
    parser.add_argument("--variant", action="append", metavar="METHOD=JSON")
    parser.add_argument("--subset", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--inputs", type=int, default=INPUTS, help="validation inputs that are certified")
    parser.add_argument("--teacher-epochs", type=int, default=8)
    parser.add_argument("--list", action="store_true", help="print the table as the journal has it; run nothing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--journal", type=Path, default=Path("results") / "ablation.jsonl")
    options = parser.parse_args()
    variants = options.variant or VARIANTS
    torch.set_num_threads(options.threads)
    contest = next(contest for contest in CONTESTS if contest.name == options.contest)
    whole = options.journal.read_text().split("\n")[:-1] if options.journal.exists() else []
    done: list[dict[str, Any]] = [json.loads(line) for line in whole]
    defaults = Recipe(eps=0.0, tau_ratio=1.0, epochs=1, warmup_epochs=0, ramp_epochs=0).to_json()

    def recipe_of(variant: str, seed: int) -> Recipe:
        method, _, text = variant.partition("=")
        changes: dict[str, Any] = json.loads(text)
        fixed: dict[str, Any] = {"certified_inputs": 0, "validate_every": options.epochs, "train_on": "train"}
        if taken := sorted(changes.keys() & fixed.keys()):
            parser.error(f"--variant {variant}: {', '.join(taken)} cannot be varied; leave it out.")
        recipe = Job(contest=contest, method=method, seed=seed).recipe.with_epochs(options.epochs)
        return dataclasses.replace(recipe, **fixed, **changes)

    def setting(recipe: Recipe) -> dict[str, Any]:
        distils = {"teacher_epochs": options.teacher_epochs} if recipe.distil > 0 else {}
        judge = {"inputs": options.inputs} if options.inputs != INPUTS else {}
        return {"contest": contest.name, "subset": options.subset, "recipe": recipe.to_json(), **distils, **judge}

    def find(variant: str, seed: int) -> dict[str, Any] | None:
        wanted = setting(recipe_of(variant, seed))
        for entry in done:  # fields that a line does not hold, since they are newer, are at their defaults
            known = {**entry, "recipe": {**defaults, **entry["recipe"]}}
            if known.get("inputs", INPUTS) != options.inputs:
                continue
            if all(known.get(name) == value for name, value in wanted.items()):
                return entry
        return None

    for seed in range(0 if options.list else options.seeds):
        for variant in variants:
            if find(variant, seed) is None:
                recipe = recipe_of(variant, seed)
                figures = judged(
                    contest, recipe, options.subset, options.inputs, options.teacher_epochs, options.data_root
                )
                entry = {**setting(recipe), **figures}
                done.append(entry)
                with options.journal.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
    print("| variant | std | PGD | ucert | attacked | IBP | seeds |\n|---|---|---|---|---|---|---|")
    for variant in variants:
        runs = [entry for seed in range(options.seeds) if (entry := find(variant, seed)) is not None]
        if not runs:
            print(f"| `{variant}` | not run | | | | | 0 |")
            continue
        shown = (summary([entry[name] for entry in runs if name in entry], len(runs)) for name in FIGURES)
        print(f"| `{variant}` | {' | '.join(shown)} | {len(runs)} |")


def summary(values: Sequence[float], runs: int) -> str:
    """Mean and sample standard deviation, and of how many runs where not of all (lines may be older than a figure)."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}{f' (of {len(values)})' if len(values) < runs else ''}"


if __name__ == "__main__":
    main()
