"""`bench`: what it sends, what it measures, and when it ends."""

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from app.cli.quantiles import histogram, quantile
from tests.support.command_line import COMMAND, Commands, environ_of
from tests.support.router import ROOT
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    """Runs commands."""
    with Commands() as running:
        yield running


@pytest.fixture
def bench(commands: Commands) -> Callable[..., Any]:
    """Returns what the command says, and its exit code."""

    def said(*arguments: object) -> Any:
        done = commands("bench", *arguments, "--json")
        assert done.out, done.err
        return {**done.json(), "code": done.code}

    return said


def test_sends_what_it_was_told_and_no_more(bench: Callable[..., Any]) -> None:
    """Method, path, body and headers; exactly so many requests, over at most so many connections."""
    most, inside, lock = 0, 0, threading.Lock()

    def answer(seen: Seen, reply: Reply) -> None:
        nonlocal most, inside
        with lock:
            inside += 1
            most = max(most, inside)
        reply.send()
        with lock:
            inside -= 1

    with Upstream(answer) as server:
        said = bench(server.url, "--requests", 40, "--connections", 3, "--model", "m", "--prompt", "p", "-H", "X-A: b")
        seen = list(server.seen)
    assert (said["code"], len(seen), said["server"]["succeeded"]) == (0, 40, 40)
    assert most <= 3
    assert {(one.method, one.path, one.headers["x-a"]) for one in seen} == {("POST", "/v1/chat/completions", "b")}
    assert json.loads(seen[0].body) == {"model": "m", "messages": [{"role": "user", "content": "p"}]}


def test_key_of_the_environment_goes_to_the_router_only(commands: Commands) -> None:
    """A model server behind it does not see it, and a credential among the headers takes its place."""
    with Upstream() as router, Upstream() as model_server:
        both = ("bench", router.url, "--direct", model_server.url, "--requests", 1, "--json")
        assert "ir-secret" not in commands(*both, ROUTER_KEY="ir-secret").out
        given = [commands(*both, "-H", header, ROUTER_KEY="ir-secret").code for header in ("X-Api-Key: k", "X-A: b")]
        seen = [[one.headers.get("authorization") for one in server.seen] for server in (router, model_server)]
        wrong = commands(*both, ROUTER_KEY="ir-\u00fc")
    assert given == [0, 0]
    assert seen == [["Bearer ir-secret", None, "Bearer ir-secret"], [None, None, None]]
    assert (wrong.code, "ir-\u00fc" in wrong.out + wrong.err) == (2, False)


def test_body_of_a_file_to_another_path(bench: Callable[..., Any], tmp_path: Path) -> None:
    """The bytes go out as they are, below the path of the URL."""
    body = tmp_path / "body.json"
    body.write_bytes(b'{"odd":  1}')
    with Upstream() as server:
        bench(f"{server.url}/base", "--requests", 1, "--path", "/score", "--body", body)
        (seen,) = server.seen
    assert (seen.path, seen.body) == ("/base/score", b'{"odd":  1}')


