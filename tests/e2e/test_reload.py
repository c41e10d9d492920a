"""Routes change while the server runs: at once, in every worker, without a request lost; bad ones never."""

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.support.clients import CHAT, Crowd, chat
from tests.support.router import Router, until
from tests.support.start import run_to_exit
from tests.support.upstream import Hold, Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
Routes = Callable[..., str]

RELOADS = 'router_routes_reloads_total{result="%s"}'


def test_changed_file_is_served_at_once_in_every_worker(start: Start, serve: Serve, routes: Routes) -> None:
    """Once it is said to be published, no worker serves the old routes; requests in progress are answered by them."""
    hold = Hold(b'{"by":"old"}')
    old, new = serve(hold), serve()
    router = start(ROUTES_FILE=routes({"name": "m", "endpoints": [old.url]}), WEB_CONCURRENCY=3)
    crowd = Crowd(lambda _: chat(router).json()).send(3)
    old.wait_seen(3)
    routes({"name": "m", "endpoints": [new.url]}, {"name": "n", "endpoints": [new.url]})
    until(lambda: "routes published" in router.log(), "it is published")
    assert {chat(router, name).status_code for name in ("m", "n") for _ in range(15)} == {200}
    assert (len(old.seen), len(new.seen)) == (3, 30)
    assert router.metrics()[RELOADS % "ok"] == 1
    hold.release()
    assert all(answer == {"by": "old"} for answer in crowd.join().answers.values())
    assert f'router_endpoint_up{{endpoint="{old.url}"}}' not in router.metrics()


def test_invalid_file_is_refused(start: Start, serve: Serve, routes: Routes) -> None:
    """The old routes stay, also in a worker that starts later and after HUP; a metric and a line say so."""
    upstream = serve()
    path = Path(routes({"name": "m", "endpoints": [upstream.url]}))
    router = start(ROUTES_FILE=str(path))
    fresh = path.with_suffix(".new")
    fresh.write_text('{"models": [\n{"name": "m", "endpoints": ["nowhere"]}]}')
    fresh.replace(path)  # nobody reads half of it
    until(lambda: "routes refused" in router.log(), "it is refused")
    assert router.metrics()[RELOADS % "refused"] == router.metrics()["router_routes_stale"] == 1
    (event,) = [event for event in router.events() if event["event"].startswith("routes refused")]
    assert f"{path}:2: models[0].endpoints[0]" in event["reason"]
    assert chat(router).status_code == 200
    old_workers = set(router.workers())
    router.signal(signal.SIGHUP)
    until(lambda: len(router.workers()) == 2 and not old_workers & set(router.workers()), "the workers are new")
    assert router.metrics()[RELOADS % "refused"] >= 2
    assert router.metrics()["router_routes_stale"] == 1
    assert {chat(router).status_code for _ in range(10)} == {200}
    routes({"name": "n", "endpoints": [upstream.url]})
    until(lambda: chat(router, "n").status_code == 200, "a good one is taken again")
    assert chat(router, "m").status_code == 404
    until(lambda: router.metrics()["router_routes_stale"] == 0, "which the metrics say")


