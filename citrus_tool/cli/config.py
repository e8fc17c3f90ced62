"""What a command runs with: its flags, and --config, a TOML file with options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from citrus_tool.errors import UsageError
from citrus_tool.files import read_toml
from citrus_tool.names import meant

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


def effective() -> dict[str, Any]:
    """The values that the command runs with, by flag, as a --config file holds them."""
    ctx = click.get_current_context()
    return {flag: ctx.params[name] for flag, name in _flags(ctx.command).items() if name in ctx.params}


def given(*names: str) -> dict[str, Any]:
    """Those of these parameters that the user set, on the command line or in a --config file."""
    ctx = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return {name: ctx.params[name] for name in names if ctx.get_parameter_source(name) is not default}


def read_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Makes the entries of a TOML file the defaults of this command; flags on the command line win.

    A table named after a command is for that one. Other entries are for every command; those that only other commands
    know are passed over, and what no command knows is an error.
    """
    if value is None:
        return None
    settings = read_toml(value)
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
