"""Options that several commands share, with one meaning everywhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from citrus_tool.choices import DATA_NAMES, DEVICES, METHODS, SPLITS, TRACKERS, fields
from citrus_tool.choices.fields import Rule
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.cli.config import read_config
from citrus_tool.cli.parameters import PATH, Choice, Eps, EpsList, NameOrPath, Numbers, PartOption
from citrus_tool.context import RunContext
from citrus_tool.training.recipes import RECIPES

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S")


def stacked(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator for several, shown in this order by --help."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def setting(settings: type[Any], name: str, *, default: Any = dataclasses.MISSING, about: str = "") -> Callable[[F], F]:
    """The option of a field of a settings class; `default` and `about` (its help) are in place of the class's."""
    field = _fields(settings)[name]
    known, flag = fields.about(field), fields.parameter(field).replace("_", "-")
    value = field.default if default is dataclasses.MISSING else default
    if known.rule is None:
        return click.option(f"--{flag}/--no-{flag}", default=value, show_default=True, help=about or known.help)
    shown = known.unset if value is None else True
    kind = _kind(known.rule)
    return click.option(f"--{flag}", type=kind, default=value, show_default=shown, help=about or known.help)


def settings(of: type[Any], *names: str, **defaults: Any) -> Callable[[F], F]:
    """The options of these fields of a settings class; `defaults` replace the class's."""
    return stacked(*(setting(of, name, default=defaults.get(name, dataclasses.MISSING)) for name in names))


def changes(*names: str) -> Callable[[F], F]:
    """The options that change these fields of a recipe, which judges their values itself."""
    found = []
    for name in names:
        known, default = fields.about(_fields(Recipe)[name]), _fields(Recipe)[name].default
        flag = f"--{name.replace('_', '-')}"
        if known.rule is None:
            found.append(click.option(flag, is_flag=True, help=known.help))
        elif known.rule.words:
            found.append(
                click.option(flag, type=_kind(known.rule), default=default, show_default=True, help=known.help)
            )
        else:
            number = int if known.rule.whole else float
            found.append(click.option(flag, type=number, help=f"{known.help} [default: the recipe's]."))
    return stacked(*found)


def _fields(settings: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(settings)}


def _kind(rule: Rule) -> click.ParamType[Any]:
    """The type of an option whose values a rule allows."""
    if rule.words:
        return Choice(rule.words)
    if rule.whole:
        return click.IntRange(min=int(rule.low))
    low, high = ((int(end) if float(end).is_integer() else end) for end in (rule.low, rule.high))
    return click.FloatRange(min=low, max=high if math.isfinite(high) else None, min_open=rule.open_low)


model_argument = click.argument("model", type=PATH)


def data_root_option(
    about: str = "Where named data sets lie", default: str = "$CITRUS_DATA, ./data, ~/.cache/citrus"
) -> Callable[[F], F]:
    """--data-root, with this command's words; `default` is shown in the help."""
    return click.option("--data-root", type=PATH, metavar="DIR", help=f"{about} [default: {default}].")


def threads_option(about: str = "CPU threads of torch [default: all cores].") -> Callable[[F], F]:
    """--threads, with this command's words."""
    return click.option("--threads", type=click.IntRange(min=1), help=about)


def seed_option(about: str = "Draws the splits.") -> Callable[[F], F]:
    """--seed, with this command's words."""
    return click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help=about)


def quiet_option(about: str = "No progress on stderr.") -> Callable[[F], F]:
    """--quiet, with this command's words."""
    return click.option("--quiet", is_flag=True, help=about)


def workers_option(about: str) -> Callable[[F], F]:
    """--workers, with this command's words."""
    return click.option(
        "--workers", type=click.IntRange(min=1), default=RunContext.workers, show_default=True, help=about
    )


data_options = stacked(
    click.option(
        "--data",
        "data_name",
        type=NameOrPath(DATA_NAMES),
        default="digits",
        show_default=True,
        metavar="NAME|FILE.npz|FOLDER",
        help="digits, mnist, cifar10, tinyimagenet, an .npz file (x, y) or a folder of class folders.",
    ),
    data_root_option(),
)

device_option = click.option(
    "--device",
    type=Choice(DEVICES),
    default=RunContext.device,
    show_default=True,
    help="auto takes a GPU when there is one.",
)

