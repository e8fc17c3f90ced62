"""What stays the same for all groups of one certification: networks, threat, settings, and who writes the proof."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from citrus_tool.bounds.fold import foldable
from citrus_tool.certification.milp import Solver
from citrus_tool.certification.proof import FORMAT, GroupProof, Recorder
from citrus_tool.certification.replay import Replayer
from citrus_tool.checker.graph import read_graph
from citrus_tool.checker.schema import check_run
from citrus_tool.choices import Device
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.data import Dataset
from citrus_tool.devices import resolve_device
from citrus_tool.errors import CheckFailedError, UsageError
from citrus_tool.network import Evaluation, Network
from citrus_tool.onnx_io import OnnxModel, OnnxRunner
from citrus_tool.threat import Threat
from citrus_tool.threat.clip import perturbed_network

BATCHED_ATTACK, GROUP_COUNT, INDIVIDUAL_ATTACK, ACROSS_GROUPS, ROUNDING = range(5)
"""Stages that draw random numbers, each from a generator of its own; numbered in `Setup.generator`."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The parts of one certification that all its groups share.

    Attributes:
        bounded: the network as a function of x + u in float64, for bounds and exact replays.
        attacked: the same network in float32, for attacks.
        runner: the file on onnxruntime.
        recorder: writes the proof; None where none is wanted.
    """

    bounded: Network
    attacked: Network
    runner: OnnxRunner
    data: Dataset
    threat: Threat
    settings: CertifySettings
    solver: Solver
    device: torch.device
    recorder: Recorder | None

    @staticmethod
    def of(
        model: OnnxModel,
        data: Dataset,
        threat: Threat,
        settings: CertifySettings,
        solver: Solver,
        device: Device,
        proof: Path | None,
        *,
        resume: bool,
    ) -> Setup:
        """The setup of `certify_uap`'s arguments; `resume` keeps what is recorded in the proof already."""
        network, device = perturbed_network(model.network, threat), resolve_device(device)
        return Setup(
            bounded=network.frozen(
                dtype=torch.float64,
                device=device,
                evaluation=Evaluation(arithmetic=settings.arithmetic, rounds_input=True),
            ),
            attacked=network.frozen(dtype=torch.float32, device=device),
            runner=OnnxRunner(model),
            data=data,
            threat=threat,
            settings=settings,
            solver=solver,
            device=torch.device(device),
            recorder=None if proof is None else _recorder(proof, model, threat, settings, network, resume=resume),
        )

    @property
    def joint(self) -> bool:
        """Whether groups go through the cross-execution loop."""
        return self.settings.bounds == "full" and foldable(self.bounded)

    @property
    def replayer(self) -> Replayer:
        """What runs every witness on the file and on the exact network."""
        return Replayer(
            network=self.bounded,
            runner=self.runner,
            threat=self.threat,
            device=self.device,
            stage=self.settings.bounds,
        )

    def generator(self, stage: int, number: int) -> torch.Generator:
        """The random numbers of one stage on the group or chunk `number`, whatever was drawn before."""
        state = np.random.SeedSequence([self.settings.seed, stage, number]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

    def record(self, proof: GroupProof) -> None:
        """Stores a group's part of the proof, where one is wanted."""
        if self.recorder is not None:
            self.recorder.write(proof)


def _recorder(
    path: Path, model: OnnxModel, threat: Threat, settings: CertifySettings, network: Network, *, resume: bool
) -> Recorder:
    """What writes the proof; raises where there will be none that `citrus check` can verify."""
    if settings.bounds != "full" or settings.intermediate != "intersect" or not foldable(network):
        raise UsageError(
            "a proof is written for --bounds full with --intermediate intersect, and for networks whose nonlinear"
            " layers are ReLU and LeakyReLU; leave --certificate out."
        )
    form = model.contract
    read_graph(model.path, form.pixel_shape, mean=form.mean, std=form.std, layout=form.layout, clip=threat.clip)
    run = {
        "model_sha256": model.sha256,
        "eps": float(threat.eps).hex(),
        "clip": threat.clip,
        "target": threat.target,
        "arithmetic": settings.arithmetic,
        "shape": list(form.pixel_shape),
        "mean": [float(value) for value in form.mean],
        "std": [float(value) for value in form.std],
        "layout": form.layout,
    }
    try:
        check_run(run, "run", FORMAT)
    except CheckFailedError as error:
        raise UsageError(f"no proof can be written of this: {error}") from None
    return Recorder(path, run, resume=resume)
