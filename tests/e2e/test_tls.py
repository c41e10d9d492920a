"""TLS of the listeners: who gets in, under which name, with which files, and what a bad handshake costs others."""

import contextlib
import datetime as dt
import json
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509

from app.server.client_connection import IDLE_GRACE_S
from tests.support.certificates import Made, certificate, key_of, pem_of
from tests.support.clients import ask_every_worker, read_to_end
from tests.support.ports import free_port
from tests.support.router import until
from tests.support.tls_router import TlsRouter

pytestmark = pytest.mark.slow

ECHO = "tests.support.echo_wsgi:application"
NAME = "router.client_certificate_name"
SPIFFE = x509.UniformResourceIdentifier("spiffe://cluster.test/ns/team-a/sa/chat")


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRouter]:
    """A router that shows what requests are given, and whose clients need a certificate."""
    router = TlsRouter(tmp_path_factory.mktemp("mutual"), ECHO, mutual=True, WEB_CONCURRENCY=1)
    with router:
        yield router


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRouter]:
    """A router of two workers whose clients need a certificate, with its metrics on a port without TLS."""
    admin = f"127.0.0.1:{free_port()}"
    router = TlsRouter(tmp_path_factory.mktemp("tls"), mutual=True, ADMIN_BIND=admin, STALL_TIMEOUT_S=5)
    with router:
        yield router


def _samples(page: str) -> dict[str, float]:
    """What a page of metrics says of TLS."""
    lines = [line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("router_tls")]
    return {name: float(value) for name, value in lines}


