"""Training a named architecture from scratch."""

from __future__ import annotations

from pathlib import Path

from citrus_tool import architectures, onnx_io
from citrus_tool.choices import SPLITS
from citrus_tool.choices.recipe import Recipe
from citrus_tool.context import RunContext
from citrus_tool.devices import resolved
from citrus_tool.files import write_json
from citrus_tool.results.train import TrainReport
from citrus_tool.sources import DataSource
from citrus_tool.training import trainer
from citrus_tool.training.trainer import OnEpoch
from citrus_tool.workflow.figures import standard_accuracy
from citrus_tool.workflow.recipe_choice import require_no_teacher
from citrus_tool.workflow.run_folder import metadata, require_outputs, save_settings


def train_file(
    architecture: str,
    choice: DataSource,
    recipe: Recipe,
    context: RunContext,
    *,
    out: Path,
    on_epoch: OnEpoch | None = None,
) -> TrainReport:
    """Trains a named architecture from scratch and exports it to `out`; raises as `harden_file`."""
    context, run_dir, progress = resolved(context), context.folder, context.progress
    trainer.methods_of(recipe)
    train, validation, test = (choice.load(split) for split in SPLITS)
    network = architectures.build(architecture, test.shape, test.num_classes, seed=recipe.seed)
    require_no_teacher(recipe)
    require_outputs(out, run_dir, fresh=not context.resume)
    save_settings(run_dir, context.effective)
    result = trainer.fit(network, train, validation, recipe, context, on_epoch=on_epoch)
    model = onnx_io.export(onnx_io.fold_batch_norm(result.network), out, metadata=metadata(recipe, choice))
    accuracy = standard_accuracy(model, test, context, stage="test")
    progress.finish()
    report = TrainReport(
        architecture=architecture,
        out=out,
        method=recipe.method,
        eps=recipe.eps,
        epochs=recipe.epochs,
        recipe=recipe,
        seconds=result.seconds,
        best_epoch=result.best_epoch,
        history=result.history,
        standard_accuracy=accuracy,
        data=choice.name,
    )
    write_json(run_dir / "report.json", report.to_json())
    return report
