"""Fixtures: a fake API server, and controllers that run against it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fake_server import FakeServer
from permissions import rules_of
from running import Running


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A cluster with KEDA and the Prometheus Operator, whose service account has the rights of the ClusterRole."""
    with FakeServer(rules_of("cluster/role.yaml", "base/lease-role.yaml")) as running:
        yield running
        assert running.forbidden == []
        assert running.errors == []


@pytest.fixture
def start(server: FakeServer, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts controllers, and ends them after the test."""
    with ExitStack() as stack:
        yield lambda *names, **settings: stack.enter_context(Running(server, tmp_path, *names, **settings))