class Watched:
    """A router, and what it counts and logs from now on."""

    def __init__(self, router: TlsRouter) -> None:
        self.router = router
        self._before = self._page()
        self._lines = len(router.events())

    def _page(self) -> dict[str, float]:
        page = requests.get(f"http://{self.router._env['ADMIN_BIND']}/metrics", timeout=10).text
        return _samples(page)

    def counted(self) -> dict[str, float]:
        """What was counted of TLS, by the value of the label."""
        page = self._page()
        return {
            name.split('"')[1]: page[name] - was
            for name, was in self._before.items()
            if name.split("{")[0].endswith("_total") and page[name] != was
        }

    def has_counted(self, **counts: float) -> bool:
        """Whether this was counted, and nothing else."""
        return self.counted() == counts

    def serves(self, made: Made) -> bool:
        """Whether new connections get this certificate, of whichever worker."""
        return self.served() == {pem_of(made)}

    def shows(self, made: Made) -> bool:
        """Whether the metrics say when this certificate expires."""
        name = f'router_tls_certificate_not_after_timestamp_seconds{{file="{self.router.secret}/tls.crt"}}'
        return self._page()[name] == made[0].not_valid_after_utc.timestamp()

    def stale(self) -> set[float]:
        """What each worker says of whether older files are in use."""
        name = f'router_tls_files_stale{{file="{self.router.secret}/tls.crt"}}'
        pages = ask_every_worker(self.router, "/metrics", port=int(self.router._env["ADMIN_BIND"].rpartition(":")[2]))
        return {_samples(page)[name] for _, page in pages}

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The lines of the log about this event."""
        return [line for line in self.router.events()[self._lines :] if line.get("event") == event]

    def served(self) -> set[bytes]:
        """The certificates that new connections get."""
        return self.router.served()


@pytest.fixture
def tls(running: TlsRouter) -> Watched:
    """It, as if nothing had happened before: both workers use the files that are there."""
    until(lambda: running.served() == {(running.secret / "tls.crt").read_bytes()}, "both have the same certificate")
    watched = Watched(running)
    until(lambda: watched.stale() == {0}, "both know that it is the newest")
    return watched


def see(router: TlsRouter, client: tuple[str, str] | None, **request: Any) -> Any:
    """What a request of this client is given."""
    with router.session() as session:
        return session.post(f"{router.url}/x", cert=client, timeout=10, **request).json()


@pytest.mark.parametrize("body", [{"data": b"x"}, {"data": iter([b"x"])}], ids=["ordinary", "chunked"])
def test_name_in_the_clients_certificate_reaches_the_application(mutual: TlsRouter, body: Any) -> None:
    """The first URI among its alternative names, or the first DNS name, or the common name; no header can say it."""
    named = certificate("cn", [x509.DNSName("a.test"), SPIFFE, x509.DNSName("b.test")], mutual.authority)
    dns = certificate("cn", [x509.DNSName("a.test"), x509.DNSName("b.test")], mutual.authority)
    for client, name in (
        (mutual.client("named", named), SPIFFE.value),
        (mutual.client("dns", dns), "a.test"),
        (mutual.client("team-b"), "team-b"),
    ):
        kwargs = {"data": iter([b"x"])} if not isinstance(body["data"], bytes) else body
        saw = see(mutual, client, headers={NAME.replace(".", "-"): "forged", "Router_Client": "forged"}, **kwargs)
        assert (saw[NAME], saw["wsgi.url_scheme"]) == (name, "https")


def test_curl_and_openssl_are_served(mutual: TlsRouter) -> None:
    """Clients of other makes get in with their certificate, and TLS 1.1 does not."""
    files = mutual.client_files
    assert files is not None
    curl = ["curl", "--silent", "--fail", "--cacert", str(mutual.ca_file), "--cert", files[0], "--key", files[1]]
    for more in ([], ["--tls-max", "1.2"], ["--http2"], ["--http1.0"]):
        done = subprocess.run([*curl, *more, f"{mutual.url}/x"], capture_output=True, check=False, timeout=20)
        assert json.loads(done.stdout)[NAME] == "probe", done
    old = subprocess.run([*curl, "--tls-max", "1.1", "--tlsv1.0", f"{mutual.url}/x"], check=False, timeout=20)
    assert old.returncode


def test_end_of_a_response_without_a_length_is_announced(mutual: TlsRouter) -> None:
    """A client that takes an unannounced end of TLS for an attack gets the whole response of HTTP/1.0."""
    context = mutual.context()
    assert mutual.client_files is not None
    context.load_cert_chain(*mutual.client_files)
    with socket.create_connection(("127.0.0.1", mutual.port), timeout=10) as plain:
        wrapped = context.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
        wrapped.sendall(b"GET /chunked HTTP/1.0\r\n\r\n")
        assert read_to_end(wrapped).endswith(b"three")
        wrapped.close()


def resumed(router: TlsRouter, context: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSession | None:
    """Ask with this session, and end the connection in order, as sessions are kept by then. Returns one if resumed."""
    with (
        socket.create_connection(("127.0.0.1", router.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as wrapped,
    ):
        wrapped.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        if not read_to_end(wrapped).startswith(b"HTTP/1.1 200 "):
            raise ConnectionError("no response")
        made = wrapped.session if wrapped.session_reused or session is None else None
        wrapped.unwrap().close()
        return made


def of_tls_1_2(router: TlsRouter, name: str, made: Made) -> ssl.SSLContext:
    """The context of a client of TLS 1.2 with this certificate, which resumes sessions by their id."""
    context = router.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(*router.client(name, made))
    return context


def test_resumed_session_ends_with_the_clients_certificate(mutual: TlsRouter) -> None:
    """OpenSSL does not verify its certificate again; one that expired since is refused, and the session forgotten."""
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=6)
    context = of_tls_1_2(mutual, "short", certificate("short", [], mutual.authority, leaf=True, until=ends))
    session = resumed(mutual, context, None)
    assert resumed(mutual, context, session) is not None, "this is how a session is resumed"
    until(lambda: dt.datetime.now(dt.UTC) > ends + dt.timedelta(seconds=1), "it has expired")
    with pytest.raises(OSError, match=r"EOF|reset|no response"):
        resumed(mutual, context, session)
    with pytest.raises(ssl.SSLError, match="ALERT_CERTIFICATE_EXPIRED"):
        resumed(mutual, context, session)


def test_resumed_session_ends_with_the_authority_of_the_client(mutual: TlsRouter) -> None:
    """No session outlives the files that it was begun with: a client whom the new authority does not know is out."""
    context = of_tls_1_2(mutual, "old", certificate("old", [], mutual.authority, leaf=True))
    sessions = [resumed(mutual, context, None)]
    assert resumed(mutual, context, sessions[0]) is not None

    def is_refused() -> bool:
        try:
            resumed(mutual, context, sessions[0])
        except ssl.SSLError as error:
            return "ALERT_UNKNOWN_CA" in str(error)
        return False

    mutual.mount(mutual.new_certificate(), ca=pem_of(certificate("authority", [])))
    try:
        until(is_refused, "it is out")
    finally:
        mutual.mount(mutual.new_certificate())
        until(mutual.ready, "it is as before")


def test_certificate_alone_is_a_credential(tmp_path: Path) -> None:
    """Its name is the tenant. Without one, in the certificate or for want of TLS, a request for a model gets 401."""
    admin = f"127.0.0.1:{free_port()}"
    router = TlsRouter(tmp_path, mutual=True, ADMIN_BIND=admin, ACCESS_LOG="all", WEB_CONCURRENCY=1)
    with router:
        nameless = certificate("", [], router.authority, leaf=True)
        with router.session() as session:
            for client, status in ((router.client("team-b"), 200), (router.client("nameless", nameless), 401)):
                asked = session.post(f"{router.url}/infer", json={"prompt": "x"}, cert=client, timeout=10)
                assert asked.status_code == status
        assert requests.post(f"http://{admin}/infer", json={"prompt": "x"}, timeout=10).status_code == 401

        def logged() -> list[dict[str, Any]]:
            return [line for line in router.events() if line.get("path") == "/infer"]

        until(lambda: len(logged()) == 3, "a response is there before its line")
        assert [line.get("tenant") for line in logged()] == ["team-b", None, None]
        assert logged()[0]["credential"] == "certificate"
        assert not [line for line in router.events() if "authentication is off" in str(line.get("event"))]


# Handshakes that fail.


def is_served(router: TlsRouter, made: Made | None) -> bool:
    """Whether a client with this certificate, or none, gets a response."""
    context = router.context()
    if made is not None:
        context.load_cert_chain(*router.client("other", made))
    try:
        with (
            socket.create_connection(("127.0.0.1", router.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
        ):
            wrapped.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")  # in TLS 1.3 the client learns of it only now
            return bool(wrapped.recv(1))
    except OSError:
        return False


def test_clients_without_an_accepted_certificate_get_nothing(tls: Watched) -> None:
    """No certificate, an expired one, and one of another authority: each is counted and logged, once."""
    authority = tls.router.authority
    cases: tuple[tuple[Made | None, str], ...] = (
        (None, "the client shows no certificate"),
        (certificate("late", [], authority, leaf=True, expired=True), "has expired"),
        (certificate("other", [], certificate("stranger", []), leaf=True), "is not accepted: "),
    )
    for number, (made, _) in enumerate(cases, 1):
        assert not is_served(tls.router, made)
        until(partial(tls.has_counted, certificate=number), "it is counted")
    until(lambda: len(tls.logged("TLS handshake failed")) == len(cases), "it is logged")
    for line, (_, detail) in zip(tls.logged("TLS handshake failed"), cases, strict=True):
        assert detail in line["detail"]
        assert line["client"] == "127.0.0.1"
    assert is_served(tls.router, certificate("good", [], authority, leaf=True))


@pytest.mark.parametrize("sent", [b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"\0\1\2"], ids=["HTTP", "garbage"])
def test_plain_request_to_the_tls_port_is_told_so(tls: Watched, sent: bytes) -> None:
    """What is not TLS gets a 400 in plain text and one line in the log; the admin listener takes plain requests."""
    with socket.create_connection(("127.0.0.1", tls.router.port), timeout=10) as sock:
        sock.sendall(sent)
        response = read_to_end(sock)
    assert response.startswith(b"HTTP/1.1 400 ")
    assert b"without TLS to a port that takes TLS only" in response
    until(lambda: tls.logged("malformed request"), "it is logged")
    assert len(tls.logged("malformed request")) == 1
    assert not tls.logged("TLS handshake failed")
    assert tls.counted() == {"plain_http": 1}


def test_handshakes_that_stop_hold_up_nobody(tls: Watched) -> None:
    """With 200 connections in their handshake, others are served meanwhile; each is given up after STALL_TIMEOUT_S."""
    stuck = [socket.create_connection(("127.0.0.1", tls.router.port), timeout=20) for _ in range(200)]
    for number, sock in enumerate(stuck):
        sock.sendall((b"", b"\x16", b"\x16\x03\x01\x02\x00\x01")[number % 3])
    with tls.router.session() as session:
        assert session.post(f"{tls.router.url}/infer", json={"prompt": "p"}, timeout=10).status_code == 200
    assert tls.counted() == {}, "those were still waiting"
    for sock in stuck:
        assert read_to_end(sock) == b""
        sock.close()
    until(lambda: tls.counted() == {"timeout": 200}, "all are counted")


def test_connection_that_only_opens_and_closes_is_no_failure(tls: Watched) -> None:
    """Load balancers look so whether a port is open, every few seconds: nothing is logged or counted."""
    for _ in range(10):
        socket.create_connection(("127.0.0.1", tls.router.port), timeout=10).close()
    assert all(tls.router.ready() for _ in range(4))
    assert (tls.logged("TLS handshake failed"), tls.counted()) == ([], {})


class SlowHandshake:
    """A client that has begun a handshake, and ends it when it is told to."""

    def __init__(self, router: TlsRouter) -> None:
        self.plain = socket.create_connection(("127.0.0.1", router.port), timeout=10)
        self._read, self._written = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = router.context().wrap_bio(self._read, self._written, server_hostname="127.0.0.1")
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self.plain.sendall(self._written.read())
        self._read.write(self.plain.recv(16384))  # the worker has begun it too

    def __enter__(self) -> "SlowHandshake":
        return self

    def __exit__(self, *_: object) -> None:
        self.plain.close()

    def finish_and_ask(self) -> bytes:
        """End the handshake, and send a request. Returns what comes first of the response."""
        self._tls.do_handshake()
        self._tls.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        self.plain.sendall(self._written.read())
        while received := self.plain.recv(16384):
            self._read.write(received)
            with contextlib.suppress(ssl.SSLWantReadError):
                return self._tls.read()
        return b""


def refuses(port: int) -> bool:
    """Whether nobody listens at this port any more."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionRefusedError:
        return True
    return False


