"""`make observe`: a router under load, its status page, and a Prometheus that has the rules."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.support.router import ROOT, children, until

pytestmark = pytest.mark.slow


def test_observe_shows_a_loaded_router_and_ends_by_ctrl_c() -> None:
    """Prometheus scrapes requests that were served and some that were rejected; the page and the admin API are there;
    Ctrl-C ends all of it."""
    command = [sys.executable, "-m", "tests.bench.observe", "300"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            told = [process.stdout.readline() for _ in range(4)]
            _, page, prometheus = re.findall(r"http://[0-9.:]+", "".join(told))

            def codes() -> set[str]:
                query = {"query": "router_requests_total > 0"}
                try:
                    answer = requests.get(f"{prometheus}/api/v1/query", params=query, timeout=20)
                except requests.ConnectionError:
                    return set()
                found = answer.json() if answer.ok else {"data": {"result": ()}}  # 503: it starts
                return {each["metric"]["code"] for each in found["data"]["result"]}

            until(lambda: codes() == {"200", "429"}, "the load is seen", 60)
            rules = requests.get(f"{prometheus}/api/v1/rules", timeout=20).json()["data"]["groups"]
            assert {group["name"] for group in rules} == {"router objectives", "router"}
            assert "text/html" in requests.get(f"{page}/", timeout=20).headers["Content-Type"]
            assert requests.get(f"{page}/admin/queue", timeout=20).json()["limit"] == 8
            begun = children(process.pid)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
            assert len(begun) == 2
        finally:
            process.terminate()  # it ends what it has started


def started_in(folder: Path) -> dict[int, str]:
    """The processes that have this folder in their arguments or their environment: their ids and command lines."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environ = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or is another user's
        if command and bytes(folder) in command + environ:
            found[int(process.name)] = command.decode(errors="replace")
    return found


SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "two signals", "SIGTERM to another thread")
NOBODY_READS = ("closed pipe", "full device", "mute")


def tell_to_end(pid: int, way: str) -> None:
    """Send one of SIGNALS. Linux gives a signal to the thread whose id is asked for, if that can take it."""
    if way == "two signals":
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    elif way == "SIGTERM to another thread":
        os.kill(max(int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()), signal.SIGTERM)
    else:
        os.kill(pid, getattr(signal, way))


@pytest.mark.parametrize("way", SIGNALS + NOBODY_READS)
def test_observe_leaves_nothing_behind(way: str, tmp_path: Path) -> None:
    """However it ends: no process of it goes on, and its folder is gone. That nobody reads what it says ends it too."""
    folder, log = tmp_path / "folder", tmp_path / "log"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.bench.observe", "60"]
    reader, writer = os.pipe()
    with log.open("wb") as errors, Path("/dev/full").open("wb") as full, open(writer, "wb") as pipe:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=full if way in ("full device", "mute") else pipe,
            stderr=full if way == "mute" else errors,
            env={**os.environ, "TMPDIR": str(folder)},
        )
    try:
        with open(reader, encoding="utf-8") as told:
            if way in NOBODY_READS:
                told.close()
            else:
                assert len([told.readline() for _ in range(4)]) == 4
                assert len(started_in(folder)) >= 4, "observe has started Prometheus, an arbiter and two workers"
                tell_to_end(process.pid, way)
                assert process.wait(30) == 0
        process.wait(30)
        until(lambda: not started_in(folder), f"all is gone: {started_in(folder)}")
        assert not list(folder.iterdir())
        assert way == "mute" or "router ready" in log.read_text()
    finally:
        process.kill()
        process.wait()
        for pid in started_in(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
