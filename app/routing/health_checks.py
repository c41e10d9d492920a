"""Asking endpoints whether they are well, by one worker of the pod, on a fresh connection each time.

Well is who answers with 2xx; or with 401, 403, 404 or 405, because then it lives and only doesn't tell us more.
"""

import time
from collections.abc import Callable
from urllib.parse import urlsplit

import gevent
import structlog

from app.config import route_schema as routes
from app.errors import UpstreamError
from app.protocols.registered import adapter_of
from app.routing.outlier_detection import OutlierDetector
from app.routing.registry import ModelRegistry, address_of
from app.upstream.connection import Connection

_ALIVE = frozenset((401, 403, 404, 405))

_log = structlog.get_logger("router.endpoints")


class HealthChecks:
    """The prober. `run_due` is called every second by whoever leads, so none is asked more often than that."""

    def __init__(self, catalogue: ModelRegistry, states: OutlierDetector) -> None:
        self._catalogue = catalogue
        self._states = states
        self._next: dict[str, float] = {}
        self._in_a_row: dict[str, tuple[bool, int]] = {}
        self._running: set[str] = set()

    def run_due(self, spawn: Callable[..., object] = gevent.spawn) -> None:
        """Begin the checks that are due; they go on beside the caller."""
        now = time.monotonic()
        due = {}
        for endpoint, place, model in self._catalogue.checks():
            check = model.health_check
            if not check.interval_s:
                self._states.set_healthy(place, well=True)
                continue
            at = self._next.get(endpoint.url, 0.0)
            if at <= now and endpoint.url not in self._running:
                at = now + check.interval_s
                self._running.add(endpoint.url)
                spawn(self._check, endpoint, place, model)
            due[endpoint.url] = at
        self._next = due
        self._in_a_row = {url: seen for url, seen in self._in_a_row.items() if url in due}

    def _check(self, endpoint: routes.Endpoint, place: int, model: routes.Model) -> None:
        check = model.health_check
        try:
            reason = ask(endpoint, check.path or adapter_of(model.protocol).health_path, check.timeout_s)
        finally:
            self._running.discard(endpoint.url)
        before, count = self._in_a_row.get(endpoint.url, (True, 0))
        well = reason is None
        count = count + 1 if well == before else 1
        self._in_a_row[endpoint.url] = well, count
        if count < (check.healthy_after if well else check.unhealthy_after):
            return
        if self._states.set_healthy(place, well=well):
            if well:
                _log.info("endpoint is well again", endpoint=endpoint.url)
            else:
                _log.warning("endpoint is unwell", endpoint=endpoint.url, reason=reason)


def ask(endpoint: routes.Endpoint, path: str, timeout_s: float) -> str | None:
    """What is wrong with an endpoint, in a few words, or None if it is well."""
    timeouts = routes.Timeouts(connect_s=timeout_s, first_byte_s=timeout_s, idle_s=timeout_s, total_s=timeout_s)
    deadline = time.monotonic() + timeout_s
    url = urlsplit(endpoint.url)
    request = f"GET {url.path}{path} HTTP/1.1\r\nhost: {url.netloc}\r\nconnection: close\r\n\r\n".encode()
    try:
        connection = Connection(address_of(endpoint.url), timeouts, deadline)
        try:
            status = connection.exchange(request, "GET", timeouts, deadline).status
        finally:
            connection.close()
    except UpstreamError as error:
        return str(error)
    return None if 200 <= status < 300 or status in _ALIVE else f"it answered {status} to {path}"