def test_first_token_is_told_from_the_end(bench: Callable[..., Any]) -> None:
    """A head and an event without output come first and do not count; the rest comes after a pause."""
    gone_on = threading.Event()

    def answer(seen: Seen, reply: Reply) -> None:
        reply.begin()
        reply.chunk(b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n')
        gone_on.wait(0.2)
        reply.chunk(EVENT)
        gone_on.wait(2.4)  # a client that is late to read the first one has two seconds
        reply.chunk(EVENT)
        reply.chunk()

    with Upstream(answer) as server:
        said = bench(server.url, "--requests", 2, "--connections", 2, "--stream")["server"]
        assert json.loads(server.seen[0].body)["stream"] is True
    assert 200 <= said["first_token_ms"]["p50"] <= said["latency_ms"]["p50"] - 400
    assert said["tokens_per_s"] > 0


def test_errors_are_counted_by_kind(bench: Callable[..., Any]) -> None:
    """A status with the code of its error, a status alone, a response that breaks off, and a time that is over."""
    kinds = iter(range(100))

    def answer(seen: Seen, reply: Reply) -> None:
        kind = next(kinds) % 5
        if kind == 0:
            reply.send(429, b'{"code": "limit_reached"}')
        elif kind == 1:
            reply.send(429, b'{"error": {"code": "queue_full"}}')
        elif kind == 2:
            reply.send(500, b"<html>")
        elif kind == 3:
            reply.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        else:
            reply.send()

    with Upstream(answer) as server:
        said = bench(server.url, "--requests", 10, "--connections", 1)
    assert said["server"]["errors"] == {"429 limit_reached": 2, "429 queue_full": 2, "500": 2, "broken": 2}
    assert (said["server"]["requests"], said["server"]["succeeded"], said["code"]) == (10, 2, 0)


@pytest.mark.parametrize(("silent", "kind"), [(False, "unreachable"), (True, "timeout")])
def test_server_that_is_not_there(bench: Callable[..., Any], silent: bool, kind: str) -> None:
    """It ends within its bounds, names the kind, and exits with 1: nothing was served."""
    release = threading.Event()
    with Upstream(lambda seen, reply: release.wait(20)) as server:
        url = server.url if silent else "http://127.0.0.1:9"
        said = bench(url, "--requests", 2, "--timeout", 0.3 if silent else 20)
        release.set()
    assert (said["code"], said["server"]["errors"]) == (1, {kind: 2})


def test_duration_ends_it(bench: Callable[..., Any]) -> None:
    """No request begins after it, and those in progress are counted."""
    with Upstream() as server:
        said = bench(server.url, "--duration", 1, "--connections", 2)["server"]
    assert 1 <= said["seconds"] < 20
    assert said["succeeded"] == said["requests"] > 0


def test_ctrl_c_ends_it_with_the_figures_until_then() -> None:
    """What was measured is not lost, in JSON too; the request in progress is left, and the other server's turn."""
    hangs, never = threading.Event(), threading.Event()

    def answer(seen: Seen, reply: Reply) -> None:
        if len(server.seen) > 5:
            hangs.set()
            never.wait(20)
        reply.send()

    with Upstream(answer) as server:
        words = ["bench", server.url, "--direct", server.url, "--connections", "1", "--duration", "60", "--json"]
        with subprocess.Popen([*COMMAND, *words], cwd=ROOT, env=environ_of(), stdout=PIPE, stderr=PIPE) as process:
            assert hangs.wait(20)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        never.set()
    assert (process.returncode, err) == (130, b"interrupted: the figures are those until then\n")
    said = json.loads(out)
    assert (said["server"]["succeeded"], said["server"]["errors"], said["direct"]["requests"]) == (5, {}, 0)


def test_ratio_of_two_servers(bench: Callable[..., Any]) -> None:
    """Both are asked equally often, in turns, and the ratio says how much slower the first one is."""
    asked: list[str] = []
    never = threading.Event()

    def answer(name: str, within_s: float, seen: Seen, reply: Reply) -> None:
        asked.append(name)
        never.wait(within_s)
        reply.send()

    with (
        Upstream(partial(answer, "first", 0.05)) as first,
        Upstream(partial(answer, "direct", 0.0)) as direct,
    ):
        said = bench(first.url, "--direct", direct.url, "--requests", 20, "--connections", 1)
    assert [asked.index("first"), asked.index("direct")] == [0, 10]
    assert asked == [*["first"] * 10, *["direct"] * 10] * 2
    assert said["ratio"]["latency_p50"] == pytest.approx(
        said["server"]["latency_ms"]["p50"] / said["direct"]["latency_ms"]["p50"], rel=0.01
    )
    assert said["ratio"]["latency_p50"] > 1
    assert said["ratio"]["requests_per_s"] == pytest.approx(
        said["server"]["requests_per_s"] / said["direct"]["requests_per_s"], abs=0.001
    )


def test_table_and_histogram_for_people(commands: Commands) -> None:
    """Latencies, errors and a bar for each range of times."""
    with Upstream() as server:
        done = commands("bench", server.url, "--requests", 30, "--connections", 2, FORCE_COLOR=1)
    assert done.code == 0
    assert "latency, ms: p99" in done.out
    assert "█" in done.out
    assert done.err == ""  # the progress is for terminals, whatever has colours


def test_quantiles_and_histogram() -> None:
    """Nearest ranks; every value is in one bin, the largest in the last, whatever the spread."""
    assert [quantile([1, 2, 3, 4], share) for share in (0.0, 0.25, 0.5, 0.51, 1.0)] == [1, 1, 2, 3, 4]
    for values in ([0.001], [0.0, 0.0], [1.0] * 5, [0.001 * 1.1**at for at in range(200)], [0.001] * 999 + [9.0]):
        bins = histogram(values)
        assert sum(one.number for one in bins) == len(values)
        assert bins[-1].high >= values[-1]