def test_worker_that_stops_waits_for_handshakes(tmp_path: Path) -> None:
    """A client that had just connected is served, also when its handshake takes longer than an idle connection may."""
    router = TlsRouter(tmp_path, WEB_CONCURRENCY=1)
    with router, SlowHandshake(router) as client:
        begun = time.monotonic()
        router.signal(signal.SIGTERM)
        until(lambda: refuses(router.port), "the worker accepts no more")
        until(lambda: time.monotonic() - begun > IDLE_GRACE_S + 0.1, "an idle connection would have ended")
        assert client.finish_and_ask().startswith(b"HTTP/1.1 200 ")
        assert router.wait_exit() == 0


def test_handshake_that_never_ends_holds_up_no_drain(tmp_path: Path) -> None:
    """The worker waits for it a few seconds, and not as long as a handshake may take, nor a request in progress."""
    router = TlsRouter(tmp_path, WEB_CONCURRENCY=1, GRACEFUL_TIMEOUT_S=120, STALL_TIMEOUT_S=120)
    with router, SlowHandshake(router):
        router.signal(signal.SIGTERM)
        assert router.wait_exit(60) == 0


# The files.


def test_replaced_certificate_is_used_by_all_workers_and_breaks_no_request(tls: Watched) -> None:
    """A Secret that changes under load: new connections get the new certificate, and no request fails meanwhile."""
    router, done = tls.router, threading.Event()
    statuses: list[object] = []

    def client() -> None:
        with router.session() as session:
            while not done.is_set():
                try:
                    statuses.append(session.post(f"{router.url}/infer", json={"prompt": "p"}, timeout=10).status_code)
                except requests.RequestException as error:
                    statuses.append(repr(error))

    with router.session() as kept:
        kept.headers["Connection"] = "keep-alive"
        assert kept.get(f"{router.url}/healthz", timeout=10).status_code == 200
        clients = [threading.Thread(target=client) for _ in range(4)]
        for thread in clients:
            thread.start()
        try:
            for count in (1, 2):
                made = router.new_certificate()
                router.mount(made)
                until(partial(tls.serves, made), "every worker has it")
                until(partial(tls.has_counted, ok=count), "it is counted")
                until(partial(tls.shows, made), "its end is shown")
                asked = len(statuses)
                until(lambda asked=asked: len(statuses) > asked + 10, "requests are sent all the while")  # type: ignore[misc]
        finally:
            done.set()
            for thread in clients:
                thread.join(20)
        assert kept.get(f"{router.url}/healthz", timeout=10).status_code == 200
    assert set(statuses) == {200}
    until(lambda: len(tls.logged("TLS files loaded again")) == 2, "both are logged")


