"""Options that several commands share, with one meaning everywhere."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from citrus_tool.errors import InputFileError, UsageError

F = TypeVar("F", bound=Callable[..., Any])


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


class Part(click.ParamType[tuple[int, int]]):
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
        close = difflib.get_close_matches(str(value), [str(choice) for choice in self.choices], n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        return super().get_invalid_choice_message(value, ctx) + meant


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


DATA = ("digits", "mnist", "cifar10", "tinyimagenet")
RECIPES = (
    "auto",
    "digits",
    "mnist-cpu",
    "mnist-0.1",
    "mnist-0.3",
    "cifar10-2",
    "cifar10-8",
    "tinyimagenet-1",
    "standard",
)


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
            near = difflib.get_close_matches(table, others, n=1)
            hint = f"did you mean [{near[0]}]?" if near else "tables are named after commands."
            raise UsageError(f"{value}: [{table}] is no command; {hint}")
    own = tables.get(ctx.info_name or "", {})
    for key, entry in [*entries.items(), *own.items()]:
        flag = key.replace("_", "-")
        if flag in known:
            defaults[known[flag]] = entry
        elif key in own or not any(flag in flags for flags in others.values()):
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UsageError(f"{value}: {key!r} is not an option of {ctx.command_path}{hint}")
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return value


_CERTIFY = (
    "group_size",
    "protocol",
    "scope",
    "bounds",
    "intermediate",
    "branch_nodes",
    "branch_seconds",
    "solver",
    "time_limit",
    "attack_steps",
    "attack_restarts",
    "seed",
    "limit",
)


def gathered(function: F) -> F:
    """Hands a command its options together, those of these that it has a parameter for, and sets --threads:

    `source`: MODEL, --mean and --std as a workflow.ModelChoice.  `choice`: --data, --data-root and --seed as a
    DataChoice.  `threats`: a Threat for each --eps; `threat`: of the only one.  `certify`: CertifySettings.

    Options that the command has no parameter for go no further. Raises as these classes do.
    """
    wanted = inspect.signature(function).parameters

    @functools.wraps(function)
    def command(*before: Any, **given: Any) -> Any:
        from citrus_tool.certification.settings import CertifySettings
        from citrus_tool.threat import Threat
        from citrus_tool.workflow import DataChoice, ModelChoice

        eps: Any = given.get("eps")
        radii = eps if isinstance(eps, tuple) else (eps,)
        forms = {name: given[name] for name in ("clip", "target") if name in given}
        makers: dict[str, Callable[[], Any]] = {
            "source": lambda: ModelChoice(path=given["model"], mean=given["mean"], std=given["std"]),
            "choice": lambda: DataChoice(name=given["data_name"], root=given["data_root"], seed=given["seed"]),
            "threats": lambda: [Threat(eps=one, **forms) for one in radii],
            "threat": lambda: Threat(eps=eps, **forms),
            "certify": lambda: CertifySettings(**{name: given[name] for name in _CERTIFY if name in given}),
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
    return click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help=about)


data_options = stacked(
    click.option(
        "--data",
        "data_name",
        type=NameOrPath(DATA),
        default="digits",
        show_default=True,
        metavar="NAME|FILE.npz|FOLDER",
        help="digits, mnist, cifar10, tinyimagenet, an .npz file (x, y) or a folder of class folders.",
    ),
    data_root_option(),
)

device_option = click.option(
    "--device",
    type=Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto takes a GPU when there is one.",
)

split_option = click.option(
    "--split",
    type=Choice(["train", "validation", "test"]),
    default="test",
    show_default=True,
    help="Which part of the data is judged.",
)


def use_threads(count: int | None) -> None:
    """Sets torch's CPU threads when --threads was given."""
    if count is not None:
        import torch

        torch.set_num_threads(count)


