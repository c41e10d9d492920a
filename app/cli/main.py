"""The command `inference-router`: finds the command that is asked for, and turns its errors into one line."""

import logging
import os
import sys
from importlib import import_module, metadata
from typing import Any

import click

from app.compiled import form
from app.errors import RouterError

COMMANDS = ("run", "check", "routes", "endpoints", "top", "explain", "keys", "bench", "replay", "completion")
"""In the order in which the help lists them. Each is `command` in the module of its name, imported when it is used."""


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

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RouterError as error:
            raise click.ClickException(str(error)) from error


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

    Exit codes: 0 it is as it should be, 1 it is not, 2 the command was called wrongly.
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
    cli(prog_name="inference-router")
