"""A tenant's limit over bare forked processes, while keys files are published."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from app.admission.limiter import Limiter
from app.admission.tenant_limit import COUNTERS, OTHER, TenantLimits, Tenants
from app.auth.key_ring import KeyRing
from app.auth.keys_publisher import KeysPublisher, tenants_in
from app.auth.layouts import API_KEYS
from app.config.keys_schema import Keys, Tenant
from app.errors import TenantLimitReached
from app.shared_memory.counters import InflightCounters
from app.shared_memory.shared_document import SharedDocument, Superseded
from tests.multiprocess.pressed import LIMIT, Admit, press
from tests.support.forks import Barrier, Parent

METRICS: Any = None
"""For a publisher that is not to count anything."""


@pytest.fixture
def parent() -> Iterator[Parent]:
    """A process that forks, with a table of its own."""
    parent = Parent(limit=100)
    yield parent
    parent.close()


def publish(parent: Parent, **limits: int) -> None:
    """Publish these tenants with their limits."""
    keys = Keys(tenants=tuple(Tenant(name=name, max_concurrency=limit) for name, limit in limits.items()))
    counters = InflightCounters(parent.table, COUNTERS)
    assign = partial(counters.assign, tenants_in(keys), reset=lambda _: None)
    SharedDocument(parent.table, API_KEYS).publish(msgspec.json.encode(keys), None, assign)


def limits_of(parent: Parent, slot: int | None) -> TenantLimits:
    """The limits as the worker of that slot has them."""
    assert slot is not None
    counters = InflightCounters(parent.table, COUNTERS)
    counters.attach(slot)
    document = SharedDocument(parent.table, API_KEYS)
    return TenantLimits(parent.table, counters, document.cursor, KeyRing(document, counters).tenants)


class Slow(InflightCounters):
    """Lets other processes run between reading a count and acting upon it."""

    def __init__(self, counters: InflightCounters) -> None:
        self._inner = counters

    def total(self, shared_id: int) -> int:
        """See InflightCounters."""
        total = self._inner.total(shared_id)
        os.sched_yield()
        return total

    def add(self, shared_id: int) -> None:
        """See InflightCounters."""
        self._inner.add(shared_id)

    def remove(self, shared_id: int) -> None:
        """See InflightCounters."""
        self._inner.remove(shared_id)


def test_limit_holds_and_is_reached_over_processes_while_files_change(parent: Parent) -> None:
    """4 processes admit as fast as they can, while other tenants come and go: never more inside than the limit."""
    publish(parent, t=LIMIT)

    def admit_in(limiter: Limiter) -> Admit:
        limits = limits_of(parent, limiter._slot)
        limits._counters = Slow(limits._counters)
        return partial(limits.acquire, "t")

    def change_files() -> None:
        for number in range(60):
            publish(parent, t=LIMIT, **{f"other{number}": 1})
            os.sched_yield()

    press(parent, admit_in, change_files)
    limits = limits_of(parent, parent.slots.claim().slot)
    assert set(limits.inflight().values()) == {0}


def test_new_limit_holds_from_its_publication(parent: Parent) -> None:
    """Every process compares with the limit that is current, at once, and a tenant that is listed later is counted."""
    publish(parent, t=2)
    first, second = (limits_of(parent, parent.slots.claim().slot) for _ in range(2))
    leaves = [first.acquire("t"), second.acquire("t"), first.acquire("u")]
    assert second.inflight() == {"t": 2, OTHER: 1}
    publish(parent, t=1, u=1)
    for limits in (first, second):
        with pytest.raises(TenantLimitReached, match="has 1 requests in progress"):
            limits.acquire("t")
    leaves.append(second.acquire("u"))
    assert first.inflight() == {"t": 2, "u": 1, OTHER: 1}
    for leave in leaves:
        leave()
    assert first.inflight() == {"t": 0, "u": 0, OTHER: 0}


def test_tenants_that_are_not_listed_share_what_other_has(parent: Parent) -> None:
    """Their number is unknown, so they have one limit and one label together; without `other` they have no limit."""
    publish(parent, other=2)
    limits = limits_of(parent, parent.slots.claim().slot)
    leaves = [limits.acquire("x"), limits.acquire("y")]
    with pytest.raises(TenantLimitReached):
        limits.acquire("z")
    assert [limits.label(name) for name in ("x", "z", OTHER)] == [OTHER] * 3
    publish(parent, t=1)
    leaves += [limits.acquire("z") for _ in range(5)]
    assert limits.inflight() == {"t": 0, OTHER: 7}
    for leave in leaves:
        leave()


def test_id_of_a_tenant_is_not_given_away_while_it_counts(parent: Parent) -> None:
    """A request that began with keys long gone never counts for a tenant that came since."""
    publish(parent, old=1)
    limits = limits_of(parent, parent.slots.claim().slot)
    leave = limits.acquire("old")
    for number in range(5):
        publish(parent, **{f"t{number}-{one}": 1 for one in range(200)})
        assert set(limits.inflight().values()) == {0}
    leave()
    assert set(limits.inflight().values()) == {0}


def test_publication_between_the_lookup_and_the_lock_is_seen(parent: Parent) -> None:
    """A request looks its tenant up without the lock. If others are published before it has the lock, it looks again.

    Otherwise it would meet the old limit, or count under an id that another tenant has by then.
    """
    publish(parent, t=5)
    limits = limits_of(parent, parent.slots.claim().slot)
    look_up, late = limits._current, [{"t": 1}, *({f"t{number}-{one}": 1 for one in range(250)} for number in range(3))]

    def look_up_before_others_publish() -> Tenants:
        found = look_up()
        if late:
            publish(parent, **late.pop(0))
        return found

    limits._current = look_up_before_others_publish
    leave = limits.acquire("t")
    assert not late
    limits._current = look_up
    assert limits.inflight()[OTHER] == sum(limits.inflight().values()) == 1
    leave()


@pytest.mark.parametrize("inside_the_lock", [False, True])
def test_killed_process_gives_back_when_its_slot_is_reclaimed(parent: Parent, inside_the_lock: bool) -> None:
    """Two of three are a worker's that is SIGKILLed: they are missing until it is reclaimed, and then there are two."""
    publish(parent, t=3)
    inside = Barrier()
    limits = limits_of(parent, parent.slots.claim().slot)
    limits.acquire("t")

    def work(limiter: Limiter) -> None:
        own = limits_of(parent, limiter._slot)
        own.acquire("t")
        own.acquire("t")
        if inside_the_lock:
            with parent.table.lock:
                inside.arrive()
        inside.arrive()

    victim = parent.fork(work)
    inside.wait_arrived(1)
    os.kill(victim, signal.SIGKILL)
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    signal.alarm(20)  # a lock that outlived its holder would hang here
    with pytest.raises(TenantLimitReached):
        limits.acquire("t")
    signal.alarm(0)
    assert parent.reap(victim) == -signal.SIGKILL
    limits.acquire("t")
    limits.acquire("t")
    with pytest.raises(TenantLimitReached):
        limits.acquire("t")


def test_older_state_of_a_file_never_replaces_a_newer_one(parent: Parent) -> None:
    """A process that read the file before another one published must read it again."""
    document = SharedDocument(parent.table, API_KEYS)
    assert document.publish(b"one", 0)
    with pytest.raises(Superseded):
        document.publish(b"read before", 0)
    assert document.read()[1] == b"one"
    assert not document.publish(b"one", document.generation)
    with pytest.raises(ValueError, match="too many"):
        document.publish(b"x" * (document.max_bytes + 1))


def test_file_is_read_again_if_another_process_published_meanwhile(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arbiter and the leader may both publish: the slower one must not bring back keys that were removed."""
    publisher = KeysPublisher("/keys.json", parent.table, InflightCounters(parent.table, COUNTERS), METRICS)
    states = [Keys(tenants=(Tenant(name=name),)) for name in ("old", "new")]

    def read(_: object, sources: list[object]) -> Keys:
        sources.append("where its members are")
        if len(states) > 1:
            publish(parent, new=1)  # by the other process, which has read what is there by now
            return states.pop(0)
        return states[0]

    monkeypatch.setattr("app.auth.keys_publisher.read_keys", read)
    assert publisher.publish()
    assert b"old" not in publisher.document.read()[1]