def limit_option(default: int | None) -> Callable[[F], F]:
    """--limit with this command's default; None judges all inputs."""
    return click.option(
        "--limit",
        type=click.IntRange(min=1),
        default=default,
        show_default=default or "all",
        help="How many inputs are judged, in order.",
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

group_size_option = click.option(
    "--group-size",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How many inputs share one perturbation.",
)

certify_options = stacked(
    click.option(
        "--bounds",
        type=Choice(["ibp", "crown", "alpha", "full"]),
        default="crown",
        show_default=True,
        help="The strongest bounds in use; full is alpha-CROWN and branch and bound.",
    ),
    click.option(
        "--solver",
        type=Choice(["cbc", "highs", "both"]),
        default="cbc",
        show_default=True,
        help="MILP solver; both runs two, and stops with an error where they disagree.",
    ),
    click.option(
        "--time-limit",
        type=click.FloatRange(min=0, min_open=True),
        default=60.0,
        show_default=True,
        help="Seconds for one group's MILP or cross-execution loop.",
    ),
)

protocol_option = click.option(
    "--protocol",
    type=Choice(["all", "correct"]),
    default="all",
    show_default=True,
    help="Judge all inputs, or only those that are classified correctly without a perturbation.",
)

scope_option = click.option(
    "--scope",
    type=Choice(["groups", "dataset"]),
    default="groups",
    show_default=True,
    help="One perturbation for each group of inputs, or one for all of them.",
)

group_workers_option = workers_option(
    "Processes that groups are spread over; with --threads 1, as many as there are cores is fastest."
)

part_options = stacked(
    click.option("--part", type=Part(), metavar="I/N", help="Only the I-th of N parts of the groups, for a cluster."),
    click.option(
        "--join",
        type=PATH,
        multiple=True,
        metavar="RUN",
        help="Take over the groups of a part's run folder; repeatable. What is missing is done here.",
    ),
)

branch_options = stacked(
    click.option(
        "--intermediate",
        type=Choice(["intersect", "crown"]),
        default="intersect",
        show_default=True,
        help="Bounds inside the network: CROWN's, or their intersection with IBP's.",
    ),
    click.option(
        "--branch-nodes",
        type=click.IntRange(min=1),
        default=4000,
        show_default=True,
        help="With --bounds full: parts of the box that branch and bound may look at for one input.",
    ),
    click.option(
        "--branch-seconds",
        type=click.FloatRange(min=0, min_open=True),
        default=60.0,
        show_default=True,
        help="With --bounds alpha or full: seconds for one input that CROWN leaves open, on average.",
    ),
)

attack_options = stacked(
    click.option(
        "--attack-steps",
        type=click.IntRange(min=0),
        default=50,
        show_default=True,
        help="Gradient steps of the attack for each restart.",
    ),
    click.option(
        "--attack-restarts", type=click.IntRange(min=0), default=6, show_default=True, help="Restarts of the attack."
    ),
)

certification_options = stacked(
    data_options,
    split_option,
    limit_option(None),
    normalisation_options,
    eps_list_option,
    threat_options,
    group_size_option,
    protocol_option,
    scope_option,
    certify_options,
    branch_options,
    attack_options,
    group_workers_option,
)
"""What data, which threat, how it is certified."""

METHODS = (
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
)


def method_option(default: str) -> Callable[[F], F]:
    """--method with this command's default."""
    return click.option("--method", type=Choice(METHODS), default=default, show_default=True, help="Training method.")


recipe_options = stacked(
    click.option(
        "--recipe",
        type=NameOrPath(RECIPES),
        metavar="NAME|auto|FILE.toml",
        help="Training recipe; auto: the published one for data and eps [default: the one for the data set].",
    ),
    click.option("--epochs", type=click.IntRange(min=1), help="Stretches the recipe to this many epochs."),
    click.option("--lr", type=float, help="Learning rate [default: the recipe's]."),
    click.option("--l1", type=float, help="Factor of the weights' L1 norm [default: the recipe's]."),
    click.option("--groups-per-batch", type=int, help="Groups in one optimiser step [default: the recipe's]."),
)

train_on_option = click.option(
    "--train-on",
    type=Choice(["train", "all"]),
    default="train",
    show_default=True,
    help="all: the validation split too; then the last epoch is kept.",
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
    type=click.Choice(["tensorboard", "mlflow"]),
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
