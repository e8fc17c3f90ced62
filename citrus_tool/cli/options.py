"""Options that several commands share, with one meaning everywhere."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from citrus_tool.choices import DATA_NAMES, DEVICES, METHODS, SPLITS, TRACKERS, fields
from citrus_tool.choices.fields import Rule
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import AttackSettings, CertifySettings, TuneSettings
from citrus_tool.context import RunContext
from citrus_tool.errors import InputFileError, UsageError
from citrus_tool.names import meant
from citrus_tool.training.recipes import RECIPES

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S")


class Eps(click.ParamType[float]):
    """A radius in pixel space: 0.1, 2/255 or 1e-2."""

    name = "eps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Raises UsageError for what is not a number in [0, 1]."""
        from citrus_tool.threat import parse_eps

        return value if isinstance(value, float) else parse_eps(str(value))


class EpsList(click.ParamType[tuple[float, ...]]):
    """One radius or several with commas between them, as `--eps 1/255,2/255`; a number or a list in a TOML file."""

    name = "eps list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Raises UsageError for what is not a number in [0, 1]."""
        if isinstance(value, float):
            return (value,)
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        return tuple(Eps().convert(part, param, ctx) for part in parts)


class PartOption(click.ParamType[tuple[int, int]]):
    """One of several parts, as `2/8`; a list of two numbers in a TOML file."""

    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Raises a usage error that shows the text."""
        text = "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(f"{text!r} is no part; write I/N with I from 1 to N, e.g. 2/8.", param, ctx)
        return int(found[1]), int(found[2])


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them, as `--mean 0.49,0.48,0.45`; a list in a TOML file."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Raises a usage error that shows the text."""
        parts = str(value).split(",") if not isinstance(value, list | tuple) else value
        try:
            return tuple(float(part) for part in parts)
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers; write 0.49,0.48,0.45.", param, ctx)


PATH = click.Path(path_type=Path)


class Choice(click.Choice[str]):
    """A choice that says which one a mistyped value is near to."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Click's sentence, and what may have been meant."""
        hint = meant(str(value), map(str, self.choices), " Did you mean {!r}?")
        return super().get_invalid_choice_message(value, ctx) + hint


