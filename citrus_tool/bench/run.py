"""One run of a contest: train, export, certify, one line in the journal. Stopped anywhere, it goes on from there."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from citrus_tool import __version__, architectures, data, onnx_io
from citrus_tool.bench import box_sizes
from citrus_tool.bench.contests import Contest, Job, Published
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices import SPLITS
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.context import RunContext
from citrus_tool.data import Dataset
from citrus_tool.onnx_io import OnnxModel, OnnxRunner
from citrus_tool.results import measurements
from citrus_tool.results.measurements import BoxLosses, Entry
from citrus_tool.threat import Threat, parse_eps
from citrus_tool.training import checkpoint, trainer
from citrus_tool.training.batches import training_images

BATCH = 500
"""Inputs in one call of onnxruntime; it bounds memory, figures do not depend on it."""
JUDGE = 2
"""Raised when figures of the journal no longer compare with new ones. The prover's number is 3 now: in real arithmetic
it proves what 2 did, less a guard of 8e-6 of the logits."""


@dataclass(frozen=True, kw_only=True)
class _Provenance:
    """Where a network comes from: a job of a contest, or a published file, which was not trained here."""

    contest: Contest
    method: str
    recipe: str
    command: str
    seed: int = 0
    best_epoch: int = 0
    train_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where runs live and what they share.

    Attributes:
        journal: file of finished runs; a run that stands there is not done again.
        runs: folder of checkpoints and certificates of the runs.
        data_root: where named data sets lie; None: the usual places.
        context: device and progress of all runs; the device is "cpu" or "cuda".
        certifier: how every network is judged.
    """

    journal: Path
    runs: Path
    data_root: Path | None
    context: RunContext
    certifier: CertifySettings

    def run(self, job: Job, command: str) -> bool:
        """Does the job unless the journal has it; whether there was something to do. Raises as `trainer.fit`."""
        digest = certifier_digest(self.certifier)
        key = (job.contest.name, job.method, job.digest, job.seed, digest)
        if any(entry.key == key for entry in measurements.read(self.journal)):
            return False
        contest, folder = job.contest, self.runs / job.name
        train, validation, test = (data.load(contest.data, split=s, root=self.data_root) for s in SPLITS)
        result = self._trained(job, train, validation)
        about = {"method": job.method, "contest": contest.name, "recipe": job.digest, "seed": str(job.seed)}
        model = onnx_io.export(onnx_io.fold_batch_norm(result.network), folder / "model.onnx", metadata=about)
        origin = _Provenance(
            contest=contest,
            method=job.method,
            recipe=job.digest,
            seed=job.seed,
            command=command,
            best_epoch=result.best_epoch,
            train_seconds=result.seconds,
        )
        measurements.append(self.journal, self._judged(model, test, folder, origin))
        return True

    def measure_boxes(self, job: Job, command: str) -> bool:
        """Measures the job's boxes (box_sizes.py), training it first if need be, unless the journal has them."""
        wanted = (job.contest.name, job.method, job.digest, job.seed)
        if any((e.contest, e.method, e.recipe, e.seed) == wanted for e in measurements.read_boxes(self.journal)):
            return False
        train, validation = (data.load(job.contest.data, split=s, root=self.data_root) for s in SPLITS[:2])
        result = self._trained(job, train, validation)
        network = onnx_io.fold_batch_norm(result.network)
        drawn = training_images(train, validation, job.recipe)
        own, total, largest, inputs = box_sizes.last_epoch(
            network, drawn, job.recipe, self.context.device, self.context.progress
        )
        entry = BoxLosses(
            contest=job.contest.name,
            method=job.method,
            recipe=job.digest,
            seed=job.seed,
            own=own,
            total=total,
            largest=largest,
            inputs=inputs,
            command=command,
            **_place(self.context.device),
        )
        measurements.append(self.journal, entry)
        return True

    def _trained(self, job: Job, train: Dataset, validation: Dataset) -> trainer.TrainResult:
        """The job's network, from wherever its folder stands."""
        contest, folder = job.contest, self.runs / job.name
        network = architectures.build(
            contest.architecture, train.shape, train.num_classes, seed=job.seed, normalisation=contest.normalisation
        )
        context = dataclasses.replace(self.context, run_dir=folder, resume=checkpoint.exists(folder))
        return trainer.fit(network, train, validation, job.recipe, context)

    def run_published(self, contest: Contest, published: Published, models: Path, command: str) -> bool:
        """Judges a file of the folder `models` unless the journal has it; raises InputFileError when it is absent."""
        wanted = (published.label, published.file, certifier_digest(self.certifier))
        if any((e.method, e.recipe, e.certifier) == wanted for e in measurements.read(self.journal)):
            return False
        test = data.load(contest.data, split="test", root=self.data_root)
        model = onnx_io.read(models / published.file, input_shape=test.shape, samples=test.take(16).pixels())
        folder = self.runs / f"{contest.name}_{Path(published.file).stem}"
        origin = _Provenance(contest=contest, method=published.label, recipe=published.file, command=command)
        measurements.append(self.journal, self._judged(model, test, folder, origin))
        return True

    def _judged(self, model: OnnxModel, test: Dataset, folder: Path, origin: _Provenance) -> Entry:
        started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        digest = certifier_digest(self.certifier)
        log = folder / f"certificate_{digest}.jsonl"
        certificate = certify_uap(
            model,
            test,
            Threat(eps=parse_eps(origin.contest.eps)),
            self.certifier,
            dataclasses.replace(self.context, resume=log.exists()),
            journal=log,
        ).to_json()
        inputs = certificate["inputs"]
        return Entry(
            contest=origin.contest.name,
            method=origin.method,
            recipe=origin.recipe,
            seed=origin.seed,
            certifier=digest,
            standard=standard_accuracy(model, test),
            certified=100 * certificate["certified"] / inputs,
            attacked=100 * certificate["attacked"] / inputs,
            individually=100 * certificate["individually_certified"] / inputs,
            ibp=100 * certificate["ibp_certified"] / inputs,
            inputs=inputs,
            best_epoch=origin.best_epoch,
            train_seconds=round(origin.train_seconds, 1),
            certify_seconds=round(time.monotonic() - started, 1),
            model=model.sha256,
            command=origin.command,
            **_place(self.context.device),
        )


def certifier_digest(settings: CertifySettings) -> str:
    """Digest of the judge's number and of every setting that is not at its default; in real arithmetic by default."""
    defaults = dataclasses.asdict(CertifySettings(arithmetic="real"))
    kept: dict[str, object] = {"prover": JUDGE}
    kept |= {name: value for name, value in dataclasses.asdict(settings).items() if value != defaults[name]}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def standard_accuracy(model: OnnxModel, test: Dataset) -> float:
    """Percent of all test inputs that the file classifies correctly on onnxruntime."""
    runner, correct = OnnxRunner(model), 0
    for start in range(0, len(test), BATCH):
        part = slice(start, start + BATCH)
        logits = torch.from_numpy(runner.logits(test.pixels(part)))
        correct += int((logits.argmax(1) == test.labels[part]).sum())
    return 100.0 * correct / len(test)


def _place(device: str) -> dict[str, Any]:
    """Where a figure comes from: commit, machine and versions."""
    versions = {"citrus": __version__, **_versions(("torch", "numpy"))}
    return {"commit": _commit(), "machine": _machine(device), "versions": versions}


def _versions(packages: Iterable[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}


def _machine(device: str) -> str:
    where = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPUs"
    return f"{platform.machine()}, {where}, {torch.get_num_threads()} threads"


def _commit() -> str:
    """The source's git commit, marked when files differ from it; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=30
        )
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
