"""The command line in a process of its own, as users run it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
