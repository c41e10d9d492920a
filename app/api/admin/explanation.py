"""A record in words: what became of a request, and why."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from app import errors

_ABOUT = {
    error.code: (inspect.getdoc(error) or "").partition("\n\n")[0].replace("\n", " ").rstrip(".")
    for error in vars(errors).values()
    if isinstance(error, type) and hasattr(error, "code")
}
"""What an error says of itself, by its code, as in the table of README.md."""
_ENDED = {
    "upstream_unreachable": "could not be reached",
    "upstream_timeout": "exceeded a timeout",
    "upstream_broken": "broke off, or its response was not HTTP,",
}
"""What an endpoint did, by the code of the attempt. Else the code is the status of its response."""
_NOT_ITS_OWN = ("499", "cut_off")
"""Outcomes of attempts that were the client's or the router's doing."""


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
    else:
        if ahead or record["rejection"] == "queue_full":
            yield f"{_requests(ahead)} ahead"
        yield "expected wait unknown" if expected is None else f"expected wait {_seconds(expected)}"
    yield from _fallback(record)
    yield from _attempts(record["attempts"])


def _served(record: Mapping[str, Any]) -> Iterator[str]:
    *failed, last = record["attempts"] or [None]
    yield f"by {last['endpoint']}" if last else f"by model {record['model']}" if record["model"] else "by the router"
    yield f"in {_seconds(record['total_ms'])}"
    yield from _way(record, failed)
    yield from _choice(record, last)


def _failed(record: Mapping[str, Any]) -> Iterator[str]:
    attempts = record["attempts"]
    yield f"{_error(record)} after {_seconds(record['total_ms'])}"
    if record["error"] != "no_endpoint":
        yield from _meaning(record)
    elif attempts and not record["pool_size"]:
        yield f"model {record['model']} had no endpoint at all: discovery had found none"
    else:
        outs = [f"{each['endpoint']} was {each['out']}" for each in record["candidates"] if each["out"]]
        yield f"no endpoint of {record['model']} could be chosen" + (f": {', '.join(outs)}" if outs else "")
    yield from _way(record, attempts)


def _left(record: Mapping[str, Any]) -> Iterator[str]:
    yield f"after {_seconds(record['total_ms'])}"
    yield from _stalled(record)
    if not record["model"]:  # a model is looked up when the body is there, or the beginning of a form
        yield "before its request had come"
    waited = record["rejection"] is None and not record["attempts"] and record["queue_ms"] > 0
    if not waited or record["model_ms"]:
        yield from _way(record, record["attempts"])
    elif record["limit"] is None:
        yield f"while it waited for an endpoint of {record['model']}"
    else:
        yield f"while it waited: {_limit(record)}, {_requests(record['ahead'])} ahead when it came"


def _stalled(record: Mapping[str, Any]) -> Iterator[str]:
    """Yields that it did not leave by itself."""
    if record["error"] == "response_stalled":
        yield "response_stalled: it took no more of its response for STALL_TIMEOUT_S, so the router hung up"


def _invalid(record: Mapping[str, Any]) -> Iterator[str]:
    yield _error(record)
    yield from _meaning(record)
    yield from _way(record, record["attempts"])


_PARTS = {"rejected": _rejected, "served": _served, "failed": _failed, "client_left": _left, "invalid": _invalid}


def _error(record: Mapping[str, Any]) -> str:
    """Returns what the response was: the router's own error, or the model server's."""
    code, status = record["error"], f"(status {record['status']})"
    attempts = record["attempts"]
    if code:
        return f"{code} {status}"
    if not attempts:
        return f"the router {'failed' if record['status'] >= 500 else 'serves no such request'} {status}"
    if attempts[-1]["outcome"] in _ENDED:
        return f"the response was cut off in the middle {status}"
    if record["outcome"] == "invalid":
        return f"the model server says that the request is at fault {status}"
    return f"the model server responded {status}"


def _meaning(record: Mapping[str, Any]) -> Iterator[str]:
    """Yields what the router's own error means, but for those that the last attempt tells of."""
    code = record["error"]
    if code and code not in _ENDED:
        yield _ABOUT[code][:1].lower() + _ABOUT[code][1:]


def _limit(record: Mapping[str, Any]) -> str:
    scope, of = record["limit_scope"], f"{record['in_flight']} of {record['limit']} in flight"
    if scope == "model":
        return f"model {record['model']} had {of}"
    if scope == "tenant":
        return f"tenant {record['tenant']} had {of}" if record["tenant"] else f"the tenant had {of}"
    return f"the router had {of} (MAX_CONCURRENCY)"


def _way(record: Mapping[str, Any], attempts: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yields how long it waited, what became of fallbacks, and what these attempts met."""
    if record["queue_ms"] >= 1:
        expected, waited = record["expected_wait_ms"], _seconds(record["queue_ms"])
        if record["ahead"] or expected is not None:
            known = "" if expected is None else f" (expected {_seconds(expected)})"
            yield f"after {waited} in the queue{known} behind {_others(record['ahead'])}"
        else:
            yield f"after it had waited {waited}"  # in front of the queue, or for an endpoint
    yield from _fallback(record)
    yield from _attempts(attempts)


def _fallback(record: Mapping[str, Any]) -> Iterator[str]:
    if record["fallback"]:
        yield f"as a fallback, {record['model']} got it in place of {record['asked_model']} ({record['fallback']})"
    full = record["full_fallbacks"]
    if full:
        yield f"{full} fallback{'s were' if full > 1 else ' was'} passed over: as many requests as allowed were there"


def _attempts(attempts: list[Mapping[str, Any]]) -> Iterator[str]:
    for attempt in attempts:
        endpoint, outcome, after = attempt["endpoint"], attempt["outcome"], f"after {_seconds(attempt['ms'])}"
        if endpoint is None:
            continue  # a choice that found none, which is said where it is the reason
        if outcome in _NOT_ITS_OWN:
            yield f"it was with {endpoint} for {_seconds(attempt['ms'])}"
        elif outcome in _ENDED:
            yield f"{endpoint} {_ENDED[outcome]} {after}"
        else:
            yield f"{endpoint} gave {outcome} {after}"


def _choice(record: Mapping[str, Any], last: Mapping[str, Any] | None) -> Iterator[str]:
    """Yields why the endpoint was chosen."""
    candidates = record["candidates"]
    if last is None or len(candidates) < 2:
        return
    loads = ", ".join(f"{each['endpoint']} {each['out'] or _load(each)}" for each in candidates)
    yield f"chosen by {record['policy']} among {record['pool_size']} endpoints: {loads}"


def _load(candidate: Mapping[str, Any]) -> str:
    if candidate["in_flight"] is None:
        return f"with an estimated load of {candidate['load']:g}"
    return f"with {candidate['in_flight']} in flight"


def _requests(count: int) -> str:
    return f"{count} request was" if count == 1 else f"{count} requests were"


def _others(count: int) -> str:
    return "no other" if count == 0 else "1 other" if count == 1 else f"{count} others"


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.1f} s" if milliseconds >= 1000 else f"{milliseconds:.0f} ms"
