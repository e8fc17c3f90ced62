"""A Model, what can be done with it, and how it is loaded."""

from __future__ import annotations

import gzip
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from citrus_tool.api.arguments import (
    Array,
    AttackOptions,
    CertifyOptions,
    Data,
    OnProgress,
    chosen_recipe,
    judged_data,
    progress_of,
    training_data,
)
from citrus_tool.choices import Device, Init, Split, TrainOn
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import AttackSettings, CertifySettings
from citrus_tool.context import RunContext
from citrus_tool.data import Dataset, Splits
from citrus_tool.errors import UsageError
from citrus_tool.files import require_writable_folder, write_bytes
from citrus_tool.network import Network
from citrus_tool.onnx_io import OnnxModel, OnnxRunner
from citrus_tool.onnx_io.onnx_file import OnnxFile, content, parse
from citrus_tool.onnx_io.reader import assemble
from citrus_tool.onnx_io.torch_module import to_onnx
from citrus_tool.queries.export import Exported, export_group
from citrus_tool.results.attack import AttackReport
from citrus_tool.results.certificate import Certificate
from citrus_tool.results.evaluation import Evaluation, Figures
from citrus_tool.results.harden import HardenReport
from citrus_tool.sources import PARITY_SAMPLES
from citrus_tool.tables import Table, Tabular
from citrus_tool.threat import Threat
from citrus_tool.training.trainer import OnEpoch
from citrus_tool.workflow.attack import attack_file
from citrus_tool.workflow.certify import certify_file
from citrus_tool.workflow.evaluate import evaluate_file
from citrus_tool.workflow.harden import harden_file, read_spec


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
    source: OnnxFile
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
        source = training_data(data, seed, data_root)
        paths = [Path(one) for one in ([spec] if isinstance(spec, str | Path) else spec)]
        wanted = read_spec(self, source, paths, seconds=spec_timeout) if paths else None
        if eps is None:
            if wanted is None:
                raise UsageError("harden needs a radius to train for; give eps, e.g. eps=0.1, or spec.")
            eps = wanted.eps
        chosen = chosen_recipe(
            recipe, source.name, eps=eps, method=method, epochs=epochs, init=init, train_on=train_on, seed=seed
        )
        with ExitStack() as stack:
            folder = Path(run_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="citrus-")))
            target = Path(out) if out is not None else folder / f"{_stem(self.path)}_{chosen.method}.onnx"
            report = harden_file(
                self,
                source,
                chosen,
                RunContext(device=device, run_dir=folder, resume=resume, progress=progress_of(on_progress)),
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
        source, split = judged_data(data, split, data_root)
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
                progress=progress_of(on_progress),
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
        """The strongest shared perturbations found, (groups, C, H, W) in pixel space, replayed.

        Args:
            eps, clip, target: as `certify` takes them.
            options: fields of AttackSettings: `group_size` (None: all inputs share one perturbation), `steps` and
                `restarts` (docs/attack.md), `arithmetic`, `seed`, and `limit`, how many inputs are attacked.

        Raises:
            UsageError: an option makes no sense.
            DataError, InputFileError: data or files are wrong or do not fit the network.
        """
        source, split = judged_data(data, split, data_root)
        return attack_file(
            self,
            source,
            Threat(eps=eps, clip=clip, target=target),
            AttackSettings(**options),
            RunContext(device=device, progress=progress_of(on_progress)),
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
        source, split = judged_data(data, split, data_root)
        return evaluate_file(
            self,
            source,
            Threat(eps=eps),
            CertifySettings(**settings),
            RunContext(device=device, progress=progress_of(on_progress)),
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
        source, split = judged_data(data, "test", None)
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
