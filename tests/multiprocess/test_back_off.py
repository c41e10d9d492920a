"""Backing off, when a process is killed at any line of it."""

import signal
import sys
from collections.abc import Iterator

import pytest

from app.admission.limiter import Limiter
from app.routing import back_off
from app.routing.back_off import BackOffs, pair
from app.shared_memory.counters import MAX_IDS
from tests.support.forks import Parent, die_at

pytestmark = pytest.mark.slow

ENDPOINT, MODEL = 3, 7
AT = pair(ENDPOINT, MODEL)
STEPS = [*range(20), *range(20, 1_200, 97)]
"""All lines up to the loop over all endpoints, some of its rounds, and the end."""


@pytest.fixture
def parent() -> Iterator[Parent]:
    """A process that forks, with a table of its own."""
    parent = Parent(limit=1)
    yield parent
    parent.close()


@pytest.mark.parametrize("gone", [ENDPOINT, MODEL])
def test_nothing_is_left_behind_by_a_process_that_is_killed(parent: Parent, gone: int) -> None:
    """Whatever it was storing, the next reset of the endpoint or the model finds all that is there."""
    died = set()
    for step in STEPS:

        def work(_limiter: Limiter) -> None:
            back_offs = BackOffs(parent.table)
            sys.settrace(die_at(step, {back_off.__file__}))
            back_offs.refused(AT, None)
            with parent.table.lock:
                back_offs.reset(gone)
            sys.settrace(None)

        died.add(parent.reap(parent.fork(work)))
        with parent.table.lock:
            BackOffs(parent.table).reset(gone)
        for name in ("back_off_until_ms", "back_off_refusals"):
            row = parent.table.array(name)[pair(ENDPOINT, 0) : pair(ENDPOINT, MAX_IDS)]
            assert not any(row), f"killed before line {step}"
    assert died == {0, -signal.SIGKILL}
