"""The records of all workers, as the admin API finds them: in short turns of the event loop."""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import gevent
import pytest

from app.api.admin.records import RequestRecords
from app.api.admin.records_query import Wanted
from app.api.exchange import Exchange
from app.api.request_recorder import RequestRecorder
from app.shared_memory.request_ring import RECORD_WORDS, RECORDS, RequestRing
from tests.support.credentials import bearer, key, write_keys
from tests.support.forks import Parent
from tests.support.local_router import LocalRouter

WORKERS = 8


class Rings:
    """Rings of eight workers, and who reads them."""

    def __init__(self, parent: Parent, local: LocalRouter) -> None:
        self.ring = RequestRing(parent.table)
        self.recorder = RequestRecorder(self.ring)
        self.records = RequestRecords(self.ring, local.router.models.registry)

    def record(self, slot: int, request_id: str, total_s: float = 1.0, **members: Any) -> None:
        """Leave a record in this worker's ring."""
        exchange = Exchange({"REQUEST_METHOD": "POST", "PATH_INFO": "/infer", "HTTP_X_REQUEST_ID": request_id})
        exchange.route, exchange.status = "/infer", 200
        for name, value in members.items():
            setattr(exchange, name, value)
        self.ring.attach(slot)
        self.recorder.record(exchange, total_s)

    def fill(self) -> None:
        """Have each ring full of records that are like its first one."""
        for slot in range(WORKERS):
            self.record(slot, f"filled-{slot}")
            first = (slot * RECORDS + 1) * RECORD_WORDS
            words = list(self.ring.words[first : first + RECORD_WORDS])
            for number in range(2, RECORDS + 1):
                words[0] = number
                at = self.ring.begin()
                for place, word in enumerate(words[1:], at + 1):
                    self.ring.words[place] = word
                self.ring.commit(at)


@pytest.fixture
def rings(tmp_path: Any) -> Iterator[Rings]:
    """Empty rings."""
    parent = Parent(limit=1)
    with LocalRouter(tmp_path) as local:
        yield Rings(parent, local)
    parent.close()


def test_newest_of_all_workers_come_first(rings: Rings) -> None:
    """By the ends of the requests, whichever worker had them; as many as are asked for, of those that are wanted."""
    for number in range(20):
        rejected = {"rejection": "queue_full", "status": 429} if number % 2 else {}
        rings.record(number % 3, f"r{number}", total_s=100.0 + number, **rejected)

    def ids(wanted: Wanted) -> list[str]:
        return [record["request_id"] for record in rings.records.newest(wanted)]

    assert ids(Wanted()) == [f"r{number}" for number in reversed(range(20))]
    assert ids(Wanted(most=3)) == ["r19", "r18", "r17"]
    assert ids(Wanted(rejected=True, most=2)) == ["r19", "r17"]
    assert ids(Wanted(rejected=False, most=2)) == ["r18", "r16"]
    assert ids(Wanted(slow_s=117.0)) == ["r19", "r18", "r17"]


def test_newest_record_of_an_id_is_found(rings: Rings) -> None:
    """A client may use an id again, with another worker; another id of the same beginning is another one."""
    for slot, total_s in ((2, 2.0), (0, 3.0), (1, 1.0)):
        rings.record(slot, "again", total_s)
    rings.record(3, "again-not", 9.0)
    found = rings.records.find("again")
    assert found is not None
    assert (found["worker"], found["total_ms"]) == (0, 3000.0)
    assert rings.records.find("agai") is None


@pytest.mark.alone
@pytest.mark.parametrize(
    "look",
    [
        lambda records: records.find("unknown") is None,
        lambda records: len(records.newest(Wanted(most=1000))) == 1000,
    ],
    ids=["one that there is not", "a thousand"],
)
def test_looking_through_full_rings_holds_up_no_request(rings: Rings, look: Callable[[RequestRecords], bool]) -> None:
    """Other greenlets have their turns meanwhile: the longest wait for one is a small part of the work.

    Of three looks the best one counts: a pass of the collector, or another virtual machine, can only make one longer.
    """
    rings.fill()
    assert min(_longest_turn(lambda: look(rings.records)) for _ in range(3)) < 1 / 4


def _longest_turn(look: Callable[[], bool]) -> float:
    """Returns the longest time for which a look kept another greenlet waiting, as a part of what the look took."""
    turns: list[float] = []

    def others() -> None:
        while True:
            turns.append(time.thread_time())
            gevent.sleep(0.0001)

    watching = gevent.spawn(others)
    gevent.sleep(0.01)
    before, began = len(turns), time.thread_time()
    assert look()
    ended = time.thread_time()
    watching.kill()
    return max(after - one for one, after in pairwise([began, *turns[before:], ended])) / (ended - began)


def test_tenant_whose_limit_was_met_is_named(tmp_path: Path) -> None:
    """By its label in metrics, and not where another limit was met, or the keys file has the tenant no longer."""
    tenants: tuple[dict[str, object], ...] = ({"name": "simulated", "max_concurrency": 1},)
    file = write_keys(tmp_path / "keys.json", key("ir-secret", "simulated"), tenants=tenants)
    with LocalRouter(tmp_path, KEYS_FILE=file, MAX_CONCURRENCY="1") as local:
        limits, records = local.router.auth.limits, local.router.admin.records
        assert limits is not None
        leave = limits.acquire("simulated")
        asked = {**bearer("ir-secret"), "X-Request-Id": "of-the-tenant"}
        assert local.ask("POST", "/infer", '{"prompt": "x"}', asked).status == 429
        leave()
        assert local.ask("POST", "/infer", '{"prompt": "x"}', {**asked, "X-Request-Id": "served"}).status == 200
        rejected, served = records.find("of-the-tenant"), records.find("served")
        (listed,) = records.newest(Wanted(rejected=True))
        gone = RequestRecords(local.router.ring, local.router.models.registry).find("of-the-tenant")
    assert rejected is not None
    assert served is not None
    assert gone is not None
    assert (rejected["tenant"], served["tenant"], gone["tenant"]) == ("simulated", None, None)
    assert rejected["explanation"].startswith("rejected: tenant simulated had 1 of 1 in flight, expected wait")
    assert gone["explanation"].startswith("rejected: the tenant had 1 of 1 in flight, expected wait")
    assert listed["tenant"] == "simulated"
