"""The command line in a process of its own, as users run it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.support.router import ROOT

COMMAND = [sys.executable, "-m", "app"]


class Ran(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The document that it printed."""
        return json.loads(self.out)


_SERVER = """
import json, os, sys
from click.testing import CliRunner
from app.cli.main import cli
for line in sys.stdin:
    asked = json.loads(line)
    os.chdir(asked["cwd"])
    done = CliRunner(env=asked["environ"]).invoke(cli, asked["arguments"], input=asked["stdin"])
    if done.exc_info and not isinstance(done.exception, SystemExit) and done.exception:
        raise done.exception
    print(json.dumps([done.exit_code, done.stdout, done.stderr]), flush=True)
"""


class Commands:
    """One process that runs one command after the other: what takes the time is to start Python.

    For commands whose process does not matter. `with Commands() as run: run("check", MAX_CONCURRENCY=3)`.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            cwd=ROOT,
            env=environ_of(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=20)

    def __call__(self, *arguments: object, cwd: Path = ROOT, stdin: str = "", **settings: object) -> Ran:
        """Run a command to its end."""
        assert self._process.stdin
        assert self._process.stdout
        asked = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd),
            "stdin": stdin,
            "environ": {name: str(value) for name, value in settings.items()},
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Ran(*json.loads(self._process.stdout.readline()))


def environ_of(**settings: object) -> dict[str, str]:
    """An environment with these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {**kept, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)), **{k: str(v) for k, v in settings.items()}}


def run(
    *arguments: object, cwd: Path = ROOT, stdin: str = "", environ: Mapping[str, str] | None = None, **settings: object
) -> Ran:
    """Run a command to its end."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environ_of(**settings) | dict(environ or {}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
