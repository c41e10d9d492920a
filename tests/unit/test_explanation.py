"""A record in words."""

from typing import Any

import pytest

from app.api.explanation import explanation_of, outcome_of

RECORD: dict[str, Any] = {
    "request_id": "r",
    "model": "llama",
    "status": 200,
    "error": None,
    "rejection": None,
    "limit_scope": "router",
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


def seen(endpoint: str, inflight: int | None, out: str | None = None, load: float | None = None) -> dict[str, Any]:
    """A candidate, as it is shown."""
    return {"endpoint": endpoint, "inflight": inflight, "load": load, "out": out}


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
    ({}, "served: by model llama, in 340 ms"),
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
            "candidates": [seen(A, 0, "draining"), seen(B, 1, "ejected")],
        },
        (
            f"failed: no_endpoint (status 503) after 340 ms, no endpoint of llama could be chosen: {A} was draining, "
            f"{B} was ejected"
        ),
    ),
    (
        {"status": 504, "error": "upstream_timeout", "attempts": [tried(A, "upstream_timeout", 60_000)]},
        f"failed: upstream_timeout (status 504) after 340 ms, {A} gave upstream_timeout after 60.0 s",
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
    ({"status": 499, "attempts": [tried(A, "499")]}, f"the client left: after 340 ms, {A} gave 499 after 12 ms"),
    ({"status": 404, "error": "model_not_found"}, "not served: model_not_found (status 404)"),
]


@pytest.mark.parametrize(("given", "words"), EXPLAINED, ids=range(len(EXPLAINED)))
def test_record_is_explained(given: dict[str, Any], words: str) -> None:
    """One sentence has what became of the request, which limit or endpoint decided, and the figures of that instant."""
    record = {**RECORD, **given}
    assert explanation_of({**record, "outcome": outcome_of(record)}) == words
