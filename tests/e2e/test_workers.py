"""Workers come and go (TTIN, TTOU, HUP, max_requests, USR2, too many of them): one cap, no permit lost."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from app.shared_memory.table import SLOTS
from tests.support.clients import Crowd
from tests.support.gate import Gate
from tests.support.router import Router, blocked_signals, children, until
from tests.support.start import run_to_exit

pytestmark = pytest.mark.slow

Start = Callable[..., Router]


def hold(router: Router, gate: Gate, count: int) -> Crowd:
    """That many requests inside the model."""
    inside = gate.inside
    crowd = Crowd(lambda _: router.infer().status_code).send(count)
    gate.wait_inside(inside + count)
    return crowd


def expect_full(router: Router, gate: Gate, limit: int) -> None:
    """All permits are taken, whoever is asked."""
    assert gate.inside == limit
    refused = Crowd(lambda _: router.infer().status_code).send(12).join()
    assert refused.counts() == {429: 12}
    assert gate.peak == limit


def expect_all_back(router: Router, gate: Gate, limit: int) -> None:
    """Nothing is in flight, and a full `limit` can be admitted again, not one more."""
    gate.open()
    until(lambda: router.metrics()["router_inflight_requests"] == 0, "nothing is in flight")
    gate.close()
    crowd = hold(router, gate, limit)
    expect_full(router, gate, limit)
    gate.open()
    assert crowd.join().counts() == {200: limit}


def test_more_and_fewer_workers_share_one_cap(start_gated: Start, gate: Gate) -> None:
    """TTIN twice, then TTOU twice with requests on every worker: the cap stays what it is, nobody is cut off."""
    router = start_gated(MAX_CONCURRENCY=6)
    crowd = hold(router, gate, 2)
    for count in (3, 4):
        router.signal(signal.SIGTTIN)
        until(lambda: router.metrics()["router_workers"] == count, f"{count} workers")
    crowd2 = hold(router, gate, 4)
    expect_full(router, gate, 6)
    for count in (1, 2):
        router.signal(signal.SIGTTOU)
        until(lambda: router.log().count("Handling signal: ttou") == count, "the signal is handled")
    expect_full(router, gate, 6)
    gate.open()
    assert crowd.join().counts() + crowd2.join().counts() == {200: 6}
    until(lambda: router.metrics()["router_workers"] == 2, "two workers")
    expect_all_back(router, gate, 6)


def test_reload_with_old_workers_still_draining_keeps_one_cap(start_gated: Start, gate: Gate) -> None:
    """HUP while requests are inside: old and new workers together admit no more than the cap."""
    router = start_gated(MAX_CONCURRENCY=4)
    crowd = hold(router, gate, 3)
    old = router.workers()
    router.signal(signal.SIGHUP)
    until(lambda: len(set(router.workers()) - set(old)) == 2, "two new workers")
    crowd2 = hold(router, gate, 1)
    expect_full(router, gate, 4)
    gate.open()
    assert crowd.join().counts() + crowd2.join().counts() == {200: 4}
    until(lambda: not set(router.workers()) & set(old), "the old workers are gone")
    expect_all_back(router, gate, 4)


def test_worker_that_is_told_to_stop_before_it_has_handlers_stops(start: Start, tmp_path: Path) -> None:
    """HUP while a worker starts: the SIGTERM that it gets then is not lost, so it does not serve on by old settings."""
    hooks, held = tmp_path / "hooks", tmp_path / "hooks.taken"
    options = ("-c", "python:tests.support.hooks_conf")
    router = start(options=options, TEST_HOOKS=hooks, GRACEFUL_TIMEOUT_S=600)
    first, killed = router.workers()
    (tmp_path / "hooks.hold").touch()
    os.kill(killed, signal.SIGKILL)
    until(lambda: held.exists() and len(router.workers()) == 2, "a worker starts in its place, and is held")
    starting = max(router.workers())
    router.signal(signal.SIGHUP)
    until(lambda: first not in router.workers(), "the workers were told to make way, the oldest first")
    assert len(router.workers()) == 3
    held.unlink()
    until(lambda: starting not in router.workers(), "the one that was held is gone")
    until(lambda: router.all_booted() and router.ready(), "the new workers serve")
    assert not blocked_signals(router.pid)


def test_recycling_of_workers_loses_no_request(start: Start) -> None:
    """max_requests: workers end after a number of requests, and no client notices."""
    router = start(MAX_CONCURRENCY=50, SIMULATED_LATENCY_MS=5, options=("--max-requests", "20"))
    before = set(router.workers())
    crowd = Crowd(lambda _: tuple(router.infer().status_code for _ in range(25))).send(8)
    assert crowd.join().counts() == {(200,) * 25: 8}
    more: list[int] = []  # for a worker that began late, and got few of those

    def are_recycled() -> bool:
        more.append(router.infer().status_code)
        return not before & set(router.workers())

    until(are_recycled, "the first workers were recycled")
    assert set(more) == {200}
    served = 'router_requests_total{code="200",model="simulated",route="/infer"}'
    until(lambda: router.metrics()[served] == 200 + len(more), "all are counted")
    assert router.metrics()["router_inflight_requests"] == 0


def test_binary_upgrade_keeps_one_cap_and_hands_over_the_counters(start_gated: Start, gate: Gate) -> None:
    """USR2: the new server shares the cap with the old while both run, and goes on alone when the old one ends."""
    router = start_gated(MAX_CONCURRENCY=4)
    crowd = hold(router, gate, 3)
    old_workers = set(router.workers())
    router.signal(signal.SIGUSR2)
    until(lambda: set(router.workers()) - old_workers, "a second arbiter")
    (arbiter,) = set(router.workers()) - old_workers
    until(lambda: len(children(arbiter)) == 2, "the second arbiter's workers")
    until(lambda: router.metrics()["router_workers"] == 4, "four workers in one table")
    crowd2 = hold(router, gate, 1)
    expect_full(router, gate, 4)
    gate.open()
    assert crowd.join().counts() + crowd2.join().counts() == {200: 4}
    router.signal(signal.SIGTERM)
    assert router.wait_exit() == 0
    try:
        expect_all_back(router, gate, 4)
        served = 'router_requests_total{code="200",model="simulated",route="/infer"}'
        until(lambda: router.metrics()[served] == 8, "the counters of both are one")
        until(lambda: router.metrics()["router_workers"] == 2, "the old workers' rows are free")
        assert router.ready()
    finally:
        os.kill(arbiter, signal.SIGTERM)
        until(lambda: not os.path.exists(f"/proc/{arbiter}"), "the second arbiter is gone")


def test_old_server_of_an_upgrade_makes_way_without_a_word(start_gated: Start, gate: Gate) -> None:
    """TERM to the old server while the new one serves: nobody is told of a drain, and both answer what they hold."""
    router = start_gated(MAX_CONCURRENCY=20, WEB_CONCURRENCY=1)
    crowd = hold(router, gate, 1)
    (old_worker,) = router.workers()
    router.signal(signal.SIGUSR2)
    until(lambda: router.metrics()["router_workers"] == 2, "a worker each")
    (arbiter,) = set(router.workers()) - {old_worker}
    until(lambda: not any(map(blocked_signals, children(arbiter))), "the new one has started")
    try:
        crowd.send(6)
        gate.wait_inside(7)  # some of them, very likely, with each worker
        router.signal(signal.SIGTERM)
        until(lambda: "Handling signal: term" in router.log(), "the old server heard it")
        statuses = {requests.get(f"{router.url}/readyz", timeout=20).status_code for _ in range(30)}
        assert statuses == {200}
        crowd.send(5)
        gate.wait_inside(12)
        router.signal(signal.SIGTERM, arbiter)
        until(lambda: router.log().count("Handling signal: term") == 2, "the new one heard it too")
    finally:
        gate.open()
        router.wait_exit()
        until(lambda: not os.path.exists(f"/proc/{arbiter}"), "the second arbiter is gone")
    assert crowd.join().counts() == {200: 12}
    assert not list(router.log_path.parent.glob("metrics-*")), "the last to go removes the metrics"


def test_old_server_killed_in_mid_upgrade_leaks_nothing(start_gated: Start, gate: Gate) -> None:
    """USR2, then SIGKILL of the old arbiter, which can reap nobody any more: the new server takes back what it held."""
    router = start_gated(MAX_CONCURRENCY=3)
    crowd = hold(router, gate, 3)
    old_workers = set(router.workers())
    router.signal(signal.SIGUSR2)
    until(lambda: router.metrics()["router_workers"] == 4, "four workers in one table")
    (arbiter,) = set(router.workers()) - old_workers
    router.signal(signal.SIGKILL)
    try:
        router.wait_exit()
        assert crowd.join().counts() == {"ConnectionError": 3}
        # Orphans exit at once: what one of them has just accepted is lost with it.
        until(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in old_workers), "the old workers are gone")
        until(lambda: router.ready() and router.metrics()["router_workers"] == 2, "the new server's two workers")
        until(lambda: router.metrics()["router_permits_reclaimed_total"] == 3, "their permits are back")
        expect_all_back(router, gate, 3)
    finally:
        os.kill(arbiter, signal.SIGTERM)
        until(lambda: not os.path.exists(f"/proc/{arbiter}"), "the second arbiter is gone")


def test_upgrade_to_other_limits_is_refused() -> None:
    """A program that would count differently doesn't join the table; the reason is one line."""
    upgrade = run_to_exit({"MAX_CONCURRENCY": "5"}, inherit_from={"MAX_CONCURRENCY": "4"})
    assert upgrade.returncode != 0
    assert "needs the same MAX_CONCURRENCY" in upgrade.stderr
    assert "Traceback" not in upgrade.stderr


