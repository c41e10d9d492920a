"""Secrets: none is in the memory that all processes share, none is told, and those of model servers may be rotated."""

import re
import signal
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization

from tests.support.certificates import LOOPBACK, Made, certificate, pem_of, write_pair
from tests.support.clients import CHAT, Crowd, ask_every_worker, chat
from tests.support.command_line import run
from tests.support.credentials import AUDIENCE, ISSUER, bearer, digest_of, key, write_keys
from tests.support.ports import free_port
from tests.support.process_memory import found_in_memory
from tests.support.router import Router, until
from tests.support.scripted_server import ScriptedServer, answer_and_close
from tests.support.start import run_to_exit
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
Routes = Callable[..., str]

OF_ENV, OF_FILE, OF_CLIENT = "secret-of-the-variable", "secret-of-the-file", "ir-secret-of-a-client"
OF_OPERATOR, OF_TOKENS = "ir-secret-of-the-operator", "secret-that-tokens-are-signed-with"
SECOND = "a-second-credential"  # which is nowhere else in the memory of a process
RELOADS = 'router_routes_reloads_total{{result="{}"}}'
QUIET = {"health_check": {"interval_s": 0}, "ejection": {"max_share": 0}, "retry_budget": 0}
ADMIN_PATHS = ("/metrics", "/admin/config", "/admin/routes", "/admin/endpoints", "/admin/queue", "/admin/requests")


def put(file: Path, text: str) -> str:
    """Replace a file by a rename, as it should be done. Returns its path."""
    beside = file.with_name(f"{file.name}.new")
    beside.write_text(text)
    beside.replace(file)
    return str(file)


def tokens(router: Router, upstream: Upstream) -> set[str]:
    """The credentials that a model server gets of every worker."""
    upstream.reset(upstream.answer)
    assert {status for status, _ in ask_every_worker(router, CHAT, '{"model": "m"}')} == {200}
    return {seen.headers.get("authorization", "none").removeprefix("Bearer ") for seen in upstream.seen}


def server_of(*accepted: str) -> Callable[[Seen, Reply], None]:
    """A model server that accepts these credentials."""

    def answer(seen: Seen, reply: Reply) -> None:
        token = seen.headers.get("authorization", "none").removeprefix("Bearer ")
        reply.send(200 if token in accepted else 401)

    return answer


@pytest.fixture
def keeping(start: Start, serve: Serve, routes: Routes, tmp_path: Path) -> tuple[Router, Upstream, Path]:
    """A router of the model m, its model server, and the file of its credential, which is `first`."""
    upstream, file = serve(), tmp_path / "token"
    path = routes({"name": "m", "endpoints": [{"url": upstream.url, "credential_file": put(file, "first")}], **QUIET})
    return start(ROUTES_FILE=path), upstream, file


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


