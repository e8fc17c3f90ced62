"""What is compared with what: contests, their recipes, and the paper's figures.

A contest is one data set, radius and architecture; all its methods share recipe, epochs and certifier, and differ only
in what `changes` says of them. At scale cpu a run takes about twelve minutes of two cores; scale gpu is the paper's
own: CNN7, the published recipes, the full test sets.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from citrus_tool.architectures import Normalisation
from citrus_tool.choices.recipe import Recipe, StepSchedule, Taps
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.threat import parse_eps
from citrus_tool.training.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Published:
    """A network file that others trained for one data set and radius, judged by the same certifier.

    Attributes:
        label: its name in the tables.
        file: its name in a folder of models; no two settings share it.
    """

    label: str
    file: str


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One setting.

    Attributes:
        eps: as the paper writes it, `0.1` or `2/255`.
        recipe: what all methods share; changes: fields that a method replaces.
        seeds: runs of a method, where it is more than one; their seeds count from 0.
        published: other people's networks for the same setting.
        judged: what the contest replaces in its scale's certifier.
    """

    name: str
    data: str
    eps: str
    architecture: str
    normalisation: Normalisation
    recipe: Recipe
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    judged: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: train by the recipe, then certify."""

    contest: Contest
    method: str
    seed: int

    @property
    def recipe(self) -> Recipe:
        """The contest's recipe with the method's changes, at this seed."""
        changes = self.contest.changes.get(self.method, {})
        return dataclasses.replace(self.contest.recipe, method=self.method, seed=self.seed, **changes)

    @property
    def digest(self) -> str:
        """Digest of the setting and of every number of the recipe but the seed; fields at their defaults do not count.

        So a run keeps its digest when recipes learn a new field that leaves it as it was.
        """
        recipe = dataclasses.replace(self.recipe, seed=0).to_json()
        defaults = Recipe(eps=-0.0, tau_ratio=1.0, epochs=1, warmup_epochs=0, ramp_epochs=0).to_json()
        fixed = ("method", "eps", "tau_ratio", "epochs", "warmup_epochs", "ramp_epochs")
        kept = {name: value for name, value in recipe.items() if name in fixed or value != defaults[name]}
        setting = [self.contest.data, self.contest.architecture, self.contest.normalisation]
        return hashlib.sha256(json.dumps([setting, kept], sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """A name for its folder."""
        return f"{self.contest.name}_{self.method}_{self.seed}_{self.digest}"


CERTIFIER = CertifySettings(bounds="full", arithmetic="real", branch_nodes=500, branch_seconds=3600.0, limit=1000)
"""One certifier for all of scale cpu: groups of 5, protocol all, the first 1000 test inputs, 500 nodes an input; real
arithmetic, as in the papers that it is compared with."""

MNIST: Normalisation = ((0.1307,), (0.3081,))
CIFAR10: Normalisation = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
TINYIMAGENET: Normalisation = ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))

_MNIST = Recipe(
    eps=0.1,
    tau_ratio=0.5,
    epochs=20,
    warmup_epochs=1,
    ramp_epochs=6,
    milestones=(13, 17),
    lr=3e-3,
    groups_per_batch=25,
    l1=1e-5,
    pgd_steps=5,
    init="shi",
    validate_every=2,
    taps=Taps(steps=5),
)
_CIFAR = dataclasses.replace(
    _MNIST,
    eps=parse_eps("2/255"),
    tau_ratio=0.1,
    ramp_epochs=7,
    l1=1e-6,
    flip=True,
    crop_padding=2,
)
_PLAIN = {"init": "keep", "shi_lambda": 0.0, "l1": 0.0}
"""Adversarial training takes PyTorch's own initialisation and no regulariser that certified training needs."""
_THREE = {"citrus": 3, "citrus-plus": 3}

