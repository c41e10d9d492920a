"""/healthz and /metrics, in a thread of their own: a blocked event loop must not look alive."""

import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _SilentHandler(WSGIRequestHandler):
    timeout = 10  # seconds that a client may take

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the base class
        """Probes and scrapes are not logged."""


def serve(host: str, port: int, illness: Callable[[], str | None]) -> tuple[str, Callable[[], None]]:
    """Returns the address, and what ends the serving. `illness` returns why the process is to be restarted, or None."""
    metrics = make_wsgi_app()

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return cast(Iterable[bytes], metrics(environ, start_response))
        ill = illness() if path == "/healthz" else None
        status = "404 Not Found" if path != "/healthz" else "503 Service Unavailable" if ill else "200 OK"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{ill or status}\n".encode()]

    server = make_server(host, port, application, _ServerV6 if ":" in host else _Server, _SilentHandler)
    threading.Thread(target=server.serve_forever, name="web", daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return f"{host}:{server.server_port}", stop
