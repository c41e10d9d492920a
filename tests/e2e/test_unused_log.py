"""What has no effect, in the log of a router with several workers: one line, whoever reads the files."""

import signal
from collections import Counter
from collections.abc import Callable

import pytest

from tests.support.router import Router, until

pytestmark = pytest.mark.slow


def told(router: Router) -> Counter[str]:
    """The settings and members that the log names, and how often."""
    events = [line for line in router.events() if line.get("event", "").endswith(" has no effect")]
    return Counter(line.get("setting") or line["member"] for line in events)


def test_it_is_logged_once_by_all_processes(start: Callable[..., Router], routes: Callable[..., str]) -> None:
    """At the start by the arbiter, on HUP by it or the leader, which read the file both, and later by the leader."""
    model = {"name": "m", "endpoints": ["http://127.0.0.1:9"]}
    router = start(
        ROUTES_FILE=routes({**model, "load_floor": 2}), QUEUE_TIMEOUT_MS=5, INITIAL_HEALTH="healthy", WEB_CONCURRENCY=3
    )
    expected = Counter({"QUEUE_TIMEOUT_MS": 1, "models[0].load_floor": 1})
    assert told(router) == expected
    routes({**model, "prefix_bytes": 2})
    router.signal(signal.SIGHUP)
    expected += Counter({"QUEUE_TIMEOUT_MS": 1, "models[0].prefix_bytes": 1})
    until(lambda: told(router)["models[0].prefix_bytes"], "it is logged")
    routes({**model, "load_bound": 2})
    expected += Counter({"QUEUE_TIMEOUT_MS": 1, "models[0].load_bound": 1})
    until(lambda: told(router)["models[0].load_bound"], "it is logged")
    routes({**model, "load_bound": 2, "aliases": ["another"]})
    until(lambda: router.log().count("routes published") == 3, "what has no effect is the same")
    routes({**model, "balancing": "prefix", "load_bound": 2})
    expected += Counter({"QUEUE_TIMEOUT_MS": 1})
    until(lambda: told(router)["QUEUE_TIMEOUT_MS"] == 4, "it has an effect now")
    assert told(router) == expected
