"""`replay`: logged requests through the router's own admission and balancing, on a simulated clock."""

import io
import json
import random
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.cli.access_log import LogError, read_log
from app.native import monotonic, now_ms, stop_clock
from tests.support.command_line import Commands, run

BEGAN = datetime(2026, 11, 24, 7, 0, tzinfo=UTC)
ROUTES = """
[[models]]
name = "llama"
endpoints = ["http://a:1", "http://b:1"]
"""


def line(at_ms: float, model_ms: float = 0.0, queue_ms: float = 0.0, status: int = 200, **more: Any) -> dict[str, Any]:
    """A request that came at this time."""
    total_ms = queue_ms + model_ms if "total_ms" not in more else more.pop("total_ms")
    ended = BEGAN + timedelta(milliseconds=at_ms + total_ms)
    return {
        "logger": "router.access",
        "event": "request",
        "timestamp": ended.isoformat().replace("+00:00", "Z"),
        "status": status,
        "model": "llama",
        "total_ms": total_ms,
        "queue_ms": queue_ms,
        "model_ms": model_ms,
        **more,
    }


def write(folder: Path, lines: Iterable[dict[str, Any] | str]) -> Path:
    """A log of these lines, in the order in which a router writes them: as requests end."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    log = folder / "access.log"
    log.write_text("\n".join(sorted(texts, key=lambda text: json.loads(text)["timestamp"] if text[0] == "{" else "")))
    return log


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    """Runs commands."""
    with Commands() as running:
        yield running


@pytest.fixture
def replay(commands: Commands, tmp_path: Path) -> Callable[..., Any]:
    """Returns what the command says of these lines, under these routes."""

    def said(lines: Iterable[dict[str, Any] | str], *options: object, routes: str = ROUTES) -> Any:
        file = tmp_path / "new.toml"
        file.write_text(routes)
        done = commands("replay", write(tmp_path, lines), "--routes", file, "--json", *options)
        assert done.code == 0, done.err
        return done.json()

    return said


@pytest.mark.slow
def test_same_log_gives_the_same_bytes(commands: Commands, tmp_path: Path) -> None:
    """Whatever the process, its hash seed and the time: with policies that draw lots, queues and rejections."""
    chance = random.Random(7)
    lines, at_ms = [], 0.0
    for _ in range(400):
        at_ms += chance.expovariate(1 / 10)
        rejected = chance.random() < 0.3
        more: dict[str, Any] = {"status": 429, "rejection": "limit_reached"} if rejected else {"endpoint": "http://a:1"}
        lines.append(
            line(at_ms, 0.0 if rejected else chance.expovariate(1 / 100), total_ms=0.5 if rejected else 200, **more)
        )
    log = write(tmp_path, lines)
    file = tmp_path / "new.toml"
    file.write_text(ROUTES + 'balancing = "p2c"\n')
    options = ("replay", log, "--routes", file, "--cap", 8, "--queue-size", 5, "--queue-timeout-ms", 50)
    first, second = (run(*options, "--json", environ={"PYTHONHASHSEED": seed}) for seed in ("1", "2"))
    assert first.code == 0
    assert first == second
    assert first.out != commands(*options, "--json", "--seed", 2).out  # so that the seed is what it depends on
    assert first.out == commands(*options, "--json").out


@pytest.mark.slow
def test_another_cap_admits_what_was_rejected(replay: Callable[..., Any]) -> None:
    """Five at once with a cap of 2: three were rejected. With 5 none is, and their times are those of the model."""
    lines = [line(0, 100, endpoint="http://a:1"), line(1, 100, endpoint="http://b:1")]
    lines += [line(at, total_ms=0.1, status=429, rejection="limit_reached") for at in (2, 3, 4)]
    more = replay(lines, "--cap", 5)
    assert more["log"]["rejected"] == {"limit_reached": 3}
    assert (more["replay"]["served"], more["replay"]["rejected"], more["replay"]["most_in_flight"]) == (5, {}, 5)
    assert more["replay"]["total_ms"]["max"] == 100
    assert sorted(one["requests"] for one in more["replay"]["endpoints"]) == [2, 3]  # the least loaded each
    same = replay(lines, "--cap", 2)
    assert same["replay"]["rejected"] == same["log"]["rejected"]


@pytest.mark.slow
def test_log_has_no_more_in_flight_than_its_cap(replay: Callable[..., Any]) -> None:
    """One after the other with a cap of 1, each 40 ms outside the queue and the model: a line does not say where."""
    first = line(100, 100, total_ms=140, endpoint="http://a:1")  # it entered at 100, and ended long after it had left
    second = line(160, 100, total_ms=140, endpoint="http://a:1")  # it entered at 200, when its body was there
    log = replay([first, second], "--cap", 1)["log"]
    assert (log["served"], log["most_in_flight"]) == (2, 1)


@pytest.mark.slow
def test_log_has_those_in_flight_that_overlap(replay: Callable[..., Any]) -> None:
    """Three, and not the one that was rejected meanwhile."""
    lines = [line(at, 100, total_ms=102, endpoint="http://a:1") for at in (0, 20, 40, 200)]
    lines.append(line(30, total_ms=50, status=429, rejection="limit_reached"))
    assert replay(lines, "--cap", 9)["log"]["most_in_flight"] == 3


@pytest.mark.slow
def test_queue_admits_in_order_and_times_out_on_the_simulated_clock(replay: Callable[..., Any]) -> None:
    """One permit, 100 ms each: the second waits 90 ms, the third 180 ms, the fourth for its 250 ms in vain."""
    lines = [line(0, 100), line(10, 100), line(20, 100), line(30, 100), line(40, 100)]
    said = replay(lines, "--cap", 1, "--queue-size", 3, "--queue-timeout-ms", 250)
    figures = said["replay"]
    assert figures["rejected"] == {"queue_full": 1, "queue_timeout": 1}
    assert (figures["queue_ms"]["p50"], figures["queue_ms"]["max"]) == (90, 180)
    assert figures["total_ms"]["max"] == 280
    assert figures["most_in_flight"] == 1


@pytest.mark.slow
def test_limit_of_a_model_holds(replay: Callable[..., Any]) -> None:
    """`max_concurrency` of the new routes rejects, within a cap that has room."""
    said = replay([line(at, 100) for at in range(5)], "--cap", 50, routes=ROUTES + "max_concurrency = 2\n")
    assert said["replay"]["rejected"] == {"model_limit_reached": 3}
    assert said["replay"]["models"][0]["rejected"] == 3


@pytest.mark.slow
def test_endpoint_that_fails_is_ejected(replay: Callable[..., Any]) -> None:
    """It fails again what it failed, the other one serves it. After five failures in a row it gets no more, until the
    ejection ends, five simulated seconds later; then one request tries it."""
    lines = [line(at * 10, 1, status=502, endpoint="http://a:1") for at in range(100)]
    figures = replay(lines)["replay"]
    assert (figures["failed"], figures["served"]) == (5, 95)
    assert [(one["endpoint"], one["requests"]) for one in figures["endpoints"]] == [
        ("http://a:1", 5),
        ("http://b:1", 95),
    ]
    lines += [line(7000 + at * 10, 1, status=502, endpoint="http://a:1") for at in range(100)]
    assert replay(lines)["replay"]["failed"] == 6


@pytest.mark.slow
def test_client_that_left_leaves_again(replay: Callable[..., Any]) -> None:
    """From the queue and from the model, after the same time, and its permit comes back then."""
    lines = [line(0, 100), line(1, 30, status=499), line(2, queue_ms=20, total_ms=20, status=499), line(50, 100)]
    figures = replay(lines, "--cap", 2, "--queue-size", 1)["replay"]
    assert (figures["client_left"], figures["served"], figures["rejected"]) == (2, 2, {})
    assert figures["queue_ms"]["max"] == 0  # the last one found the permit of the one that left


@pytest.mark.slow
def test_discovered_endpoints_are_those_of_the_log_and_credentials_are_not_needed(
    replay: Callable[..., Any], commands: Commands, tmp_path: Path
) -> None:
    """Nothing is asked, sent or read: routes of a cluster are replayed anywhere."""
    routes = '[[models]]\nname = "llama"\ndns = "llama.test:80"\ncredential_env = "NOWHERE_SET"\n'
    lines = [line(at, 100, endpoint=f"http://10.0.0.{at}:80") for at in (1, 2, 3)]
    figures = replay(lines, routes=routes)["replay"]
    assert [one["endpoint"] for one in figures["endpoints"]] == [f"http://10.0.0.{at}:80" for at in (1, 2, 3)]
    log = write(tmp_path, [line(0, 100)])
    done = commands("replay", log, "--routes", tmp_path / "new.toml")
    assert done.code == 1
    assert "its endpoints are discovered (dns llama.test:80), and the log names none" in done.err


@pytest.mark.slow
def test_what_is_not_modelled_is_said(replay: Callable[..., Any], commands: Commands, tmp_path: Path) -> None:
    """Each thing that these routes would do and a replay does not; none that they don't ask for."""
    routes = ROUTES + 'balancing = "prefix"\nno_endpoint_wait_s = 5\nfallback = ["other"]\n'
    routes += '[[models]]\nname = "other"\nendpoints = ["http://c:1"]\n'
    said = replay([line(0, 10)], routes=routes)["not_modelled"]
    wanted = ("retries", "fallbacks", "no_endpoint_wait_s", "(prefix)", "health checks", "limits of tenants")
    assert len(said) == len(wanted)
    assert all(any(word in one for one in said) for word in wanted), said
    plain = '[[models]]\nname = "llama"\nprotocol = "simulated"\n'
    assert replay([line(0, 10)], routes=plain)["not_modelled"] == ["limits of tenants"]
    (tmp_path / "routes.toml").write_text(plain)
    shown = commands("replay", write(tmp_path, [line(0, 10)]), "--routes", tmp_path / "routes.toml")
    assert "Not modelled: limits of tenants." in shown.out


