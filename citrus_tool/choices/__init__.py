"""The words that a user chooses from: each is a Literal type, and the tuple of its values in the order of `--help`.

Nothing heavy is imported here or in the modules of this folder, so that help and wrong options are answered at once.
`fields` says what is known of a setting beside its type, `settings` and `recipe` hold the settings themselves.
"""

from __future__ import annotations

from typing import Literal, get_args

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)

DataName = Literal["digits", "mnist", "cifar10", "tinyimagenet"]
DATA_NAMES: tuple[DataName, ...] = get_args(DataName)

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Protocol = Literal["all", "correct"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

Scope = Literal["groups", "dataset"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

BoundsName = Literal["ibp", "crown", "alpha", "full"]
BOUNDS: tuple[BoundsName, ...] = get_args(BoundsName)

QuickBounds = Literal["ibp", "crown"]
QUICK_BOUNDS: tuple[QuickBounds, ...] = get_args(QuickBounds)

Intermediate = Literal["crown", "intersect"]
INTERMEDIATES: tuple[Intermediate, ...] = get_args(Intermediate)

Arithmetic = Literal["float32", "real"]
ARITHMETICS: tuple[Arithmetic, ...] = get_args(Arithmetic)

SolverName = Literal["cbc", "highs", "both"]
SOLVERS: tuple[SolverName, ...] = get_args(SolverName)

MethodName = Literal[
    "citrus",
    "citrus-plus",
    "citrus-si",
    "kcp",
    "standard",
    "pgd",
    "uat",
    "cw-uat",
    "ibp",
    "crown-ibp",
    "sabr",
    "taps",
    "staps",
    "mtl-ibp",
    "cc-ibp",
    "exp-ibp",
]
METHODS: tuple[MethodName, ...] = get_args(MethodName)

Init = Literal["keep", "shi"]
INITS: tuple[Init, ...] = get_args(Init)

TrainOn = Literal["train", "all"]
TRAIN_ON: tuple[TrainOn, ...] = get_args(TrainOn)

BoxLoss = Literal["sum", "mean"]
BOX_LOSSES: tuple[BoxLoss, ...] = get_args(BoxLoss)

Tracker = Literal["tensorboard", "mlflow"]
TRACKERS: tuple[Tracker, ...] = get_args(Tracker)

BenchScale = Literal["cpu", "gpu", "smoke"]
BENCH_SCALES: tuple[BenchScale, ...] = get_args(BenchScale)