def test_clients_authority_is_replaced_too(tls: Watched) -> None:
    """Who was let in by the old authority is not by the new one."""
    router, other = tls.router, certificate("authority", [])
    old, new = certificate("old", [], router.authority, leaf=True), certificate("new", [], other, leaf=True)
    assert (is_served(router, old), is_served(router, new)) == (True, False)
    made, last = router.new_certificate(), router.new_certificate()
    router.mount(made, ca=pem_of(other))
    try:
        until(lambda: router.served(router.client("new", new)) == {pem_of(made)}, "every worker has read the files")
        assert {(is_served(router, old), is_served(router, new)) for _ in range(8)} == {(False, True)}
    finally:
        router.mount(last)
    until(partial(tls.serves, last), "every worker has read them again")
    assert {(is_served(router, old), is_served(router, new)) for _ in range(8)} == {(True, False)}


@pytest.mark.parametrize("broken", ["tls", "key", "ca"])
def test_broken_files_change_nothing(tls: Watched, broken: str) -> None:
    """The last good files stay in use, which is logged and counted once; the next good ones are used."""
    (before,) = tls.served()
    assert tls.stale() == {0}
    tls.router.mount(tls.router.new_certificate(), **{broken: b"-----BEGIN CERTIFICATE-----\n"})
    until(lambda: tls.logged("TLS files refused; the old ones stay in use"), "it is logged")
    until(lambda: tls.stale() == {1}, "the metrics of every worker say it")
    assert tls.served() == {before}
    made = tls.router.new_certificate()
    tls.router.mount(made)
    until(partial(tls.serves, made), "they are used")
    until(lambda: tls.counted() == {"ok": 1, "refused": 1}, "both are counted")
    until(lambda: tls.stale() == {0}, "all is well again")
    (line,) = tls.logged("TLS files refused; the old ones stay in use")
    assert str(tls.router.secret) in line["reason"]


