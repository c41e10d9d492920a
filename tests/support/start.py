"""Starts that are expected to fail: run the real start to its end and look at what it said."""

import os
import subprocess
import sys

from tests.support.ports import free_port
from tests.support.router import GUNICORN, ROOT

_ADOPT = """
import os, sys
%s
from app.bootstrap import shared_table
from app.config.settings import load_settings
old = load_settings({**%r}, 1)
table = shared_table(old.max_concurrency, old.queue_size)
os.environ["ROUTER_INHERITED"] = table.handover() + ";/nonexistent"
os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"])
"""


def run_to_exit(
    environ: dict[str, str], inherit_from: dict[str, str] | None = None, *options: str, before: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Start the router with these settings, by itself or as the upgrade of one with others; it must end by itself.

    `before` is run in the program that is upgraded.
    """
    command = [GUNICORN, "-c", "gunicorn.conf.py", *options]
    if inherit_from is not None:
        command = [sys.executable, "-c", _ADOPT % (before, inherit_from)]
    env = {"PATH": os.environ["PATH"], "BIND": f"127.0.0.1:{free_port()}", **environ}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=False)
