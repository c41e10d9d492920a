"""The command `inference-router`: finds the command that is asked for, and turns its errors into one line."""

import logging
import os
import sys
from contextlib import suppress
from errno import EPIPE
from importlib import import_module, metadata
from io import TextIOWrapper
from typing import Any

import click

from app.cli.output import INTERRUPTED, print_json_line, shown
from app.compiled import form
from app.errors import RouterError

COMMANDS = ("run", "check", "routes", "endpoints", "top", "explain", "keys", "bench", "replay", "completion")
"""In the order in which the help lists them. Each is `command` in the module of its name, imported when it is used."""

_WANTS_JSON = "app.cli.wants_json"
_ARGUMENTS = "app.cli.arguments"


class _Interrupted(click.ClickException):
    exit_code = INTERRUPTED


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"app.cli.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Say which commands there are if there is none of this name."""
        if args[0] not in COMMANDS:
            ctx.fail(f"there is no command {args[0]!r}: there are {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WANTS_JSON] = "--json" in args  # a command that is called wrongly has no options that were parsed
        ctx.meta[_ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Where it fails, standard output has a JSON document all the same if JSON is asked for."""
        try:
            for argument in ctx.meta[_ARGUMENTS]:
                _check_utf8(argument, ctx)
            return super().invoke(ctx)
        except KeyboardInterrupt:
            error: click.ClickException = _Interrupted("interrupted")
        except click.ClickException as raised:
            error = raised
        except RouterError as raised:
            error = click.ClickException(str(raised))
        except OSError as raised:
            if raised.errno == EPIPE:
                raise  # who reads has enough: click ends without a word
            error = click.ClickException(_words(raised))
        except MemoryError:
            error = click.ClickException("there is not enough memory for what is read")
        if ctx.meta[_WANTS_JSON]:
            with suppress(OSError):  # it may be what failed
                print_json_line({"error": error.format_message()})
        raise error


def _check_utf8(argument: str, ctx: click.Context) -> None:
    """Raise UsageError for an argument that is not UTF-8: no JSON, no header and no request can hold it."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        ctx.fail(f"an argument is not UTF-8: {shown(argument)}")


def version() -> str:
    """Returns which release is installed, and whether it is compiled."""
    return f"inference-router {metadata.version('inference-router')}, {form()}"


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(version())
        context.exit()


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the release."
)
@click.pass_context
def cli(context: click.Context) -> None:
    """An inference router with one exact concurrency cap. Settings come from the environment.

    Exit codes: 0 it is as it should be, 1 it is not or can't be had, 2 the command was called wrongly, 130 Ctrl-C.
    """
    _log_to_stderr()
    if context.obj is None:
        context.obj = dict(os.environ)
    if context.invoked_subcommand is None:
        click.echo(f"{version()}\n\n{context.get_help()}")


def _log_to_stderr() -> None:
    """Standard output is for the result."""
    import structlog  # noqa: PLC0415  # the completion of a word in a shell must not wait for it

    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.dev.ConsoleRenderer(colors=False)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _words(error: OSError) -> str:
    """Returns what an error says, without its number."""
    words = error.strerror or str(error)
    return f"{shown(str(error.filename))}: {words}" if error.filename else words


def main() -> None:
    """Run the command line. It ends with an exit code and at most one line of error, even if nothing can be printed."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # the lines of a table are not in every character set
    code: Any = 1
    try:
        cli(prog_name="inference-router", obj=dict(os.environ))  # for completions, which run no command
    except SystemExit as ended:
        code = ended.code
    except OSError as error:  # of the help, or of the line that says what is wrong
        with suppress(OSError):
            click.echo(f"Error: {_words(error)}", err=True)
    for stream in (sys.stdout, sys.stderr):
        _flush_or_drop(stream)
    sys.exit(code)


def _open_closed_streams() -> None:
    """Open the streams that were closed (`>&-`) on /dev/null: else a socket gets the number of one, and its text."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(fd, True)  # `run` becomes gunicorn, which would meet the same
            setattr(sys, name, open(fd, "r" if name == "stdin" else "w"))  # noqa: SIM115  # until the end


def _flush_or_drop(stream: Any) -> None:
    """Leave nothing in a stream that can't be written: Python would try again at its end, and print the error."""
    try:
        stream.flush()
    except (OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
