"""gunicorn.conf.py with one of the router's tricks or parts left out, the one that TRICK names.

TRICK=fast_path gunicorn -c python:tests.bench.without
"""

import os
from pathlib import Path

_CONFIGURATION = Path(__file__).parents[2] / "gunicorn.conf.py"
exec(compile(_CONFIGURATION.read_text(), str(_CONFIGURATION), "exec"))  # first: it patches the standard library

import gc  # noqa: E402
import socket  # noqa: E402
import ssl  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

from app.admission.limiter import Limiter  # noqa: E402
from app.api import dispatch, relay  # noqa: E402
from app.api.exchange import Exchange  # noqa: E402
from app.observability.metric_cells import Count, Distribution  # noqa: E402
from app.server import client_connection  # noqa: E402
from app.server.fast_path import FastPath  # noqa: E402
from app.server.pacing import RequestPacer  # noqa: E402
from app.upstream import dialer  # noqa: E402


class GeventsOwn:
    """In the place of TimedSocket: gevent's socket, which tries first, and makes a Timeout for each wait."""

    def __init__(self, sock: Any) -> None:
        if not isinstance(sock, (socket.socket, ssl.SSLSocket)):  # to a model server, not gevent's yet
            sock = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.sock = sock
        self.close = sock.close

    def recv(self, size: int, timeout_s: float) -> bytes:
        self.sock.settimeout(timeout_s)
        data: bytes = self.sock.recv(size)
        return data

    def send(self, data: bytes | memoryview, timeout_s: float) -> int:
        self.sock.settimeout(timeout_s)
        sent: int = self.sock.send(data)
        return sent

    def send_now(self, data: bytes | memoryview) -> int:
        return self.send(data, 60)


def _timed_sockets() -> None:
    _put(client_connection, "TimedSocket", GeventsOwn)
    _put(dialer, "TimedSocket", GeventsOwn)


def _metric_cells() -> None:
    _put(Count, "inc", lambda self: self._child.inc())
    _put(Distribution, "observe", lambda self, amount: self._child.observe(amount))


def _no_cycles() -> None:
    init = Exchange.__init__

    def init_and_hold(exchange: Any, environ: dict[str, Any]) -> None:
        init(exchange, environ)
        exchange.environ = environ  # which holds the exchange

    _put(Exchange, "__init__", init_and_hold)


def _frozen() -> None:
    _put(gc, "freeze", lambda: None)


def _pacing() -> None:
    _put(RequestPacer, "wait_for_turn", lambda self: None)


def _fast_path() -> None:
    _put(FastPath, "environ_of", lambda *_: None)


def _put(owner: Any, name: str, other: object) -> None:
    setattr(owner, name, other)


def _metrics() -> None:
    _put(Count, "inc", lambda self: None)
    _put(Distribution, "observe", lambda self, amount: None)


def _limiter() -> None:
    class Free:
        def release(self, served: bool = True) -> None:
            """There is nothing to give back."""

    _put(Limiter, "request", lambda self: Free())


def _signals() -> None:
    _put(relay, "meter_of", lambda *_: None)
    _put(relay, "count_whole", lambda *_: None)
    _put(
        dispatch.Dispatcher,
        "admit",
        lambda self, exchange, model, version="": (
            exchange.admit(self.limiter, self.queue_timeout_s, model.limit) or model
        ),
    )


TRICKS: dict[str, Callable[[], None]] = {
    "fast_path": _fast_path,
    "timed_sockets": _timed_sockets,
    "metric_cells": _metric_cells,
    "no_cycles": _no_cycles,
    "frozen": _frozen,
    "pacing": _pacing,
    "metrics": _metrics,
    "limiter": _limiter,
    "signals": _signals,
    "all": lambda: None,
}
TRICKS[os.environ["TRICK"]]()
