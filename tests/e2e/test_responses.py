"""OpenAI's /v1/responses: later requests about a response reach the endpoint that created it, from every worker."""

import json
import re
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.support.router import Router, until
from tests.support.upstream import Answer, Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
Routes = Callable[..., str]
RESPONSES = "/v1/responses"
NO_CHECKS = {"interval_s": 0}


def keeper(name: str, stream: bool = False) -> Answer:
    """A model server that creates responses `resp_NAME_0`, `resp_NAME_1`, …, and has those only."""
    made: list[str] = []
    lock = threading.Lock()

    def answer(seen: Seen, reply: Reply) -> None:
        path = seen.path.partition("?")[0]
        if path == RESPONSES:
            with lock:
                made.append(f"resp_{name}_{len(made)}")
                response_id = made[-1]
            if stream or json.loads(seen.body).get("stream"):
                send_events(reply, response_id)
            else:
                reply.send(body=json.dumps({"id": response_id, "object": "response"}).encode())
            return
        response_id = path.removeprefix(f"{RESPONSES}/").partition("/")[0]
        found = response_id in made
        about = {"id": response_id, "by": name, "did": f"{seen.method} {seen.path}"}
        reply.send(200 if found else 404, json.dumps(about).encode())

    return answer


def send_events(reply: Reply, response_id: str) -> None:
    """A stream whose first event has the id."""
    created = {"type": "response.created", "sequence_number": 0, "response": {"id": response_id}}
    reply.begin()
    reply.chunk(b"event: response.created\ndata: " + json.dumps(created).encode() + b"\n\n")
    reply.chunk(b'event: response.completed\ndata: {"type":"response.completed"}\n\n')
    reply.chunk()


def model(*upstreams: Upstream, **members: Any) -> dict[str, Any]:
    """A model of a routes file, whose requests go to its endpoints in turn."""
    urls = [upstream.url for upstream in upstreams]
    return {"name": "m", "endpoints": urls, "health_check": NO_CHECKS, "balancing": "round_robin", **members}


def create(router: Router, **members: Any) -> requests.Response:
    """Create a response, on a connection of its own."""
    return requests.post(router.url + RESPONSES, json={"model": "m", "input": "hi", **members}, timeout=20)


def code_of(response: requests.Response) -> tuple[int, str]:
    """Status and code of an error."""
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_requests_about_a_response_go_where_it_was_created(
    start: Start, serve: Serve, routes: Routes, stream: bool
) -> None:
    """All four requests, through any of four workers, with their queries; and it is the endpoint's own response."""
    servers = {name: serve(keeper(name)) for name in "abc"}
    router = start(ROUTES_FILE=routes(model(*servers.values())), WEB_CONCURRENCY=4)
    for _ in range(12):
        answer = create(router, stream=stream)
        (response_id,) = re.findall(r"resp_\w+", answer.text)
        name = response_id.split("_")[1]
        for method, more in (
            ("GET", ""),
            ("GET", "?stream=true&starting_after=3"),
            ("POST", "/cancel"),
            ("GET", "/input_items?limit=2"),
            ("DELETE", ""),
        ):
            path = f"{RESPONSES}/{response_id}{more}"
            got = requests.request(method, router.url + path, timeout=20)
            assert (got.status_code, got.json()) == (200, {"id": response_id, "by": name, "did": f"{method} {path}"})
    assert {seen.path for upstream in servers.values() for seen in upstream.seen} > {RESPONSES}
    assert all(any(seen.path == RESPONSES for seen in upstream.seen) for upstream in servers.values())


def test_unknown_response_is_a_404_in_openais_shape(start: Start, serve: Serve, routes: Routes) -> None:
    """No endpoint is asked for a response that nobody is known to have; it costs no permit."""
    upstream = serve(keeper("a"))
    router = start(ROUTES_FILE=routes(model(upstream)), WEB_CONCURRENCY=1)
    for method, more in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        got = requests.request(method, f"{router.url}{RESPONSES}/resp_x{more}", timeout=20)
        assert code_of(got) == (404, "response_not_found")
    assert upstream.seen == []
    assert requests.put(f"{router.url}{RESPONSES}/resp_x", timeout=20).status_code == 405


def test_stream_is_not_held_back_for_its_id(start: Start, serve: Serve, routes: Routes) -> None:
    """Pieces pass as they come, before the id is known and after; and a client that has the id can use it at once."""
    gate = threading.Semaphore(0)
    pieces = [
        b": ping\n\n",
        b'data: {"type":"response.created","resp',
        b'onse":{"id":"resp_',
        b'1","x":1}}\n\n',
        b"data: 2\n\n",
    ]

    def answer(seen: Seen, reply: Reply) -> None:
        if seen.path != RESPONSES:
            reply.send(body=b'{"here": true}')
            return
        reply.begin()
        for piece in pieces:
            gate.acquire()
            reply.chunk(piece)
        gate.acquire()
        reply.chunk()

    router = start(ROUTES_FILE=routes(model(serve(answer))), WEB_CONCURRENCY=2)
    with requests.post(router.url + RESPONSES, json={"stream": True}, stream=True, timeout=20) as stream:
        for number, piece in enumerate(pieces):
            gate.release()
            assert stream.raw.read1(len(piece)) == piece
            about = requests.get(f"{router.url}{RESPONSES}/resp_1", timeout=20)
            assert about.status_code == (200 if number >= 3 else 404)
        gate.release()


