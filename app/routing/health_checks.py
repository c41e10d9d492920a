"""Health checks: the leading worker asks endpoints whether they are healthy, on a new connection each time.

An endpoint is healthy if it returns 2xx; or 401, 403, 404 or 405, because then it runs and only does not tell more.
"""

import time
from collections.abc import Callable
from urllib.parse import urlsplit

import gevent
import structlog

from app.config import route_schema
from app.errors import UpstreamError, UpstreamUnreachable
from app.protocols.adapters import adapter_of
from app.routing.outlier_detection import OutlierDetector
from app.routing.registry import ModelRegistry, address_of
from app.upstream.connection import Connection
from app.upstream.resolver import Resolver

_RUNNING_STATUSES = frozenset((401, 403, 404, 405))

_log = structlog.get_logger("router.endpoints")


class HealthChecks:
    """The health checks of all endpoints. The leader calls `run_due` every second, which is the shortest interval."""

    def __init__(self, registry: ModelRegistry, outliers: OutlierDetector) -> None:
        self._registry = registry
        self._outliers = outliers
        self._next: dict[str, float] = {}
        self._in_a_row: dict[str, tuple[bool, int]] = {}
        self._running: set[str] = set()
        self._unchecked: set[str] = set()

    def run_due(self, spawn: Callable[..., object] = gevent.spawn) -> None:
        """Start the checks that are due. They run beside the caller."""
        now = time.monotonic()
        due = {}
        for endpoint, shared_id, model in self._registry.checks():
            check = model.health_check
            if not check.interval_s:
                self._outliers.set_healthy(shared_id, healthy=True)
                continue
            at = self._next.get(endpoint.url, 0.0)
            if at <= now and endpoint.url not in self._running:
                at = now + check.interval_s
                self._running.add(endpoint.url)
                spawn(self._check, endpoint, shared_id, model)
            due[endpoint.url] = at
        self._next = due
        self._in_a_row = {url: seen for url, seen in self._in_a_row.items() if url in due}

    def _check(self, endpoint: route_schema.Endpoint, shared_id: int, model: route_schema.Model) -> None:
        check = model.health_check
        path = check.path or adapter_of(model.protocol).health_path
        try:
            reason = check_endpoint(endpoint, path, check.timeout_s, self._registry.resolver)
        except UpstreamUnreachable as error:
            if endpoint.url not in self._unchecked:
                self._unchecked.add(endpoint.url)
                _log.warning("endpoint can't be checked", endpoint=endpoint.url, reason=str(error))
            return
        finally:
            self._running.discard(endpoint.url)
        self._unchecked.discard(endpoint.url)
        before, count = self._in_a_row.get(endpoint.url, (True, 0))
        healthy = reason is None
        count = count + 1 if healthy == before else 1
        self._in_a_row[endpoint.url] = healthy, count
        if count < (check.healthy_after if healthy else check.unhealthy_after):
            return
        if self._outliers.set_healthy(shared_id, healthy=healthy):
            if healthy:
                _log.info("endpoint is healthy again", endpoint=endpoint.url)
            else:
                _log.warning("endpoint is unhealthy", endpoint=endpoint.url, reason=reason)


def check_endpoint(endpoint: route_schema.Endpoint, path: str, timeout_s: float, resolver: Resolver) -> str | None:
    """Returns in a few words what is wrong with an endpoint, or None if it is healthy.

    Raises UpstreamUnreachable if the router could not check it: its lookup of the name failed, for example.
    """
    timeouts = route_schema.Timeouts(connect_s=timeout_s, first_byte_s=timeout_s, idle_s=timeout_s, total_s=timeout_s)
    deadline = time.monotonic() + timeout_s
    url = urlsplit(endpoint.url)
    request = f"GET {url.path}{path} HTTP/1.1\r\nhost: {url.netloc}\r\nconnection: close\r\n\r\n".encode()
    try:
        connection = Connection(address_of(endpoint.url), timeouts, deadline, resolver)
        try:
            status = connection.exchange(request, "GET", timeouts, deadline).status
        finally:
            connection.close()
    except UpstreamError as error:
        if isinstance(error, UpstreamUnreachable) and error.not_tried and not error.no_such_name:
            raise
        return str(error)
    return None if 200 <= status < 300 or status in _RUNNING_STATUSES else f"it returned {status} to {path}"
