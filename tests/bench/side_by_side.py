"""What the benches that compare programs share: how those are started, loaded by wrk in turn, and ended.

Every program runs on a free loopback port, in a process group of its own, and is gone at the end of its `with`, however
that ends. Its output goes to a file, and the end of that is shown if it doesn't start. Beside the router's own, the
programs come from `HOME`, where `make peers` puts them.
"""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import requests

from tests.bench.machine import CORES, cpu_seconds, raise_file_limit, require_wrk
from tests.bench.table import OURS, Table, ratio
from tests.support.ports import free_port
from tests.support.router import GUNICORN, ROOT

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
HOME = Path(os.environ.get("PEERS_HOME") or CACHE / "inference-router-peers").absolute()
SCRIPT = Path(__file__).with_suffix(".lua")
START_S = 60.0
WARM_UP_S = 1
SETTLE_S = 0.2
"""For what the clients of the warm-up have left behind."""
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR")
OUR_COMMAND = [GUNICORN, "-c", str(ROOT / "gunicorn.conf.py")]
HOT_MODULE = "app.admission.limiter"
"""One of those that every request runs through."""
Turn = TypeVar("Turn")


class Program:
    """`with Program(command, folder, …) as program:` starts it; it is gone afterwards, whatever happens."""

    def __init__(self, command: Sequence[str], folder: Path, port: int, **environment: object) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._command = list(command)
        self._log = folder / f"{Path(command[0]).name}-{port}.log"
        self._environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        self._environment |= {name: str(value) for name, value in environment.items()}
        self.folder = folder
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> "Program":
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.terminate()
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        finally:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)  # and what it has left behind
            except ProcessLookupError:
                pass
            self._process.wait(10)

    def wait_for_answer(self, path: str, body: str) -> None:
        """Return when this request is answered with 200; give up after `START_S`, saying what it printed last."""
        deadline = time.monotonic() + START_S
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                answer = requests.post(
                    self.url + path, data=body, headers={"Content-Type": "application/json"}, timeout=5
                )
                if answer.status_code == 200:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.1)
        last = self._log.read_text(errors="replace").strip().splitlines()[-3:]
        raise SystemExit("\n".join([f"{Path(self._command[0]).name} doesn't answer. It said last:", *last]))

    @property
    def pid(self) -> int:
        """The process that was started, and the group of all that it starts."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Processor time that it and its descendants have used, those that have ended included."""
        return cpu_seconds(self._process.pid)


class Load(NamedTuple):
    """What wrk saw, and what the program that it asked spent."""

    answered: int
    refused: int
    broken: int
    p50_ms: float
    p99_ms: float
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Answers a second, whatever they said."""
        return self.answered / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of processor time for one answer."""
        return 1e6 * self.cpu_s / max(self.answered, 1)

    @property
    def errors(self) -> int:
        """What should not have happened where nobody is to be refused."""
        return self.refused + self.broken


def warm_up(program: Program, path: str, bodies: Sequence[str], connections: int) -> None:
    """Load the program for a moment that doesn't count."""
    run_load(program, path, bodies, connections, WARM_UP_S)
    time.sleep(SETTLE_S)


def run_load(
    program: Program, path: str, bodies: Sequence[str], connections: int, seconds: int, opening_s: int = 0
) -> Load:
    """Load the program for these seconds, with each of these bodies in turn; it should be warm.

    For `opening_s` before that, which count for nothing, the connections are open and nothing is asked.
    """
    options = ["-t1", f"-c{connections}", f"-d{opening_s + seconds}s", "--timeout", "10s", "-s", str(SCRIPT)]
    command = ["wrk", *options, program.url + path, "--", str(opening_s * 1000), str(connections), *bodies]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as wrk:
        try:
            time.sleep(opening_s)
            cpu_before = program.cpu_seconds()
            printed, _ = wrk.communicate(timeout=seconds + 30)
            cpu_s = program.cpu_seconds() - cpu_before
        finally:
            wrk.kill()
    found = re.search(r"^RESULT (.*)$", printed, re.MULTILINE)
    if wrk.returncode or not found:
        raise SystemExit(f"wrk failed:\n{printed}")
    answered, refused, broken, p50_us, p99_us, duration_us = map(int, found[1].split())
    return Load(answered, refused, broken, p50_us / 1e3, p99_us / 1e3, duration_us / 1e6 - opening_s, cpu_s)


