"""The library functions behind the commands: data and networks in, hardening and certification, figures out.

Each function reads its inputs first, so that a wrong file or option fails before any work and leaves nothing
behind; each result is a frozen dataclass with `to_json`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from citrus_tool import __version__, architectures, onnx_io
from citrus_tool.attacks.dataset import attack_dataset
from citrus_tool.attacks.pgd import pgd
from citrus_tool.attacks.universal import attack_groups
from citrus_tool.certification.individual import held, judged
from citrus_tool.certification.uap import certify_uap
from citrus_tool.checker.check import Checked, check
from citrus_tool.choices import SPLITS, Split
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import AttackSettings, CertifySettings
from citrus_tool.context import RunContext
from citrus_tool.data import Dataset
from citrus_tool.devices import resolve_device, resolved
from citrus_tool.errors import AccuracyWarning, DataError, InputFileError, UsageError
from citrus_tool.files import require_writable_file, require_writable_folder, toml_value, write_bytes, write_text
from citrus_tool.network import Network
from citrus_tool.onnx_io import Inspection, OnnxModel, OnnxRunner
from citrus_tool.progress import Progress
from citrus_tool.queries.target import Finding, Target, read_target
from citrus_tool.results.attack import AttackReport
from citrus_tool.results.certificate import Certificate
from citrus_tool.results.evaluation import Evaluation, Figures
from citrus_tool.results.harden import HardenReport, SpecVerdict
from citrus_tool.results.train import TrainReport
from citrus_tool.sources import PARITY_SAMPLES, DataChoice, DataSource, ModelChoice, ModelSource
from citrus_tool.threat import Threat
from citrus_tool.threat.clip import perturbed_network
from citrus_tool.training import checkpoint, recipes, trainer
from citrus_tool.training.batch_norm import insert_batch_norm, restore_layers
from citrus_tool.training.trainer import OnEpoch
from citrus_tool.workflow.normalisation import doubt

BATCH = 256
"""Inputs in one forward pass of a figure that needs no gradients."""
NORM_SAMPLES = 5120
"""Training inputs whose statistics a batch norm starts with that `harden` puts in; a multiple of BATCH."""
GROWN = 512
"""Inputs of one perturbation up to which it is grown input by input; above, it is descended on minibatches."""

RECIPE_OF_DATA: Mapping[str, str] = {
    "digits": "digits",
    "mnist": "mnist-cpu",
    "cifar10": "cifar10-2",
    "tinyimagenet": "tinyimagenet-1",
}
"""The recipe that `harden` takes for a data set when none is named; other data take mnist-cpu."""


def warn_of_accuracy(model: OnnxModel, dataset: Dataset, choice: DataSource) -> None:
    """An AccuracyWarning that names the fix where the network does badly on `dataset` (normalisation.doubt).

    Alternatives are tried on the validation split of `choice`, which `dataset` is a split of.
    """
    sentence = doubt(model, dataset, lambda: choice.load("validation"))
    if sentence is not None:
        warnings.warn(sentence, AccuracyWarning, stacklevel=3)


def shipped_model(name: str) -> Path:
    """A network of models/, in a checkout or in an installed package; raises InputFileError when it is absent."""
    package = Path(__file__).parents[1]
    for folder in (package / "models", package.parent / "models"):
        if (folder / name).is_file():
            return folder / name
    raise InputFileError(f"{name}: the shipped network is missing; install citrus-tool again.")


def choose_recipe(
    dataset: str,
    *,
    name: str | None,
    eps: float,
    epochs: int | None,
    changes: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe called `name` for the wanted method, at `eps` (pixel space), stretched to `epochs`, fields replaced.

    Args:
        name: a recipe's name, a TOML file (recipes.read), `auto` (recipes.automatic), or None for RECIPE_OF_DATA's.
        changes: what the user asked for, by field; None asks for nothing.
        defaults: fields that a command sets where neither `changes` nor a TOML file does.

    Raises:
        UsageError: an unknown name or senseless values.
        InputFileError: the TOML file cannot be read.
    """
    changes = {field: value for field, value in changes.items() if value is not None}
    defaults = defaults or {}
    if name is not None and name.endswith(".toml"):
        recipe = recipes.read(Path(name), changes.get("method"), defaults)
        try:
            trainer.methods_of(recipe)
        except UsageError as error:
            raise UsageError(f"{name}: {error}" if "method" not in changes else str(error)) from None
    else:
        chosen = recipes.automatic(dataset, eps) if name == "auto" else name or RECIPE_OF_DATA.get(dataset, "mnist-cpu")
        named = recipes.named(chosen, changes.get("method", defaults.get("method")))
        recipe = dataclasses.replace(named, **{k: v for k, v in defaults.items() if k != "method"})
    if epochs is not None:
        recipe = recipe.with_epochs(epochs)
    return dataclasses.replace(recipe, eps=eps, **changes)


