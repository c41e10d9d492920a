"""Fixtures for tests against the real router.

A router takes about a second to start. A test that changes the state of its router, by signals, reloads or kills, or
that reads totals from nothing, starts one with `start`. Other tests take one with `share` or `share_routed`: it is
started for the first test that needs its settings, and runs until the session ends.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.gate import Gate
from tests.support.router import Router, until
from tests.support.upstream import Answer, Upstream, send_empty

GATED = "tests.support.gated_wsgi"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """An observer that holds requests inside the model."""
    with Gate(tmp_path) as opened:
        yield opened


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Router]]:
    """Starts a router with these settings; stopped at the end of the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(Router(tmp_path, **settings))


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Router]]:
    """Returns the router with these settings, the same one for the same settings; stopped at the end of the session."""
    with ExitStack() as stack:

        @functools.cache
        def router(**settings: Any) -> Router:
            return stack.enter_context(Router(tmp_path_factory.mktemp("shared"), **settings))

        yield router


@pytest.fixture(scope="session")
def serving() -> Iterator[Callable[[Any], Upstream]]:
    """Returns the model server with this key, the same one for the same key; stopped at the end of the session."""
    with ExitStack() as stack:
        yield functools.cache(lambda key: stack.enter_context(Upstream()))


@pytest.fixture
def share(running: Callable[..., Router]) -> Iterator[Callable[..., Router]]:
    """Returns a router with these settings, idle, which other tests use too; the test must leave it as it was."""
    logged: dict[Router, int] = {}

    def take(**settings: object) -> Router:
        router = running(**settings)
        until(lambda: is_idle(router), "earlier tests have left nothing in flight")
        logged[router] = len(router.log())
        return router

    yield take
    for router, begin in logged.items():
        sys.stderr.write(router.log()[begin:])  # pytest shows it if the test failed


@pytest.fixture
def share_routed(
    share: Callable[..., Router], serving: Callable[[Any], Upstream]
) -> Callable[..., tuple[Router, Upstream]]:
    """Returns a shared router of the model `m` with these settings, and the model's only server, which does this."""

    def take(answer: Answer = send_empty, **settings: object) -> tuple[Router, Upstream]:
        upstream = serving(tuple(settings.items()))
        upstream.reset(answer)
        return share(BACKENDS=upstream.url, MODEL_REF="m", **settings), upstream

    return take


@pytest.fixture
def start_gated(gate: Gate, start: Callable[..., Router]) -> Callable[..., Router]:
    """Starts a router whose model enters the gate."""
    return lambda **settings: start(app=f"{GATED}:application", TEST_GATE=gate.path, **settings)


@pytest.fixture
def serve() -> Iterator[Callable[..., Upstream]]:
    """Starts model servers; stopped at the end of the test."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(Upstream(*args, **kwargs))


@pytest.fixture
def routes(tmp_path: Path) -> Callable[..., str]:
    """Writes a routes file; returns its path."""

    def write(*models: dict[str, Any], **members: Any) -> str:
        path, fresh = tmp_path / "routes.json", tmp_path / "routes.new"
        fresh.write_text(json.dumps({"models": models, **members}))
        fresh.replace(path)  # a router that runs never reads half of it
        return str(path)

    return write


def is_idle(router: Router) -> bool:
    """Whether no request is in flight or waits."""
    metrics = router.metrics()
    return (metrics["router_inflight_requests"], metrics["router_queued_requests"]) == (0, 0)