def test_response_without_an_id_passes_all_the_same(start: Start, serve: Serve, routes: Routes) -> None:
    """What the model server returns is the client's, whether an id is found in it or not."""
    bodies = [b"", b"{}", b"no JSON", b'{"id": 5}', b'{"o": {"id": "x"}}', b'{"id": "' + b"x" * 90_000 + b'"}']
    upstream = serve(lambda seen, reply: reply.send(body=bodies[int(json.loads(seen.body)["input"])]))
    router = start(ROUTES_FILE=routes(model(upstream)), WEB_CONCURRENCY=1)
    assert [create(router, input=str(at)).content for at in range(len(bodies))] == bodies


def test_response_that_follows_another_goes_to_its_endpoint(start: Start, serve: Serve, routes: Routes) -> None:
    """`previous_response_id` prefers the endpoint that has that response; without it, endpoints have turns."""
    servers = [serve(keeper(name)) for name in "abc"]
    router = start(ROUTES_FILE=routes(model(*servers)), WEB_CONCURRENCY=2)
    first = {create(router).json()["id"].split("_")[1] for _ in range(6)}
    assert first == {"a", "b", "c"}
    response_id = create(router).json()["id"]
    for _ in range(6):
        following = create(router, previous_response_id=response_id).json()["id"]
        assert following.split("_")[1] == response_id.split("_")[1]
        response_id = following
    for unknown in ("resp_unknown", None):
        assert create(router, previous_response_id=unknown).status_code == 200


def test_endpoint_that_refuses_is_heard(start: Start, serve: Serve, routes: Routes) -> None:
    """A 429 of the endpoint that has the response is the client's: another one would say that there is none.

    That holds for what is about the response, and for what follows it. The endpoint is asked also while it backs off.
    """
    servers = {name: serve(keeper(name)) for name in "ab"}
    router = start(ROUTES_FILE=routes(model(*servers.values())), WEB_CONCURRENCY=1)
    response_id = create(router).json()["id"]
    servers[response_id.split("_")[1]].answer = lambda seen, reply: reply.send(429, b'{"full": 1}', Retry_After="30")
    for _ in range(3):
        assert requests.get(f"{router.url}{RESPONSES}/{response_id}", timeout=20).status_code == 429
        assert create(router, previous_response_id=response_id).status_code == 429
        assert create(router).status_code == 200


def test_endpoint_that_is_ejected_is_a_503_and_one_that_is_gone_a_404(
    start: Start, serve: Serve, routes: Routes
) -> None:
    """The response may come back with an ejected endpoint, whose ejection's end is told; with one that is gone, never.

    What follows the response goes elsewhere meanwhile.
    """
    servers = {name: serve(keeper(name)) for name in "ab"}
    ejection = {"consecutive_failures": 1, "base_s": 60, "max_share": 1}
    path = routes(model(*servers.values(), ejection=ejection))
    router = start(ROUTES_FILE=path, WEB_CONCURRENCY=2)
    response_id = create(router).json()["id"]
    home, other = sorted(servers, key=lambda name: name != response_id.split("_")[1])
    servers[home].answer = lambda seen, reply: reply.send(500)
    about = f"{router.url}{RESPONSES}/{response_id}"
    assert requests.get(about, timeout=20).status_code == 500
    got = requests.get(about, timeout=20)
    assert code_of(got) == (503, "no_endpoint")
    assert 1 <= int(got.headers["Retry-After"]) <= 60
    assert create(router, previous_response_id=response_id).json()["id"].split("_")[1] == other
    routes(model(servers[other], ejection=ejection))
    until(lambda: code_of(requests.get(about, timeout=20)) == (404, "response_not_found"), "the new routes are current")


def test_endpoint_that_left_and_came_back_has_its_responses_and_no_other(
    start: Start, serve: Serve, routes: Routes
) -> None:
    """The table names endpoints by URL: counters that others have got meanwhile lead nowhere else."""
    home, other = serve(keeper("a")), serve(keeper("b"))
    path = routes(model(home))
    router = start(ROUTES_FILE=path, WEB_CONCURRENCY=2)
    response_id = create(router).json()["id"]
    about = f"{router.url}{RESPONSES}/{response_id}"
    routes(model(other))
    until(lambda: create(router).json()["id"].startswith("resp_b"), "the other endpoint is served")
    assert code_of(requests.get(about, timeout=20)) == (404, "response_not_found")
    routes(model(other, home))
    until(lambda: requests.get(about, timeout=20).status_code == 200, "the first is back")
    assert {seen.path for seen in other.seen} == {RESPONSES}


def test_responses_are_known_after_the_death_of_a_worker(start: Start, serve: Serve, routes: Routes) -> None:
    """SIGKILL of all workers: their successors know what was created before."""
    router = start(ROUTES_FILE=routes(model(serve(keeper("a")), serve(keeper("b")))), WEB_CONCURRENCY=2)
    made = [create(router).json()["id"] for _ in range(10)]
    before = router.workers()
    for pid in before:
        router.signal(signal.SIGKILL, pid)
    until(lambda: len(router.workers()) == 2 and not set(before) & set(router.workers()), "workers are back")
    until(router.ready, "it is ready")
    for response_id in made:
        assert requests.get(f"{router.url}{RESPONSES}/{response_id}", timeout=20).json()["id"] == response_id
