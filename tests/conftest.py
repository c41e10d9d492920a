"""What holds for every test."""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from app.compiled import form
from tests.support import forks

# Hypothesis' own profile for this: the same examples each time, so that a change is judged by what it changes, and no
# deadline, as on a busy machine any example could take long.
settings.load_profile("ci")
settings.register_profile("new-examples", derandomize=False)  # for `make fuzz`

_MANY_DESCRIPTORS = 200
_left_open = [0]
"""How many the collector left open, each time."""
_ELSEWHERE = {"pure": "compiled", "compiled": "pure"}
"""The marker of the tests that run on the other form only."""


def pytest_report_header() -> str:
    """Say which form of the router is tested."""
    return f"router: {form()}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of the other form."""
    marker = _ELSEWHERE.get(form(), "")
    left_out = [item for item in items if item.get_closest_marker(marker)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker(marker)]


def pytest_collection_finish() -> None:
    """Have the collector leave alone what stays: thousands of tests and modules, which it would traverse often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_table_is_left_open() -> Iterator[None]:
    """Close the shared tables of a test: each has 64 eventfds, and a process has only so many descriptors."""
    yield
    forks.close_all()


@pytest.fixture(autouse=True, scope="module")
def few_descriptors_are_open() -> Iterator[None]:
    """Close the memory maps of routers that are gone: a router is a cycle of objects, which the collector finds late.

    select(2), which tests use, takes descriptors below 1024 only.
    """
    yield
    if _descriptors() > _left_open[-1] + _MANY_DESCRIPTORS:
        gc.unfreeze()  # of a router whose hooks were called
        gc.collect()
        gc.freeze()
        _left_open.append(_descriptors())


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
