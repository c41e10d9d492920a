"""Starting: what stops it, and what it says."""

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.router import Router, open_files, until
from tests.support.start import run_to_exit

pytestmark = pytest.mark.slow

Start = Callable[..., Router]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MAX_CONCURRENCY", "0", "1 to 1000000"),
        ("MAX_CONCURRENCY", "many", "1 to 1000000"),
        ("QUEUE_SIZE", "-1", "0 to 100000"),
        ("KV_ENDPOINTS", "ok,redis://u:secret@:99999", "comma-separated"),
        ("BIND", "8080", "host:port"),
        ("LOG_FORMAT", "xml", "json or console"),
    ],
)
def test_bad_setting_stops_the_start_with_one_line(variable: str, value: str, said: str) -> None:
    """One line that names the variable and what is allowed; not a traceback, not a loop of dying workers."""
    result = run_to_exit({variable: value})
    assert result.returncode != 0
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"router: {variable}=")
    assert said in line
    assert "secret" not in line
    assert result.stdout == ""


@pytest.mark.parametrize("directory", ["/proc/none", "/dev/null"])
def test_metrics_directory_that_cannot_be_made_stops_the_start(directory: str) -> None:
    """One line that says why."""
    result = run_to_exit({"PROMETHEUS_MULTIPROC_DIR": directory})
    assert result.returncode != 0
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"router: PROMETHEUS_MULTIPROC_DIR='{directory}': must be a directory")


def test_what_else_is_in_the_metrics_directory_stays(start: Start, tmp_path: Path) -> None:
    """A directory that was there before, with things in it, is not ours to remove."""
    other = tmp_path / "shared" / "other.txt"
    other.parent.mkdir()
    other.write_text("keep")
    router = start(PROMETHEUS_MULTIPROC_DIR=other.parent)
    router.signal(signal.SIGTERM)
    router.wait_exit()
    assert [path.name for path in other.parent.iterdir()] == ["other.txt"]


def test_gunicorn_parses_strictly() -> None:
    """Whatever parsers are installed, its own strict one is used; no header may change the path."""
    shown = run_to_exit({}, None, "--print-config").stdout
    settings = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    found = {name.strip(): value.strip() for name, value in settings.items()}
    assert found["http_parser"] == "python"
    assert found["forwarder_headers"] == "[]"


def test_cap_that_the_workers_cannot_hold_stops_the_start() -> None:
    """More permits than file descriptors can be had: the start fails and names both numbers."""
    result = run_to_exit({"MAX_CONCURRENCY": "1000000"})
    assert result.returncode != 0
    (line,) = result.stderr.strip().splitlines()[-1:]
    assert "MAX_CONCURRENCY=1000000" in line
    assert "open files" in line
    assert "Traceback" not in result.stderr


def test_large_cap_raises_the_limits_to_fit(start: Start) -> None:
    """The soft limit of open files grows with the cap, and is what a worker really has."""
    router = start(MAX_CONCURRENCY=6000, QUEUE_SIZE=1000)
    limits = Path(f"/proc/{router.workers()[0]}/limits").read_text()
    (open_files,) = [line.split() for line in limits.splitlines() if line.startswith("Max open files")]
    assert int(open_files[3]) >= 2 * 7000


def test_default_cap_is_logged_as_such(start: Start) -> None:
    """An operator who forgot MAX_CONCURRENCY reads it in the log; one who set it doesn't."""
    assert "default 10 applies" in start().log()
    assert "default 10 applies" not in start(MAX_CONCURRENCY=10).log()


def test_metrics_directory_is_emptied_at_start_and_removed_at_exit(start: Start, tmp_path: Path) -> None:
    """Counters of an earlier run are not continued, and nothing is left behind."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "counter_0.db").write_bytes(b"left by an earlier run")
    router = start(PROMETHEUS_MULTIPROC_DIR=folder, SIMULATED_LATENCY_MS=0)
    router.infer()
    served = 'router_requests_total{code="200",model="simulated",route="/infer"}'
    until(lambda: router.metrics().get(served) == 1, "one request is counted, and none of the earlier run")
    router.signal(signal.SIGTERM)
    router.wait_exit()
    assert not folder.exists()


def test_checking_the_configuration_leaves_nothing_behind() -> None:
    """`gunicorn --check-config` makes and removes its directory.

    Routers of other tests, which run at the same time, make theirs too: of three looks one has to find no new one.
    """

    def directories() -> set[Path]:
        return set(Path("/dev/shm").glob("router-metrics-*"))

    def leaves_none() -> bool:
        before = directories()
        assert run_to_exit({}, None, "--check-config").returncode == 0
        return not any(is_abandoned(path) for path in directories() - before)

    assert any(leaves_none() for _ in range(3))


def is_abandoned(directory: Path) -> bool:
    """Whether the directory is there, and no server uses it."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return directory.exists()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def test_directory_left_by_a_killed_server_is_removed_at_the_next_start(start: Start) -> None:
    """SIGKILL leaves the metrics directory; the next start removes it, and none that is in use."""

    def directory(router: Router) -> Path:
        (found,) = {path for path in map(Path, open_files(router.pid)) if path.name.startswith("router-metrics-")}
        return found

    killed, living = start(PROMETHEUS_MULTIPROC_DIR=""), start(PROMETHEUS_MULTIPROC_DIR="")
    abandoned, used = directory(killed), directory(living)
    workers = killed.workers()
    held = os.open(abandoned, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(held, fcntl.LOCK_SH)  # or a router that another test starts now would remove it
    killed.signal(signal.SIGKILL)
    killed.wait_exit()
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), "its workers are gone")
    assert abandoned.exists()
    os.close(held)
    third = start(PROMETHEUS_MULTIPROC_DIR="")
    assert not abandoned.exists()
    assert used.exists()
    for router in (living, third):
        path = directory(router)
        router.signal(signal.SIGTERM)
        router.wait_exit()
        assert not path.exists()


@pytest.mark.parametrize("workers_seen", [1, 2])
def test_termination_in_mid_start_is_heard(tmp_path: Path, workers_seen: int) -> None:
    """SIGTERM while workers are only just being forked: the server goes, not after its timeout."""
    router = Router(tmp_path, GRACEFUL_TIMEOUT_S=60)
    try:
        router.launch()
        until(lambda: len(router.workers()) >= workers_seen, "that many workers are forked")
        router.signal(signal.SIGTERM)
        assert router.wait_exit(20) == 0
    finally:
        router.stop()


def test_no_control_socket_is_opened(start: Start, tmp_path: Path) -> None:
    """gunicorn's remote control is off: nothing listens on a Unix socket."""
    router = start(HOME=tmp_path, XDG_RUNTIME_DIR=tmp_path)
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    listening = {f"socket:[{inode}]" for _, _, _, flags, _, _, inode, *_ in sockets if flags == "00010000"}
    assert not listening & open_files(router.pid)
    assert not list(tmp_path.glob("**/gunicorn.ctl"))


def test_arbiter_killed_takes_its_workers_along(start: Start) -> None:
    """SIGKILL of the arbiter: no worker serves on without it."""
    router = start()
    workers = router.workers()
    router.signal(signal.SIGKILL)
    router.wait_exit()
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), "the workers are gone")
