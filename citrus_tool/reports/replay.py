"""Pictures and predictions from the network and the data themselves: kept perturbations are replayed on onnxruntime.

Network and data must have the digests that the certificate names. What cannot be read again is left out of the report,
with the reason; what can be read and contradicts the certificate is an error. A certificate of real arithmetic says
nothing about onnxruntime, which cannot contradict it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from citrus_tool import data, onnx_io
from citrus_tool.certification.individual import held
from citrus_tool.choices import SPLITS, Split
from citrus_tool.data import Dataset
from citrus_tool.data.named import CLASS_NAMES
from citrus_tool.errors import CheckFailedError, CitrusError, InputFileError
from citrus_tool.onnx_io import Inspection, OnnxRunner
from citrus_tool.reports.data import Certified
from citrus_tool.results.certificate import GroupResult
from citrus_tool.results.evidence import InputVerdict

BATCH: Final = 256
"""Inputs in one pass of onnxruntime; it bounds memory."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One input on onnxruntime: its pixels (C, H, W) in [0, 1], and the class that wins without and with `shifted`.

    `shifted`: what the network gets under its group's perturbation, None where none was kept.
    """

    index: int
    label: int
    verdict: InputVerdict
    image: NDArray[np.float32]
    before: int
    shifted: NDArray[np.float32] | None
    after: int | None


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What could be seen again.

    Attributes:
        inspection: what is in the ONNX file; None where it is not there.
        groups: the inputs of every group; empty where network or data are not there.
        together: all inputs under the one perturbation of scope dataset; empty where there is none.
        class_names: by label; empty where they are not known.
        missing: why something is left out, one sentence each.
        onnxruntime: version that gave the predictions.
    """

    inspection: Inspection | None
    groups: tuple[tuple[Seen, ...], ...]
    missing: tuple[str, ...]
    onnxruntime: str
    together: tuple[Seen, ...] = ()
    class_names: tuple[str, ...] = ()


def replay(run: Certified, *, models: Sequence[Path] = (), root: Path | None = None) -> Replayed:
    """Reads the run's network (from its own path, or one of `models`) and data (under `root`) and replays all groups.

    Raises CheckFailedError where a prediction contradicts the certificate.
    """
    from onnxruntime import __version__ as version

    missing = []
    dataset, inspection = None, None
    groups: tuple[tuple[Seen, ...], ...] = ()
    together: tuple[Seen, ...] = ()
    try:
        dataset = _dataset(run, root)
    except CitrusError as error:
        missing.append(str(error))
    try:
        inspection = _network(run, models, dataset)
    except CitrusError as error:
        missing.append(str(error))
    if any(group.evidence is None for group in run.certificate.groups):
        missing.append(f"{run.source}: made by a citrus that kept no verdicts of single inputs.")
    elif dataset is not None and inspection is not None:
        groups, together = _replayed(run, inspection, dataset)
    return Replayed(
        inspection=inspection,
        groups=groups,
        missing=tuple(missing),
        onnxruntime=version,
        together=together,
        class_names=CLASS_NAMES.get(run.certificate.data, ()) if dataset is None else dataset.class_names,
    )


def _dataset(run: Certified, root: Path | None) -> Dataset:
    one = run.certificate
    split: Split = next((name for name in SPLITS if name == one.split), "test")
    found = data.load(one.data, split=split, root=root or run.origin.root, seed=run.origin.seed)
    if found.sha256() != one.data_sha256:
        raise InputFileError(f"data {one.data} ({one.split}) is not what was certified: its sha256 is another one.")
    return found


def _network(run: Certified, models: Sequence[Path], dataset: Dataset | None) -> Inspection:
    one = run.certificate
    shape = None if dataset is None else dataset.shape
    paths = [Path(one.model), *models]
    for path in paths:
        if path.is_file():
            found = onnx_io.inspect(path, mean=run.origin.mean, std=run.origin.std, input_shape=shape)
            if found.sha256 == one.sha256:
                return found
    raise InputFileError(
        f"{one.model}: the network with sha256 {one.sha256[:12]}... is not there; name its file with --model."
    )


