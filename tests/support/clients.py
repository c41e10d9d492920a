"""Clients: many at once, a thread each, started together and joined before the test goes on; and bare sockets."""

import fcntl
import select
import socket
import termios
import threading
from array import array
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar

import requests

from tests.support.router import Router, open_files, until

CHAT = "/v1/chat/completions"
T = TypeVar("T")


class Crowd:
    """Runs `ask` in a thread per client and keeps what it returned, or the exception's name, by client number."""

    def __init__(self, ask: Callable[[int], Any]) -> None:
        self._ask = ask
        self._threads: list[threading.Thread] = []
        self.answers: dict[int, Any] = {}
        self.errors: list[requests.RequestException] = []

    def send(self, count: int) -> "Crowd":
        """Start `count` more clients."""
        first = len(self._threads)
        fresh = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(first, first + count)]
        self._threads += fresh
        for thread in fresh:
            thread.start()
        return self

    def join(self, seconds: float = 60) -> "Crowd":
        """Wait for all of them; fail if one is still waiting after `seconds`."""
        for thread in self._threads:
            thread.join(seconds)
            assert not thread.is_alive(), "a client is still waiting for its answer"
        return self

    def counts(self) -> Counter[Any]:
        """How many clients got which answer."""
        return Counter(self.answers.values())

    def _run(self, number: int) -> None:
        try:
            self.answers[number] = self._ask(number)
        except requests.RequestException as error:
            self.answers[number] = type(error).__name__
            self.errors.append(error)


def raw_request(port: int, prompt: str = "hello", head: str = "", body: bytes | None = None) -> socket.socket:
    """A connection on which a POST /infer was sent and nothing read."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    payload = f'{{"prompt": "{prompt}"}}'.encode() if body is None else body
    sock.sendall(f"POST /infer HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Everything until the server closes; a server that cuts the connection is an error."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


def read_to_end(sock: socket.socket) -> bytes:
    """Everything until the server closes or cuts."""
    data = b""
    try:
        while chunk := sock.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def readable(sock: socket.socket, seconds: float) -> bool:
    """Whether something can be read, or the end of it, within so long."""
    poller = select.poll()  # select() fails beyond descriptor 1,024
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def chat(router: Router, model: str | None = "m", headers: dict[str, str] | None = None, **members: Any) -> Any:
    """A chat completion through the router."""
    body = {"messages": [{"role": "user", "content": "hi"}], **members}
    if model is not None:
        body["model"] = model
    return requests.post(router.url + CHAT, json=body, headers=headers, timeout=30)


def unread_bytes(sock: socket.socket) -> int:
    """How much of what this client sent the router has not read, or not even got (tcp(7))."""
    on_the_way = array("i", [0])
    fcntl.ioctl(sock, termios.TIOCOUTQ, on_the_way)
    side = _routers_side(sock)
    assert side, "there is no such connection"
    return int(side[4].rpartition(":")[2], 16) + on_the_way[0]


def _routers_side(sock: socket.socket) -> list[str]:
    """What the kernel says of this connection's other end (proc(5), /proc/net/tcp); nothing if it is gone."""
    ports = sock.getpeername()[1], sock.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if tuple(int(end.rpartition(":")[2], 16) for end in fields[1:3]) == ports:
            return fields
    return []


def of_every_worker(router: Router, begin: Callable[[ExitStack], tuple[socket.socket, T]]) -> list[T]:
    """What connections give that are opened, and stay open, until each worker has accepted one.

    `begin` opens one, and returns it when the router has responded to it. One that a worker has closed does not count.
    """
    found: list[T] = []
    accepted: set[int] = set()

    def all_have_one() -> bool:
        sock, given = begin(opened)
        found.append(given)
        workers = set(router.workers())
        with suppress(OSError):  # it was reset
            names = {f"socket:[{inode}]" for inode in _routers_side(sock)[9:10]}
            accepted.update(pid for pid in workers - accepted if names & open_files(pid))
        return workers <= accepted

    with ExitStack() as opened:
        until(all_have_one, "each worker has accepted a connection")
    return found


def ask_every_worker(router: Router, path: str, body: str | None = None, port: int = 0) -> list[tuple[int, str]]:
    """Status and content of responses of every worker: GET, or POST with this body; `port` is not the router's own."""

    def begin(opened: ExitStack) -> tuple[socket.socket, tuple[int, str]]:
        connection = HTTPConnection("127.0.0.1", port or router.port, timeout=20)
        opened.callback(connection.close)
        connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read().decode()
        assert connection.sock, "the connection is not kept"
        return connection.sock, (response.status, content)

    return of_every_worker(router, begin)
