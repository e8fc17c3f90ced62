"""The Python API: a Model, and what can be done with it.

    import citrus_tool as citrus

    model = citrus.load("M.onnx")                      # or load(module, input_shape=(3, 32, 32)) of a torch.nn.Module
    hardened = model.harden((x, y), eps=2 / 255)       # arrays, a data set's name, an .npz file, a folder
    certificate = hardened.model.certify((x_test, y_test), eps=2 / 255)
    hardened.model.save("H.onnx")

A facade: everything is computed by `workflow` and `queries`, as the command line does it. `harden`, `certify`, `attack`
and `evaluate` are also there as functions whose first argument is the model. Results are frozen records that show
themselves as tables (`repr`, and HTML in a notebook) and have `to_json`.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from citrus_tool.choices import BoundsName, Device, Init, Intermediate, Protocol, Scope, SolverName, Split, TrainOn
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import AttackSettings, CertifySettings
from citrus_tool.context import RunContext
from citrus_tool.data import Dataset, Splits
from citrus_tool.errors import UsageError
from citrus_tool.files import require_writable_folder, write_bytes
from citrus_tool.network import Network
from citrus_tool.onnx_io import OnnxModel, OnnxRunner
from citrus_tool.onnx_io.module import to_onnx
from citrus_tool.onnx_io.onnx_file import Source, content, parse
from citrus_tool.onnx_io.reader import assemble
from citrus_tool.progress import Progress, Silent
from citrus_tool.queries import Spec
from citrus_tool.queries import read as read_query
from citrus_tool.queries.export import Exported, export_group
from citrus_tool.queries.verify import Answer, require_names
from citrus_tool.queries.verify import verify as decide
from citrus_tool.results.attack import AttackReport
from citrus_tool.results.certificate import Certificate
from citrus_tool.results.evaluation import Evaluation, Figures
from citrus_tool.results.harden import HardenReport
from citrus_tool.sources import PARITY_SAMPLES, DataChoice, DataSource
from citrus_tool.tables import Table, Tabular
from citrus_tool.threat import Threat
from citrus_tool.training.trainer import OnEpoch
from citrus_tool.workflow.attack import attack_file
from citrus_tool.workflow.certify import certify_file
from citrus_tool.workflow.evaluate import evaluate_file
from citrus_tool.workflow.harden import harden_file, read_spec
from citrus_tool.workflow.recipe_choice import choose_recipe

Array = NDArray[Any] | Tensor
Data = Dataset | str | Path | tuple[Array, Array]
"""Data to judge on: a Dataset, what --data takes (`digits`, `mnist`, FILE.npz, FOLDER), or arrays (images, labels).

Images are (n, C, H, W), uint8 or floating point in [0, 1]; labels are (n,) whole numbers from 0.
"""


class CertifyOptions(TypedDict, total=False):
    """The fields of CertifySettings, which has their defaults and meaning; times are in seconds."""

    group_size: int
    protocol: Protocol
    scope: Scope
    bounds: BoundsName
    intermediate: Intermediate
    branch_nodes: int
    branch_seconds: float
    solver: SolverName
    time_limit: float
    threads: int
    attack_steps: int
    attack_restarts: int
    seed: int
    limit: int | None


class AttackOptions(TypedDict, total=False):
    """The fields of AttackSettings, which has their defaults and meaning."""

    group_size: int | None
    steps: int
    restarts: int
    seed: int
    limit: int | None


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far a long call has come: `done` of `total` units (None: unknown) of a stage, and a short status."""

    stage: str
    done: int
    total: int | None
    unit: str
    note: str


OnProgress = Callable[[Step], None]
"""Is called some times a second at most a hundred; must be quick."""


@final
class Calls(Progress):
    """Turns the library's progress into calls of a function."""

    def __init__(self, function: OnProgress) -> None:
        self._function = function
        self._step = Step(stage="", done=0, total=None, unit="", note="")

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self._step = Step(stage=stage, done=0, total=total, unit=unit, note="")
        self._function(self._step)

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._step = replace(self._step, done=self._step.done + amount, note=note or self._step.note)
        self._function(self._step)

    def finish(self) -> None:
        return None


def _progress(function: OnProgress | None) -> Progress:
    return Silent() if function is None else Calls(function)


