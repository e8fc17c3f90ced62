"""The command line: `citrus COMMAND ...`. Each command parses, calls one library function and prints.

Nothing here imports torch before a command needs it, so that help and usage errors come at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import click

from citrus_tool import __version__
from citrus_tool.cli.bench import bench
from citrus_tool.cli.certify import attack_uap, certify_uap, check, evaluate
from citrus_tool.cli.compare import compare
from citrus_tool.cli.data import data
from citrus_tool.cli.demo import demo
from citrus_tool.cli.export import export_query
from citrus_tool.cli.init import init
from citrus_tool.cli.inspect import inspect
from citrus_tool.cli.report import report
from citrus_tool.cli.train import harden, train
from citrus_tool.cli.tune import tune
from citrus_tool.cli.verify import supports, verify
from citrus_tool.cli.vnncomp import vnncomp
from citrus_tool.errors import CitrusError, InputFileError, InterruptedRunError, UsageError


class InOrder(click.Group):
    """A group that lists its commands in the order in which a user meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _name(ctx: click.Context, parameter: click.Parameter, given: bool) -> None:
    """Answers --name, which VNN-LIB's solver interface asks for."""
    if given and not ctx.resilient_parsing:
        click.echo("citrus")
        ctx.exit()


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="citrus", message="%(prog)s %(version)s")
@click.option(
    "--name", is_flag=True, is_eager=True, expose_value=False, callback=_name, help="Show the solver's name and exit."
)
def citrus() -> None:
    """Hardens ONNX image classifiers against universal adversarial perturbations and proves the result.

    \b
    Try it:
      citrus demo
      citrus certify-uap M.onnx --data mnist --eps 0.1
      citrus harden M.onnx --data mnist --eps 0.1 --out H.onnx
    """


for _command in (
    demo,
    init,
    inspect,
    harden,
    certify_uap,
    compare,
    check,
    attack_uap,
    evaluate,
    report,
    verify,
    supports,
    vnncomp,
    export_query,
    train,
    tune,
    bench,
    data,
):
    citrus.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (default: this process's) and returns its exit code; errors are one line on stderr.

    SIGTERM, which schedulers and containers send, stops a command as Ctrl-C does: its state is saved.
    """
    try:
        with _terminated_like_interrupted():
            words = None if arguments is None else list(arguments)
            result = citrus.main(words, prog_name="citrus", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return UsageError.exit_code
    except click.ClickException as error:
        where = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        return _fail(UsageError(f"{error.format_message()}{where}"))
    except CitrusError as error:
        return _fail(error)
    except (KeyboardInterrupt, click.Abort):
        return _fail(InterruptedRunError("interrupted."))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our pipe has left
        return 0
    except (MemoryError, OSError, RuntimeError) as error:
        known = _resource_error(error)
        if known is None:
            raise
        return _fail(known)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Inside the block SIGTERM does what SIGINT does, even where a shell has started the process with SIGINT ignored.

    A SIGTERM that is ignored or handled already is left alone, and so are signals outside the main thread.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        (interrupt if callable(interrupt) else signal.default_int_handler)(number, frame)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fail(error: CitrusError) -> int:
    click.echo(f"citrus: error: {error}", err=True)
    return error.exit_code


def _resource_error(error: Exception) -> CitrusError | None:
    """The sentence for a machine that is out of memory or disk, or a path that the system refuses; None for others."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "not enough memory" in text or "out of memory" in text:
        return InputFileError("the machine is out of memory; use a smaller --limit, network or batch, or --device cpu.")
    if not isinstance(error, OSError):
        return None
    path = error.filename if isinstance(error.filename, str) else "output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputFileError(f"{path}: the disk is full; free some space and run the command again with --resume.")
    return InputFileError(f"{path}: {error.strerror or error}.")