@pytest.mark.slow
def test_files_of_callers_are_not_needed(commands: Commands, tmp_path: Path) -> None:
    """The log of one machine is replayed on another, which has neither its keys nor its certificates."""
    (tmp_path / "routes.toml").write_text(ROUTES)
    tokens = {"JWT_ISSUER": "https://i", "JWT_AUDIENCE": "a", "JWT_JWKS": "/none"}
    files: dict[str, Any] = {"KEYS_FILE": "/none.toml", "TLS_CERT_FILE": "/none.pem", **tokens}
    log = write(tmp_path, [line(0, 10)])
    done = commands("replay", log, "--routes", tmp_path / "routes.toml", "--json", **files)
    assert done.code == 0, done.err


def test_model_that_is_gone_is_told(replay: Callable[..., Any]) -> None:
    """Requests for a model that the new routes lack are counted as such, and nothing fails."""
    figures = replay([line(0, 10), line(1, 10, model="old")])["replay"]
    assert (figures["served"], figures["rejected"]) == (1, {"model_not_found": 1})


@pytest.mark.slow
def test_log_without_a_served_request_is_refused(commands: Commands, tmp_path: Path) -> None:
    """The default ACCESS_LOG=errors says nothing of how long requests take: the message says what to set."""
    log = write(tmp_path, [line(0, total_ms=0.1, status=429, rejection="limit_reached"), "gunicorn's own words"])
    done = commands("replay", log)
    assert (done.code, done.out) == (1, "")
    assert "ACCESS_LOG=all" in done.err


