"""`run`: becomes gunicorn, with the router's configuration."""

import os
import sys
from pathlib import Path

import click

import app

_CONFIG = "gunicorn.conf.py"


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Exits with 0 after it was told to end, by Ctrl-C too, 1 if it can't start, or gunicorn's own code.",
)
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="gunicorn's configuration."
)
@click.option("--json", "as_json", is_flag=True, help="Log JSON, whatever LOG_FORMAT says.")
@click.argument("gunicorn_options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def command(environ: dict[str, str], config: Path | None, as_json: bool, gunicorn_options: tuple[str, ...]) -> None:
    """Serve. What follows is passed on to gunicorn.

    The configuration is gunicorn.conf.py of the working folder, else the one that was installed with the router.
    """
    if as_json:
        environ = {**environ, "LOG_FORMAT": "json"}
    sys.stdout.flush()
    program = gunicorn()
    os.execve(program[0], [*program, "-c", str(config or find_config()), *gunicorn_options], environ)  # noqa: S606


def gunicorn() -> list[str]:
    """Returns how gunicorn is started: by its script, without which it can't be upgraded in place (USR2)."""
    script = Path(sys.executable).with_name("gunicorn")
    return [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-m", "gunicorn"]


def find_config() -> Path:
    """Returns the path of the configuration. Raises ClickException if there is none."""
    package = Path(app.__file__ or "").resolve().parent
    for folder in (Path(), package, package.parent):  # the last: a checkout
        if (folder / _CONFIG).is_file():
            return folder / _CONFIG
    raise click.ClickException(f"there is no {_CONFIG} here, and none was installed: name one with --config")
