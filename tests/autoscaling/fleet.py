"""Real routers under a real load, and what Prometheus would read of them."""

import itertools
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.autoscaling.clock import MEASURED_EACH_S, WINDOW_S
from tests.support.router import Router, until

CAP = 10
"""As in ops/k8s."""
LATENCY_S = 0.12
LATE = 0.1
"""The share of requests that may come too late, as on a busy machine, before a load is measured again."""
TRIES = 4
SCRAPES = 3
"""Of one router under one load, a bit apart: pods are scraped at different moments too."""
CONNECTIONS = CAP + 6
"""To one router: those that are in the model, and some that are rejected meanwhile."""

Page = Mapping[str, float]


class Sample(NamedTuple):
    """One router in one interval between two scrapes."""

    inflight: float
    demand: float
    rejected: float
    """The share of its requests that were rejected."""


def total(page: Page, name: str) -> float:
    """The sum of all series of a name."""
    return sum(value for series, value in page.items() if series.partition("{")[0] == name)


class Fleet:
    """`with Fleet(folder) as fleet:` runs several routers of the cap that ops/k8s has. Any number of pods is made of
    them, as pods that get equally many requests show alike numbers: they take turns in which router each one shows, and
    at which moment.
    """

    def __init__(self, folder: Path, routers: int = 3) -> None:
        latency_ms = round(LATENCY_S * 1000)
        given: dict[str, Any] = {"MAX_CONCURRENCY": CAP, "SIMULATED_LATENCY_MS": latency_ms, "ACCESS_LOG": "off"}
        faster = ("-c", "tests/autoscaling/gunicorn_conf.py")
        self._routers = [Router(folder, options=faster, **given) for _ in range(routers)]
        self._stack = ExitStack()
        self._known: dict[float, list[Sample]] = {}

    def __enter__(self) -> Self:
        with self._stack:
            for router in self._routers:
                self._stack.callback(router.stop)
                router.launch()
            for router in self._routers:
                until(router.ready, "every router is ready")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def pods(self, count: int, offered: float) -> list[Sample]:
        """What `count` pods show that share as many requests as would be in progress at once if none were rejected."""
        each = offered / count
        if each not in self._known:
            self._known[each] = self._measure(each)
        shown = self._known[each]
        return [shown[pod % len(shown)] for pod in range(count)]

    def _measure(self, offered: float) -> list[Sample]:
        """Have every router get so many requests at once, and scrape it several times while it does.

        A busy machine may delay the requests, and the load is then another one. It is measured again in that case.
        """
        for _ in range(TRIES):
            samples, late = self._try_to_measure(offered)
            if late < LATE:
                break
        return samples

    def _try_to_measure(self, offered: float) -> tuple[list[Sample], float]:
        """Returns what the routers showed, and the share of the requests that came too late, in the worst load."""
        loads = [_Load(router.port, offered / LATENCY_S) for router in self._routers]
        try:
            for load in loads:
                load.await_steady()
            before = [router.metrics() for router in self._routers]
            time.sleep(WINDOW_S + MEASURED_EACH_S)  # from here on, the demand is that of this load alone
            scraped = []
            for _ in range(SCRAPES):
                time.sleep(LATENCY_S / SCRAPES)  # a bit apart
                scraped.append([router.metrics() for router in self._routers])
        finally:
            for load in loads:
                load.stop()
        samples = [
            _sample(old, now, last)
            for pages in scraped
            for old, now, last in zip(before, pages, scraped[-1], strict=True)
        ]
        return samples, max(load.late() for load in loads)


def _sample(before: Page, now: Page, last: Page) -> Sample:
    rejected, ended = (
        total(last, name) - total(before, name) for name in ("router_rejected_requests_total", "router_requests_total")
    )
    inflight, demand = (total(now, name) for name in ("router_inflight_requests", "router_demand_requests"))
    return Sample(inflight, demand, rejected / ended if ended else 0.0)


class _Load:
    """Requests at even distances, whether those before them have ended or not."""

    _BODY = b'{"prompt": "p"}'
    _REQUEST = (
        b"POST /infer HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n" + _BODY
    )

    def __init__(self, port: int, per_second: float) -> None:
        self._port = port
        self._distance_s = 1 / per_second
        self._began = time.monotonic()
        self._numbers = itertools.count()
        self._delays_s: list[float] = []
        self._stopped = threading.Event()
        self._served = threading.Event()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(CONNECTIONS)]
        for thread in self._threads:
            thread.start()

    def await_steady(self) -> None:
        """Return when the first request has been served: from then on, as many end as begin."""
        assert self._served.wait(20)

    def late(self) -> float:
        """Returns the share of the requests that were sent when others of their time were half done."""
        return sum(delay_s > LATENCY_S / 2 for delay_s in self._delays_s) / len(self._delays_s)

    def stop(self) -> None:
        """Return when no request is in progress any more."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(20)

    def _send(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=20) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            due = self._due()
            while not self._stopped.wait(max(0.0, due - time.monotonic())):
                self._delays_s.append(time.monotonic() - due)
                connection.sendall(self._REQUEST)
                if _read_response(connection).startswith(b"HTTP/1.1 200"):
                    self._served.set()
                due = self._due()

    def _due(self) -> float:
        return self._began + next(self._numbers) * self._distance_s


def _read_response(connection: socket.socket) -> bytes:
    """A response that names its length; the router's are short."""
    response = connection.recv(65536)
    head, _, body = response.partition(b"\r\n\r\n")
    (length,) = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < length:
        more = connection.recv(65536)
        assert more, "the router closed the connection"
        body += more
    return head