def test_worker_that_is_forked_later_has_the_newest_files(tls: Watched) -> None:
    """What was loaded at the start is not what a successor begins with."""
    router, made = tls.router, tls.router.new_certificate()
    router.mount(made)
    until(partial(tls.serves, made), "every worker has it")
    former = router.workers()
    for pid in former:
        router.signal(signal.SIGKILL, pid)
    until(lambda: len(set(router.workers()) - set(former)) == 2 and router.ready(), "there are others")
    assert tls.served() == {pem_of(made)}


def test_worker_that_is_forked_while_files_are_broken_says_so_too(tls: Watched) -> None:
    """It begins with the files of before, as the arbiter has them, and shows that they are not those on disk."""
    router = tls.router
    router.mount(router.new_certificate(), key=b"")
    until(lambda: tls.stale() == {1}, "the workers have seen it")
    former = router.workers()
    for pid in former:
        router.signal(signal.SIGKILL, pid)
    until(lambda: len(set(router.workers()) - set(former)) == 2 and router.ready(), "there are others")
    assert tls.stale() == {1}
    router.mount(router.new_certificate())
    until(lambda: tls.stale() == {0}, "the new files are in use")


def test_router_does_not_start_with_an_encrypted_key(tmp_path: Path) -> None:
    """Files that can't be used end the start with one line, and nobody is asked for a password."""
    router = TlsRouter(tmp_path)
    made = router.new_certificate()
    router.mount(made, key=key_of(made, b"secret"))
    router.launch()
    assert router.wait_exit() == 1
    (line,) = router.log().splitlines()
    assert line.startswith("router: TLS_CERT_FILE=")
    assert "the key is encrypted" in line