CPU: tuple[Contest, ...] = (
    Contest(
        name="mnist-0.1",
        data="mnist",
        eps="0.1",
        architecture="convsmall",
        normalisation=MNIST,
        recipe=_MNIST,
        changes={
            "sabr": {"tau_ratio": 0.4},
            "mtl-ibp": {"alpha": 0.02},
            "citrus-plus": {"alpha": 0.05, "tau_ratio": 0.8, "worst": 1},
        },
        seeds=_THREE,
        published=(
            Published(label="citrus (published)", file="citrus_convsmall_1.onnx"),
            Published(label="sabr (published)", file="sabr_convsmall_1.onnx"),
        ),
    ),
    Contest(
        name="mnist-0.3",
        data="mnist",
        eps="0.3",
        architecture="convsmall",
        normalisation=MNIST,
        recipe=dataclasses.replace(
            _MNIST, eps=0.3, tau_ratio=0.6, ramp_epochs=9, milestones=(14, 18), lr=2e-3, l1=1e-6
        ),
        changes={
            "mtl-ibp": {"alpha": 0.3},
            "citrus-plus": {"alpha": 0.3, "tau_ratio": 0.8, "worst": 1},
        },
    ),
    Contest(
        name="cifar10-2",
        data="cifar10",
        eps="2/255",
        architecture="convsmall",
        normalisation=CIFAR10,
        recipe=_CIFAR,
        changes={
            "sabr": {"relu_shrink": 0.8},
            "mtl-ibp": {"alpha": 0.01, "attack_ratio": 2.1},
            "citrus-plus": {"alpha": 0.01, "tau_ratio": 0.8, "worst": 1},
        },
        seeds=_THREE,
        published=(
            Published(label="citrus (published)", file="citrus_convsmall_2.onnx"),
            Published(label="sabr (published)", file="sabr_convsmall_2.onnx"),
        ),
    ),
    Contest(
        name="cifar10-8",
        data="cifar10",
        eps="8/255",
        architecture="convsmall",
        normalisation=CIFAR10,
        recipe=dataclasses.replace(_CIFAR, eps=parse_eps("8/255"), tau_ratio=0.7, l1=0.0),
        changes={
            "mtl-ibp": {"alpha": 0.5},
            "citrus-plus": {"alpha": 0.5, "tau_ratio": 0.8, "worst": 1},
            **dict.fromkeys(("pgd", "uat", "cw-uat"), _PLAIN),
        },
    ),
)
"""The paper's settings on ConvSmall, cut to what two CPU cores do in about twelve minutes a run."""

_LONG: Mapping[str, Mapping[str, Any]] = {
    "mnist-0.1": {"epochs": 60, "ramp_epochs": 12, "milestones": (40, 52), "validate_every": 10},
    "cifar10-2": {"epochs": 80, "ramp_epochs": 24, "milestones": (50, 68), "validate_every": 10},
}
_QUICK = {"pgd_steps": 3, "pgd_step_size": StepSchedule(milestones=())}
"""Three steps of PGD of half the radius go as far as five that shrink."""
_PLUS = {**_QUICK, "alpha": 0.02, "tau_ratio": 0.8, "worst": 1}
_LONG_CHANGES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "mnist-0.1": {
        "citrus": {
            **_QUICK,
            "pretrain": "sabr",
            "pretrain_epochs": 42,
            "eps": 0.15,
            "tau_ratio": 0.1,
            "crop_padding": 1,
        },
        "citrus-plus": {**_PLUS, "attack_ratio": 1.2},
    },
    "cifar10-2": {
        "citrus": {
            **_QUICK,
            "milestones": (56, 74),
            "pretrain": "mtl-ibp",
            "pretrain_epochs": 77,
            "eps": parse_eps("3/255"),
            "alpha": 0.01,
            "tau_ratio": 0.15,
            "average": 0.999,
            "train_on": "all",
        },
        "citrus-plus": _PLUS,
    },
}
"""CITRUS trains on from another method, as the published networks may have: they and their SABR twins are nearly the
same weights (benchmarks/weight_distance.py). It trains at radii above the contest's, which is common (Gowal et al.
2018: .2 for .1); all are judged at the contest's own. docs/training.md says what was tried.
"""
_LONG_JUDGED: Mapping[str, Mapping[str, Any]] = {"mnist-0.1": {"limit": None}, "cifar10-2": {"limit": None}}
"""Networks this close need all test inputs: minutes of one thread on MNIST, 27 to 79 on CIFAR-10."""
CPU_LONG = tuple(
    dataclasses.replace(
        contest,
        name=f"{contest.name}-long",
        recipe=dataclasses.replace(contest.recipe, **_LONG[contest.name]),
        changes=_LONG_CHANGES[contest.name],
        seeds={},
        judged=_LONG_JUDGED.get(contest.name, {}),
    )
    for contest in CPU
    if contest.name in _LONG
)
"""The two settings of the published ConvSmall networks, at most 45 minutes of two cores a run."""