def tls_of(authority: Made, folder: Path) -> ssl.SSLContext:
    """That of a model server which wants a certificate of this authority, and has one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_pair(folder, "server", certificate("server", LOOPBACK, authority)))
    context.load_verify_locations(cadata=pem_of(authority).decode())
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Secretive:
    """The settings of a router with secrets of every kind, all of them in `secrets`, and how it is asked with them."""

    def __init__(
        self, folder: Path, upstream: Upstream, authority: Made, server: ScriptedServer, routes: Routes
    ) -> None:
        made = certificate("router", [], authority, leaf=True)
        files = write_pair(folder, "client", made)
        (folder / "ca.crt").write_bytes(pem_of(authority))
        tls = {"ca_file": folder / "ca.crt", "client_cert_file": files[0], "client_key_file": files[1]}
        self.token = jwt.encode({"iss": ISSUER, "aud": AUDIENCE, "exp": 1 << 34, "sub": "t"}, OF_TOKENS, "HS256")
        key_lines = files[1].read_text().splitlines()[1:-1]
        der = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        signature = self.token.rpartition(".")[2]
        texts = (OF_ENV, OF_FILE, OF_CLIENT, OF_OPERATOR, OF_TOKENS, signature, *key_lines)
        self.secrets = {*(text.encode() for text in texts), made[1].private_bytes(*der)[-40:]}
        secure = {"url": f"https://127.0.0.1:{server.port}", **{name: str(file) for name, file in tls.items()}}
        self.admin_port = free_port()
        self.settings: dict[str, Any] = {
            "ROUTES_FILE": routes(
                {"name": "env", "endpoints": [{"url": upstream.url, "credential_env": "TOKEN_OF_ENV"}]},
                {"name": "file", "endpoints": [{"url": upstream.url, "credential_file": put(folder / "t", OF_FILE)}]},
                {"name": "tls", "endpoints": [secure]},
            ),
            "TOKEN_OF_ENV": OF_ENV,
            "KEYS_FILE": write_keys(folder / "keys.json", key(OF_CLIENT, "tenant-of-the-client")),
            "ADMIN_BIND": f"127.0.0.1:{self.admin_port}",
            "ADMIN_KEY_SHA256": digest_of(OF_OPERATOR),
            "JWT_ISSUER": ISSUER,
            "JWT_AUDIENCE": AUDIENCE,
            "JWT_ALGORITHMS": "HS256",
            "JWT_HMAC_KEY_FILE": put(folder / "hmac", OF_TOKENS),
            "KV_ENDPOINTS": f"redis://user:{OF_ENV}@h",
            "LOG_LEVEL": "debug",
            "ACCESS_LOG": "all",
        }

    def use_all(self, router: Router) -> str:
        """Ask with and for every secret, in every worker. Returns all that was responded."""
        told = []
        with ExitStack() as opened:
            for session in [opened.enter_context(requests.Session()) for _ in range(6)]:
                for model, status in (("env", 200), ("file", 200), ("tls", 200), ("none", 404)):
                    for secret, expected in ((OF_CLIENT, status), (self.token, status), (f"{OF_CLIENT}-more", 401)):
                        got = session.post(router.url + CHAT, json={"model": model}, headers=bearer(secret), timeout=20)
                        assert got.status_code == expected, got.text
                        told.append(f"{got.headers} {got.text}")
                for path in ADMIN_PATHS:
                    url = f"http://127.0.0.1:{self.admin_port}{path}"
                    got = session.get(url, headers=bearer(OF_OPERATOR), timeout=20)
                    assert got.status_code == 200, path
                    told.append(got.text)
        return "\n".join(told)


def test_no_secret_is_in_shared_memory_or_told(start: Start, serve: Serve, routes: Routes, tmp_path: Path) -> None:
    """Credentials, keys, passwords, tokens and what they are verified with: not in any memory that processes share, and
    not in a log, a response, a metric, an admin page, or what `check` prints. What is public is found there."""
    upstream = serve(server_of(OF_ENV, OF_FILE))
    authority = certificate("authority", [])
    with ScriptedServer(answer_and_close(OK), tls=tls_of(authority, tmp_path)) as server:
        secretive = Secretive(tmp_path, upstream, authority, server, routes)
        router = start(**secretive.settings)
        told = secretive.use_all(router)
        sent = {seen.headers["authorization"] for seen in upstream.seen}
        assert sent == {f"Bearer {OF_ENV}", f"Bearer {OF_FILE}"}, "they are used"
        put(tmp_path / "t", f"{OF_FILE}-2")
        upstream.answer = server_of(OF_ENV, OF_FILE, f"{OF_FILE}-2")
        until(lambda: "credentials read again" in router.log(), "it is read again")
        told += secretive.use_all(router)
        public = {upstream.url.encode(), b"TOKEN_OF_ENV", str(tmp_path / "t").encode(), b"tenant-of-the-client"}
        for pid in (router.pid, *router.workers()):
            assert found_in_memory(pid, secretive.secrets | public, shared=True) == public
        assert OF_FILE.encode() in found_in_memory(router.pid, {OF_FILE.encode()}, shared=False), "it looks well"
    checked = run("check", environ=secretive.settings)
    assert checked.code == 0, checked.err
    for text in (told, router.log(), checked.out + checked.err):
        assert not {secret for secret in secretive.secrets if secret.decode(errors="replace") in text}
    for file in tmp_path.glob("metrics-*/*"):
        assert not {secret for secret in secretive.secrets if secret in file.read_bytes()}


def test_rotation_under_load_loses_nothing(keeping: tuple[Router, Upstream, Path]) -> None:
    """Five rotations, the model server accepting old and new until every client's worker sends the new one: all 200."""
    router, upstream, file = keeping
    latest: dict[str, str] = {}
    accepted = {"first"}

    def answer(seen: Seen, reply: Reply) -> None:
        token = latest[seen.headers["x-client"]] = seen.headers.get("authorization", "none").removeprefix("Bearer ")
        reply.send(200 if token in accepted else 401)

    upstream.answer = answer
    stopped, outcomes = threading.Event(), Counter[int]()

    def load(client: int) -> None:
        with requests.Session() as session:  # one connection, so one worker
            session.headers["X-Client"] = str(client)
            while not stopped.is_set():
                outcomes[session.post(router.url + CHAT, json={"model": "m"}, timeout=30).status_code] += 1

    def sends(turn: int) -> bool:
        return set(latest.values()) == {f"token-{turn}"} and router.metrics()[RELOADS.format("ok")] == turn + 1

    crowd = Crowd(load).send(8)
    try:
        until(lambda: len(latest) == 8, "every client is served")
        for turn in range(5):
            accepted.add(f"token-{turn}")
            put(file, f"token-{turn}")
            until(partial(sends, turn), "every worker sends the new one, and the leader has counted it")
            accepted.intersection_update({f"token-{turn}"})  # one step: a request in between would find none
        file.unlink()
        until(lambda: "routes refused" in router.log(), "it is noticed")
        accepted.add("last")
        asked = len(upstream.seen)
        upstream.wait_seen(asked + 50)
        put(file, "last")
        until(lambda: set(latest.values()) == {"last"}, "every worker sends the new one")
    finally:
        stopped.set()
        crowd.join()
    assert set(outcomes) == {200}
    assert not crowd.errors
    until(lambda: router.metrics()[RELOADS.format("ok")] == 6, "the last one is counted too")
    assert router.metrics()[RELOADS.format("refused")] == 1


