"""Scrapes: the leading worker reads the metrics of the endpoints of `least_load` models, for all workers.

A scrape is a GET request on a new connection, as a health check is (health_checks.py), and one endpoint's scrape never
waits for another's. It has one deadline for everything, so a server that sends a byte a second ends with it. At most
`MAX_PAGE_BYTES` are read, and between two pieces other greenlets run. After a failure the next scrape waits twice as
long, up to `_MAX_PAUSE_S`: a server without metrics is not asked every second for ever.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import gevent
import structlog

from app.config import route_schema
from app.errors import UpstreamError
from app.routing.endpoint_connections import address_of
from app.routing.load_formats import MAX_PAGE_BYTES, PageReader, ServerLoad
from app.routing.load_reports import LoadReports
from app.routing.registry import ModelRegistry
from app.upstream.connection import Connection
from app.upstream.resolver import Resolver

_MAX_PAUSE_S = 60.0
_OK = 200
_PIECE_BYTES = 1 << 16
_EMPTY = ServerLoad()

_log = structlog.get_logger("router.endpoints")


@dataclass(slots=True)
class _Scraped:
    """What is remembered of one endpoint from scrape to scrape."""

    due: float = -math.inf
    is_running: bool = False
    failures: int = 0
    """In a row."""


class LoadScrapes:
    """The scrapes of all endpoints. The leader calls `run_due` every second, which is the shortest interval."""

    def __init__(self, registry: ModelRegistry, reports: LoadReports) -> None:
        self._registry = registry
        self._reports = reports
        self._scraped: dict[str, _Scraped] = {}

    def run_due(self, spawn: Callable[..., object] = gevent.spawn) -> None:
        """Start the scrapes that are due. They run beside the caller. Endpoints that have gone are forgotten."""
        now = time.monotonic()
        gone = set(self._scraped)
        for endpoint, shared_id, model in self._registry.reporting():
            if model.load_report.source != "metrics":
                continue
            gone.discard(endpoint.url)
            scraped = self._scraped.setdefault(endpoint.url, _Scraped())
            if scraped.due <= now and not scraped.is_running:
                scraped.due = now + model.load_report.interval_s
                scraped.is_running = True
                spawn(self._scrape, scraped, endpoint, shared_id, model.load_report)
        for url in gone:
            del self._scraped[url]

    def _scrape(
        self, scraped: _Scraped, endpoint: route_schema.Endpoint, shared_id: int, rules: route_schema.LoadReport
    ) -> None:
        reason = "it reports none of the metrics that are known"
        report = _EMPTY
        try:
            report = scrape(endpoint, rules, self._registry.resolver)
        except UpstreamError as error:
            reason = str(error)
        finally:
            scraped.is_running = False
        if self._scraped.get(endpoint.url) is not scraped:
            return  # it has gone meanwhile, and its id may be another's
        if report != _EMPTY:
            scraped.failures = 0
            self._reports.record(shared_id, report)
            return
        scraped.failures += 1
        scraped.due = time.monotonic() + min(_MAX_PAUSE_S, rules.interval_s * 2 ** min(scraped.failures, 16))
        if scraped.failures == 1:
            _log.warning("endpoint does not report its load", endpoint=endpoint.url, reason=reason)


def scrape(endpoint: route_schema.Endpoint, rules: route_schema.LoadReport, resolver: Resolver) -> ServerLoad:
    """Returns what an endpoint's page of metrics says. Raises UpstreamError."""
    timeout_s = rules.timeout_s
    timeouts = route_schema.Timeouts(connect_s=timeout_s, first_byte_s=timeout_s, idle_s=timeout_s, total_s=timeout_s)
    deadline = time.monotonic() + timeout_s
    address = address_of(endpoint)
    parts = urlsplit(endpoint.url)
    host, path = parts.netloc, parts.path + rules.path
    if rules.port is not None:  # another server of the same machine, as Triton's is: the URL's path is not its
        host, path = f"{host.removesuffix(f':{address.port}')}:{rules.port}", rules.path
        address = address._replace(port=rules.port)
    request = f"GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: text/plain\r\nconnection: close\r\n\r\n".encode()
    reader = PageReader()
    connection = Connection(address, timeouts, deadline, resolver)
    try:
        if connection.exchange(request, "GET", timeouts, deadline).status != _OK:
            return _EMPTY
        left = MAX_PAGE_BYTES
        for piece in connection.body():
            for start in range(0, min(left, len(piece)), _PIECE_BYTES):
                reader.feed(piece[start : min(left, start + _PIECE_BYTES)])
                gevent.sleep(0)
            left -= len(piece)
            if left <= 0:
                break
    finally:
        connection.close()
    return reader.report()