split_option = click.option(
    "--split", type=Choice(SPLITS), default="test", show_default=True, help="Which part of the data is judged."
)


normalisation_options = stacked(
    click.option("--mean", type=Numbers(), help="Mean that the file's input was normalised with, one per channel."),
    click.option("--std", type=Numbers(), help="Standard deviation of that normalisation."),
)

eps_option = click.option(
    "--eps", type=Eps(), required=True, help="Radius of the perturbation in pixel space [0, 1], e.g. 0.1 or 2/255."
)

eps_list_option = click.option(
    "--eps",
    type=EpsList(),
    required=True,
    metavar="EPS[,EPS...]",
    help="Radius of the perturbation in pixel space [0, 1], e.g. 0.1 or 2/255; or several with commas between them.",
)

threat_options = stacked(
    click.option("--clip", is_flag=True, help="The network sees clip(x + u, 0, 1) instead of x + u."),
    click.option(
        "--target",
        type=click.IntRange(min=0),
        metavar="CLASS",
        help="Count inputs that u drives to this class, instead of to any wrong one.",
    ),
)

run_options = stacked(device_option, threads_option(), seed_option("Draws splits, batches and starting points."))

group_workers_option = workers_option(
    "Processes that groups are spread over; with --threads 1, as many as there are cores is fastest."
)

part_options = stacked(
    click.option(
        "--part", type=PartOption(), metavar="I/N", help="Only the I-th of N parts of the groups, for a cluster."
    ),
    click.option(
        "--join",
        type=PATH,
        multiple=True,
        metavar="RUN",
        help="Take over the groups of a part's run folder; repeatable. What is missing is done here.",
    ),
)

certification_options = stacked(
    data_options,
    split_option,
    settings(CertifySettings, "limit"),
    normalisation_options,
    eps_list_option,
    threat_options,
    settings(CertifySettings, "group_size", "protocol", "scope", "bounds", "arithmetic", "solver", "time_limit"),
    settings(CertifySettings, "intermediate", "branch_nodes", "branch_seconds", "attack_steps", "attack_restarts"),
    group_workers_option,
)
"""What data, which threat, how it is certified."""


def method_option(default: str) -> Callable[[F], F]:
    """--method with this command's default."""
    return click.option("--method", type=Choice(METHODS), default=default, show_default=True, help="Training method.")


recipe_options = stacked(
    click.option(
        "--recipe",
        type=NameOrPath(("auto", *RECIPES)),
        metavar="NAME|auto|FILE.toml",
        help="Training recipe; auto: the published one for data and eps [default: the one for the data set].",
    ),
    click.option("--epochs", type=click.IntRange(min=1), help="Stretches the recipe to this many epochs."),
    changes("lr", "l1", "groups_per_batch"),
)


def run_dir_options(default: str) -> Callable[[F], F]:
    """--run-dir (`default` is shown in the help) and --resume."""
    return stacked(
        click.option(
            "--run-dir", type=PATH, metavar="DIR", help=f"Checkpoints, settings and reports [default: {default}]."
        ),
        click.option("--resume", is_flag=True, help="Continue the interrupted run in --run-dir."),
    )


table_options = stacked(
    click.option("--csv", "csv_path", type=PATH, metavar="FILE", help="Write the table as CSV."),
    click.option("--latex", "latex_path", type=PATH, metavar="FILE", help="Write the table as LaTeX (booktabs)."),
)

tracker_option = click.option(
    "--tracker",
    type=Choice(TRACKERS),
    help="Also send the training curves there; needs the extra `track`.",
)

report_option = click.option(
    "--report",
    "report_path",
    type=PATH,
    metavar="FILE.html",
    help="Also write an HTML report, one file, for any browser.",
)

output_options = stacked(
    click.option(
        "--json",
        "json_path",
        type=click.Path(path_type=Path, allow_dash=True),
        metavar="FILE",
        help="Write the result as JSON; - prints it instead of the table.",
    ),
    quiet_option("No progress and no warnings on stderr."),
    click.option(
        "--config",
        type=PATH,
        metavar="FILE.toml",
        is_eager=True,
        callback=read_config,
        help="Read options from a TOML file; flags win.",
    ),
)