@dataclass(frozen=True, kw_only=True)
class _One:
    """A single data set as a sources.DataSource: it has the split that it is."""

    dataset: Dataset

    @property
    def name(self) -> str:
        return self.dataset.name

    def load(self, split: Split, limit: int | None = None) -> Dataset:
        return self.dataset if limit is None else self.dataset.take(limit)


def _judged(data: Data, split: Split, root: Path | None) -> tuple[DataSource, Split]:
    """Where to load from, and which split; raises UsageError for what is no data."""
    if isinstance(data, str | Path):
        return DataChoice(name=str(data), root=root), split
    if isinstance(data, tuple) and len(data) == 2:
        data = Dataset.from_arrays(*data, split=split)
    if not isinstance(data, Dataset):
        raise UsageError(
            f"data is {_kind(data)}; give a Dataset, a name such as 'digits', an .npz file, or (images, labels)."
        )
    return _One(dataset=data), cast(Split, data.split)


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple) else "")


@final
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Model(Tabular):
    """An ONNX classifier in memory, compared with onnxruntime; made by `load`, never changed.

    Attributes:
        content: the file's bytes, as `save` writes them.
        source: the checked file.
        mean: of the normalisation in front of the file's input, one value per channel; None: it takes pixels.
        std: as mean.
        onnx: its reading; `onnx.network` maps pixels to logits.
    """

    content: bytes
    source: Source
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    onnx: OnnxModel

    @property
    def path(self) -> Path:
        """The file that it was read from; for a torch module its class, in angle brackets."""
        return self.source.path

    @property
    def sha256(self) -> str:
        """Digest of the file, as certificates name it."""
        return self.source.sha256

    @property
    def network(self) -> Network:
        """A torch.nn.Module from pixels (n, C, H, W) in [0, 1] to logits (n, classes); normalisation is part of it."""
        return self.onnx.network

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One input in pixel space, (C, H, W)."""
        return self.onnx.contract.pixel_shape

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.onnx.network.num_classes

    def read(self, dataset: Dataset) -> OnnxModel:
        """The reading that fits `dataset`, compared with onnxruntime on its first images.

        Raises:
            InputFileError, DataError: shape or number of classes do not fit.
        """
        samples = dataset.take(PARITY_SAMPLES).pixels()
        model = assemble(self.source, mean=self.mean, std=self.std, input_shape=dataset.shape, samples=samples)
        dataset.require_classifier(model.network.input_shape, model.network.num_classes, str(self.path))
        return model

    def logits(self, images: Array) -> NDArray[np.float32]:
        """Logits (n, classes) by onnxruntime of images (n, C, H, W) in pixel space [0, 1]; uint8 is divided by 255.

        Raises:
            DataError: the shape is another one.
        """
        x = torch.as_tensor(images)
        return OnnxRunner(self.onnx).logits(x / 255 if x.dtype == torch.uint8 else x)

    def harden(
        self,
        data: Splits | str | Path | tuple[Array, Array],
        *,
        eps: float | None = None,
        spec: str | Path | Sequence[str | Path] = (),
        spec_timeout: float = 60.0,
        method: str | None = None,
        recipe: str | Recipe | None = None,
        epochs: int | None = None,
        init: Init | None = None,
        train_on: TrainOn | None = None,
        batch_norm: bool = False,
        certify: CertifySettings | None = None,
        out: str | Path | None = None,
        run_dir: str | Path | None = None,
        resume: bool = False,
        data_root: Path | None = None,
        device: Device = "auto",
        seed: int = 0,
        on_epoch: OnEpoch | None = None,
        on_progress: OnProgress | None = None,
    ) -> Hardened:
        """Trains the network against shared perturbations; the result has the same graph and new weights.

        CITRUS (Xu & Singh, cross-input certified training) unless `method` says otherwise; docs/training.md.
        The best epoch is chosen on the validation split; before and after are judged on the test split.

        Args:
            data: what --data takes, arrays (images (n, C, H, W) in [0, 1] or uint8, labels (n,)), which are split
                70 / 15 / 15 %, or Splits of your own. A single Dataset is refused: one split is not enough.
            eps: radius of the perturbation, in pixel space [0, 1]; None: the largest radius of `spec`.
            spec: VNN-LIB files of local robustness, folders of such, or an instances.csv. Their images join the
                training data, and they are verified before and after: `Hardened.report.spec`; docs/vnncomp.md.
            spec_timeout: seconds for the verdict on one property.
            method: a training method [citrus, or the one of a given Recipe].
            recipe: a name, "auto", FILE.toml, or a Recipe, whose eps and seed are replaced; None: as the command line.
            epochs: stretches the recipe.
            init: keep the weights or draw new ones (shi) [the recipe's].
            train_on: "all" trains on the validation split too and keeps the last epoch [the recipe's].
            batch_norm: train with batch norm, folded back afterwards.
            certify: how before and after are judged; None: the first 1000 test inputs, groups of 5, CROWN.
            out: also write the hardened file here; None: it is only in memory (`Hardened.model.save`).
            run_dir: folder for checkpoints and reports, needed for `resume`; None: nothing is kept.
            on_epoch: gets every epoch's entry of the history: epoch, phase, eps, tau, lr, loss parts, seconds, and
                validation_standard_accuracy and validation_certified_accuracy in percent.
            on_progress: gets a Step now and then.

        Raises:
            UsageError: an option makes no sense, or there is neither eps nor spec.
            DataError, InputFileError: data or files are wrong or do not fit the network; a file of `spec` states
                something else than local robustness.
            CheckFailedError: training diverged.
            InterruptedRunError: Ctrl-C; with a run_dir, `resume=True` goes on.
        """
        if resume and run_dir is None:
            raise UsageError("resume needs the run_dir of the run to continue.")
        source = _training(data, seed, data_root)
        paths = [Path(one) for one in ([spec] if isinstance(spec, str | Path) else spec)]
        wanted = read_spec(self, source, paths, seconds=spec_timeout) if paths else None
        if eps is None:
            if wanted is None:
                raise UsageError("harden needs a radius to train for; give eps, e.g. eps=0.1, or spec.")
            eps = wanted.eps
        chosen = _recipe(
            recipe, source.name, eps=eps, method=method, epochs=epochs, init=init, train_on=train_on, seed=seed
        )
        with ExitStack() as stack:
            folder = Path(run_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="citrus-")))
            target = Path(out) if out is not None else folder / f"{_stem(self.path)}_{chosen.method}.onnx"
            report = harden_file(
                self,
                source,
                chosen,
                RunContext(device=device, run_dir=folder, resume=resume, progress=_progress(on_progress)),
                out=target,
                certify=certify or CertifySettings(limit=1000, seed=seed),
                target=wanted,
                keep_checkpoints=run_dir is not None,
                batch_norm=batch_norm,
                on_epoch=on_epoch,
            )
            written = target.read_bytes()
        shown = target if out is not None or run_dir is not None else Path(target.name)
        model = _model(written, shown, mean=self.mean, std=self.std, input_shape=self.input_shape)
        return Hardened(model=model, report=replace(report, out=shown))

    def certify(
        self,
        data: Data,
        *,
        eps: float,
        clip: bool = False,
        target: int | None = None,
        split: Split = "test",
        proof: str | Path | None = None,
        run_dir: str | Path | None = None,
        resume: bool = False,
        workers: int = 1,
        part: tuple[int, int] | None = None,
        join: Sequence[str | Path] = (),
        data_root: Path | None = None,
        device: Device = "auto",
        on_progress: OnProgress | None = None,
        **settings: Unpack[CertifyOptions],
    ) -> Certificate:
        """How many inputs provably stay correct under every perturbation that their group shares, and an upper bound.

        Theorem 3 of the CITRUS paper and the MILP of Zeng et al. (ICLR 2023); what is claimed: docs/soundness.md.

        Args:
            eps: radius of the perturbation, in pixel space [0, 1].
            clip: the network sees clip(x + u, 0, 1) instead of x + u.
            target: an input is lost where this class wins; None: where any wrong class does.
            split: which part of named data, files and folders is judged.
            proof: file that gets the proof, for `citrus check`; needs bounds="full".
            run_dir: folder for the journal that `resume` continues from; None: nothing is kept.
            workers: processes that groups are spread over; scripts then need `if __name__ == "__main__"`.
            part: (i, n): only the i-th of n parts of the groups, for a cluster.
            join: run folders of parts, whose groups are taken over into run_dir; what they lack is done here.
            on_progress: gets a Step now and then.
            settings: fields of CertifySettings, such as group_size=5, limit=1000 or bounds="full".

        Raises:
            UsageError: an option makes no sense.
            DataError, InputFileError: data or files are wrong or do not fit the network.
            SoundnessError: a lower bound lies above an upper bound; nothing is claimed then.
            InterruptedRunError: Ctrl-C; with a run_dir, `resume=True` goes on.
        """
        if resume and run_dir is None:
            raise UsageError("resume needs the run_dir of the run to continue.")
        if join and run_dir is None:
            raise UsageError("join needs the run_dir that the parts are joined in.")
        source, split = _judged(data, split, data_root)
        return certify_file(
            self,
            source,
            Threat(eps=eps, clip=clip, target=target),
            CertifySettings(**settings),
            RunContext(
                device=device,
                run_dir=None if run_dir is None else Path(run_dir),
                resume=resume,
                workers=workers,
                progress=_progress(on_progress),
            ),
            split=split,
            proof=None if proof is None else Path(proof),
            part=part,
            join=[Path(folder) for folder in join],
        )

    def attack(
        self,
        data: Data,
        *,
        eps: float,
        clip: bool = False,
        target: int | None = None,
        split: Split = "test",
        data_root: Path | None = None,
        device: Device = "auto",
        on_progress: OnProgress | None = None,
        **options: Unpack[AttackOptions],
    ) -> AttackReport:
        """The strongest shared perturbations found, (groups, C, H, W) in pixel space, replayed on onnxruntime.

        Args:
            eps, clip, target: as `certify` takes them.
            options: fields of AttackSettings: `group_size` (None: all inputs share one perturbation), `steps` and
                `restarts` (docs/attack.md), `seed`, and `limit`, how many inputs are attacked.

        Raises:
            UsageError: an option makes no sense.
            DataError, InputFileError: data or files are wrong or do not fit the network.
        """
        source, split = _judged(data, split, data_root)
        return attack_file(
            self,
            source,
            Threat(eps=eps, clip=clip, target=target),
            AttackSettings(**options),
            RunContext(device=device, progress=_progress(on_progress)),
            split=split,
        )

    def evaluate(
        self,
        data: Data,
        *,
        eps: float,
        pgd_steps: int = 50,
        split: Split = "test",
        data_root: Path | None = None,
        device: Device = "auto",
        on_progress: OnProgress | None = None,
        **settings: Unpack[CertifyOptions],
    ) -> Evaluation:
        """Standard, PGD, attacked UAP, certified UAP and IBP certified accuracy, in percent.

        Args:
            eps: radius of the perturbation, in pixel space [0, 1].
            pgd_steps: of the attack on each input alone (Madry et al., ICLR 2018).
            settings: fields of CertifySettings; all but the standard accuracy are of the first `limit` inputs.

        Raises: as `certify`.
        """
        source, split = _judged(data, split, data_root)
        return evaluate_file(
            self,
            source,
            Threat(eps=eps),
            CertifySettings(**settings),
            RunContext(device=device, progress=_progress(on_progress)),
            split=split,
            pgd_steps=pgd_steps,
        )

    def export_query(
        self, data: Data, *, eps: float, folder: str | Path, name: str = "uap", at_least: int | None = None
    ) -> Exported:
        """Writes the UAP problem of one group, all inputs of `data`, for other verifiers (docs/vnncomp.md).

        FOLDER/NAME.vnnlib (2.0): one u with |u| <= eps fools all of them. FOLDER/NAME_product.onnx with
        FOLDER/NAME_product_M.vnnlib (1.0): it fools at least `at_least` of them [all].

        Raises:
            UsageError: `at_least` is not between 1 and the number of inputs, or gives too many cases.
            DataError, InputFileError: the data does not fit, or the folder cannot be written.
        """
        source, split = _judged(data, "test", None)
        dataset = source.load(split)
        model = self.read(dataset)
        target = Path(folder)
        require_writable_folder(target)
        target.mkdir(parents=True, exist_ok=True)
        labels = dataset.labels.tolist()
        return export_group(model, dataset.pixels(), labels, eps, target, name, at_least=at_least or len(labels))

    def save(self, path: str | Path) -> Path:
        """Writes the ONNX file (gzipped where the name ends in .gz) and returns its path.

        The bytes are those that were read, so that `sha256` and certificates stay valid, unless the name asks for
        another packing or the weights lay in files beside it: then they are packed into this one.

        Raises:
            InputFileError: the folder is missing or cannot be written.
        """
        path = Path(path)
        packed, data = path.suffix == ".gz", self.content
        whole = hashlib.sha256(data).hexdigest() == self.sha256
        if not whole or packed != data.startswith(b"\x1f\x8b"):
            plain = self.source.proto.SerializeToString(deterministic=True)
            data = gzip.compress(plain, mtime=0) if packed else plain
        write_bytes(path, data)
        return path

    def table(self) -> Table:
        """Input, classes, parameters, operators and agreement with onnxruntime."""
        contract = self.onnx.contract
        normalised = any(contract.mean) or any(s != 1.0 for s in contract.std)
        operators = [node.op_type for node in self.source.proto.graph.node]
        rows = [
            ["input", f"{' x '.join(map(str, self.input_shape))}, {contract.layout}"],
            ["normalisation", f"mean {contract.mean}, std {contract.std}" if normalised else "none"],
            ["classes", str(self.num_classes)],
            ["parameters", f"{sum(p.numel() for p in self.network.parameters()):,}"],
            ["operators", ", ".join(f"{operators.count(op)} {op}" for op in dict.fromkeys(operators))],
            ["|torch - onnxruntime|", f"{self.onnx.parity:.2g}"],
            ["sha256", self.sha256[:16]],
        ]
        return Table(title=f"model {self.path}", columns=["what", "value"], rows=rows)


@final
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Hardened(Tabular):
    """A hardened network and how it came about; `report.to_json()` has every figure and setting."""

    model: Model
    report: HardenReport

    @property
    def before(self) -> Figures:
        """Accuracies (percent) of the network that was given."""
        return self.report.before

    @property
    def after(self) -> Figures:
        """Accuracies (percent) of `model`."""
        return self.report.after

    @property
    def history(self) -> Sequence[Mapping[str, Any]]:
        """One entry an epoch, as `on_epoch` gets them."""
        return self.report.history

    def table(self) -> Table:
        """Before and after."""
        return self.report.table()


def load(
    network: str | Path | nn.Module,
    *,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Model:
    """A Model of an ONNX file (.onnx, .onnx.gz) or of a torch.nn.Module, which is exported to ONNX first.

    Args:
        input_shape: (C, H, W) of the data. Needed for a module; for a file it settles flat and channels-last inputs
            (without it, the data that is given later does).
        mean, std: normalisation in front of the network's input, one value or one per channel; None: the network takes
            pixels in [0, 1]. `eps` always refers to pixels.

    Raises:
        InputFileError: missing, unreadable or no ONNX file, or an input shape that does not fit.
        UnsupportedNetworkError: an operator that citrus cannot read, or a module that cannot be exported.
        UsageError: a module without input_shape, mean or std of the wrong length.
        CheckFailedError: the reading differs from onnxruntime by more than 1e-4 of the largest logit.
    """
    if isinstance(network, nn.Module):
        if input_shape is None:
            raise UsageError("a torch module does not know its input; give input_shape=(C, H, W).")
        path, data = Path(f"<{type(network).__name__}>"), to_onnx(network, input_shape)
    else:
        path = Path(network)
        data = content(path)
    return _model(data, path, mean=mean, std=std, input_shape=input_shape)


def verify(
    query: str | Path | Spec,
    models: Model | Mapping[str, Model],
    *,
    seconds: float = math.inf,
    seed: int = 0,
    log: Callable[[str], None] = lambda text: None,
) -> Answer:
    """Answers a VNN-LIB 1.0 or 2.0 query: `verdict` is SAT (with a witness that onnxruntime confirmed), UNSAT, ...

    Args:
        query: a file, plain or gzipped, or a query that was read (citrus_tool.queries.read).
        models: by the query's network names; one Model where the query needs one (copies that are equal-to another
            network take none). Queries speak of the file's own input: `mean` and `std` of a Model play no part.
        seconds: wall time, which one step of the work may overrun.
        seed: of the attack.
        log: gets progress lines.

    Raises:
        InputFileError: the query cannot be read.
        UsageError: names or shapes do not fit.
    """
    spec = query if isinstance(query, Spec) else read_query(Path(query))
    if isinstance(models, Model):
        models = {network.name: models for network in spec.networks if network.equal_to is None}
    require_names(spec, models)
    read = {name: assemble(m.source, input_shape=m.source.input_shape) for name, m in models.items()}
    return decide(spec, read, seconds=seconds, seed=seed, log=log)


def report(
    *results: Hardened | Certificate | Evaluation | AttackReport | str | Path,
    out: str | Path,
    models: Sequence[Model] = (),
    data_root: Path | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[str, ...]:
    """Writes results as one HTML file that loads nothing from the network; returns what it had to leave out, and why.

    Args:
        results: what `harden`, `certify`, `evaluate` and `attack` returned; run folders and result files too.
        out: the page to write.
        models: networks of the results that lie in no file, or take normalised inputs. Pictures are made by replaying
            network and data on onnxruntime; data that was given as arrays is not at hand then, so that they are left
            out.
        data_root: where named data sets lie.

    Raises:
        InputFileError: `out` cannot be written, or a file holds no result.
        CheckFailedError: a replay contradicts a certificate.
    """
    from citrus_tool.reports import parse, read, write_report
    from citrus_tool.reports.data import Origin

    own = [*models, *(result.model for result in results if isinstance(result, Hardened))]
    normalised = {model.sha256: Origin(mean=model.mean, std=model.std) for model in own}
    runs = []
    for result in results:
        if isinstance(result, str | Path):
            runs.append(read(Path(result)))
        elif isinstance(result, Certificate | Evaluation):
            one = result if isinstance(result, Certificate) else result.certificate
            content = result.to_json(perturbations=True)
            runs.append(parse(content, type(result).__name__, origin=normalised.get(one.sha256)))
        else:
            record = result.report if isinstance(result, Hardened) else result
            runs.append(parse(record.to_json(), type(record).__name__))
    with tempfile.TemporaryDirectory(prefix="citrus-") as folder:
        files = [model.save(Path(folder) / f"{number}.onnx") for number, model in enumerate(own)]
        return write_report(runs, Path(out), models=files, root=data_root, progress=_progress(on_progress))


harden = Model.harden
certify = Model.certify
attack = Model.attack
evaluate = Model.evaluate


def _model(
    data: bytes,
    path: Path,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    input_shape: Sequence[int] | None,
) -> Model:
    source = parse(path, data)
    given = [None if v is None else tuple(float(x) for x in v) for v in (mean, std)]
    onnx = assemble(source, mean=mean, std=std, input_shape=input_shape)
    return Model(content=data, source=source, mean=given[0], std=given[1], onnx=onnx)


def _stem(path: Path) -> str:
    return path.name.strip("<>").removesuffix(".gz").removesuffix(".onnx")


def _training(data: Splits | str | Path | tuple[Array, Array], seed: int, root: Path | None) -> DataSource:
    if isinstance(data, Splits):
        return data
    if isinstance(data, str | Path):
        return DataChoice(name=str(data), root=root, seed=seed)
    if isinstance(data, tuple) and len(data) == 2:
        return Splits.of(Dataset.from_arrays(*data), seed=seed)
    raise UsageError(
        f"data is {_kind(data)}; harden needs training, validation and test data: give a name such as 'digits', an"
        " .npz file, (images, labels), or Splits."
    )


def _recipe(
    recipe: str | Recipe | None,
    data: str,
    *,
    eps: float,
    method: str | None,
    epochs: int | None,
    init: Init | None,
    train_on: TrainOn | None,
    seed: int,
) -> Recipe:
    if not isinstance(recipe, Recipe):
        changes, defaults = {"method": method, "init": init, "train_on": train_on, "seed": seed}, {"method": "citrus"}
        return choose_recipe(data, name=recipe, eps=eps, epochs=epochs, changes=changes, defaults=defaults)
    changed = recipe.with_epochs(epochs) if epochs is not None else recipe
    return replace(
        changed,
        eps=eps,
        seed=seed,
        method=method or changed.method,
        init=init or changed.init,
        train_on=train_on or changed.train_on,
    )
