"""The gunicorn worker: gevent, with a drain that neither waits for idle connections nor breaks busy ones.

It differs from gunicorn's own gevent worker in these points. (gunicorn's parser and response still serve every unusual
request, see `request_parser.py`. HTTP/2 and h2c are not supported.)
- **The ordinary request** is read and answered by `fast_path.py`.
- **Drain.** When the worker stops, a connection that is being served ends after its response, which then says
  `Connection: close`. Idle connections end at once, with exceptions: one that was opened or answered within the
  last half second, whose next request may be on its way, and one on which a request has begun to arrive
  (`client_connection.py`), or a TLS handshake (`tls_handshake.py`). The worker exits as soon as none is left.
- **Accepting during a drain.** A worker that makes way for another one stops accepting at once. When the whole server
  drains, workers with requests in progress go on accepting, so that `/readyz` can return 503; the application rejects
  new requests.
- **TLS** has its own files, which are read again when they change (`tls_handshake.py`); gunicorn's options for TLS
  still work.
- **Pacing.** Only so many requests may begin in one cycle of the event loop (`pacing.py`). GET and HEAD, the methods of
  probes and scrapes, are not paced.

Handlers that still have a request when the drain ends are stopped, which releases what they hold.
"""

import errno
import os
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import gevent
from gevent.event import Event
from gevent.server import StreamServer
from gevent.socket import wait_read
from gunicorn import http
from gunicorn.http import wsgi
from gunicorn.http.message import Request as GunicornRequest
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from app.errors import ClientGone, RouterError
from app.net.peer_address import unmapped
from app.server import listeners, malformed
from app.server.client_connection import NO_FACTS, ClientConnection, Facts, RequestBody, Response, State
from app.server.fast_path import FastPath, Request, ResponseWriter
from app.server.lingering import Lingering
from app.server.pacing import RequestPacer
from app.server.request_parser import StrictParser
from app.server.tls_handshake import Handshake, after_handshake
from app.server.worker_context import WorkerContext

_HEARTBEAT_S = 1.0
_DRAIN_STEP_S = 0.05
_UNPACED_METHODS = ("GET", "HEAD")


