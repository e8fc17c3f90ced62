"""Puts the help of every command, as `citrus COMMAND --help` prints it, in place of `<!-- commands -->` in a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from citrus_tool.cli import citrus

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """MkDocs calls this for every page."""
    return markdown.replace(
        MARK, "\n".join(sections(citrus, click.Context(citrus, info_name="citrus", **citrus.context_settings)))
    )


def sections(command: click.Command, context: click.Context) -> Iterator[str]:
    """A heading and the help of `command`, then those of its own commands."""
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.commands[name]
            yield from sections(child, click.Context(child, info_name=name, parent=context, max_content_width=100))
