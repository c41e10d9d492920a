"""The command `inference-router`: finds the command that is asked for, and turns its errors into one line."""

import logging
import os
import sys
from importlib import import_module, metadata
from io import TextIOWrapper
from typing import Any

import click

from app.cli.output import INTERRUPTED, print_json_line
from app.compiled import form
from app.errors import RouterError

COMMANDS = ("run", "check", "routes", "endpoints", "top", "explain", "keys", "bench", "replay", "completion")
"""In the order in which the help lists them. Each is `command` in the module of its name, imported when it is used."""

_WANTS_JSON = "app.cli.wants_json"


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
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Where it fails, standard output has a JSON document all the same if JSON is asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            error: click.ClickException = _Interrupted("interrupted")
        except click.ClickException as raised:
            error = raised
        except RouterError as raised:
            error = click.ClickException(str(raised))
        if ctx.meta[_WANTS_JSON]:
            print_json_line({"error": error.format_message()})
        raise error


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

    Exit codes: 0 it is as it should be, 1 it is not, 2 the command was called wrongly, 130 it was interrupted.
    """
    _log_to_stderr()
    context.obj = dict(os.environ)  # here alone does the command line read it
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


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # the lines of a table are not in every character set
    cli(prog_name="inference-router")
