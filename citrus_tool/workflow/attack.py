"""The strongest shared perturbations that are found for a file."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from citrus_tool.attacks.dataset import attack_dataset
from citrus_tool.attacks.effort import Effort
from citrus_tool.attacks.universal import attack_groups
from citrus_tool.certification.individual import held, judged
from citrus_tool.certification.replay import Replayer
from citrus_tool.certification.rounding_attack import rounding_witness
from citrus_tool.choices import Split
from citrus_tool.choices.settings import AttackSettings
from citrus_tool.context import RunContext
from citrus_tool.data import Dataset
from citrus_tool.devices import device_of, resolved
from citrus_tool.files import require_writable_file, write_bytes
from citrus_tool.network import Evaluation, Network
from citrus_tool.onnx_io import OnnxRunner
from citrus_tool.progress import Progress
from citrus_tool.results.attack import AttackReport
from citrus_tool.sources import DataSource, ModelSource
from citrus_tool.threat import Threat
from citrus_tool.threat.clip import perturbed_network
from citrus_tool.workflow.normalisation import warn_of_accuracy

BATCH = 256
"""Inputs that are attacked side by side, at most, where groups are small; larger groups go one by one.

It bounds the memory of a backward pass.
"""

GROWN = 512
"""Inputs of one perturbation up to which it is grown input by input; above, it is descended on minibatches.

As many as attacks/growth.py puts into one forward pass (ROWS).
"""


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
    """The strongest shared perturbations found, replayed on onnxruntime, or with arithmetic real in the exact network.

    Args:
        save: writes the perturbations (g, C, H, W) float32 to this .npy file.

    With a target class, inputs that have it as label are left out.
    """
    context = resolved(context)
    whole = choice.load(split)
    model = source.read(whole)
    threat.require_target(model.network.num_classes)
    if save is not None:
        require_writable_file(save)
    warn_of_accuracy(model, whole, choice)
    dataset = whole.select(judged(whole, threat.target)[: settings.limit])
    k = settings.group_size or len(dataset)
    network = perturbed_network(model.network, threat)
    evaluation = Evaluation(arithmetic=settings.arithmetic, rounds_input=True)
    replayer = Replayer(
        network=network.frozen(dtype=torch.float64, device=context.device, evaluation=evaluation),
        runner=OnnxRunner(model),
        threat=threat,
        device=torch.device(context.device),
        stage="attack",
    )
    single = network.frozen(dtype=torch.float32, device=context.device)
    found = _strongest(single, dataset, threat, replace(settings, group_size=k), context.progress)
    correct = _held(replayer, dataset, torch.zeros_like(found[0]))
    perturbations = torch.stack(
        [
            u
            if k > GROWN
            else _by_rounding(replayer, dataset, torch.arange(len(dataset))[start : start + k], correct, u)
            for start, u in zip(range(0, len(dataset), k), found, strict=True)
        ]
    )
    context.progress.finish()
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
        groups=len(perturbations),
        correct=int(correct.sum()),
        attacked=int(_held(replayer, dataset, perturbations.repeat_interleave(k, dim=0)[: len(dataset)]).sum()),
        arithmetic=settings.arithmetic,
        perturbations=perturbations,
    )


def _held(replayer: Replayer, inputs: Dataset, u: Tensor) -> Tensor:
    """Flags (n,) of the inputs that u (C, H, W), or their own u (n, C, H, W), does not fool."""
    x = inputs.pixels()
    if replayer.network.evaluation.arithmetic == "real":
        return torch.from_numpy(~replayer.outcome(x, u, inputs.labels).lost)
    logits = replayer.runner.logits(replayer.threat.inputs(x, u))
    return torch.from_numpy(held(logits, inputs.labels.numpy(), replayer.threat.target))


def _by_rounding(replayer: Replayer, dataset: Dataset, members: Tensor, correct: Tensor, u: Tensor) -> Tensor:
    """`u`, or what fools more of the group's inputs by the file's own rounding."""
    if not bool(correct[members].any()):
        return u
    group = dataset.select(members[correct[members]])
    kept, starts = _held(replayer, group, u), torch.stack([torch.zeros_like(u), u])
    generator = torch.Generator().manual_seed(int(members[0]))
    other = rounding_witness(replayer, group.pixels(), group.labels, ~kept, starts, generator)
    return u if other is None or int(_held(replayer, group, other).sum()) >= int(kept.sum()) else other


def _strongest(
    network: Network, dataset: Dataset, threat: Threat, settings: AttackSettings, progress: Progress
) -> Tensor:
    """One perturbation for each `group_size` consecutive inputs, (groups, C, H, W) on the CPU."""
    k, where = settings.group_size or len(dataset), device_of(network)
    groups = -(-len(dataset) // k)
    index = torch.arange(groups * k).clamp(max=len(dataset) - 1).reshape(groups, k)
    present = (torch.arange(groups * k) < len(dataset)).reshape(groups, k)
    effort = Effort(steps=settings.steps, restarts=settings.restarts)
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
                threat,
                effort,
                generator,
            )
            found.append(u[None])
        else:
            several, _ = attack_groups(
                network,
                dataset.pixels(index[part]).to(where),
                dataset.labels[index[part]].to(where),
                present[part].to(where),
                threat,
                effort,
                generator,
            )
            found.append(several.cpu())
        progress.advance(part.stop - part.start)
    return torch.cat(found)
