"""Health checks: the leading worker asks endpoints whether they are healthy, on a new connection each time.

An endpoint is healthy if it returns 2xx; or 401, 403, 404 or 405, because then it runs and only does not tell more.
A check that gets no response in time says only that the endpoint is slow to make one. If it has served an inference
request since the check before, it is busy and healthy. Any other failure counts whatever else it serves: an endpoint
that shuts down says so by its health check while it still finishes requests.

The first check of an endpoint is made at once, and the next ones quickly until something is known of it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

import gevent
import structlog

from app.config import route_schema
from app.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from app.protocols.adapters import adapter_of
from app.routing.endpoint_connections import address_of
from app.routing.endpoint_health import EndpointHealth
from app.routing.endpoint_rounds import Asked, EndpointRounds, Subject
from app.routing.last_errors import LastErrors
from app.routing.registry import ModelRegistry
from app.upstream.connection import Connection
from app.upstream.resolver import Resolver

_RUNNING_STATUSES = frozenset((401, 403, 404, 405))
_NOT_FOUND = 404
_FIRST_INTERVAL_S = 1.0
"""From one check to the next while nothing is known of an endpoint; the leader looks every second."""

_log = structlog.get_logger("router.endpoints")


class CheckResult(NamedTuple):
    """What a health check found."""

    reason: str | None = None
    """In a few words what is wrong with the endpoint, or None if it is healthy."""
    slow: bool = False
    """Whether all that is wrong is that no response came in time."""
    status: int = 0
    """The status of the response; 0: there was none."""


@dataclass(slots=True)
class _Watched(Asked):
    """What is remembered of one endpoint from check to check."""

    healthy: bool = True
    """What the last check found, and how often that was found in a row."""
    in_a_row: int = 0
    warned_of_check: bool = False
    warned_of_path: bool = False


class HealthChecks:
    """The health checks of all endpoints. The leader calls `run_due` every second, which is the shortest interval."""

    def __init__(self, registry: ModelRegistry, health: EndpointHealth, errors: LastErrors) -> None:
        self._registry = registry
        self._errors = errors
        self._health = health
        self._rounds = EndpointRounds(registry, _Watched)

    def run_due(self, spawn: Callable[..., object] = gevent.spawn) -> None:
        """Start the checks that are due."""
        checked = (subject for subject in self._registry.checks() if subject[2].health_check.interval_s)
        self._rounds.run_due(checked, self._interval_s, self._check, spawn)

    def _interval_s(self, watched: _Watched, subject: Subject) -> float:
        _, shared_id, model = subject
        interval_s = model.health_check.interval_s
        return interval_s if self._health.is_known(shared_id) else min(interval_s, _FIRST_INTERVAL_S)

    def _check(self, watched: _Watched, subject: Subject) -> None:
        endpoint, shared_id, model = subject
        check = model.health_check
        path = check.path or adapter_of(model.protocol).health_path
        try:
            result = check_endpoint(endpoint, path, check.timeout_s, self._registry.resolver)
        except UpstreamUnreachable as error:
            _warn_of_check(watched, endpoint.url, str(error))
            return
        if self._rounds.has_gone(watched, subject):
            return
        watched.warned_of_check = False
        if result.status == _NOT_FOUND and not check.path:
            _warn_of_path(watched, endpoint.url, path)
        since_last_check_ms = int((check.interval_s + check.timeout_s) * 1000)
        if result.slow and self._health.has_served(shared_id, since_last_check_ms):
            result = CheckResult()  # it is busy
        if result.reason is not None:
            self._errors.record(shared_id, f"health check: {result.reason}")
        if _decides(watched, result, check):
            self._set_healthy(endpoint.url, shared_id, result)

    def _set_healthy(self, url: str, shared_id: int, result: CheckResult) -> None:
        healthy = result.reason is None
        if self._health.set_healthy(shared_id, healthy=healthy, slow=result.slow):
            if healthy:
                _log.info("endpoint is healthy again", endpoint=url)
            else:
                _log.warning("endpoint is unhealthy", endpoint=url, reason=result.reason)


def _decides(watched: _Watched, result: CheckResult, check: route_schema.HealthCheck) -> bool:
    """Count the results in a row. Returns whether there are enough of them to decide the endpoint's health."""
    healthy = result.reason is None
    watched.in_a_row = watched.in_a_row + 1 if healthy == watched.healthy else 1
    watched.healthy = healthy
    return watched.in_a_row >= (check.healthy_after if healthy else check.unhealthy_after)


def _warn_of_check(watched: _Watched, url: str, reason: str) -> None:
    """Warn, once until it can be checked again, that an endpoint can't be checked for want of an address."""
    if not watched.warned_of_check:
        watched.warned_of_check = True
        _log.warning("endpoint can't be checked", endpoint=url, reason=reason)


def _warn_of_path(watched: _Watched, url: str, path: str) -> None:
    """Warn, once, that an endpoint does not have the path that every server of its protocol should have."""
    if not watched.warned_of_path:
        watched.warned_of_path = True
        _log.warning(
            "health check finds no such path; it counts as healthy, but the URL or health_check.path may be wrong",
            endpoint=url,
            path=path,
        )


def check_endpoint(endpoint: route_schema.Endpoint, path: str, timeout_s: float, resolver: Resolver) -> CheckResult:
    """Returns whether an endpoint is healthy, and why not.

    Raises UpstreamUnreachable if the router could not check it: its lookup of the name failed, for example.
    """
    timeouts = route_schema.Timeouts(connect_s=timeout_s, first_byte_s=timeout_s, idle_s=timeout_s, total_s=timeout_s)
    deadline = time.monotonic() + timeout_s
    url = urlsplit(endpoint.url)
    request = f"GET {url.path}{path} HTTP/1.1\r\nhost: {url.netloc}\r\nconnection: close\r\n\r\n".encode()
    try:
        connection = Connection(address_of(endpoint), timeouts, deadline, resolver)
        try:
            status = connection.exchange(request, "GET", timeouts, deadline).status
        finally:
            connection.close()
    except UpstreamError as error:
        if isinstance(error, UpstreamUnreachable) and error.not_tried and not error.no_such_name:
            raise
        slow = isinstance(error, UpstreamTimeout) or isinstance(error.__cause__, TimeoutError)
        return CheckResult(str(error), slow)
    if 200 <= status < 300 or status in _RUNNING_STATUSES:
        return CheckResult(status=status)
    return CheckResult(f"it returned {status} to {path}", status=status)