class RouterWorker(GeventWorker):
    """See the module's opening lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._context = WorkerContext()
        self._connections: set[ClientConnection | Handshake] = set()
        self._connection_ended = Event()
        self._pacer: RequestPacer
        self._fast_path: FastPath
        self._lingering: Lingering
        self._idle_s = 0.0

    def enter(self, context: WorkerContext) -> None:
        """Take over the context of the server. Called once, after the fork and before `run`."""
        self._context = context

    def patch(self) -> None:
        """Wrap the listeners for gevent. gunicorn.conf.py has patched the standard library already."""
        self.sockets = [
            gevent.socket.socket(s.FAMILY, socket.SOCK_STREAM, fileno=s.sock.detach()) for s in self.sockets
        ]

    def run(self) -> None:
        """Serve until the worker is told to stop, then drain."""
        self._pacer = RequestPacer()
        self._fast_path = FastPath(self.cfg, self._context.script_name)
        self._idle_s = float(self.cfg.keepalive or self._context.stall_timeout_s)
        self._lingering = Lingering(self.worker_connections)
        servers = [
            listeners.serve(
                listener,
                self._handler_at(listeners.server_address(listener)),
                self.worker_connections,
                self._context.connection_counts,
            )
            for listener in self.sockets
        ]
        while not self._stops():  # it may stop at once: it was told to before it could (stop_signals.py)
            self.notify()
            self._context.upkeep()
            self._sleep_until_signal(_HEARTBEAT_S)
        self.alive = False
        self._drain(servers)

    def _sleep_until_signal(self, seconds: float) -> None:
        """Sleep, at the longest until a signal arrives: gunicorn has Python write a byte to PIPE for each."""
        try:
            wait_read(self.PIPE[0], timeout=seconds, timeout_exc=TimeoutError())
            os.read(self.PIPE[0], 4096)
        except (TimeoutError, BlockingIOError):
            pass

    def _drain(self, servers: list[StreamServer]) -> None:
        """Wait for the requests in progress, at most the graceful timeout; then cut off what still runs or arrives."""
        deadline = time.monotonic() + (self._context.graceful_timeout_s or self.cfg.graceful_timeout)
        if self._context.server_drains():
            # Go on accepting for probes. Their connections do not keep this worker alive, requests do.
            self._wait_while(deadline, lambda connection: connection.is_busy())
        listeners.close(servers, self._context.connection_counts)
        self._wait_while(deadline, lambda connection: connection.expects_request())
        busy = sum(connection.is_busy() for connection in self._connections)
        if busy:
            self.log.warning("graceful timeout: %d requests are cut off (pid %s)", busy, self.pid)
        if any(connection.has_request() for connection in self._connections):  # also one that has stopped arriving
            listeners.cut_off(servers)
        self._context.before_exit(max(0.0, deadline - time.monotonic()))

    def _wait_while(self, deadline: float, holds: Callable[[ClientConnection | Handshake], bool]) -> None:
        """Wait until `holds` is false for every connection, and end those that are idle."""
        while any(holds(connection) for connection in self._connections) and time.monotonic() < deadline:
            for connection in list(self._connections):
                if not connection.expects_request():
                    connection.end()
            self._connection_ended.clear()
            self._connection_ended.wait(_DRAIN_STEP_S)
            self.notify()

    def _handler_at(self, address: Any) -> Callable[[Any, Any], None]:
        """Returns what serves the connections that are accepted at this address."""
        current = self._context.tls_at(address)
        if self.cfg.is_ssl:
            gunicorns = ssl_context(self.cfg)
            current = lambda: gunicorns  # noqa: E731
        if current is None:
            return partial(self.handle, address)
        serve = after_handshake(self.handle, current, self._context, self._connections, self._answer_malformed)
        return partial(serve, address)

    def handle(self, listener: Any, client: Any, addr: Any, facts: Facts = NO_FACTS) -> None:
        """Serve one connection, from accept to close.

        `listener` is the address that it was accepted at: the listening socket may be closed by now. `facts` is what
        the environs say of the connection beside that.
        """
        addr = (unmapped(addr[0]), *addr[1:]) if isinstance(addr, tuple) else addr
        connection = ClientConnection(client, self._context.stall_timeout_s, facts)
        self._connections.add(connection)
        base = self._fast_path.environ_of(connection, listener, addr)
        data, rest, keep = b"", b"", True
        try:
            while keep and (data := rest or connection.first_bytes(self._idle_s)):
                request = None if base is None else self._fast_path.parse(connection, base, data)
                if request is None:
                    keep, rest = self._serve_unusual(connection, data, listener, addr)
                else:
                    keep, rest = self._serve_ordinary(connection, request)
                connection.enter(State.IDLE)
        except (StopIteration, TimeoutError, ssl.SSLError, http.errors.NoMoreData, ClientGone, gevent.GreenletExit):
            pass
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                self.log.exception("Socket error processing request.")
        except Exception as error:
            self._answer_malformed(connection, addr, error, malformed.origin_in(data), data)
        finally:
            connection.close()
            self._connections.discard(connection)
            self._connection_ended.set()

    def _serve_ordinary(self, connection: ClientConnection, request: Request) -> tuple[bool, bytes]:
        """Serve a request that the fast path has parsed.

        Returns whether the connection is kept, and the bytes that the client sent after the request.
        """
        connection.enter(State.SERVING)  # before the pacer may wait: a drain would take the connection for idle
        if request.environ["REQUEST_METHOD"] not in _UNPACED_METHODS:
            self._pacer.wait_for_turn()
        connection.set_read_deadline(self._context.upload_timeout_s)
        self._count_request()
        response = ResponseWriter(connection, request, self._stops, self._fast_path)
        try:
            response.send(self.wsgi)
        except OSError:
            raise  # the client went away: `handle` knows which kinds to ignore
        except Exception as error:
            if response.headers_sent:
                self._cut_off(response, connection, error)
                return False, b""
            raise
        if not request.body.finished():
            self._lingering.discard(connection, request.body.unread())
        return response.keep, request.body.rest

    def _serve_unusual(self, connection: ClientConnection, data: bytes, listener: Any, addr: Any) -> tuple[bool, bytes]:
        """Serve any other request, with gunicorn's parser and response. Returns what `_serve_ordinary` returns."""
        if connection.parser is None:
            connection.parser = StrictParser(self.cfg, connection, addr)
        parser = connection.parser
        parser.unreader.unread(data)
        connection.enter(State.READING)
        connection.set_read_deadline(self._context.stall_timeout_s)
        try:
            request = next(parser)
        except http.errors.ParseException as error:
            # `data` may be only the beginning of the head; the parser has left all of it in its unreader.
            data = parser.unreader.take_buffered()
            self._answer_malformed(connection, addr, error, malformed.origin_in(data), data)
            return False, b""
        # A PROXY line comes once, before the first request, and describes the whole connection.
        connection.proxied = request.proxy_protocol_info = request.proxy_protocol_info or connection.proxied
        connection.enter(State.SERVING)
        if request.method not in _UNPACED_METHODS:
            self._pacer.wait_for_turn()
        try:
            keep = self.handle_request(listener, request, connection, addr)
        except (OSError, ClientGone, gevent.GreenletExit):
            raise
        except Exception as error:
            line = f"{request.method} {request.uri} ".encode(errors="replace")
            self._answer_malformed(connection, addr, error, dict(request.headers).get("ORIGIN", ""), line)
            return False, b""
        return keep and parser.finish_body(), parser.unreader.take_buffered()

    def _count_request(self) -> None:
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            os.write(self.PIPE[1], b"\0")  # wakes `run`

    def handle_request(self, listener_name: Any, req: GunicornRequest, sock: ClientConnection, addr: Any) -> bool:
        """Serve one request of gunicorn's parser. Returns whether the connection can take another one."""
        sock.set_read_deadline(self._context.upload_timeout_s)
        environ: dict[str, Any] = {}
        response = None
        continue_first, req._expected_100_continue = req._expected_100_continue, False
        try:
            self.cfg.pre_request(self, req)
            response, environ = wsgi.create(req, sock, addr, listener_name, self.cfg, Response, (self._stops,))
            environ.update(sock.facts)
            body = environ["wsgi.input"] = response.request_body = RequestBody(req, sock, continue_first)
            environ["wsgi.multithread"] = True
            self._count_request()
            response.send(self.wsgi, environ)
        except OSError:
            raise  # the client went away: `handle` knows which kinds to ignore
        except Exception as error:
            if response is None or not response.headers_sent:
                raise
            self._cut_off(response, sock, error)
            return False
        finally:
            try:
                self.cfg.post_request(self, req, environ, response)
            except Exception:
                self.log.exception("Exception in post_request hook")
        if not body.finished():
            self._lingering.discard(sock, body.unread())
        return not response.should_close()

    def _cut_off(self, response: Response | ResponseWriter, connection: ClientConnection, error: Exception) -> None:
        """End a connection whose response failed after its head was sent, so that it does not look complete."""
        if isinstance(error, RouterError):
            self.log.warning("a response broke off; its connection is cut: %s", error)
        else:
            self.log.error("Error in mid-response; the connection is cut", exc_info=error)
        if response.ends_with_connection():
            connection.reset()

    def _answer_malformed(
        self, connection: ClientConnection, addr: Any, error: Exception, origin: str, line: bytes
    ) -> None:
        """Respond to a request that never reached the application, or that it failed on.

        `origin` is that of the page that sent it, or "". The request began with `line`.
        """
        status = malformed.status_of(error)
        detail = malformed.detail_of(status, error)
        if status is HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log.error("Error handling request", exc_info=error)
        else:
            self._context.log_malformed(addr[0] if isinstance(addr, tuple) else "", status.value, detail)
        try:
            more, form = self._context.cross_origin_fields(origin), malformed.form_for(line)
            connection.sendall(malformed.response(status, detail, more, form))
            self._lingering.discard(connection, None)
        except OSError:
            pass  # the client did not wait for it

    def _stops(self) -> bool:
        return not self.alive or self._context.server_drains()
