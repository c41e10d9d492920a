"""The record of a request: what was stored is what is read, whatever became of the request."""

from collections.abc import Iterator
from typing import Any

import pytest

from app.admission.permit import Permit
from app.api.exchange import Exchange
from app.api.request_recorder import RequestRecorder
from app.config import fallback_reasons
from app.errors import LimitReached, Overload
from app.observability import request_record
from app.observability.request_record import POLICY_NUMBERS, Attempted, RequestRecord
from app.routing.attempt_record import AttemptRecord, PoolMembers
from app.routing.candidates import BITS, EJECTED, MILLI, Seen, seen_of, words_of
from app.shared_memory.request_ring import RECORDS, RequestRing
from app.shared_memory.table import name_hash
from tests.support.forks import Parent, acquire

URLS = [f"http://10.0.0.{number}:8000" for number in range(12)]
HASHES = [name_hash(url) for url in URLS]


class Recorded:
    """A ring, and what the newest record of it says."""

    def __init__(self, parent: Parent) -> None:
        self.ring = RequestRing(parent.table)
        self.ring.attach(0)
        self.recorder = RequestRecorder(self.ring)

    def record(self, exchange: Exchange, total_s: float = 1.5) -> RequestRecord:
        """Record this exchange, and read it."""
        self.recorder.record(exchange, total_s)
        numbers = self.ring.column(0, request_record.NUMBER)
        newest = numbers.index(max(numbers))
        assert self.ring.column(0, request_record.TOTAL, "d")[newest] == total_s
        assert newest in request_record.may_be_of(exchange.request_id, self.ring.column(0, request_record.ID))
        (content,) = self.ring.copies([(0, newest)], lambda _: None)
        assert content is not None
        return request_record.read(content)


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    """A ring over a table of its own."""
    parent = Parent(limit=1)
    yield Recorded(parent)
    parent.close()


def exchange_of(request_id: str = "an-id", **members: Any) -> Exchange:
    """An exchange that has ended."""
    exchange = Exchange({"REQUEST_METHOD": "POST", "PATH_INFO": "/infer", "HTTP_X_REQUEST_ID": request_id})
    exchange.route, exchange.model, exchange.status = "/infer", "llama", 200
    for name, value in members.items():
        setattr(exchange, name, value)
    return exchange


def attempt_at(place: int, code: str, seen: list[int], size: int = 0) -> AttemptRecord:
    """What an attempt leaves at one of the endpoints."""
    pool = PoolMembers(size or len(seen), words_of(HASHES), POLICY_NUMBERS["p2c"])
    attempt = AttemptRecord(pool, seen, code, URLS[place], HASHES[place])
    attempt.took_s = 0.25 * (place + 1)
    return attempt


def test_ordinary_request_is_read_as_it_was(recorded: Recorded) -> None:
    """Times, status, names by their hashes, the cap at that instant, the one attempt, and its choice."""
    issuer: Any = None
    exchange = exchange_of(queue_s=0.001, model_s=1.25, permit=Permit(issuer, 64, 12))
    exchange.attempts.append(attempt_at(1, "200", [3 << BITS, 2 << BITS]))
    record = recorded.record(exchange)
    assert (record.started, record.total_s, record.queue_s, record.model_s) == (exchange.started, 1.5, 0.001, 1.25)
    assert (record.status, record.error, record.rejection) == (200, "", "")
    assert (record.model, record.route) == (name_hash("llama"), name_hash("/infer"))
    assert record.overload == Overload("router", 64, 12)
    assert record.attempts == [Attempted(HASHES[1], "200", 0.5)]
    assert (record.policy, record.pool_size) == ("p2c", 2)
    assert [(url, seen_of(seen)) for url, seen in record.candidates] == [
        (HASHES[0], Seen(3, None, None)),
        (HASHES[1], Seen(2, None, None)),
    ]
    assert record.is_of("an-id")


@pytest.mark.parametrize("scope", ["router", "model", "tenant"])
@pytest.mark.parametrize("expected_ms", [None, 0, 8200, 1 << 40])
def test_limit_that_was_met_is_read_as_it_was(scope: str, expected_ms: int | None, recorded: Recorded) -> None:
    """Of whichever scope; a wait that is too long for its word is as long as can be, and never unknown."""
    overload = Overload(scope, 1_000_000, 999_999, 100_000, expected_ms)
    record = recorded.record(exchange_of(overload=overload, rejection="queue_full", error="queue_full", status=429))
    kept = None if expected_ms is None else min(expected_ms, 0xFFFFFFFE)
    assert record.overload == overload._replace(expected_wait_ms=kept)
    assert (record.status, record.error, record.rejection) == (429, "queue_full", "queue_full")


@pytest.mark.parametrize(
    "request_id",
    ["x", "a" * 64, "a" * 65, "a" * 64 + "b", "a" * 128, "c" * 127 + "d"],
    ids=lambda text: f"{text[-1]}{len(text)}",
)
def test_long_ids_that_begin_alike_are_told_apart(request_id: str, recorded: Recorded) -> None:
    """A record is that of its request only."""
    others = ["x" * 2, "a" * 63, "a" * 66, "a" * 64 + "c", "a" * 127 + "b", "c" * 128]
    record = recorded.record(exchange_of(request_id))
    assert record.is_of(request_id)
    assert not any(record.is_of(other) for other in others)