def test_what_is_no_request_is_passed_over() -> None:
    """Server events, other programs' lines, half lines, and requests that asked for no permit."""
    good = line(5, 10, queue_ms=1)
    lines = [
        good,
        {**good, "logger": "router.lifecycle"},
        {**good, "model": ""},
        {**good, "timestamp": "yesterday"},
        {**good, "total_ms": -1},
        line(0, status=400, total_ms=0.2),
        {"event": "router ready"},
    ]
    texts = [json.dumps(one).encode() for one in lines] + [b'{"logger": "router.acc', b"\xff", b""]
    log = read_log(io.BytesIO(b"\n".join(texts) + b"\n"))
    assert [(one.queue_us, one.model_us, one.total_us) for one in log.requests] == [(1000, 10_000, 11_000)]
    assert log.requests[0].at_us == (BEGAN - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) + 5000
    assert log.other_lines == len(texts) - 1
    with pytest.raises(LogError):
        read_log(io.BytesIO())


def test_line_without_an_end_is_read_in_pieces() -> None:
    """What is no log, such as a device, does not fill the memory; a request after such a line is found."""
    lengths: list[int] = []

    class Log(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            text = super().readline(size)
            lengths.append(len(text))
            return text

    good = json.dumps(line(5, 10)).encode()
    log = read_log(Log(bytes(5 << 20) + b"\n" + good))
    assert len(log.requests) == 1
    assert log.other_lines >= 5
    assert max(lengths) <= 1 << 20


@pytest.mark.slow
def test_stopped_clock_is_exact_and_goes_on_afterwards() -> None:
    """Both functions return what was set, compiled or not, and the machine's time again after that."""
    before = now_ms()
    try:
        stop_clock(50_000_000_123_456_789)
        assert monotonic() == 50_000_000_123_456_789 * 1e-9
        assert now_ms() == 50_000_000_123
    finally:
        stop_clock(-1)
    assert before <= now_ms() <= monotonic() * 1000
