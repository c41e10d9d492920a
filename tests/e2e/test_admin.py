"""The admin API of real workers: records, explanations, endpoints, drains, and who may use it."""

import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from tests.support.clients import CHAT, Crowd, read_to_end
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Unix = Callable[[str], tuple[str, int]]
JSON = {"Content-Type": "application/json"}
CONNECTIONS = 12
"""More than there are workers: the workers share connections evenly, so each has some."""


class Admin:
    """The admin API of a router, by connections to all of its workers."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/admin"
        self._sessions = [requests.Session() for _ in range(CONNECTIONS)]
        barrier = threading.Barrier(CONNECTIONS)
        Crowd(lambda number: (barrier.wait(), self._ask(number, "/queue"))).send(CONNECTIONS).join()

    def _ask(self, number: int, path: str) -> Any:
        answer = self._sessions[number].get(f"{self.url}{path}", timeout=20)
        return answer.json() if answer.status_code == 200 else answer.status_code

    def get(self, path: str) -> Any:
        """What one worker returns: the document, or the status of an error."""
        return self._ask(0, path)

    def of_all(self, path: str) -> list[Any]:
        """What the workers return, by every connection."""
        return [self._ask(number, path) for number in range(CONNECTIONS)]

    def explained(self, request_id: str) -> dict[str, Any]:
        """The record of a request, the same from every worker. A client has its response before it is written."""
        until(lambda: self.get(f"/requests/{request_id}") != 404, "the record is written")
        first, *others = ({**each, "time": ""} for each in self.of_all(f"/requests/{request_id}"))
        assert all(other == first for other in others)
        return first

    def endpoint(self, url: str) -> dict[str, Any]:
        """The endpoint of this URL."""
        (found,) = [each for each in self.get("/endpoints")["endpoints"] if each["url"] == url]
        return dict(found)

    def change(self, url: str, verb: str, **headers: str) -> requests.Response:
        """Drain or undrain the endpoint of this URL."""
        path = f"{self.url}/endpoints/{self.endpoint(url)['id']}/{verb}"
        return requests.post(path, headers={**JSON, **headers}, timeout=20)

    def close(self) -> None:
        for session in self._sessions:
            session.close()


@pytest.fixture
def admin_of(start: Start) -> Iterator[Callable[..., tuple[Router, Admin]]]:
    """Starts a router with an admin listener."""
    with ExitStack() as stack:

        def begin(**settings: Any) -> tuple[Router, Admin]:
            port = free_port()
            router = start(ADMIN_BIND=f"127.0.0.1:{port}", **settings)
            admin = Admin(port)
            stack.callback(admin.close)
            return router, admin

        yield begin


AdminOf = Callable[..., tuple[Router, Admin]]


def chat(router: Router, request_id: str = "", **members: Any) -> requests.Response:
    """A chat completion."""
    headers = {"X-Request-Id": request_id} if request_id else {}
    body = {"model": "m", "messages": [], **members}
    return requests.post(router.url + CHAT, json=body, headers=headers, timeout=60)


def routes(folder: Path, *models: dict[str, Any]) -> str:
    """The path of a routes file."""
    file = folder / "routes.json"
    fresh = folder / "fresh.json"
    fresh.write_text(json.dumps({"models": models}))
    fresh.rename(file)
    return str(file)


def model(*urls: str, **members: Any) -> dict[str, Any]:
    """A model without health checks."""
    return {"name": "m", "endpoints": urls, "health_check": {"interval_s": 0}, **members}


class Holding(Upstream):
    """A model server that holds what asks to be held until `leave` is set."""

    def __init__(self) -> None:
        super().__init__(self._hold)
        self.leave = threading.Event()

    def _hold(self, seen: Seen, reply: Reply) -> None:
        if b"hold" in seen.body:
            assert self.leave.wait(30)
        reply.send()


def test_any_worker_explains_the_requests_of_all(tmp_path: Path, admin_of: AdminOf) -> None:
    """Served, queued in vain and rejected: whichever worker served a request, every worker has its record and says
    which limit it met, how full that was, who was ahead, and how long it waited."""
    with Holding() as upstream:
        router, admin = admin_of(
            ROUTES_FILE=routes(tmp_path, model(upstream.url)),
            WEB_CONCURRENCY=3,
            MAX_CONCURRENCY=2,
            QUEUE_SIZE=2,
            QUEUE_TIMEOUT_MS=5000,  # another request is rejected long before
        )
        clients = Crowd(lambda number: chat(router, f"inside-{number}", user="hold").status_code).send(2)
        upstream.wait_seen(2)
        queued = Crowd(lambda number: chat(router, f"queued-{number}").status_code).send(2)
        until(lambda: admin.get("/queue")["queued"] == 2, "two requests wait")
        rejected = chat(router, "rejected")
        assert rejected.status_code == 429
        full = {"limit_scope": "router", "limit": 2, "in_flight": 2, "ahead": 2, "expected_wait_ms": None}
        assert full.items() <= rejected.json()["error"].items()
        for queue in admin.of_all("/queue"):
            assert (queue["limit"], queue["in_flight"], queue["queue_size"]) == (2, 2, 2)
            assert queue["models"][0]["in_flight"] == 2
        record = admin.explained("rejected")
        assert full.items() <= record.items()
        assert record["explanation"] == (
            "rejected: the router had 2 of 2 in flight (MAX_CONCURRENCY), 2 requests were ahead, expected wait unknown"
        )
        assert queued.join().counts() == {429: 2}
        records = [admin.explained(f"queued-{number}") for number in range(2)]
        assert sorted(record["ahead"] for record in records) == [0, 1]
        for record in records:
            assert (record["rejection"], record["in_flight"], record["limit"]) == ("queue_timeout", 2, 2)
            assert record["queue_ms"] >= 5000
        upstream.leave.set()
        assert clients.join().counts() == {200: 2}
        assert {admin.explained(f"inside-{number}")["outcome"] for number in range(2)} == {"served"}
    listed = [each["request_id"] for each in admin.get("/requests?rejected=true")["requests"]]
    assert sorted(listed) == ["queued-0", "queued-1", "rejected"]
    assert listed[-1] == "rejected"  # it ended first: the newest stand in front
    assert "rejected" not in {each["request_id"] for each in admin.get("/requests?slow=4")["requests"]}
    assert len(admin.get("/requests?limit=2")["requests"]) == 2
    assert admin.get("/requests/nobody") == 404


def test_records_outlive_their_worker(admin_of: AdminOf) -> None:
    """Every worker is SIGKILLed after it has served: its successors have the records of its requests."""
    router, admin = admin_of(SIMULATED_LATENCY_MS=0)
    ids = [f"before-{number}" for number in range(20)]
    barrier = threading.Barrier(len(ids))

    def ask(number: int) -> int:
        barrier.wait()
        return router.infer(headers={"X-Request-Id": ids[number]}).status_code

    assert Crowd(ask).send(len(ids)).join().counts() == {200: len(ids)}
    until(lambda: {each["request_id"] for each in admin.get("/requests")["requests"]} >= set(ids), "all are recorded")
    old = router.workers()
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(router.workers()) == 2 and not set(router.workers()) & set(old), "there are new workers")
    fresh = Admin(int(admin.url.split(":")[2].split("/")[0]))
    try:
        assert router.infer(headers={"X-Request-Id": "after"}).status_code == 200
        until(lambda: fresh.get("/requests/after") != 404, "the new request is recorded")
        for listed in fresh.of_all("/requests?limit=1000"):
            assert {each["request_id"] for each in listed["requests"]} >= {*ids, "after"}
    finally:
        fresh.close()


def test_request_whose_worker_was_killed_has_no_record_and_the_answer_says_so(admin_of: AdminOf) -> None:
    """It never ended, so nobody wrote one; its permit is back."""
    router, admin = admin_of(SIMULATED_LATENCY_MS=60_000, WEB_CONCURRENCY=1)

    def ask(_: int) -> str:
        try:
            return str(router.infer(headers={"X-Request-Id": "killed"}).status_code)
        except requests.ConnectionError:
            return "broken off"

    crowd = Crowd(ask).send(1)
    until(lambda: admin.get("/queue")["in_flight"] == 1, "it is inside")
    (victim,) = router.workers()
    os.kill(victim, signal.SIGKILL)
    assert crowd.join().counts() == {"broken off": 1}
    until(lambda: router.workers() not in ([], [victim]), "there is a new worker")
    answer = requests.get(f"{admin.url}/requests/killed", timeout=20)
    assert (answer.status_code, "its worker was killed" in answer.json()["detail"]) == (404, True)
    assert requests.get(f"{admin.url}/queue", timeout=20).json()["in_flight"] == 0


def test_limit_of_a_model_is_told_from_the_cap(tmp_path: Path, admin_of: AdminOf) -> None:
    """In each form of errors a 429 says whose limit it was and how full, and so does the record."""
    with Holding() as upstream:
        file = routes(
            tmp_path,
            model(upstream.url, max_concurrency=1),
            model(upstream.url, name="v", protocol="v2", max_concurrency=1),
        )
        router, admin = admin_of(ROUTES_FILE=file)
        v2 = f"{router.url}/v2/models/v/infer"
        clients = Crowd(lambda number: chat(router, user="hold").status_code).send(1)
        others = Crowd(lambda number: requests.post(v2, json={"inputs": ["hold"]}, timeout=60).status_code).send(1)
        upstream.wait_seen(2)
        full = {"limit_scope": "model", "limit": 1, "in_flight": 1, "ahead": 0, "expected_wait_ms": None}
        openai = chat(router, "of-openai")
        messages = requests.post(
            f"{router.url}/v1/messages", json={"model": "m", "messages": [], "max_tokens": 1}, timeout=20
        )
        problem = requests.post(v2, json={"inputs": []}, timeout=20)
        for status, body in (
            (openai.status_code, openai.json()["error"]),
            (messages.status_code, messages.json()["error"]),
            (problem.status_code, problem.json()),
        ):
            assert status == 429
            assert full.items() <= body.items()
        assert admin.explained("of-openai")["explanation"] == (
            "rejected: model m had 1 of 1 in flight, expected wait unknown"
        )
        upstream.leave.set()
        assert clients.join().counts() == others.join().counts() == {200: 1}


def test_retried_request_shows_every_attempt_and_why_others_were_out(tmp_path: Path, admin_of: AdminOf) -> None:
    """A request that the first endpoint refuses: its record has both attempts, and why the choice was what it was."""
    with Upstream(lambda seen, reply: reply.send(503, Retry_After="30")) as refusing, Upstream() as serving:
        router, admin = admin_of(ROUTES_FILE=routes(tmp_path, model(refusing.url, serving.url)))
        ids = [f"r{number}" for number in range(4)]
        assert [chat(router, request_id).status_code for request_id in ids] == [200] * 4
        records = [admin.explained(request_id) for request_id in ids]
        retried = next(record for record in records if len(record["attempts"]) == 2)
        assert [(each["endpoint"], each["outcome"]) for each in retried["attempts"]] == [
            (refusing.url, "503"),
            (serving.url, "200"),
        ]
        out = {each["endpoint"]: each["out"] for each in retried["candidates"]}
        assert out == {refusing.url: "tried before", serving.url: None}
        assert f"{refusing.url} gave 503" in retried["explanation"]
        avoided = records[-1]
        assert {each["endpoint"]: each["out"] for each in avoided["candidates"]} == {
            refusing.url: "backing off",
            serving.url: None,
        }
        endpoint = admin.endpoint(refusing.url)
        assert endpoint["last_error"]["text"] == "it responded with 503"
        assert admin.endpoint(serving.url)["last_error"] is None
        assert (avoided["policy"], avoided["pool_size"]) == ("least_inflight", 2)


def test_fallback_and_a_stream_that_is_cut_are_explained(tmp_path: Path, admin_of: AdminOf) -> None:
    """Which model was asked for and why another one served; that the response broke off, not that it was a 502.

    The ids are of all the characters that a client may choose.
    """

    def cut(seen: Seen, reply: Reply) -> None:
        reply.begin()
        reply.chunk(b"data: {}\n\n")
        reply.raw(b"")

    dead = f"http://127.0.0.1:{free_port()}"
    with Upstream(cut) as cutting, Upstream() as serving:
        served = (model(cutting.url), model(serving.url, name="b"), model(dead, name="a", fallback=["b"]))
        router, admin = admin_of(ROUTES_FILE=routes(tmp_path, *served))
        assert chat(router, "a/b//c=/../+@~:", model="a").status_code == 200
        for request_id in ("a/b//c=/../+@~:", quote("a/b//c=/../+@~:", safe="")):
            found = as_it_is_written(admin, request_id)
            assert (found["asked_model"], found["model"], found["fallback"]) == ("a", "b", "upstream_unreachable")
            assert "as a fallback, b got it in place of a (upstream_unreachable)" in found["explanation"]
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            chat(router, "cut")
        record = admin.explained("cut")
        assert (record["outcome"], record["error"]) == ("failed", None)
        assert "the response was cut off in the middle" in record["explanation"]
        assert admin.explained("cut")["attempts"][0]["outcome"] == "upstream_broken"


def as_it_is_written(admin: Admin, request_id: str) -> Any:
    """The record of a request, by a path that the client does not change, once it is written."""
    request = requests.Request("GET", admin.url).prepare()
    request.url = f"{admin.url}/requests/{request_id}"
    answers: list[requests.Response] = []
    with requests.Session() as session:

        def is_there() -> bool:
            answers.append(session.send(request, timeout=20))
            return answers[-1].status_code == 200

        until(is_there, "the record is written")
    return answers[-1].json()


def test_ejected_endpoint_says_why_and_until_when(tmp_path: Path, admin_of: AdminOf) -> None:
    """The state of an endpoint that fails, the same from every worker; a request without an endpoint tells it too."""
    with Upstream(lambda seen, reply: reply.send(500)) as failing:
        ejection = {"consecutive_failures": 1, "base_s": 60, "max_share": 1}
        router, admin = admin_of(ROUTES_FILE=routes(tmp_path, model(failing.url, ejection=ejection)))
        assert admin.endpoint(failing.url)["state"] == "healthy"  # nothing checks it, so it is taken for healthy
        assert chat(router).status_code == 500
        for page in admin.of_all("/endpoints"):
            (endpoint,) = page["endpoints"]
            assert (endpoint["state"], endpoint["models"]) == ("ejected", ["m"])
            assert 0 < endpoint["until_s"] <= 60
            assert endpoint["last_error"]["text"] == "it responded with 500"
        assert chat(router, "nowhere").status_code == 503
        record = admin.explained("nowhere")
        assert (record["error"], record["outcome"]) == ("no_endpoint", "failed")
        assert record["candidates"] == [{"endpoint": failing.url, "in_flight": 0, "load": None, "out": "ejected"}]
        assert f"no endpoint of m could be chosen: {failing.url} was ejected" in record["explanation"]


def test_drained_endpoint_gets_no_new_request_of_any_worker(tmp_path: Path, admin_of: AdminOf) -> None:
    """From the moment of the response on: what is in progress finishes, and new requests of all workers go elsewhere,
    through the death of workers and a reload, until it is undrained."""
    with Holding() as drained, Holding() as other:
        served = model(drained.url, other.url)
        router, admin = admin_of(WEB_CONCURRENCY=3, MAX_CONCURRENCY=100, ROUTES_FILE=routes(tmp_path, served))
        held = Crowd(lambda number: chat(router, user="hold").status_code)
        for count in range(1, 5):  # one by one: workers that choose at the same moment may choose the same endpoint
            held.send(1)
            until(lambda: len(drained.seen) + len(other.seen) == count, "it is there")
        assert len(drained.seen) == len(other.seen) == 2
        assert admin.change(drained.url, "drain").json()["state"] == "draining"

        def elsewhere() -> None:
            barrier = threading.Barrier(16)
            statuses = Crowd(lambda number: (barrier.wait(), chat(router).status_code)[1]).send(16).join().counts()
            assert statuses == {200: 16}
            assert len(drained.seen) == 2

        elsewhere()
        for page in admin.of_all("/endpoints"):
            assert Counter(each["state"] for each in page["endpoints"]) == {"draining": 1, "healthy": 1}
        assert admin.endpoint(drained.url)["in_flight"] == 2
        drained.leave.set()
        other.leave.set()
        assert held.join().counts() == {200: 4}
        victim = router.workers()[0]
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(router.workers()) == 3 and victim not in router.workers(), "a new worker")
        elsewhere()
        generation = admin_generation(admin)
        routes(tmp_path, {**served, "aliases": ["n"]})
        until(lambda: admin_generation(admin) > generation, "the routes are reloaded")
        elsewhere()
        page = metrics_of(admin)
        assert f'router_endpoint_draining{{endpoint="{drained.url}"}} 1' in page
        assert 'router_model_usable{model="m"} 1' in page  # by the other one
        assert admin.change(drained.url, "undrain").json()["state"] == "healthy"
        assert [chat(router).status_code for _ in range(4)] == [200] * 4
        assert len(drained.seen) > 2


def metrics_of(admin: Admin) -> str:
    """The page of metrics."""
    return requests.get(admin.url.replace("/admin", "/metrics"), timeout=20).text


def admin_generation(admin: Admin) -> int:
    """That of the routes. A session whose worker died is made again by requests."""
    return int(requests.get(f"{admin.url}/routes", timeout=20).json()["generation"])


def test_endpoint_that_comes_back_does_not_drain(tmp_path: Path, admin_of: AdminOf) -> None:
    """A drain ends when the URL leaves the routes; and if every endpoint drains, the router is not ready."""
    with Upstream() as one, Upstream() as other:
        router, admin = admin_of(ROUTES_FILE=routes(tmp_path, model(one.url)))
        assert admin.change(one.url, "drain").status_code == 200
        assert chat(router, "nowhere").status_code == 503
        assert f"{one.url} was draining" in admin.explained("nowhere")["explanation"]
        assert requests.get(f"{router.url}/readyz", timeout=20).status_code == 503
        assert 'router_model_usable{model="m"} 0' in metrics_of(admin)
        (event,) = [each for each in router.events() if each["event"] == "endpoint drains"]
        assert (event["endpoint"], event["client"]) == (one.url, "127.0.0.1")
        for urls in ((other.url,), (other.url, one.url)):
            generation = admin_generation(admin)
            routes(tmp_path, model(*urls))
            until(lambda: admin_generation(admin) > generation, "the routes are reloaded")
        assert admin.endpoint(one.url)["state"] == "healthy"
        assert requests.get(f"{router.url}/readyz", timeout=20).status_code == 200


@pytest.fixture(scope="module")
def unix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unix]:
    """Returns the path of a Unix socket of this name, and the port of the admin listener of the same router."""
    folder, port, admin = tmp_path_factory.mktemp("unix"), free_port(), free_port()
    names = ("s", f"s:{admin}")
    binds = (f"127.0.0.1:{port}", f"127.0.0.1:{admin}", *(f"unix:{folder / name}" for name in names))
    options = tuple(option for bind in binds for option in ("--bind", bind))
    with Router(folder, None, options, port, ADMIN_BIND=f"127.0.0.1:{admin}", WEB_CONCURRENCY=1):
        yield lambda name: (str(folder / name.format(port=admin)), admin)


def over_unix(path: str, target: str, fields: str) -> int:
    """Ask a Unix socket; returns the status. HTTP/1.0 needs no Host."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(path)
        sock.sendall(f"GET {target} HTTP/1.0\r\n{fields}\r\n\r\n".encode())
        return int(read_to_end(sock).split()[1])


