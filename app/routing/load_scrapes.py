"""Scrapes: the leading worker reads the metrics of the endpoints of `least_load` models, for all workers.

A scrape is a GET request on a new connection, as a health check is (health_checks.py). It has one deadline for
everything, so a server that sends a byte a second ends with it. At most `MAX_PAGE_BYTES` are read, and between two
pieces other greenlets run. After a failure the next scrape waits twice as long, up to `_MAX_PAUSE_S`: a server without
metrics is not asked every second for ever.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import gevent
import structlog

from app.config import route_schema
from app.errors import UpstreamError
from app.routing.endpoint_connections import address_of
from app.routing.endpoint_rounds import Asked, EndpointRounds, Subject
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
class _Scraped(Asked):
    """What is remembered of one endpoint from scrape to scrape."""

    failures: int = 0
    """In a row."""


class LoadScrapes:
    """The scrapes of all endpoints. The leader calls `run_due` every second, which is the shortest interval."""

    def __init__(self, registry: ModelRegistry, reports: LoadReports) -> None:
        self._registry = registry
        self._reports = reports
        self._rounds = EndpointRounds(registry, _Scraped)

    def run_due(self, spawn: Callable[..., object] = gevent.spawn) -> None:
        """Start the scrapes that are due."""
        scraped = (subject for subject in self._registry.reporting() if subject[2].load_report.source == "metrics")
        self._rounds.run_due(scraped, _interval_s, self._scrape, spawn)

    def _scrape(self, scraped: _Scraped, subject: Subject) -> None:
        endpoint, shared_id, model = subject
        reason = "it reports none of the metrics that are known"
        report = _EMPTY
        try:
            report = scrape(endpoint, model.load_report, self._registry.resolver)
        except UpstreamError as error:
            reason = str(error)
        if self._rounds.has_gone(scraped, subject):
            return
        if report != _EMPTY:
            scraped.failures = 0
            self._reports.record(shared_id, report)
            return
        scraped.failures += 1
        if scraped.failures == 1:
            _log.warning("endpoint does not report its load", endpoint=endpoint.url, reason=reason)


def _interval_s(scraped: _Scraped, subject: Subject) -> float:
    interval_s = subject[2].load_report.interval_s
    longer = interval_s * (1 << min(scraped.failures, 16))
    return max(interval_s, min(_MAX_PAUSE_S, longer))


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
