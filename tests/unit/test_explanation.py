"""A record in words."""

from typing import Any

import pytest

from app.api.admin import explanation
from app.api.admin.explanation import explanation_of, outcome_of
from app.observability import request_record

RECORD: dict[str, Any] = {
    "request_id": "r",
    "model": "llama",
    "asked_model": "llama",
    "fallback": None,
    "full_fallbacks": 0,
    "status": 200,
    "error": None,
    "rejection": None,
    "limit_scope": "router",
    "tenant": None,
    "limit": 64,
    "in_flight": 64,
    "ahead": 0,
    "expected_wait_ms": None,
    "queue_ms": 0.02,
    "model_ms": 0.0,
    "total_ms": 340.4,
    "policy": None,
    "pool_size": 0,
    "attempts": [],
    "candidates": [],
}
A, B, C = "http://a:1", "http://b:1", "http://c:1"


def tried(endpoint: str | None, outcome: str, ms: float = 12.0) -> dict[str, Any]:
    """An attempt, as it is shown."""
    return {"endpoint": endpoint, "outcome": outcome, "ms": ms}


def seen(endpoint: str, in_flight: int | None, out: str | None = None, load: float | None = None) -> dict[str, Any]:
    """A candidate, as it is shown."""
    return {"endpoint": endpoint, "in_flight": in_flight, "load": load, "out": out}


