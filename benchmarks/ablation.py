"""Variants of a training method on a subset, judged on the validation split: how citrus-plus was chosen.

    python benchmarks/ablation.py cifar10-2 --subset 10000 --epochs 12 --seeds 3 --threads 1 \\
        --variant citrus='{}' --variant citrus-plus='{}' --variant citrus-plus='{"worst": 0}'

A variant is a method and the fields of the contest's recipe (bench/contests.py) that it changes; epochs are scaled with
`Recipe.with_epochs`. Standard accuracy is of the whole validation split, certified and attacked UAP accuracy of its
first 500 inputs under the contest's certifier; the test split is never read. Every finished run is a line of --journal
and is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from citrus_tool import architectures, data, onnx_io
from citrus_tool.bench.contests import CERTIFIER, CPU, Contest, Job
from citrus_tool.certify.uap import certify_uap
from citrus_tool.harden import trainer
from citrus_tool.harden.recipes import Recipe
from citrus_tool.threat import Threat

INPUTS = 500
"""Validation inputs that are certified."""


def judged(contest: Contest, recipe: Recipe, subset: int, root: Path | None) -> dict[str, float]:
    """Trains by the recipe on the first `subset` training inputs and judges the last epoch."""
    train, validation = (data.load(contest.data, split=split, root=root) for split in ("train", "validation"))
    network = architectures.build(
        contest.architecture, train.shape, train.num_classes, seed=recipe.seed, normalisation=contest.normalisation
    )
    result = trainer.fit(network, train.take(subset), validation, recipe)
    with tempfile.TemporaryDirectory() as folder:
        model = onnx_io.export(onnx_io.fold_batch_norm(result.network), Path(folder) / "m.onnx", metadata={})
        settings = dataclasses.replace(CERTIFIER, limit=INPUTS)
        found = certify_uap(model, validation.take(INPUTS), Threat(eps=recipe.eps), settings).to_json()
    return {
        "standard": trainer.accuracy(result.network, validation),
        "certified": 100 * found["certified"] / INPUTS,
        "attacked": 100 * found["attacked"] / INPUTS,
        "ibp": 100 * found["ibp_certified"] / INPUTS,
        "seconds": result.seconds,
    }


def main() -> None:
    """Does what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contest", choices=[contest.name for contest in CPU])
    parser.add_argument("--variant", action="append", default=[], metavar="METHOD=JSON")
    parser.add_argument("--subset", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--journal", type=Path, default=Path("results") / "ablation.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contest = next(contest for contest in CPU if contest.name == options.contest)
    lines = options.journal.read_text().splitlines() if options.journal.exists() else []
    done: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def recipe_of(variant: str, seed: int) -> Recipe:
        method, _, text = variant.partition("=")
        return dataclasses.replace(
            Job(contest=contest, method=method, seed=seed).recipe.with_epochs(options.epochs),
            certified_inputs=0, validate_every=options.epochs, **json.loads(text),
        )  # fmt: skip

    def setting(recipe: Recipe) -> dict[str, Any]:
        return {"contest": contest.name, "subset": options.subset, "recipe": recipe.to_json()}

    def find(variant: str, seed: int) -> dict[str, Any] | None:
        wanted = setting(recipe_of(variant, seed))
        return next((entry for entry in done if all(entry[name] == value for name, value in wanted.items())), None)

    for seed in range(options.seeds):
        for variant in options.variant:
            if find(variant, seed) is None:
                recipe = recipe_of(variant, seed)
                entry = {**setting(recipe), **judged(contest, recipe, options.subset, options.data_root)}
                done.append(entry)
                with options.journal.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
    print("| variant | std | ucert | attacked | IBP | seeds |\n|---|---|---|---|---|---|")
    for variant in options.variant:
        runs = [entry for seed in range(options.seeds) if (entry := find(variant, seed)) is not None]
        columns = ([entry[name] for entry in runs] for name in ("standard", "certified", "attacked", "ibp"))
        shown = (f"{statistics.mean(c):.2f} ± {statistics.stdev(c) if len(c) > 1 else 0:.2f}" for c in columns)
        print(f"| `{variant}` | {' | '.join(shown)} | {len(runs)} |")


if __name__ == "__main__":
    main()