class NameOrPath(click.ParamType[str]):
    """One of `names`, or a path; the names are for the shell's completion, a command judges the value itself."""

    name = "name or path"

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Any text."""
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Paths, and the names that begin so."""
        names = [CompletionItem(name) for name in self._names if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file"), *names]


NOT_SETTINGS = ("config", "json", "csv", "latex", "report", "quiet", "resume", "join")
"""Options of one call, not of a run."""


def _flags(command: click.Command) -> dict[str, str]:
    """Long flag without dashes -> parameter name, of the options that a TOML file may hold."""
    found = {o.opts[0].removeprefix("--"): o.name for o in command.params if isinstance(o, click.Option) and o.name}
    return {flag: name for flag, name in found.items() if flag not in NOT_SETTINGS}


def _known(command: click.Command) -> dict[str, str]:
    """What a --config file may hold for this command: its options, and its network."""
    model = {"model": "model"} if any(param.name == "model" for param in command.params) else {}
    return {**_flags(command), **model}


def _others(ctx: click.Context) -> dict[str, dict[str, str]]:
    """What a --config file may hold for each command, by the command's name."""
    root = ctx.find_root()
    if not isinstance(root.command, click.Group):
        return {}
    commands = {name: root.command.get_command(root, name) for name in root.command.list_commands(root)}
    return {name: _known(command) for name, command in commands.items() if command is not None}


def effective(ctx: click.Context) -> dict[str, Any]:
    """The values that this command runs with, by flag, as a --config file holds them."""
    return {flag: ctx.params[name] for flag, name in _flags(ctx.command).items() if name in ctx.params}


def given(ctx: click.Context, *names: str) -> dict[str, Any]:
    """Those of these parameters that the user set, on the command line or in a --config file."""
    default = click.core.ParameterSource.DEFAULT
    return {name: ctx.params[name] for name in names if ctx.get_parameter_source(name) is not default}


def _read_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Makes the entries of a TOML file the defaults of this command; flags on the command line win.

    A table named after a command is for that one. Other entries are for every command; those that only other commands
    know are passed over, and what no command knows is an error.
    """
    if value is None:
        return None
    try:
        settings = tomllib.loads(value.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputFileError(f"{value}: cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputFileError(f"{value}: is not TOML ({error}).") from None
    known = _known(ctx.command)
    defaults: dict[str, Any] = {}
    entries = {key: entry for key, entry in settings.items() if not isinstance(entry, dict)}
    tables = {key: entry for key, entry in settings.items() if isinstance(entry, dict)}
    others = _others(ctx) if tables or not entries.keys() <= known.keys() else {}
    for table in tables:
        if table not in others:
            hint = meant(table, others, "did you mean [{}]?", "tables are named after commands.")
            raise UsageError(f"{value}: [{table}] is no command; {hint}")
    own = tables.get(ctx.info_name or "", {})
    for key, entry in [*entries.items(), *own.items()]:
        flag = key.replace("_", "-")
        if flag in known:
            defaults[known[flag]] = entry
        elif key in own or not any(flag in flags for flags in others.values()):
            hint = meant(flag, known, "; did you mean {}?", ".")
            raise UsageError(f"{value}: {key!r} is not an option of {ctx.command_path}{hint}")
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return value


def gathered(function: F) -> F:
    """Hands a command its options together, those of these that it has a parameter for, and sets --threads:

    `source`: MODEL, --mean and --std as a workflow.ModelChoice.  `choice`: --data, --data-root and --seed as a
    DataChoice.  `threats`: a Threat for each --eps; `threat`: of the only one.  `certify`: CertifySettings.
    `attack`: AttackSettings.  `tuning`: TuneSettings.

    Options that the command has no parameter for go no further. Raises as these classes do.
    """
    wanted = inspect.signature(function).parameters

    @functools.wraps(function)
    def command(*before: Any, **given: Any) -> Any:
        from citrus_tool.sources import DataChoice, ModelChoice
        from citrus_tool.threat import Threat

        eps: Any = given.get("eps")
        radii = eps if isinstance(eps, tuple) else (eps,)
        forms = {name: given[name] for name in ("clip", "target") if name in given}
        alone = {"group_size": None}  # one perturbation for all inputs
        makers: dict[str, Callable[[], Any]] = {
            "source": lambda: ModelChoice(path=given["model"], mean=given["mean"], std=given["std"]),
            "choice": lambda: DataChoice(name=given["data_name"], root=given["data_root"], seed=given["seed"]),
            "threats": lambda: [Threat(eps=one, **forms) for one in radii],
            "threat": lambda: Threat(eps=eps, **forms),
            "certify": lambda: collected(CertifySettings, given),
            "attack": lambda: collected(AttackSettings, given | (alone if given.get("scope") == "dataset" else {})),
            "tuning": lambda: collected(TuneSettings, given),
        }
        use_threads(given["threads"])
        made = {name: make() for name, make in makers.items() if name in wanted}
        return function(*before, **{name: value for name, value in given.items() if name in wanted}, **made)

    return command  # type: ignore[return-value]


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


def collected(settings: type[S], given: Mapping[str, Any]) -> S:
    """The settings that a command's options hold; raises UsageError as the class does."""
    options = {name: fields.parameter(field) for name, field in _fields(settings).items() if fields.about(field).help}
    return settings(**{name: given[option] for name, option in options.items() if option in given})


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


def use_threads(count: int | None) -> None:
    """Sets torch's CPU threads when --threads was given."""
    if count is not None:
        import torch

        torch.set_num_threads(count)


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
    settings(CertifySettings, "group_size", "protocol", "scope", "bounds", "solver", "time_limit"),
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
        callback=_read_config,
        help="Read options from a TOML file; flags win.",
    ),
)
