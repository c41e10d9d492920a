"""An HTTP server in threads of the test's process: how it starts and ends. What it does is its handler's."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up at any moment."""


class QuietConnections:
    """What a handler of these tests is, beside what it does: it keeps connections open, and logs nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body would wait for the head's acknowledgement, which is delayed

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class HttpServer:
    """Serves while it is entered, on a free port of the loopback interface or on `port`."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0, host: str = "127.0.0.1") -> None:
        self.server = _Server((host, port), handler)
        self.port: int = self.server.server_address[1]
        self.url = f"http://{host}:{self.port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(5)