def own_router(folder: Path, port: int, **settings: object) -> Program:
    """The router as users start it: what is installed for the Python that runs the bench, compiled if that is.

    It does not run in the checkout, whose `app` would be found before the installed one. PYTHONPATH comes before both.
    """
    own_form()  # which ends the bench now and not after minutes
    defaults = {"WEB_CONCURRENCY": CORES, "LOG_LEVEL": "error", "GRACEFUL_TIMEOUT_S": 5}
    defaults |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return Program(OUR_COMMAND, folder, port, **{"BIND": f"127.0.0.1:{port}", **defaults, **settings})


def conditions(rounds: str) -> str:
    """What holds for all rows of a table: the machine, the form of our router, and the rounds."""
    return f"{os.cpu_count()} cores; {OURS} is {own_form()}; {rounds}"


@functools.cache
def own_form() -> str:
    """How the modules of `own_router` run, `compiled` or `pure`; ends the bench if they are another checkout's.

    An editable installation that several checkouts share is of one of them, which would be measured in all.
    """
    found = f"import importlib.util; print(importlib.util.find_spec({HOT_MODULE!r}).origin)"
    command = [sys.executable, "-P", "-c", found]
    file = Path(subprocess.run(command, check=True, capture_output=True, text=True, timeout=START_S).stdout.strip())
    if file.suffix != ".py":
        return "compiled"
    if not any(file.is_relative_to(folder) for folder in (ROOT, sys.prefix)):
        raise SystemExit(f"what is installed is the router of {file.parents[2]}: set PYTHONPATH={ROOT}")
    return "pure"


def go_program(name: str, folder: Path, **environment: object) -> Program:
    """One of the programs of tests/bench/go, which take their port and all else from the environment."""
    port = free_port()
    return Program([str(go_path(name))], folder, port, **{"PORT": port, **environment})


def go_path(name: str) -> Path:
    """Where `make peers` builds it; ends the bench if it isn't there."""
    return installed(HOME / "bin" / name)


def installed(file: Path) -> Path:
    """The same; ends the bench with one line if there is no such file."""
    if not file.exists():
        raise SystemExit(f"{file.name} is not installed in {HOME}: `make peers` puts it there")
    return file


def prepare(connections: int) -> None:
    """What a bench needs before it starts anything."""
    require_wrk()
    raise_file_limit(connections)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that every `with` ends its program


def fetch_json(url: str) -> Mapping[str, Any]:
    """What is answered to GET."""
    found: Mapping[str, Any] = json.loads(requests.get(url, timeout=10).text)
    return found


def in_turn(names: Sequence[str], rounds: int, measure: Callable[[str], Turn]) -> dict[str, list[Turn]]:
    """Measure each of these in every round, one after the other."""
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            turns[name].append(measure(name))
    return turns


def print_loads(title: str, about: str, loads: Mapping[str, Sequence[Load]], against: str) -> Table:
    """A row for each name, beside the figures of the one called `against`; no processor time is shown if it is 0."""
    heads = ("requests/s", "of", "p50 ms", "p99 ms", "of", "CPU us", "of", "errors")
    table = Table(title, *heads, drawn=("requests/s", "p99 ms", "CPU us"), about=about)
    yard_rates, yard_p99s, yard_costs = _figures(loads[against])
    for name, rounds in loads.items():
        rates, p99s, costs = _figures(rounds)
        table.add(
            name,
            f"{median(rates):.0f}",
            ratio(rates, yard_rates),
            f"{median(load.p50_ms for load in rounds):.2f}",
            f"{median(p99s):.2f}",
            ratio(p99s, yard_p99s),
            f"{median(costs):.1f}" if any(costs) else "",
            ratio(costs, yard_costs),
            sum(load.errors for load in rounds),
        )
    return table


def _figures(rounds: Sequence[Load]) -> tuple[list[float], list[float], list[float]]:
    """Requests/s, p99 and processor time of a request, round by round."""
    return [load.rate for load in rounds], [load.p99_ms for load in rounds], [load.cpu_us for load in rounds]
