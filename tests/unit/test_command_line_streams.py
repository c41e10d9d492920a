"""A command in a process of its own ends in order when its streams or its arguments are bad, or it is interrupted."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.command_line import COMMAND, environ_of
from tests.support.router import ROOT
from tests.support.upstream import Hold, Upstream

pytestmark = pytest.mark.slow

PRINTING = (["check"], ["check", "--json"], ["keys", "new", "--tenant", "t"], ["--help"], ["completion", "bash"])
NOBODY = ["--admin", "http://127.0.0.1:9"]


def run(*words: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command."""
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
    return subprocess.run([*COMMAND, *words], cwd=ROOT, env=environ_of(), timeout=60, check=False, **given)


@pytest.mark.parametrize("words", [*PRINTING, ["routes", "--json", *NOBODY]], ids=" ".join)
def test_full_device_is_one_line(words: list[str]) -> None:
    """What could not be printed is not reported as done, and nothing is printed of Python's own."""
    with open("/dev/full", "wb") as full:
        done = run(*words, stdout=full)
    assert done.returncode == 1
    said = b"no router can be reached" if "routes" in words else b"No space left on device"
    assert (done.stderr.count(b"\n"), said in done.stderr, done.stderr[:7]) == (1, True, b"Error: ")


@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_reader_that_has_enough_gets_no_error(words: list[str]) -> None:
    """As with `| head -1`."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = run(*words, stdout=writes)
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_stream_that_is_closed_is_as_one_that_nobody_reads(closed: str) -> None:
    """No traceback, and what belongs on one stream is not written on another, nor into a connection."""
    with Upstream() as server:
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "bench", server.url, "--requests", "1", "--json"]
        done = subprocess.run(command, cwd=ROOT, env=environ_of(), capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stderr, len(server.seen)) == (0, b"", 1)
    if ">&-" not in closed.split():
        assert json.loads(done.stdout)["server"]["succeeded"] == 1
    wrong = ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "chek", "--json"]
    said = subprocess.run(wrong, cwd=ROOT, env=environ_of(), capture_output=True, timeout=60, check=False)
    assert said.returncode == 2
    assert said.stdout == b"" or json.loads(said.stdout).keys() == {"error"}


@pytest.mark.parametrize(
    "words",
    [
        ["explain", b"a\xffb"],
        ["routes", b"\xff"],
        [b"\xff"],
        ["keys", "new", "--tenant", "t", "--model", b"\xff"],
        ["bench", *NOBODY[1:], "--prompt", b"\xff"],
        ["run", b"\xff"],
        ["check", "--routes", b"\xff.toml"],
    ],
)
def test_argument_that_is_not_utf_8_is_wrong_use(words: Sequence[str | bytes]) -> None:
    """It is said which, in characters that every terminal has, and as JSON too."""
    done = run(*words, "--json")
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False)
    assert "udcff" in json.loads(done.stdout)["error"]


def test_setting_that_is_not_utf_8_is_shown_escaped() -> None:
    """A variable of the environment can hold any bytes; what `check` prints is JSON all the same."""
    command = [*COMMAND, "check", "--json"]
    environ: dict[Any, Any] = {**environ_of(), b"LOG_FORMAT": b"\xff", b"POD_NAME": b"\xfe"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert json.loads(done.stdout)["ok"] is False


@pytest.mark.parametrize("words", [["routes"], ["explain", "x"], ["endpoints", "--drain", "0"]], ids=" ".join)
def test_ctrl_c_ends_a_command_that_waits(words: list[str]) -> None:
    """With 130 and one line, whatever the router is doing."""
    hold = Hold()
    with Upstream(hold) as server:
        command = [*COMMAND, *words, "--admin", server.url]
        with subprocess.Popen(command, cwd=ROOT, env=environ_of(), stdout=-1, stderr=-1) as process:
            server.wait_seen(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        hold.release()
    assert (process.returncode, out, err) == (130, b"", b"Error: interrupted\n")


@pytest.mark.parametrize("module", ["app.cli.main", "app.errors"])
def test_ctrl_c_during_the_start_prints_no_traceback(module: str) -> None:
    """Python's own handler would show where in which module the import was. The signal is sent from inside it."""
    done = run_with_signal("app.__main__", module)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_ctrl_c_during_the_start_of_the_server_prints_no_traceback() -> None:
    """The same of gunicorn's configuration, until gunicorn has its own handler."""
    code = "import runpy; runpy.run_path('gunicorn.conf.py')"
    done = run_with_signal(code, "app.wsgi")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def run_with_signal(program: str, module: str) -> subprocess.CompletedProcess[bytes]:
    """Run a module as `python -m` does, or code, and interrupt it when it imports this module."""
    code = f"""
import os, runpy, signal, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
sys.argv = ["app", "--version"]
"""
    code += f"runpy.run_module({program!r}, run_name='__main__')" if " " not in program else program
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ_of(), capture_output=True, timeout=60, check=False
    )


def test_interrupts_that_are_ignored_stay_so() -> None:
    """A script's background (`&`) ignores Ctrl-C: so does a command that it starts."""
    code = "import signal, runpy, sys; signal.signal(2, signal.SIG_IGN); sys.argv = ['app', '--version']\n"
    code += "import atexit; atexit.register(lambda: print(signal.getsignal(2).name))\n"
    code += "runpy.run_module('app.__main__', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ_of(), capture_output=True, timeout=60, check=True
    )
    assert done.stdout.endswith(b"SIG_IGN\n")