def test_admin_api_is_on_the_admin_listener_only(tmp_path: Path, admin_of: AdminOf, start: Start) -> None:
    """Not on BIND, not without ADMIN_BIND, whatever the method; nothing of it changes then."""
    with Upstream() as upstream:
        router, admin = admin_of(ROUTES_FILE=routes(tmp_path, model(upstream.url)))
        shared_id = admin.endpoint(upstream.url)["id"]
        for path in ("config", "routes", "endpoints", "queue", "requests", "requests/x"):
            answer = requests.get(f"{router.url}/admin/{path}", timeout=20)
            assert answer.status_code == 404
            assert "ADMIN_BIND" in answer.json()["detail"]
        drain = f"{router.url}/admin/endpoints/{shared_id}/drain"
        assert requests.post(drain, json={}, timeout=20).status_code == 404
        assert admin.endpoint(upstream.url)["state"] == "healthy"
        alone = start()
        answer = requests.get(f"{alone.url}/admin/endpoints", timeout=20)
        assert answer.status_code == 404
        assert "ADMIN_BIND" in answer.json()["detail"]


@pytest.mark.parametrize("fields", ["Host: localhost:{port}", "Host: x:{port}", "X: no Host"])
@pytest.mark.parametrize("name", ["s", "s:{port}"], ids=["path", "path with a port's number"])
def test_client_of_a_unix_socket_gets_no_admin_api(unix: Unix, name: str, fields: str) -> None:
    """gunicorn can listen there too (`--bind unix:`). Neither the Host nor the socket's path names the listener."""
    path, admin_port = unix(name)
    assert over_unix(path, "/healthz", fields.format(port=admin_port)) == 200
    for page in ("/admin/config", "/admin/requests", "/metrics", "/v2/models/stats", "/"):
        assert (page, over_unix(path, page, fields.format(port=admin_port))) == (page, 404)