def test_last_attempts_of_many_are_kept(recorded: Recorded) -> None:
    """Of six attempts the last four, and what the last choice has seen of the first eight endpoints of twelve."""
    exchange = exchange_of()
    codes = ["503", "502", "upstream_unreachable", "429", "upstream_timeout", "200"]
    for place, code in enumerate(codes):
        exchange.attempts.append(attempt_at(place, code, [load << BITS for load in range(8)], size=12))
    record = recorded.record(exchange)
    assert [each.outcome for each in record.attempts] == codes[-4:]
    assert [each.endpoint for each in record.attempts] == HASHES[2:6]
    assert record.pool_size == 12
    assert [(url, seen >> BITS) for url, seen in record.candidates] == list(zip(HASHES[:8], range(8), strict=True))


def test_choice_without_an_endpoint_tells_why(recorded: Recorded) -> None:
    """No endpoint, its code, and the reason of each."""
    exchange = exchange_of(error="no_endpoint", status=503)
    exchange.attempts.append(
        AttemptRecord(PoolMembers(1, words_of(HASHES), POLICY_NUMBERS["p2c"]), [5 << BITS | EJECTED])
    )
    record = recorded.record(exchange)
    assert record.attempts == [Attempted(0, "no_endpoint", 0.0)]
    assert [seen_of(seen) for _, seen in record.candidates] == [Seen(5, None, "ejected")]


def test_estimated_loads_are_read_as_such(recorded: Recorded) -> None:
    """What `least_load` compares is no count of requests."""
    exchange = exchange_of()
    exchange.attempts.append(attempt_at(0, "200", [2500 << BITS | MILLI]))
    ((_, seen),) = recorded.record(exchange).candidates
    assert seen_of(seen) == Seen(None, 2.5, None)


def test_first_fallback_is_read_as_it_was(recorded: Recorded) -> None:
    """The model that was asked for, and why another one got the request: by whatever reason, beside four attempts."""
    for reason in fallback_reasons.REASONS:
        exchange = exchange_of(
            model="third", fallbacks=(("first", "second", reason), ("second", "third", "status_5xx"))
        )
        exchange.attempts.extend(attempt_at(place, "500", [1 << BITS] * 8) for place in range(4))
        record = recorded.record(exchange)
        assert (record.asked, record.model, record.fallback) == (name_hash("first"), name_hash("third"), reason)
        assert (len(record.attempts), len(record.candidates)) == (4, 8)
    record = recorded.record(exchange_of())
    assert (record.asked, record.fallback) == (0, "")


@pytest.mark.parametrize(("passed_over", "kept"), [(0, 0), (1, 1), (15, 15), (16, 15), (99, 15)])
def test_fallbacks_that_were_full_are_counted(passed_over: int, kept: int, recorded: Recorded) -> None:
    """Beside the scope of a limit, whichever it is."""
    for scope in ("router", "model", "tenant"):
        overload = Overload(scope, 1, 1, 0, None)
        record = recorded.record(exchange_of(overload=overload, full_fallbacks=passed_over))
        assert (record.full_fallbacks, record.overload, record.attempts) == (kept, overload, [])


def test_nothing_of_an_earlier_record_is_left(recorded: Recorded) -> None:
    """A record in the place of a fuller one has nothing of it."""
    full = exchange_of("f" * 100, overload=Overload("model", 5, 5, 5, 5), rejection="queue_full", error="queue_full")
    full.attempts.append(attempt_at(2, "503", [1 << BITS] * 8))
    full.fallbacks, full.full_fallbacks = (("other", "llama", "no_endpoint"),), 3
    for _ in range(RECORDS):
        recorded.recorder.record(full, 2.0)
    record = recorded.record(exchange_of("s"))
    assert (record.overload, record.error, record.rejection) == (None, "", "")
    assert (record.attempts, record.candidates, record.policy, record.pool_size) == ([], [], "", 0)
    assert (record.asked, record.fallback, record.full_fallbacks) == (0, "", 0)
    assert record.is_of("s")


def test_memory_of_the_rings_is_bounded() -> None:
    """At most 96 MiB, were all slots ever used; nothing before a record is written."""
    parent = Parent(limit=1)
    ring = RequestRing(parent.table)
    assert len(ring.bytes) == 96 << 20
    assert ring.slots() == []
    parent.close()


def test_limit_of_an_earlier_admission_is_forgotten(recorded: Recorded) -> None:
    """A request that is rejected, and then admitted for another model, has met no limit in the end."""
    parent = Parent(limit=1)
    limiter = parent.limiter()
    exchange, held = exchange_of(), acquire(limiter)
    with pytest.raises(LimitReached):
        exchange.admit(limiter, 1.0)
    assert exchange.overload is not None
    held.release()
    exchange.change_model("other", None, None)
    exchange.admit(limiter, 1.0)
    record = recorded.record(exchange)
    assert (record.overload, record.rejection) == (Overload("router", 1, 0), "")
    exchange.release()
    parent.close()
