"""Fixtures for tests against the real router."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.gate import Gate
from tests.support.router import Router
from tests.support.upstream import Upstream

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
    """Writes a routes file; answers its path."""

    def write(*models: dict[str, Any], **members: Any) -> str:
        path = tmp_path / "routes.json"
        path.write_text(json.dumps({"models": models, **members}))
        return str(path)

    return write