def test_upgrade_to_other_error_codes_is_refused() -> None:
    """Records have numbers in place of the codes of errors. A program whose table of codes is another one would read
    other errors in them, so it takes no ring over."""
    changed = "from app import errors; errors.New = type('New', (errors.RouterError,), {'code': 'a_new_one'})"
    upgrade = run_to_exit({}, {}, before=changed)
    assert upgrade.returncode != 0
    assert "other numbers for errors" in upgrade.stderr
    assert "Traceback" not in upgrade.stderr


def test_worker_without_a_free_slot_fails_with_a_clear_line(start_gated: Start, gate: Gate) -> None:
    """More live workers than slots: the new one exits and says why; rows are never shared; the server lives."""
    router = start_gated(MAX_CONCURRENCY=3, WEB_CONCURRENCY=32)
    crowd = hold(router, gate, 3)
    for count in range(1, SLOTS - 32 + 2):
        router.signal(signal.SIGTTIN)
        until(lambda: router.log().count("Handling signal: ttin") == count, "the signal is handled")
    until(lambda: f"all {SLOTS} worker slots" in router.log(), "the log says so", 60)
    assert router.metrics()["router_workers"] <= SLOTS
    assert router.log().count(f"all {SLOTS} worker slots") < 20, "it tries again as fast as it can"
    assert not router.exited()
    expect_full(router, gate, 3)
    gate.open()
    assert crowd.join().counts() == {200: 3}
    assert router.ready()


