"""Hardening: training from a file's weights to the same file with other weights, judged before and after."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from citrus_tool import onnx_io
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices import SPLITS
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.context import RunContext
from citrus_tool.devices import resolved
from citrus_tool.errors import UsageError
from citrus_tool.files import write_json
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.progress import Progress
from citrus_tool.queries.target import Finding, Target, read_target
from citrus_tool.results.evaluation import Figures
from citrus_tool.results.harden import HardenReport, SpecVerdict
from citrus_tool.sources import DataSource, ModelSource
from citrus_tool.threat import Threat
from citrus_tool.training import checkpoint, trainer
from citrus_tool.training.batch_norm import insert_batch_norm, restore_layers
from citrus_tool.training.trainer import OnEpoch
from citrus_tool.workflow.figures import judged_figures
from citrus_tool.workflow.normalisation import warn_of_accuracy
from citrus_tool.workflow.run_folder import metadata, require_outputs, save_settings

NORM_SAMPLES = 5120
"""Training inputs whose statistics a batch norm starts with that `harden` puts in; a multiple of NORM_BATCH.

The mean of so many entries is within 1.4 % of their standard deviation, as a rule.
"""
NORM_BATCH = 256
"""Inputs in one batch of these statistics; it bounds memory."""


def read_spec(source: ModelSource, choice: DataSource, paths: Sequence[Path], *, seconds: float) -> Target:
    """The properties in `paths` as a target for `harden_file`; `seconds` is what each verdict may take.

    Raises as `queries.target.read_target`.
    """
    return read_target(paths, source.read(choice.load("test")), seconds=seconds)


def harden_file(
    source: ModelSource,
    choice: DataSource,
    recipe: Recipe,
    context: RunContext,
    *,
    out: Path,
    certify: CertifySettings,
    target: Target | None = None,
    keep_checkpoints: bool = True,
    batch_norm: bool = False,
    on_epoch: OnEpoch | None = None,
) -> HardenReport:
    """Trains the file's network by `recipe` and writes it to `out` with only its weights changed.

    The epoch is chosen as `trainer.fit` does. Before and after are judged on the test split: standard accuracy on
    all of it, the rest by `certify` at the recipe's eps. The images of `target` (read_spec) join the training data, and
    its properties are verified before and after. `batch_norm` puts batch norm in for training, as the identity
    at first, and folds it back into the file's weights. The run folder receives the settings, the journals of both
    certifications, the report and, unless `keep_checkpoints` is off, the checkpoints that `resume` needs. `on_epoch`
    gets each epoch's entry of the history as it is made.

    Raises:
        CitrusError: a file, an option or the data is wrong; nothing has been written then.
        UsageError: `out` is the file itself, or options exclude each other.
        InterruptedRunError: stopped by the user; `resume` continues.
    """
    context, run_dir, progress = resolved(context), context.folder, context.progress
    trainer.methods_of(recipe)
    train, validation, test = (choice.load(split) for split in SPLITS)
    model = source.read(test)
    if out.exists() and source.path.exists() and out.samefile(source.path):
        raise UsageError(f"{out} is the network that is hardened; give the result another name.")
    require_outputs(out, run_dir, fresh=keep_checkpoints and not context.resume)
    warn_of_accuracy(model, test, choice)
    threat = Threat(eps=recipe.eps)
    save_settings(run_dir, context.effective)
    with tempfile.TemporaryDirectory(prefix="citrus-") as folder:  # a network in memory is no file yet
        given = Path(folder) / "before.onnx"
        given.write_bytes(model.proto.SerializeToString())
        if target is not None:
            target = dataclasses.replace(target, arithmetic=certify.arithmetic)
        failed = _verdicts(target, given, progress, "properties before")
    if target is not None:
        train = target.joined(train)

    def figures(network: OnnxModel, journal: str) -> Figures:
        found = certify_uap(network, test, threat, certify, context, journal=run_dir / journal)
        return judged_figures(network, test, found, context)

    before = figures(model, "before.jsonl")
    network = (
        insert_batch_norm(model.network, torch.split(train.take(NORM_SAMPLES).pixels(), NORM_BATCH))
        if batch_norm
        else None
    )
    result = trainer.fit(
        network or model.network,
        train,
        validation,
        recipe,
        dataclasses.replace(
            context,
            run_dir=run_dir if keep_checkpoints else None,
            resume=context.resume and checkpoint.exists(run_dir),  # one that was stopped before training has none yet
        ),
        on_epoch=on_epoch,
    )
    trained = result.network
    if batch_norm:
        trained = restore_layers(onnx_io.fold_batch_norm(trained), model.network)
    hardened = onnx_io.write(dataclasses.replace(model, network=trained), out, metadata=metadata(recipe, choice))
    after = figures(hardened, "after.jsonl")
    repaired = _verdicts(target, out, progress, "properties after")
    progress.finish()
    report = HardenReport(
        model=source.path,
        out=out,
        method=recipe.method,
        eps=recipe.eps,
        epochs=recipe.epochs,
        recipe=recipe,
        seconds=result.seconds,
        best_epoch=result.best_epoch,
        history=result.history,
        before=before,
        after=after,
        data=choice.name,
        group_size=certify.group_size,
        arithmetic=certify.arithmetic,
        inputs=min(certify.limit or len(test), len(test)),
        spec=[
            SpecVerdict(file=p.path, images=len(p.labels), eps=p.eps, before=old.verdict, after=new.verdict)
            for p, old, new in zip(target.properties if target else (), failed, repaired, strict=True)
        ],
    )
    write_json(run_dir / "report.json", report.to_json())
    return report


def _verdicts(target: Target | None, network: Path, progress: Progress, stage: str) -> list[Finding]:
    if target is None:
        return []
    progress.start(stage, len(target.properties), "properties")
    return target.verdicts(network, lambda found: progress.advance(1, f"{found.path.name}: {found.verdict}"))
