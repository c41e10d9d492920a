"""A record in words: what became of a request, and why."""

from collections.abc import Iterator, Mapping
from typing import Any


def outcome_of(record: Mapping[str, Any]) -> str:
    """Returns what became of the request in one word: `served`, `rejected`, `failed`, `invalid`, `client_left`."""
    status: int = record["status"]
    if record["rejection"] and status != 499:
        return "rejected"
    if status < 400:
        return "served"
    if status == 499:
        return "client_left"
    return "failed" if status >= 500 or status in (401, 429) else "invalid"


def explanation_of(record: Mapping[str, Any]) -> str:
    """Returns one sentence on the record, which is in the form of GET /admin/requests/{id}."""
    outcome = record["outcome"]
    parts = list(_PARTS[outcome](record))
    return f"{_HEADS.get(outcome, outcome)}: {', '.join(parts)}"


_HEADS = {"client_left": "the client left", "invalid": "not served"}


def _rejected(record: Mapping[str, Any]) -> Iterator[str]:
    yield _limit(record)
    ahead, expected = record["ahead"], record["expected_wait_ms"]
    if record["rejection"] == "queue_timeout":
        yield f"{_requests(ahead)} ahead when it came"
        if expected is not None:
            yield f"expected wait {_seconds(expected)}"
        yield f"it waited {_seconds(record['queue_ms'])} and got no permit"
        return
    if ahead or record["rejection"] == "queue_full":
        yield f"{_requests(ahead)} ahead"
    yield "expected wait unknown" if expected is None else f"expected wait {_seconds(expected)}"


def _served(record: Mapping[str, Any]) -> Iterator[str]:
    *failed, last = record["attempts"] or [None]
    yield f"by {last['endpoint']}" if last else f"by model {record['model']}" if record["model"] else "by the router"
    yield f"in {_seconds(record['total_ms'])}"
    yield from _way(record, failed)
    yield from _choice(record, last)


def _failed(record: Mapping[str, Any]) -> Iterator[str]:
    yield f"{record['error'] or 'the model server responded'} (status {record['status']}) after " + _seconds(
        record["total_ms"]
    )
    if record["error"] == "no_endpoint":
        outs = [f"{each['endpoint']} was {each['out']}" for each in record["candidates"] if each["out"]]
        yield f"no endpoint of {record['model']} could be chosen" + (f": {', '.join(outs)}" if outs else "")
    yield from _way(record, [each for each in record["attempts"] if each["endpoint"]])


def _left(record: Mapping[str, Any]) -> Iterator[str]:
    yield f"after {_seconds(record['total_ms'])}"
    waiting = (
        record["rejection"] is None and not record["attempts"] and record["queue_ms"] > 0 and not record["model_ms"]
    )
    if waiting:
        yield f"while it waited: {_limit(record)}, {_requests(record['ahead'])} ahead when it came"
    else:
        yield from _way(record, record["attempts"])


def _invalid(record: Mapping[str, Any]) -> Iterator[str]:
    yield f"{record['error'] or 'the model server says that the request is at fault'} (status {record['status']})"
    yield from _way(record, record["attempts"])


_PARTS = {"rejected": _rejected, "served": _served, "failed": _failed, "client_left": _left, "invalid": _invalid}


def _limit(record: Mapping[str, Any]) -> str:
    scope, of = record["limit_scope"], f"{record['in_flight']} of {record['limit']} in flight"
    if scope == "model":
        return f"model {record['model']} had {of}"
    return f"the tenant had {of}" if scope == "tenant" else f"the router had {of} (MAX_CONCURRENCY)"


def _way(record: Mapping[str, Any], attempts: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yields how long it waited, and what attempts before the last one met."""
    if record["queue_ms"] >= 1:
        expected = record["expected_wait_ms"]
        known = "" if expected is None else f" (expected {_seconds(expected)})"
        yield f"after {_seconds(record['queue_ms'])} in the queue{known} behind {record['ahead']} others"
    for attempt in attempts:
        yield f"{attempt['endpoint'] or 'no endpoint'} gave {attempt['outcome']} after {_seconds(attempt['ms'])}"


def _choice(record: Mapping[str, Any], last: Mapping[str, Any] | None) -> Iterator[str]:
    """Yields why the endpoint was chosen."""
    candidates = record["candidates"]
    if last is None or len(candidates) < 2:
        return
    loads = ", ".join(f"{each['endpoint']} {each['out'] or _load(each)}" for each in candidates)
    yield f"chosen by {record['policy']} among {record['pool_size']} endpoints: {loads}"


def _load(candidate: Mapping[str, Any]) -> str:
    if candidate["inflight"] is None:
        return f"with an estimated load of {candidate['load']:g}"
    return f"with {candidate['inflight']} in flight"


def _requests(count: int) -> str:
    return f"{count} request was" if count == 1 else f"{count} requests were"


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.1f} s" if milliseconds >= 1000 else f"{milliseconds:.0f} ms"