EXPLAINED = [
    (
        {
            "status": 429,
            "rejection": "model_limit_reached",
            "limit_scope": "model",
            "ahead": 12,
            "expected_wait_ms": 8200,
        },
        "rejected: model llama had 64 of 64 in flight, 12 requests were ahead, expected wait 8.2 s",
    ),
    (
        {"status": 429, "rejection": "limit_reached"},
        "rejected: the router had 64 of 64 in flight (MAX_CONCURRENCY), expected wait unknown",
    ),
    (
        {"status": 429, "rejection": "queue_full", "ahead": 1, "expected_wait_ms": 250},
        "rejected: the router had 64 of 64 in flight (MAX_CONCURRENCY), 1 request was ahead, expected wait 250 ms",
    ),
    (
        {"status": 429, "rejection": "queue_timeout", "ahead": 3, "expected_wait_ms": 900, "queue_ms": 1000.0},
        (
            "rejected: the router had 64 of 64 in flight (MAX_CONCURRENCY), 3 requests were ahead when it came, "
            "expected wait 900 ms, it waited 1.0 s and got no permit"
        ),
    ),
    (
        {"status": 429, "rejection": "tenant_limit_reached", "limit_scope": "tenant", "expected_wait_ms": 1},
        "rejected: the tenant had 64 of 64 in flight, expected wait 1 ms",
    ),
    (
        {"status": 429, "rejection": "tenant_limit_reached", "limit_scope": "tenant", "tenant": "search"},
        "rejected: tenant search had 64 of 64 in flight, expected wait unknown",
    ),
    ({}, "served: by model llama, in 340 ms"),
    (
        {"queue_ms": 90.0, "ahead": 1, "expected_wait_ms": 80},
        "served: by model llama, in 340 ms, after 90 ms in the queue (expected 80 ms) behind 1 other",
    ),
    (
        {"queue_ms": 90.0, "ahead": 0, "expected_wait_ms": 80},
        "served: by model llama, in 340 ms, after 90 ms in the queue (expected 80 ms) behind no other",
    ),
    (
        {
            "attempts": [tried(A, "503"), tried(B, "200")],
            "queue_ms": 90.0,
            "ahead": 2,
            "expected_wait_ms": 80,
            "policy": "p2c",
            "pool_size": 9,
            "candidates": [seen(A, 0, "tried before"), seen(B, 2), seen(C, None, load=2.5)],
        },
        (
            f"served: by {B}, in 340 ms, after 90 ms in the queue (expected 80 ms) behind 2 others, {A} gave 503 after "
            f"12 ms, chosen by p2c among 9 endpoints: {A} tried before, {B} with 2 in flight, {C} with an estimated "
            "load of 2.5"
        ),
    ),
    (
        {
            "status": 503,
            "error": "no_endpoint",
            "attempts": [tried(None, "no_endpoint", 0)],
            "pool_size": 2,
            "candidates": [seen(A, 0, "draining"), seen(B, 1, "ejected")],
        },
        (
            f"failed: no_endpoint (status 503) after 340 ms, no endpoint of llama could be chosen: {A} was draining, "
            f"{B} was ejected"
        ),
    ),
    (
        {"status": 504, "error": "upstream_timeout", "attempts": [tried(A, "upstream_timeout", 60_000)]},
        (f"failed: upstream_timeout (status 504) after 340 ms, {A} exceeded a timeout after 60.0 s"),
    ),
    (
        {"status": 429, "attempts": [tried(A, "429")]},
        f"failed: the model server responded (status 429) after 340 ms, {A} gave 429 after 12 ms",
    ),
    (
        {"status": 499, "queue_ms": 340.0, "ahead": 5},
        (
            "the client left: after 340 ms, while it waited: the router had 64 of 64 in flight (MAX_CONCURRENCY), "
            "5 requests were ahead when it came"
        ),
    ),
    (
        {"status": 499, "model": "", "asked_model": "", "queue_ms": 0.0},
        "the client left: after 340 ms, before its request had come",
    ),
    (
        {"status": 499, "attempts": [tried(A, "503"), tried(B, "499")]},
        f"the client left: after 340 ms, {A} gave 503 after 12 ms, it was with {B} for 12 ms",
    ),
    (
        {"status": 499, "queue_ms": 340.0, "limit_scope": None, "limit": None, "in_flight": None, "ahead": None},
        "the client left: after 340 ms, while it waited for an endpoint of llama",
    ),
    (
        {"status": 404, "error": "model_not_found"},
        "not served: model_not_found (status 404), no model, or no version of the model, has the requested name",
    ),
    (
        {"status": 503, "error": "draining", "total_ms": 1.0},
        "failed: draining (status 503) after 1 ms, the server is shutting down and takes no new requests",
    ),
    (
        {"status": 503, "error": "cut_off", "attempts": [tried(A, "cut_off")]},
        (
            "failed: cut_off (status 503) after 340 ms, the router stopped before the response was complete: the "
            f"request outlasted `GRACEFUL_TIMEOUT_S`, or had not arrived, it was with {A} for 12 ms"
        ),
    ),
    (
        {"status": 499, "error": "response_stalled", "attempts": [tried(A, "200")]},
        (
            "the client left: after 340 ms, response_stalled: it took no more of its response for STALL_TIMEOUT_S, so "
            f"the router hung up, {A} gave 200 after 12 ms"
        ),
    ),
    (
        {"status": 503, "error": "no_endpoint", "total_ms": 1.0, "pool_size": 1, "full_fallbacks": 1},
        (
            "failed: no_endpoint (status 503) after 1 ms, no endpoint of llama could be chosen, 1 fallback was passed "
            "over: as many requests as allowed were there"
        ),
    ),
    (
        {
            "asked_model": "big",
            "fallback": "status_5xx",
            "full_fallbacks": 2,
            "attempts": [tried(A, "500"), tried(B, "200")],
        },
        (
            f"served: by {B}, in 340 ms, as a fallback, llama got it in place of big (status_5xx), 2 fallbacks were "
            f"passed over: as many requests as allowed were there, {A} gave 500 after 12 ms"
        ),
    ),
    ({"status": 404}, "not served: the router serves no such request (status 404)"),
    (
        {"status": 400, "attempts": [tried(A, "400")]},
        f"not served: the model server says that the request is at fault (status 400), {A} gave 400 after 12 ms",
    ),
    (
        {"status": 502, "attempts": [tried(A, "upstream_broken")]},
        (
            "failed: the response was cut off in the middle (status 502) after 340 ms, "
            f"{A} broke off, or its response was not HTTP, after 12 ms"
        ),
    ),
    (
        {"status": 503, "error": "no_endpoint", "attempts": [tried(None, "no_endpoint", 0)], "queue_ms": 2000.0},
        (
            "failed: no_endpoint (status 503) after 340 ms, model llama had no endpoint at all: discovery had found "
            "none, after it had waited 2.0 s"
        ),
    ),
    (
        {
            "asked_model": "big",
            "fallback": "upstream_unreachable",
            "attempts": [tried(A, "upstream_unreachable", 1), tried(B, "200")],
        },
        (
            f"served: by {B}, in 340 ms, as a fallback, llama got it in place of big (upstream_unreachable), "
            f"{A} could not be reached after 1 ms"
        ),
    ),
    (
        {
            "status": 429,
            "rejection": "model_limit_reached",
            "limit_scope": "model",
            "asked_model": "big",
            "fallback": "status_5xx",
            "attempts": [tried(A, "500")],
        },
        (
            "rejected: model llama had 64 of 64 in flight, expected wait unknown, as a fallback, llama got it in place "
            f"of big (status_5xx), {A} gave 500 after 12 ms"
        ),
    ),
]


@pytest.mark.parametrize(("given", "words"), EXPLAINED, ids=range(len(EXPLAINED)))
def test_record_is_explained(given: dict[str, Any], words: str) -> None:
    """One sentence has what became of the request, which limit or endpoint decided, and the figures of that instant."""
    record = {**RECORD, **given}
    assert explanation_of({**record, "outcome": outcome_of(record)}) == words


def test_every_error_is_explained() -> None:
    """Whatever code a record has, the sentence says what it means, and which error it was."""
    for code in request_record.CODES[1:]:
        record = {**RECORD, "status": 502, "error": code}
        assert code in explanation_of({**record, "outcome": outcome_of(record)})
        assert explanation._ABOUT[code]