def require_no_teacher(recipe: Recipe) -> None:
    """Raises UsageError for a recipe that distils, where training begins with an untrained network."""
    if recipe.distil > 0:
        raise UsageError("distil needs a trained network to learn from; harden a file, or set distil = 0.")


def inspect_file(model: ModelChoice, choice: DataChoice | None = None) -> Inspection:
    """What is in an ONNX file, what supports each operator, and how well citrus agrees with onnxruntime on it."""
    if choice is None:
        return onnx_io.inspect(model.path, mean=model.mean, std=model.std)
    dataset = choice.load("test")
    return onnx_io.inspect(
        model.path,
        mean=model.mean,
        std=model.std,
        input_shape=dataset.shape,
        samples=dataset.take(PARITY_SAMPLES).pixels(),
    )


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
    _require_outputs(out, run_dir, fresh=keep_checkpoints and not context.resume)
    warn_of_accuracy(model, test, choice)
    threat = Threat(eps=recipe.eps)
    save_settings(run_dir, context.effective)
    with tempfile.TemporaryDirectory(prefix="citrus-") as folder:  # a network in memory is no file yet
        given = Path(folder) / "before.onnx"
        given.write_bytes(model.proto.SerializeToString())
        failed = _verdicts(target, given, progress, "properties before")
    if target is not None:
        train = target.joined(train)

    def figures(network: OnnxModel, journal: str) -> Figures:
        found = certify_uap(
            network,
            test,
            threat,
            certify,
            device=context.device,
            journal=run_dir / journal,
            resume=context.resume,
            progress=progress,
        )
        return _figures(network, test, found, context)

    before = figures(model, "before.jsonl")
    network = (
        insert_batch_norm(model.network, torch.split(train.take(NORM_SAMPLES).pixels(), BATCH)) if batch_norm else None
    )
    result = trainer.fit(
        network or model.network,
        train,
        validation,
        recipe,
        run_dir=run_dir if keep_checkpoints else None,
        resume=context.resume and checkpoint.exists(run_dir),  # a run that was stopped before training has none yet
        device=context.device,
        progress=progress,
        on_epoch=on_epoch,
    )
    trained = result.network
    if batch_norm:
        trained = restore_layers(onnx_io.fold_batch_norm(trained), model.network)
    hardened = onnx_io.write(dataclasses.replace(model, network=trained), out, metadata=_metadata(recipe, choice))
    after = figures(hardened, "after.jsonl")
    repaired = _verdicts(target, out, progress, "properties after")
    progress.finish()
    report = HardenReport(
        model=source.path,
        out=out,
        recipe=recipe,
        seconds=result.seconds,
        best_epoch=result.best_epoch,
        history=result.history,
        before=before,
        after=after,
        data=choice.name,
        group_size=certify.group_size,
        inputs=min(certify.limit or len(test), len(test)),
        spec=[
            SpecVerdict(file=p.path, images=len(p.labels), eps=p.eps, before=old.verdict, after=new.verdict)
            for p, old, new in zip(target.properties if target else (), failed, repaired, strict=True)
        ],
    )
    write_text(run_dir / "report.json", json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")
    return report


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
    _require_outputs(out, run_dir, fresh=not context.resume)
    save_settings(run_dir, context.effective)
    result = trainer.fit(
        network,
        train,
        validation,
        recipe,
        run_dir=run_dir,
        resume=context.resume,
        device=context.device,
        progress=progress,
        on_epoch=on_epoch,
    )
    model = onnx_io.export(onnx_io.fold_batch_norm(result.network), out, metadata=_metadata(recipe, choice))
    accuracy = standard_accuracy(model, test, context, stage="test")
    progress.finish()
    report = TrainReport(
        architecture=architecture,
        out=out,
        recipe=recipe,
        seconds=result.seconds,
        best_epoch=result.best_epoch,
        history=result.history,
        standard_accuracy=accuracy,
        data=choice.name,
    )
    write_text(run_dir / "report.json", json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")
    return report


def certify_file(
    source: ModelSource,
    choice: DataSource,
    threat: Threat,
    certify: CertifySettings,
    context: RunContext,
    *,
    split: Split = "test",
    proof: Path | None = None,
    part: tuple[int, int] | None = None,
    join: Sequence[Path] = (),
) -> Certificate:
    """The certificate of a file on one split; finished groups go to journal.jsonl in the run folder, for
    `resume`.

    `proof` gets what `check_file` verifies; `part` is as in `certify_uap`; `join` are run folders of parts, and needs a
    run folder.
    """
    context, run_dir = resolved(context), context.run_dir
    dataset = choice.load(split)
    model = source.read(dataset)
    if run_dir is not None:
        require_writable_folder(run_dir)
    warn_of_accuracy(model, dataset, choice)
    if run_dir is None:
        return certify_uap(
            model,
            dataset,
            threat,
            certify,
            device=context.device,
            proof=proof,
            workers=context.workers,
            part=part,
            progress=context.progress,
        )
    save_settings(run_dir, {**context.effective, "eps": threat.eps} if context.effective is not None else None)
    certificate = certify_uap(
        model,
        dataset,
        threat,
        certify,
        device=context.device,
        journal=run_dir / "journal.jsonl",
        resume=context.resume,
        proof=proof,
        workers=context.workers,
        part=part,
        join=[folder / "journal.jsonl" for folder in join],
        progress=context.progress,
    )
    write_text(run_dir / "certificate.json", json.dumps(certificate.to_json(), indent=2, allow_nan=False) + "\n")
    return certificate


def check_file(
    proof: Path, model: Path, choice: DataChoice | None, context: RunContext, *, split: Split = "test"
) -> Checked:
    """Verifies a proof that `certify_file` wrote; with a choice of data also that its inputs are those of the split.

    Raises as `check.check`; DataError where an input is beyond the data.
    """
    progress = context.progress
    images = None
    if choice is not None:
        dataset = choice.load(split)

        def images(indices: Sequence[int]) -> tuple[NDArray[np.float32], list[int]]:
            if max(indices) >= len(dataset) or min(indices) < 0:
                raise DataError(
                    f"data {dataset.name} ({dataset.split}) has no input {max(indices)}; choose other data."
                )
            index = torch.tensor(indices)
            return dataset.pixels(index).numpy(), dataset.labels[index].tolist()

    progress.start("check", None, "groups")
    found = check(proof, model, images=images, progress=progress.advance)
    progress.finish()
    return found


def evaluate_file(
    source: ModelSource,
    choice: DataSource,
    threat: Threat,
    certify: CertifySettings,
    context: RunContext,
    *,
    split: Split = "test",
    pgd_steps: int = 50,
) -> Evaluation:
    """Clean, PGD, shared-perturbation, IBP and certified accuracy in one go."""
    context = replace(resolved(context), seed=certify.seed)
    dataset = choice.load(split)
    model = source.read(dataset)
    warn_of_accuracy(model, dataset, choice)
    judged = dataset.take(certify.limit) if certify.limit is not None else dataset
    certificate = certify_uap(model, dataset, threat, certify, device=context.device, progress=context.progress)
    figures = _figures(model, dataset, certificate, context)
    robust = pgd_accuracy(model.network, judged, threat, pgd_steps, context)
    context.progress.finish()
    return Evaluation(
        model=source.path,
        data=choice.name,
        split=split,
        eps=threat.eps,
        group_size=certify.group_size,
        inputs=len(judged),
        pgd_accuracy=robust,
        figures=figures,
        certificate=certificate,
    )


def attack_file(
    source: ModelSource,
    choice: DataSource,
    threat: Threat,
    settings: AttackSettings,
    context: RunContext,
    *,
    split: Split = "test",
    save: Path | None = None,
) -> AttackReport:
    """The strongest shared perturbations found, replayed on onnxruntime.

    Args:
        save: writes the perturbations (g, C, H, W) float32 to this .npy file.

    With a target class, inputs that have it as label are left out.
    """
    where, progress = resolve_device(context.device), context.progress
    whole = choice.load(split)
    model = source.read(whole)
    threat.require_target(model.network.num_classes)
    if save is not None:
        require_writable_file(save)
    warn_of_accuracy(model, whole, choice)
    dataset = whole.select(judged(whole, threat.target)[: settings.limit])
    k = settings.group_size or len(dataset)
    groups = -(-len(dataset) // k)
    index = torch.arange(groups * k).clamp(max=len(dataset) - 1).reshape(groups, k)
    present = (torch.arange(groups * k) < len(dataset)).reshape(groups, k)
    images = dataset.pixels(index.flatten()).reshape(groups, k, *dataset.shape)
    network = perturbed_network(model.network, threat).frozen(dtype=torch.float32, device=where)
    generator = torch.Generator().manual_seed(settings.seed)
    progress.start("attack", groups, "groups")
    found = []
    batch = max(1, BATCH // k)
    for start in range(0, groups, batch):
        part = slice(start, min(start + batch, groups))
        if k > GROWN:
            members = index[start][present[start]]
            u, _ = attack_dataset(
                network,
                dataset.pixels(members),
                dataset.labels[members],
                threat.eps,
                steps=settings.steps,
                restarts=settings.restarts,
                generator=generator,
                target=threat.target,
            )
            found.append(u[None])
        else:
            several, _ = attack_groups(
                network,
                images[part].to(where),
                dataset.labels[index[part]].to(where),
                present[part].to(where),
                threat.eps,
                steps=settings.steps,
                restarts=settings.restarts,
                generator=generator,
                target=threat.target,
            )
            found.append(several.cpu())
        progress.advance(part.stop - part.start)
    perturbations = torch.cat(found)
    runner = OnnxRunner(model)
    images, labels = dataset.pixels(), dataset.labels.numpy()
    shifted = threat.inputs(images, perturbations.repeat_interleave(k, dim=0)[: len(dataset)])
    progress.finish()
    if save is not None:
        buffer = io.BytesIO()
        np.save(buffer, perturbations.numpy())
        write_bytes(save, buffer.getvalue())
    return AttackReport(
        model=source.path,
        data=choice.name,
        split=split,
        threat=threat,
        group_size=k,
        inputs=len(dataset),
        correct=int(held(runner.logits(images), labels, threat.target).sum()),
        attacked=int(held(runner.logits(shifted), labels, threat.target).sum()),
        perturbations=perturbations,
    )


def demo(context: RunContext) -> HardenReport:
    """Hardens the shipped digits network by the recipe `digits` and certifies it before and after.

    At that recipe's eps, on the first 200 inputs of the digits test split. The checkpoints are not kept, so that the
    demo can be run again.
    """
    return harden_file(
        ModelChoice(path=shipped_model("digits_convtiny.onnx")),
        DataChoice(name="digits"),
        recipes.named("digits"),
        context,
        out=context.folder / "digits_convtiny_citrus.onnx",
        certify=CertifySettings(limit=200),
        keep_checkpoints=False,
    )


def _require_outputs(out: Path, run_dir: Path, *, fresh: bool) -> None:
    """Both must be writable; `out` may lie in the run folder, which is made when it is first written to.

    A `fresh` run does not overwrite the checkpoints of another one.
    """
    require_writable_folder(run_dir)
    if fresh and checkpoint.exists(run_dir):
        raise UsageError(f"run folder {run_dir} already holds a run; add --resume or choose another --run-dir.")
    if out.parent.absolute() != run_dir.absolute() or run_dir.is_dir():
        require_writable_file(out)


def save_settings(run_dir: Path, settings: Mapping[str, Any] | None) -> None:
    """Writes the effective options as TOML that --config reads; options that are not set are left out."""
    run_dir.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} = {toml_value(value)}" for key, value in (settings or {}).items() if value is not None]
    write_text(run_dir / "settings.toml", "\n".join(lines) + "\n")


def _metadata(recipe: Recipe, choice: DataSource) -> dict[str, str]:
    """What the written file says about its origin (metadata_props)."""
    return {
        "citrus_version": __version__,
        "method": recipe.method,
        "eps": repr(recipe.eps),
        "tau": repr(recipe.tau_ratio * recipe.eps),
        "group_size": str(recipe.group_size),
        "epochs": str(recipe.epochs),
        **({"pretrain": f"{recipe.pretrain}, {recipe.pretrain_epochs} epochs"} if recipe.pretrain else {}),
        **({"train_on": recipe.train_on} if recipe.train_on != "train" else {}),
        "seed": str(recipe.seed),
        "data": choice.name,
    }


def _figures(model: OnnxModel, dataset: Dataset, certificate: Certificate, context: RunContext) -> Figures:
    """Standard accuracy on all of `dataset`, the rest from the certificate."""
    inputs = certificate.inputs
    return Figures(
        standard_accuracy=standard_accuracy(model, dataset, context),
        ibp_certified_accuracy=100 * certificate.ibp_certified / inputs,
        certified_uap_accuracy=100 * certificate.certified / inputs,
        attacked_uap_accuracy=100 * certificate.attacked / inputs,
    )


def _verdicts(target: Target | None, network: Path, progress: Progress, stage: str) -> list[Finding]:
    if target is None:
        return []
    progress.start(stage, len(target.properties), "properties")
    return target.verdicts(network, lambda found: progress.advance(1, f"{found.path.name}: {found.verdict}"))


def _correct(logits: np.ndarray[Any, np.dtype[Any]], labels: np.ndarray[Any, np.dtype[Any]]) -> Any:
    """Flags (n,): the true class's logit is above every other one; a tie is not correct."""
    rows = np.arange(len(labels))
    true = logits[rows, labels]
    others = logits.copy()
    others[rows, labels] = -np.inf
    return true > others.max(axis=1)


def standard_accuracy(
    model: OnnxModel, dataset: Dataset, context: RunContext, *, stage: str = "standard accuracy"
) -> float:
    """Percent of `dataset` that the file on onnxruntime classifies correctly; a tie is not correct."""
    runner = OnnxRunner(model)
    context.progress.start(stage, len(dataset), "inputs")
    correct = 0
    for start in range(0, len(dataset), BATCH):
        part = slice(start, min(start + BATCH, len(dataset)))
        correct += int(_correct(runner.logits(dataset.pixels(part)), dataset.labels[part].numpy()).sum())
        context.progress.advance(part.stop - part.start)
    return 100 * correct / len(dataset)


def pgd_accuracy(network: Network, dataset: Dataset, threat: Threat, steps: int, context: RunContext) -> float:
    """Percent of all inputs that stay correct, clean and under their own PGD perturbation of that many steps."""
    device, progress = resolve_device(context.device), context.progress
    frozen = network.frozen(dtype=torch.float32, device=device)
    generator = torch.Generator(device=device).manual_seed(context.seed)
    progress.start("pgd", len(dataset), "inputs")
    correct = 0
    for start in range(0, len(dataset), BATCH):
        part = slice(start, min(start + BATCH, len(dataset)))
        x, labels = dataset.pixels(part).to(device), dataset.labels[part].to(device)
        v = pgd(frozen, x, labels, radius=threat.eps, steps=steps, generator=generator)
        with torch.no_grad():
            clean, moved = frozen(x).cpu().numpy(), frozen(x + v).cpu().numpy()
        truth = dataset.labels[part].numpy()
        correct += int((_correct(clean, truth) & _correct(moved, truth)).sum())
        progress.advance(part.stop - part.start)
    return 100 * correct / len(dataset)