def test_new_workers_send_the_last_credential_that_was_there(keeping: tuple[Router, Upstream, Path]) -> None:
    """It was rotated, then its file was removed, then every worker was killed: the new ones have it of the arbiter."""
    router, upstream, file = keeping
    put(file, SECOND)
    until(lambda: found_in_memory(router.pid, {SECOND.encode()}, shared=False), "the arbiter has read it")
    file.unlink()
    killed = router.workers()
    for pid in killed:
        router.signal(signal.SIGKILL, pid)
    until(lambda: len(router.workers()) == 2 and not set(killed) & set(router.workers()) and router.ready(), "new ones")
    assert tokens(router, upstream) == {SECOND}
    put(file, "third")
    until(lambda: tokens(router, upstream) == {"third"}, "they read the file when it is there again")


def test_no_request_is_sent_without_the_credential(start: Start, serve: Serve, routes: Routes, tmp_path: Path) -> None:
    """A worker that has never been able to read it: 503 that says so, a line in the log, and other models are served.
    Once it is there, so are the requests."""
    upstream, file = serve(), tmp_path / "token"
    plain = {"name": "plain", "endpoints": [upstream.url], **QUIET}
    router = start(ROUTES_FILE=routes(plain), WEB_CONCURRENCY=1)
    router.signal(signal.SIGSTOP)  # the arbiter, which would read it otherwise
    held = {"url": f"{upstream.url}/held", "credential_file": put(file, "first")}
    routes(plain, {"name": "m", "endpoints": [held], **QUIET})
    until(lambda: chat(router, "m").status_code == 200, "it is served")
    file.unlink()
    (worker,) = router.workers()
    router.signal(signal.SIGKILL, worker)
    router.signal(signal.SIGCONT)
    until(lambda: router.workers() not in ([], [worker]) and router.ready(), "another worker")
    upstream.reset(upstream.answer)
    answer = chat(router, "m")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_endpoint")
    assert "could not read the credential" in answer.json()["error"]["message"]
    assert chat(router, "plain").status_code == 200
    assert [seen.path for seen in upstream.seen] == [CHAT]
    lines = [line for line in router.events() if line["event"] == "this worker sends no request to endpoints"]
    assert [line["endpoints"] for line in lines] == [[held["url"]]]
    assert re.search(f"{file}: can't be read: No such file", lines[0]["reason"])
    put(file, "second")
    until(lambda: chat(router, "m").status_code == 200, "it is served again")
    assert tokens(router, upstream) == {"second"}


def test_upgrade_of_a_program_that_publishes_credentials_is_refused() -> None:
    """USR2 from a release whose shared memory holds them: the two would not understand one another's routes."""
    upgrade = run_to_exit({}, {}, before="import app.bootstrap; app.bootstrap.DOCUMENT_FORMAT = ''")
    assert upgrade.returncode != 0
    assert "shared memory has another layout, another form of routes" in upgrade.stderr
    assert "restart instead" in upgrade.stderr
    assert "Traceback" not in upgrade.stderr