def _sweep(name: str, **changes: Any) -> Contest:
    """A point of Fig. 5: CITRUS on CIFAR-10 at 8/255 for 12 epochs, one number changed."""
    base = next(contest for contest in CPU if contest.name == "cifar10-8")
    recipe = dataclasses.replace(base.recipe.with_epochs(12), **changes)
    return dataclasses.replace(base, name=f"fig5-{name}", recipe=recipe, changes={})


FIG5 = (
    *(_sweep(f"tau-{ratio}", tau_ratio=ratio) for ratio in (0.3, 0.5, 0.7, 0.9)),
    *(_sweep(f"group-{k}", group_size=k, groups_per_batch=125 // k) for k in (2, 3, 10)),
)
"""The paper's ablations of tau and of the group's size; groups of 5 are tau-0.7."""


def _published(name: str, data: str, eps: str, normalisation: Normalisation, plus: Mapping[str, Any]) -> Contest:
    """A contest on CNN7 by the published recipe of that name; `plus` is citrus-plus' own change."""
    entry = RECIPES[name]
    changes = {**entry.methods, "citrus-plus": {"worst": 1, "pgd_steps": 8, **plus}}
    return Contest(
        name=name,
        data=data,
        eps=eps,
        architecture="cnn7",
        normalisation=normalisation,
        recipe=entry.recipe,
        changes=changes,
        seeds=dict.fromkeys(("citrus", "citrus-plus"), 3),
    )


GPU: tuple[Contest, ...] = (
    _published("mnist-0.1", "mnist", "0.1", MNIST, {"alpha": 0.05, "tau_ratio": 0.8}),
    _published("mnist-0.3", "mnist", "0.3", MNIST, {"alpha": 0.3, "tau_ratio": 0.8}),
    _published("cifar10-2", "cifar10", "2/255", CIFAR10, {"alpha": 0.02, "tau_ratio": 0.5}),
    _published("cifar10-8", "cifar10", "8/255", CIFAR10, {"alpha": 0.5, "tau_ratio": 0.8}),
    _published("tinyimagenet-1", "tinyimagenet", "1/255", TINYIMAGENET, {"alpha": 0.02, "tau_ratio": 0.5}),
)
"""The paper's settings by the published recipes, for a GPU."""


SMOKE = Contest(
    name="digits",
    data="digits",
    eps="0.02",
    architecture="resnet",
    normalisation=((0.3,), (0.4,)),
    recipe=Recipe(
        eps=0.02,
        tau_ratio=0.5,
        epochs=3,
        warmup_epochs=1,
        ramp_epochs=1,
        lr=5e-4,
        l1=1e-6,
        groups_per_batch=24,
        pgd_steps=2,
        init="shi",
        certified_inputs=50,
    ),
)
"""Seconds of training, with batch norm and an addition, on data that is always there.

It shows whether a machine can do it, not how well.
"""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Contests under one certifier."""

    contests: tuple[Contest, ...]
    certifier: CertifySettings


SCALES: Mapping[str, Scale] = {
    "cpu": Scale(contests=(*CPU, *CPU_LONG, *FIG5), certifier=CERTIFIER),
    "gpu": Scale(contests=GPU, certifier=dataclasses.replace(CERTIFIER, limit=None)),
    "smoke": Scale(contests=(SMOKE,), certifier=dataclasses.replace(CERTIFIER, bounds="crown", limit=50)),
}


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table: its methods, in the order of its rows, and the contests that it is about.

    Attributes:
        layout: `methods`: each contest is a table of its own, with a row for each method; or one table with a row for
            each contest: `sweep` for one method, `time` for its training time beside another one's, `boxes` for the
            losses of its boxes.
        judged: what the table replaces in its scale's certifier.
    """

    title: str
    methods: tuple[str, ...]
    contests: tuple[str, ...]
    layout: Literal["methods", "sweep", "time", "boxes"] = "methods"
    judged: Mapping[str, Any] = field(default_factory=dict)


TABLES: Mapping[str, PaperTable] = {
    "table1": PaperTable(
        title="Certified training methods (the paper's Table 1)",
        methods=("ibp", "sabr", "taps", "mtl-ibp", "citrus", "citrus-plus"),
        contests=("mnist-0.1", "mnist-0.3", "cifar10-2", "cifar10-8", "tinyimagenet-1", "digits"),
    ),
    "table2": PaperTable(
        title="Adversarial training against universal perturbations (the paper's Table 2)",
        methods=("pgd", "uat", "cw-uat", "citrus"),
        contests=("cifar10-8",),
        judged={"limit": 200, "time_limit": 20.0},  # nearly every group of the first three uses its time up
    ),
    "table3": PaperTable(
        title="Same-input boxes (the paper's Table 3)", methods=("citrus", "citrus-si"), contests=("cifar10-8",)
    ),
    "table4": PaperTable(
        title="Training time (the paper's Table 4)",
        methods=("citrus", "sabr"),
        contests=("mnist-0.1", "mnist-0.3", "cifar10-2", "cifar10-8", "tinyimagenet-1", "digits"),
        layout="time",
    ),
    "fig4": PaperTable(
        title="Same-input and cross-input boxes (the paper's Fig. 4)",
        methods=("citrus",),
        contests=("cifar10-8", "digits"),
        layout="boxes",
    ),
    "fig5": PaperTable(
        title="Box size and group size (the paper's Fig. 5)",
        methods=("citrus",),
        contests=tuple(contest.name for contest in FIG5),
        layout="sweep",
    ),
    "published": PaperTable(
        title="Against the paper group's own networks",
        methods=("citrus", "citrus-plus"),
        contests=("mnist-0.1-long", "cifar10-2-long"),
    ),
}

PAPER: Mapping[tuple[str, str], tuple[float, float]] = {
    ("mnist-0.1", "ibp"): (98.84, 98.12),
    ("mnist-0.1", "sabr"): (99.23, 98.37),
    ("mnist-0.1", "taps"): (99.19, 98.65),
    ("mnist-0.1", "citrus"): (99.27, 98.41),
    ("mnist-0.3", "ibp"): (97.67, 94.76),
    ("mnist-0.3", "sabr"): (98.75, 95.37),
    ("mnist-0.3", "taps"): (98.53, 95.24),
    ("mnist-0.3", "citrus"): (99.04, 95.61),
    ("cifar10-2", "ibp"): (66.84, 59.41),
    ("cifar10-2", "sabr"): (79.24, 65.38),
    ("cifar10-2", "taps"): (79.76, 66.62),
    ("cifar10-2", "citrus"): (83.45, 66.98),
    ("cifar10-8", "ibp"): (48.94, 39.05),
    ("cifar10-8", "sabr"): (52.38, 41.57),
    ("cifar10-8", "taps"): (52.82, 40.90),
    ("cifar10-8", "citrus"): (63.12, 39.88),
    ("tinyimagenet-1", "ibp"): (25.92, 18.50),
    ("tinyimagenet-1", "sabr"): (28.85, 21.53),
    ("tinyimagenet-1", "taps"): (28.98, 24.71),
    ("tinyimagenet-1", "citrus"): (35.62, 26.27),
    ("cifar10-8", "pgd"): (87.25, 0.0),
    ("cifar10-8", "uat"): (94.28, 0.87),
    ("cifar10-8", "cw-uat"): (94.91, 1.51),
    ("cifar10-8", "citrus-si"): (50.24, 40.06),
}
"""The paper's standard and certified UAP accuracy in percent (Tables 1 to 3): CNN7, the full test sets."""


PAPER_MINUTES: Mapping[str, float] = {
    "mnist-0.1": 527,
    "mnist-0.3": 492,
    "cifar10-2": 1004,
    "cifar10-8": 1185,
    "tinyimagenet-1": 3583,
}
"""The paper's Table 4: minutes of CITRUS on CNN7 and an RTX 3090."""
PAPER_OVER_SABR: Mapping[str, float] = {"cifar10-8": 4.21}
"""CITRUS' training time over SABR's, as the text beside Table 4 has it."""


def certifier(table: str, scale: str, contest: Contest) -> CertifySettings:
    """How the networks of a contest are judged in a table at a scale."""
    return dataclasses.replace(SCALES[scale].certifier, **{**contest.judged, **TABLES[table].judged})


def jobs(table: str, contest: Contest) -> list[Job]:
    """The runs of a table in one contest, seed 0 of every method first; none when it is not about it."""
    entry = TABLES[table]
    if contest.name not in entry.contests:
        return []
    pairs = [(seed, method) for method in entry.methods for seed in range(contest.seeds.get(method, 1))]
    return [Job(contest=contest, method=method, seed=seed) for seed, method in sorted(pairs, key=lambda pair: pair[0])]
