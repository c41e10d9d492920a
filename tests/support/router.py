"""A real router for tests: gunicorn with the project's own configuration, on free loopback ports."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
GUNICORN = str(Path(sys.executable).with_name("gunicorn"))
"""The installed script, as users start it: `python -m gunicorn` can't be upgraded in place (USR2)."""


def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Return as soon as the condition holds; fail after `seconds`. For states that can only be asked for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.01)


class Router:
    """`with Router(folder, MAX_CONCURRENCY=3) as router:` runs it; it is gone afterwards, whatever happens."""

    def __init__(
        self,
        folder: Path,
        app: str | None = None,
        options: tuple[str, ...] = (),
        port: int | None = None,
        **settings: object,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = folder / f"router-{self.port}.log"
        self._command = [GUNICORN, "-c", "gunicorn.conf.py", *options, *([app] if app else [])]
        given = {name: str(value) for name, value in settings.items()}
        self._metrics_url = f"http://{given['ADMIN_BIND']}" if "ADMIN_BIND" in given else self.url
        self._env = {
            **{k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "PYTHONPATH", "TMPDIR")},
            "BIND": f"127.0.0.1:{self.port}",
            "WEB_CONCURRENCY": "2",
            "GRACEFUL_TIMEOUT_S": "20",
            "PROMETHEUS_MULTIPROC_DIR": str(folder / f"metrics-{self.port}"),  # a router that is killed can't remove it
            **given,
        }
        self._process: subprocess.Popen[bytes]

    def run_by(self, *command: str) -> None:
        """Have this command execute gunicorn, which must become its own process. Called before the start."""
        self._command[:0] = command

    def start(self) -> "Router":
        """Start, and wait until every worker serves."""
        self.launch()
        until(lambda: self.exited() or (self.all_booted() and self.ready()), "router is ready")
        if self.exited():
            raise AssertionError(f"the router exited with {self._process.returncode}:\n{self.log()}")
        return self

    def launch(self) -> None:
        """Start, and wait for nothing."""
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def __enter__(self) -> "Router":
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Whatever state it is in, it is gone afterwards."""
        try:
            if not self.exited():
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        finally:
            sys.stderr.write(self.log())  # pytest shows it if the test failed

    @property
    def wanted_workers(self) -> int:
        return int(self._env["WEB_CONCURRENCY"])

    @property
    def pid(self) -> int:
        """Process id of the arbiter."""
        return self._process.pid

    def workers(self) -> list[int]:
        """Process ids of the workers, oldest first."""
        return children(self.pid)

    def all_booted(self) -> bool:
        """Whether as many workers as wanted are there, each with its own handlers of signals, so that it accepts."""
        workers = self.workers()
        return len(workers) == self.wanted_workers and not any(map(blocked_signals, workers))

    def ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def exited(self) -> bool:
        return self._process.poll() is not None

    def wait_exit(self, seconds: float = 20) -> int:
        """The exit code."""
        return self._process.wait(seconds)

    def signal(self, number: signal.Signals, pid: int | None = None) -> None:
        os.kill(pid or self.pid, number)

    def infer(self, prompt: str = "hello", **kwargs: Any) -> requests.Response:
        """POST /infer on a connection of its own."""
        body = {"prompt": prompt, **kwargs.pop("members", {})}
        return requests.post(f"{self.url}/infer", json=body, timeout=60, **kwargs)

    def metrics(self) -> dict[str, float]:
        """Every sample of one scrape, by its name and labels as written."""
        page = requests.get(f"{self._metrics_url}/metrics", timeout=20)
        assert page.status_code == 200, page.text
        samples = re.findall(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", page.text, re.MULTILINE)
        return {name: float(value) for name, value in samples}

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def events(self) -> list[dict[str, Any]]:
        """The log's JSON lines."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def logged(self, request_id: str) -> dict[str, Any]:
        """The only line of the log about this request. It is written last: all else of the request is done then."""

        def found() -> list[dict[str, Any]]:
            return [event for event in self.events() if event.get("request_id") == request_id]

        until(found, f"the request {request_id} is logged")
        (event,) = found()
        return event


def children(pid: int) -> list[int]:
    """Process ids of the living children of a process, oldest first."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return [child for child in sorted(found) if _state(child) not in "ZX"]


def blocked_signals(pid: int) -> int:
    """The mask of a process's first thread, by proc(5)'s status; 0 if there is no such process."""
    try:
        words = Path(f"/proc/{pid}/status").read_text().partition("SigBlk:")[2].split()
    except OSError:
        return 0
    return int(words[0], 16) if words else 0


def open_files(pid: int) -> set[str]:
    """What the descriptors of a process lead to (proc(5)), but for those that it closes at this moment."""
    found = set()
    with contextlib.suppress(OSError):  # it has ended
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