def test_page_of_another_origin_changes_and_reads_nothing(tmp_path: Path, admin_of: AdminOf) -> None:
    """Whatever CORS_ORIGINS says: no simple request drains, a preflight gets no permission, nor does a read.

    A page whose own name leads to the router is told nothing: it is of another origin only by its name.
    """
    with Upstream() as upstream:
        _, admin = admin_of(ROUTES_FILE=routes(tmp_path, model(upstream.url)), CORS_ORIGINS="*")
        evil = {"Origin": "https://evil.example"}
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
            assert admin.change(upstream.url, "drain", **{"Content-Type": content_type}).status_code == 415
        assert admin.change(upstream.url, "drain", **evil).status_code == 403
        wanted = {**evil, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        path = f"/endpoints/{admin.endpoint(upstream.url)['id']}/drain"
        preflight = requests.options(admin.url + path, headers=wanted, timeout=20)
        read = requests.get(f"{admin.url}/requests", headers=evil, timeout=20)
        for answer in (preflight, read):
            assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
        assert read.headers["Cache-Control"] == "no-store"
        assert admin.endpoint(upstream.url)["state"] == "healthy"
        rebound = {"Host": "evil.example:9090", "Origin": "http://evil.example:9090"}
        assert admin.change(upstream.url, "drain", **rebound).status_code == 403
        site = admin.url.removesuffix("/admin")
        statuses = {
            path: requests.get(site + path, headers={"Host": "evil.example"}, timeout=20).status_code
            for path in ("/admin/config", "/admin/requests", "/admin/requests/x", "/admin/live", "/", "/metrics")
        }
        assert statuses == {path: 200 if path == "/metrics" else 403 for path in statuses}
        assert admin.endpoint(upstream.url)["state"] == "healthy"
        own = {"Origin": admin.url.removesuffix("/admin")}
        assert admin.change(upstream.url, "drain", **own).status_code == 200


def test_unknown_endpoints_and_bad_questions_are_refused(tmp_path: Path, admin_of: AdminOf) -> None:
    """404 for an id that no endpoint has, a model's included; 400 for what is no number."""
    with Upstream() as upstream:
        _, admin = admin_of(ROUTES_FILE=routes(tmp_path, model(upstream.url)))
        known = admin.endpoint(upstream.url)["id"]
        for shared_id in {0, 1, 2, 3, 511, 512, 10**9} - {known}:
            url = f"{admin.url}/endpoints/{shared_id}/drain"
            assert requests.post(url, headers=JSON, timeout=20).status_code == 404
        for query in ("slow=x", "slow=-1", "limit=0", "limit=1001", "rejected=perhaps", "reject=true"):
            assert admin.get(f"/requests?{query}") == 400


def test_configuration_is_shown_without_secrets(admin_of: AdminOf) -> None:
    """Every setting has its value, and no password is among them."""
    _, admin = admin_of(KV_ENDPOINTS="redis://u:hunter2@kv:6379", MAX_CONCURRENCY=7)
    for page in admin.of_all("/config"):
        assert page["settings"]["MAX_CONCURRENCY"] == 7
        assert "hunter2" not in json.dumps(page)
    shown = admin.get("/routes")
    assert (shown["source"], shown["models"][0]["name"]) == ("the simulated model", "simulated")
