"""TLS to endpoints: whom the router trusts, who it is, and what happens when the files change."""

import json
import signal
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509

from tests.support.certificates import LOOPBACK, Made, certificate, key_of, mount_secret, pem_of, write_pair
from tests.support.clients import ask_every_worker
from tests.support.router import Router, until
from tests.support.scripted_server import Peer, ScriptedServer, answer_and_close

pytestmark = pytest.mark.slow

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
NAMED: list[x509.GeneralName] = [x509.DNSName("llama.internal.test")]

Start = Callable[..., Router]


class Authority:
    """An authority of model servers and of their clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = certificate("authority", [])

    def server(self, hosts: list[x509.GeneralName], *, mutual: bool = False) -> ssl.SSLContext:
        """The context of a model server for these hosts; `mutual`: it serves none but this authority's clients."""
        files = write_pair(self.folder, "server", certificate("server", hosts, self.made))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        if mutual:
            context.load_verify_locations(cadata=pem_of(self.made).decode())
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self) -> Made:
        """A certificate of the router."""
        return certificate("router", [], self.made, leaf=True)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """One for everything in a test."""
    return Authority(tmp_path / "made")


def serve_for_ever(peer: Peer) -> None:
    """Answer whatever comes, as long as the client stays."""
    while True:
        try:
            peer.read_request()
        except (AssertionError, OSError):
            return
        peer.send(OK)


@pytest.fixture
def listed(routes: Callable[..., str]) -> Callable[..., str]:
    """Writes a routes file with one endpoint, which is never checked and never ejected; returns its path."""

    def write(port: int, **endpoint: object) -> str:
        given = {"url": f"https://127.0.0.1:{port}", **endpoint}
        quiet: dict[str, Any] = {
            "health_check": {"interval_s": 0},
            "ejection": {"max_share": 0},
        }
        return routes({"name": "m", "endpoints": [given], "retry_budget": 0, **quiet})

    return write


def status(router: Router) -> int:
    """The status of one request."""
    return requests.post(f"{router.url}/v1/chat/completions", json=CHAT, timeout=20).status_code


def statuses(router: Router) -> set[int]:
    """Those of requests to every worker."""
    return {status for status, _ in ask_every_worker(router, "/v1/chat/completions", json.dumps(CHAT))}


def published(router: Router) -> list[Any]:
    """The lines of the log about routes that were published."""
    return [line for line in router.events() if line.get("event") == "routes published"]


def more_are_published(router: Router, before: int) -> bool:
    """Whether the routes were published more often than that."""
    return len(published(router)) > before


def test_endpoint_is_reached_by_its_authority_its_name_and_our_certificate(
    start: Start, listed: Callable[..., str], authority: Authority, tmp_path: Path
) -> None:
    """`ca_file`, `server_name` and `client_cert_file` are what this endpoint needs; without one it is not reached."""
    secret = tmp_path / "secret"
    mine = authority.client()
    mount_secret(secret, {"ca.crt": pem_of(authority.made), "tls.crt": pem_of(mine), "tls.key": key_of(mine)})
    everything = {
        "ca_file": str(secret / "ca.crt"),
        "client_cert_file": str(secret / "tls.crt"),
        "client_key_file": str(secret / "tls.key"),
        "server_name": "llama.internal.test",
    }
    with ScriptedServer(serve_for_ever, tls=authority.server(NAMED, mutual=True)) as server:
        router = start(ROUTES_FILE=listed(server.port, **everything), WEB_CONCURRENCY=1)
        assert status(router) == 200
        for without in (["ca_file"], ["server_name"], ["client_cert_file", "client_key_file"]):
            before = len(published(router))
            listed(server.port, **{name: value for name, value in everything.items() if name not in without})
            until(partial(more_are_published, router, before), "they are read")
            assert status(router) == 502, without
        listed(server.port, **everything)
        until(lambda: status(router) == 200, "it is reached again, by new connections")
        router.signal(signal.SIGTERM)
        router.wait_exit()


def test_endpoints_files_are_read_again_when_they_change(
    start: Start, listed: Callable[..., str], authority: Authority, tmp_path: Path
) -> None:
    """A new authority is trusted soon after it comes; a broken file leaves the old one, and is logged once."""
    secret, stranger = tmp_path / "secret", certificate("stranger", [])
    mount_secret(secret, {"ca.crt": pem_of(stranger)})
    with ScriptedServer(answer_and_close(OK), tls=authority.server(LOOPBACK)) as server:
        router = start(ROUTES_FILE=listed(server.port, ca_file=str(secret / "ca.crt")))
        assert statuses(router) == {502}
        mount_secret(secret, {"ca.crt": pem_of(authority.made)})
        until(lambda: statuses(router) == {200}, "every worker trusts it")
        mount_secret(secret, {"ca.crt": b"broken"})
        until(lambda: router.metrics()['router_tls_reloads_total{result="refused"}'] == 1, "it is counted")
        assert statuses(router) == {200}
        until(lambda: "TLS files refused" in router.log(), "it is logged")
        assert router.log().count("TLS files refused") == 1
        router.signal(signal.SIGTERM)
        router.wait_exit()


def test_new_workers_have_the_files_of_before_while_those_on_disk_are_broken(
    start: Start, listed: Callable[..., str], authority: Authority, tmp_path: Path
) -> None:
    """Also of an endpoint that the routes did not have when the arbiter began, and of files replaced since then."""
    secret, stranger = tmp_path / "secret", certificate("stranger", [])
    mount_secret(secret, {"ca.crt": pem_of(stranger)})
    with ScriptedServer(answer_and_close(OK), tls=authority.server(LOOPBACK)) as server:
        router = start(ROUTES_FILE=listed(server.port))
        listed(server.port, ca_file=str(secret / "ca.crt"))
        until(lambda: published(router), "they are read")
        mount_secret(secret, {"ca.crt": pem_of(authority.made)})
        until(lambda: statuses(router) == {200}, "every worker trusts it")
        former = router.workers()
        router.signal(signal.SIGKILL, former[0])  # the arbiter has read the files by the time of each fork
        until(lambda: len(set(router.workers()) | set(former)) > len(former), "there is a successor")
        mount_secret(secret, {"ca.crt": b"broken"})
        former = router.workers()
        router.signal(signal.SIGHUP)
        until(lambda: not set(router.workers()) & set(former) and router.ready(), "there are others")
        assert statuses(router) == {200}
        router.signal(signal.SIGTERM)
        router.wait_exit()


def test_health_checks_use_the_endpoints_tls(start: Start, routes: Callable[..., str], authority: Authority) -> None:
    """An endpoint is as healthy as it is reachable for requests: checks trust the same authority."""
    ca_file = authority.folder.parent / "ca.crt"
    ca_file.write_bytes(pem_of(authority.made))
    with ScriptedServer(serve_for_ever, tls=authority.server(LOOPBACK)) as server:
        url = f"https://127.0.0.1:{server.port}"
        router = start(ROUTES_FILE=routes({"name": "m", "endpoints": [{"url": url, "ca_file": str(ca_file)}]}))
        assert router.metrics()[f'router_endpoint_up{{endpoint="{url}"}}'] == 1
        router.signal(signal.SIGTERM)
        router.wait_exit()
