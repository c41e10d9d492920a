"""What holds for every test."""

from collections.abc import Iterator

import pytest

from tests.support import forks


@pytest.fixture(autouse=True)
def no_table_is_left_open() -> Iterator[None]:
    """Close the shared tables of a test: each has 64 eventfds, and a process has only so many descriptors."""
    yield
    forks.close_all()