def _replayed(
    run: Certified, inspection: Inspection, dataset: Dataset
) -> tuple[tuple[tuple[Seen, ...], ...], tuple[Seen, ...]]:
    """The groups, and all inputs together under the perturbation of scope dataset."""
    one, runner = run.certificate, OnnxRunner(inspection.path, inspection.contract)
    order = [index for group in one.groups for index in group.indices]
    if max(order) >= len(dataset):
        raise CheckFailedError(f"{run.source}: names input {max(order)}, but data {one.data} has {len(dataset)}.")
    parts = torch.split(torch.tensor(order), BATCH)
    clean = dict(zip(order, np.concatenate([runner.logits(dataset.pixels(part)) for part in parts]), strict=True))
    groups = tuple(_group(run, group, runner, dataset, clean) for group in one.groups)
    return groups, _together(run, groups, runner, dataset, clean)


def _together(
    run: Certified,
    groups: Sequence[Sequence[Seen]],
    runner: OnnxRunner,
    dataset: Dataset,
    clean: dict[int, NDArray[np.float32]],
) -> tuple[Seen, ...]:
    one = run.certificate
    if one.perturbation is None:
        return ()
    u = torch.from_numpy(one.perturbation)
    if tuple(u.shape) != dataset.shape or not one.threat.allows(u):
        raise CheckFailedError(f"{run.source}: the perturbation of all inputs is not within eps.")
    found, still = [], 0
    for part in torch.split(torch.tensor([seen.index for group in groups for seen in group]), BATCH):
        moved, truth = one.threat.inputs(dataset.pixels(part), u), dataset.labels[part].numpy()
        after = _alone(runner, moved)
        before = np.stack([clean[index] for index in part.tolist()])
        fine, kept = held(before, truth, one.threat.target), held(after, truth, one.threat.target)
        still += int((fine & kept).sum())
        for place, index in enumerate(part.tolist()):
            found.append(
                Seen(
                    index=index,
                    label=int(truth[place]),
                    verdict=InputVerdict.LOST
                    if not fine[place]
                    else InputVerdict.OPEN
                    if kept[place]
                    else InputVerdict.FOOLED,
                    image=dataset.pixels(part[place : place + 1])[0].numpy(),
                    before=int(before[place].argmax()),
                    shifted=moved[place].numpy(),
                    after=int(after[place].argmax()),
                )
            )
    if still > one.attacked and one.settings.get("arithmetic") != "real":
        raise CheckFailedError(
            f"{run.source}: its perturbation leaves {still} inputs correct on onnxruntime, not {one.attacked}; do not"
            " use the certificate, and make it again."
        )
    return tuple(found)


def _alone(runner: OnnxRunner, x: Tensor) -> NDArray[np.float32]:
    """Logits (n, c) of inputs run one after the other, as witnesses are (certification/replay.py)."""
    return np.concatenate([runner.logits(one[None]) for one in x])


def _group(
    run: Certified, group: GroupResult, runner: OnnxRunner, dataset: Dataset, clean: dict[int, NDArray[np.float32]]
) -> tuple[Seen, ...]:
    kept, threat = group.evidence, run.certificate.threat
    if kept is None:
        return ()
    index = torch.tensor(group.indices)
    x, truth = dataset.pixels(index), dataset.labels[index].numpy()
    before = np.stack([clean[i] for i in group.indices])
    shifted, after = None, None
    if kept.perturbation is not None:
        u = torch.from_numpy(kept.perturbation)
        if tuple(u.shape) != dataset.shape or not threat.allows(u):
            raise CheckFailedError(f"{run.source}: the perturbation of group {group.index} is not within eps.")
        moved = threat.inputs(x, u)
        shifted, after = moved.numpy(), _alone(runner, moved)
    fine, lost = held(before, truth, threat.target), None if after is None else ~held(after, truth, threat.target)
    silent = run.certificate.settings.get("arithmetic") == "real"
    seen = []
    for place, (number, verdict) in enumerate(zip(group.indices, kept.verdicts, strict=True)):
        agrees = silent or verdict is InputVerdict.LOST or bool(fine[place])
        if lost is not None:
            agrees = agrees and (silent or verdict is not InputVerdict.FOOLED or bool(lost[place]))
        agrees = agrees and kept.labels[place] == truth[place]
        if not agrees:
            raise CheckFailedError(
                f"{run.source}: input {number} of group {group.index} is said to be {verdict.value}, which onnxruntime"
                " contradicts; do not use the certificate, and make it again."
            )
        seen.append(
            Seen(
                index=number,
                label=kept.labels[place],
                verdict=verdict,
                image=x[place].numpy(),
                before=int(before[place].argmax()),
                shifted=None if shifted is None else shifted[place],
                after=None if after is None else int(after[place].argmax()),
            )
        )
    return tuple(seen)
