"""The limit of open files: raised as far as needed, or a start refused in one line. A process of its own per case."""

import os
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import pytest

from app.config.settings import load_settings
from app.errors import SettingsError
from app.server.fd_limits import reserve_connections

pytestmark = pytest.mark.slow

NOBODY = 65534
OTHERS = 256  # descriptors that are no connections, as the module has it
OVERFLOW = 128  # connections that must fit beyond those that are served


class Outcome(NamedTuple):
    """What became of a start."""

    connections: int
    soft: int
    hard: int
    message: str


def reserve(privileged: bool, concurrency: int, queue: int, soft: int, hard: int) -> Outcome:
    """In a new process with these limits: reserve. Without privilege, what root may do is given up first."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_reserve_here, privileged, concurrency, queue, soft, hard).result(60)


def _reserve_here(privileged: bool, concurrency: int, queue: int, soft: int, hard: int) -> Outcome:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if not privileged and os.geteuid() == 0:
        os.setuid(NOBODY)
    settings = load_settings({"MAX_CONCURRENCY": str(concurrency), "QUEUE_SIZE": str(queue)}, 1)
    connections, message = 0, ""
    try:
        connections = reserve_connections(settings)
    except SettingsError as error:
        message = str(error)
    return Outcome(connections, *resource.getrlimit(resource.RLIMIT_NOFILE), message)


def may_raise_hard_limit() -> bool:
    """Whether this process may do what CAP_SYS_RESOURCE allows."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_may_raise_here).result(60)


def _may_raise_here() -> bool:
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (301, 301))
    except (ValueError, OSError):
        return False
    return True


@pytest.mark.parametrize(
    ("concurrency", "queue", "soft", "hard", "connections", "soft_after"),
    [
        (10, 0, 256, 8000, 4106, 4372),  # as much as is wanted, and not more
        (10, 0, 6000, 8000, 4106, 6000),  # a limit that is high enough stays
        (10, 0, 1000, 1000, 734, 1000),  # less overflow, rather than no start
        (1, 9, 256, 8000, 4106, 4372),  # who waits needs as much as who is served
        (4500, 500, 256, 16000, 10000, 15256),  # as many again may overflow
        (10, 0, 256, 404, 138, 404),  # the very least
        (50, 50, 256, 584, 228, 584),
    ],
)
def test_soft_limit_is_raised_to_what_is_needed(
    concurrency: int, queue: int, soft: int, hard: int, connections: int, soft_after: int
) -> None:
    """A worker can hold all that is served, the model's connections for it, and as many that are rejected."""
    served = concurrency + queue
    outcome = reserve(False, concurrency, queue, soft, hard)
    assert outcome == Outcome(connections, soft_after, hard, "")
    assert outcome.connections >= served + OVERFLOW
    assert outcome.connections + served + OTHERS <= outcome.soft


@pytest.mark.parametrize(
    ("concurrency", "queue", "hard", "needed"), [(10, 0, 403, 404), (50, 50, 583, 584), (1_000_000, 0, 1024, 2_000_384)]
)
def test_cap_that_does_not_fit_is_refused(concurrency: int, queue: int, hard: int, needed: int) -> None:
    """A hard limit that is too low stops the start, in one line with what is needed and what there is."""
    message = reserve(False, concurrency, queue, 256, hard).message
    assert message.splitlines() == [message]
    assert message.startswith(f"MAX_CONCURRENCY={concurrency} with QUEUE_SIZE={queue}: ")
    assert f"need {needed} a worker" in message
    assert f"(ulimit -Hn) is {hard}" in message


def test_hard_limit_is_raised_by_those_who_may() -> None:
    """A privileged process helps itself to the least it needs; any other is refused, and its limits stay."""
    outcome = reserve(True, 10, 0, 256, 403)
    if may_raise_hard_limit():
        assert outcome == Outcome(138, 404, 404, "")
    else:
        assert outcome[:3] == (0, 256, 403)


def test_hard_limit_is_asked_to_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on a kernel that lets this process do everything, since containers seldom do."""
    limits = [(256, 403)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    assert reserve_connections(load_settings({"MAX_CONCURRENCY": "10"}, 1)) == 138
    assert limits[-1] == (404, 404)