def logs_nothing_for_2_s(router: Router) -> bool:
    """Whether no signal is handled and no worker begins or ends: each of them leaves a line."""
    before = router.log()
    time.sleep(2)
    return router.log() == before


def test_nothing_is_lost_when_workers_die_amid_signals(start_gated: Start, gate: Gate) -> None:
    """SIGKILLs among HUP, TTIN and TTOU, where gunicorn forgets workers without a hook: every row comes back."""
    router = start_gated(MAX_CONCURRENCY=6, QUEUE_SIZE=10, WEB_CONCURRENCY=3, GRACEFUL_TIMEOUT_S=1, ACCESS_LOG="off")
    chance = random.Random(7)
    stopped = threading.Event()

    def ask_again(_: int) -> None:
        while not stopped.is_set():
            with contextlib.suppress(requests.RequestException):
                router.infer()

    def let_some_go() -> None:
        while not stopped.wait(0.02):
            with contextlib.suppress(IndexError):  # one that was inside died meanwhile
                gate.let_go(chance.randint(0, gate.inside))

    crowd = Crowd(ask_again).send(20)
    releaser = threading.Thread(target=let_some_go)
    releaser.start()
    ends = time.monotonic() + 8
    while time.monotonic() < ends:
        act = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU))
        workers = router.workers()
        if act is not signal.SIGKILL:
            router.signal(act)
        elif workers:
            with contextlib.suppress(ProcessLookupError):
                router.signal(act, chance.choice(workers))
        time.sleep(chance.random() * 0.2)
    stopped.set()
    gate.open()
    releaser.join()
    crowd.join()
    until(lambda: logs_nothing_for_2_s(router), "signals are handled, and stopped workers gone", 60)
    until(lambda: router.metrics()["router_workers"] == len(router.workers()), "every dead worker's row is free", 30)
    expect_all_back(router, gate, 6)
