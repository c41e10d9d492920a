"""What one source reports: a set of URLs, or why it could not be asked."""

import ipaddress
import random
from collections.abc import Callable, Iterable

import structlog

MOST_ENDPOINTS = 512
"""No more addresses of one source are used: there are only so many counters, and a response may be hostile."""

_log = structlog.get_logger("router.discovery")


class DiscoveryFailed(Exception):
    """A source could not be asked, or gave no trustworthy response. No request meets this error.

    `retry_after`: seconds that the other side asked for.
    """

    def __init__(self, message: str, retry_after: int = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Findings:
    """The results of one source, in order."""

    def __init__(
        self, key: str, found: Callable[[tuple[str, ...]], object], count: Callable[[str, str], object]
    ) -> None:
        """`found` takes every set; `count` takes the key and `ok` or `failed` for each result."""
        self._key = key
        self._found = found
        self._count = count
        self._failing = False

    def found(self, urls: Iterable[str], failure: DiscoveryFailed | None = None) -> None:
        """Report a trustworthy response. It may be empty. `failure`: why a part of it is only what was there before."""
        distinct = sorted(set(urls))
        if len(distinct) > MOST_ENDPOINTS:
            _log.warning("a source has too many endpoints; only some are used", source=self._key, found=len(distinct))
        if failure is None:
            self.works()
        else:
            self.failed(failure)
        self._found(tuple(distinct[:MOST_ENDPOINTS]))

    def works(self) -> None:
        """Report that the source can be asked."""
        self._count(self._key, "ok")
        if self._failing:
            self._failing = False
            _log.info("discovery works again", source=self._key)

    def failed(self, error: DiscoveryFailed) -> None:
        """Report that the source could not be asked."""
        self._count(self._key, "failed")
        if not self._failing:
            self._failing = True
            _log.warning("discovery fails; the last endpoints stay", source=self._key, reason=str(error))


class BackOff:
    """How long to wait from one failure to the next: twice as long each time, with jitter."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = self._next_s = first_s
        self._most_s = most_s

    def reset(self) -> None:
        """Begin with the shortest wait again."""
        self._next_s = self._first_s

    def wait_s(self, least_s: float = 0.0) -> float:
        """Returns the seconds to wait now: half of the current step to all of it, or `least_s` and that."""
        step, self._next_s = self._next_s, min(2 * self._next_s, self._most_s)
        return least_s + step * random.uniform(0.5, 1.0)  # noqa: S311  # spreads the retries of many pods


def url_of(host: str, port: int) -> str:
    """Returns the URL of an endpoint at an IP address or a name."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def usable_address(text: str) -> str | None:
    """Returns an IP address in its usual form, or None if no server can be there."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.is_unspecified or address.is_multicast or text == "255.255.255.255":
        return None
    if address.version == 6 and (address.is_link_local or address.scope_id):  # it needs the name of an interface
        return None
    return str(address)