def test_config_map_is_swapped_by_its_symlink(start: Start, serve: Serve, tmp_path: Path) -> None:
    """Kubernetes replaces the link `..data` to a folder; the file that is named is a link through it."""
    one, two = serve(), serve()
    for folder, upstream in (("..1", one), ("..2", two)):
        (tmp_path / folder).mkdir()
        text = json.dumps({"models": [{"name": "m", "endpoints": [upstream.url]}]})
        (tmp_path / folder / "routes.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "routes.yaml").symlink_to("..data/routes.yaml")
    router = start(ROUTES_FILE=tmp_path / "routes.yaml")
    assert chat(router).status_code == 200
    assert len(one.seen) == 1
    (tmp_path / "..new").symlink_to("..2")
    os.rename(tmp_path / "..new", tmp_path / "..data")
    until(lambda: chat(router) and two.seen, "the new ones are served")


def test_credential_that_is_gone_changes_nothing(start: Start, serve: Serve, routes: Routes, tmp_path: Path) -> None:
    """The file of a credential is removed: what is served stays, in every worker, in new ones, and after its return."""
    one, two = serve(), serve()
    secret = tmp_path / "secret"
    secret.write_text("s")
    router = start(ROUTES_FILE=routes({"name": "m", "endpoints": [{"url": one.url, "credential_file": str(secret)}]}))
    routes({"name": "m", "endpoints": [{"url": two.url, "credential_file": str(secret)}]})
    until(lambda: "routes published" in router.log(), "it is published")
    secret.unlink()
    until(lambda: router.metrics()[RELOADS % "refused"] == 1, "it is refused")
    worker = router.workers()[0]
    router.signal(signal.SIGKILL, worker)
    until(lambda: len(router.workers()) == 2 and worker not in router.workers(), "another worker")
    secret.write_text("s")
    until(lambda: router.metrics()[RELOADS % "ok"] == 2, "all is well again, and said to be")
    router.signal(signal.SIGHUP)
    assert {chat(router).status_code for _ in range(20)} == {200}
    assert (len(one.seen), len(two.seen)) == (0, 20)
    assert {seen.headers["authorization"] for seen in two.seen} == {"Bearer s"}


def test_connections_to_an_endpoint_that_goes_are_closed(start: Start, serve: Serve, routes: Routes) -> None:
    """Nothing stays open towards a server that is served no more."""
    closed = threading.Event()

    def answer(seen: Seen, reply: Reply) -> None:
        reply.send(200)
        if reply.wait_hung_up(60):
            closed.set()

    old, new = serve(answer), serve()
    router = start(ROUTES_FILE=routes({"name": "m", "endpoints": [old.url]}), WEB_CONCURRENCY=1)
    assert chat(router).status_code == 200
    routes({"name": "m", "endpoints": [new.url]})
    until(lambda: "routes published" in router.log(), "it is published")
    assert chat(router).status_code == 200
    assert closed.wait(20)


def test_hup_reads_the_routes_at_once(start: Start, serve: Serve, routes: Routes) -> None:
    """Also in the new workers."""
    one, two = serve(), serve()
    router = start(ROUTES_FILE=routes({"name": "m", "endpoints": [one.url]}))
    routes({"name": "m", "endpoints": [two.url]})
    router.signal(signal.SIGHUP)
    until(lambda: "routes published" in router.log(), "it is published")
    assert {chat(router).status_code for _ in range(10)} == {200}
    assert (len(one.seen), len(two.seen)) == (0, 10)


def test_changes_under_load_lose_nothing(start: Start, serve: Serve, routes: Routes) -> None:
    """Twenty changes, endpoints coming and going, while clients ask without a pause: every answer is a 200."""
    upstreams = [serve() for _ in range(3)]
    router = start(ROUTES_FILE=routes({"name": "m", "endpoints": [upstreams[0].url]}), MAX_CONCURRENCY=50)
    stopped = threading.Event()
    outcomes: Counter[int] = Counter()

    def load(_: int) -> None:
        session = requests.Session()
        while not stopped.is_set():
            outcomes[session.post(router.url + CHAT, json={"model": "m"}, timeout=30).status_code] += 1

    crowd = Crowd(load).send(8)
    for change in range(1, 6):
        served = [upstreams[change % 3], upstreams[(change + change % 2) % 3]]
        routes(
            {"name": "m", "endpoints": sorted({upstream.url for upstream in served})},
            {"name": f"x{change}", "protocol": "simulated"},
        )
        until(lambda: router.log().count("routes published") >= change, "it is published")
    stopped.set()
    crowd.join()
    assert set(outcomes) == {200}
    assert not crowd.errors
    until(lambda: not any(upstream.inside for upstream in upstreams), "nothing is left behind")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models:\n- name: m\n  endpoints: [http://a]\n  colour: red\n", ":4: models[0].colour is no member"),
        ("models:\n- name: m\n  endpoints: [{url: http://a, credential_env: NOT_SET}]\n", "NOT_SET"),
        (None, "can't be read"),
    ],
)
def test_start_with_bad_routes_says_why(tmp_path: Path, text: str | None, words: str) -> None:
    """One line, no traceback."""
    path = tmp_path / "routes.yaml"
    if text is not None:
        path.write_text(text)
    run = run_to_exit({"ROUTES_FILE": str(path)})
    assert run.returncode == 1
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("router: ")
    assert words in line
