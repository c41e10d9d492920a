"""Endpoints that are discovered, under a real router: by Debian's dnsmasq, and by the API of Kubernetes."""

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.clients import CHAT, Crowd, chat, read_to_end
from tests.support.clients import raw_request as raw
from tests.support.dnsmasq import Dnsmasq, needs_dnsmasq
from tests.support.kubernetes_api import KubernetesApi, endpoint
from tests.support.router import Router, until
from tests.support.scripted_dns import ScriptedDns, silence
from tests.support.upstream import Hold, Upstream

pytestmark = pytest.mark.slow

Discovering = Callable[..., Router]
_OPTIONS = ("-c", "python:tests.support.discovery_conf")


@pytest.fixture
def names(tmp_path: Path) -> Iterator[Dnsmasq]:
    """A name server without names."""
    with Dnsmasq(tmp_path) as server:
        yield server


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesApi]:
    """An API server without slices."""
    (tmp_path / "dns_port").write_text("53")
    with KubernetesApi(tmp_path) as server:
        yield server


@pytest.fixture
def discover(tmp_path: Path) -> Iterator[Discovering]:
    """Starts a router of these models, with the test's name server and API server."""
    with ExitStack() as stack:

        def start(*models: dict[str, Any], **settings: object) -> Router:
            path = tmp_path / "routes.json"
            path.write_text(json.dumps({"models": models}))
            given: dict[str, Any] = {"TEST_DISCOVERY": tmp_path, "ROUTES_FILE": path, **settings}
            return stack.enter_context(Router(tmp_path, options=_OPTIONS, **given))

        yield start


@pytest.fixture
def fleet() -> Iterator[Callable[[int], list[Upstream]]]:
    """Starts model servers at 127.0.0.2 and so on, all at one port, as pods have it."""
    with ExitStack() as stack:

        def start(count: int) -> list[Upstream]:
            first = stack.enter_context(Upstream(host="127.0.0.2"))
            more = range(3, 2 + count)
            return [first, *(stack.enter_context(Upstream(host=f"127.0.0.{n}", port=first.port)) for n in more)]

        yield start


def known(router: Router) -> set[str]:
    """The URLs of the endpoints that the router has."""
    return {name.split('"')[1] for name in router.metrics() if name.startswith("router_endpoint_up")}


def waiting(router: Router, model: str = "m") -> float:
    """How many requests wait for an endpoint of the model."""
    return router.metrics()[f'router_endpoint_wait_requests{{model="{model}"}}']


def outage(router: Router) -> list[str]:
    """The reasons that the log has for endpoints that stay as they were."""
    return [event["reason"] for event in router.events() if event["event"].startswith("discovery fails")]


def outages(router: Router) -> int:
    """How many leaders have said that discovery fails, and not yet that it works again.

    A busy machine alone may make it fail for a moment.
    """
    return len(outage(router)) - router.log().count("discovery works again")


def replace_workers(router: Router) -> None:
    """Kill all workers, the leader among them, and wait for others."""
    old = router.workers()
    for pid in old:
        router.signal(signal.SIGKILL, pid)
    until(lambda: len(set(router.workers()) - set(old)) == len(old) and router.ready(), "there are other workers")


@needs_dnsmasq
def test_records_change_under_load_and_nothing_is_lost(
    discover: Discovering, names: Dnsmasq, fleet: Callable[[int], list[Upstream]]
) -> None:
    """Endpoints come and go, and those that went stop listening, while clients ask without a pause: all get a 200."""
    servers = fleet(4)
    hosts = [server.url.split("/")[2].split(":")[0] for server in servers]
    names.set(m=hosts[:2])
    router = discover({"name": "m", "dns": f"m.test:{servers[0].port}", "retry_budget": 1}, MAX_CONCURRENCY=50)
    stopped = threading.Event()
    outcomes: Counter[int] = Counter()
    ended: Counter[int] = Counter()  # by client

    def load(number: int) -> None:
        with requests.Session() as session:
            while not stopped.is_set():
                outcomes[session.post(router.url + CHAT, json={"model": "m"}, timeout=30).status_code] += 1
                ended[number] += 1

    crowd = Crowd(load).send(4)
    for first in (1, 2, 0, 2):
        names.set(m=hosts[first : first + 2])
        expected = {server.url for server in servers[first : first + 2]}
        until(lambda: known(router) == expected, "the records are the endpoints")
        earlier = dict(ended)
        until(lambda: all(ended[number] > earlier.get(number, 0) for number in range(4)), "what began before is done")
        for gone in [server for server in servers if server.url not in expected]:
            before = len(gone.seen)
            chat(router)
            assert len(gone.seen) == before, "an endpoint that went gets nothing"
    stopped.set()
    crowd.join()
    assert set(outcomes) == {200}
    assert not crowd.errors


@needs_dnsmasq
def test_name_server_that_fails_changes_nothing(discover: Discovering, names: Dnsmasq) -> None:
    """It refuses, then is gone, and the leader is killed meanwhile: the last endpoints stay; metric and log say so."""
    with Upstream() as server:
        names.set(m=["127.0.0.1"])
        router = discover({"name": "m", "dns": f"m.test:{server.port}"})
        failed = f'router_discovery_results_total{{result="failed",source="dns m.test:{server.port}"}}'
        names.stop()
        until(lambda: router.metrics().get(failed, 0) >= 1, "it is counted")
        until(lambda: outages(router) == 1, "it is logged")
        replace_workers(router)
        until(lambda: outages(router) == 2, "the next leader asks too")
        assert {chat(router).status_code for _ in range(10)} == {200}
        names.start()
        until(lambda: outages(router) == 1, "it works again")
        names.set()
        until(lambda: not known(router), "NXDOMAIN empties the set")
        assert chat(router).json()["error"]["code"] == "no_endpoint"


def test_silent_name_server_blocks_nobody(discover: Discovering, tmp_path: Path) -> None:
    """Lookups take their whole time in the only worker, again and again; requests do not wait for them."""
    with ScriptedDns(silence) as silent:
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:5\n")
        (tmp_path / "dns_port").write_text(str(silent.port))
        models = ({"name": "s", "protocol": "simulated"}, {"name": "m", "dns": "m.test:80"})
        router = discover(*models, WEB_CONCURRENCY=1, SIMULATED_LATENCY_MS=0, TEST_LOOKUP_S=10)
        until(lambda: silent.asked, "a lookup has begun")
        slowest = 0.0
        with requests.Session() as session:
            for _ in range(50):
                began = time.monotonic()
                body = {"model": "s", "messages": [{"role": "user", "content": "hi"}]}
                assert session.post(router.url + CHAT, json=body, timeout=30).status_code == 200
                slowest = max(slowest, time.monotonic() - began)
        assert "discovery fails" not in router.log(), "all of that took place while the lookup waited"
        assert slowest < 4, "the lookup, which takes 10 s, has held a request up"


def test_terminating_pod_gets_no_new_request_and_keeps_those_it_has(
    discover: Discovering, api: KubernetesApi, fleet: Callable[[int], list[Upstream]]
) -> None:
    """A request that waited for its permit meanwhile goes to the pod that is there by then."""
    old, new = fleet(2)
    hold = Hold(b'{"by":"old"}')
    old.answer = hold
    pod = {"ready": True, "serving": True, "terminating": False}
    api.put("a", [endpoint("127.0.0.2", uid="1", **pod)], port=old.port)
    model = {"name": "m", "service": "ns/llm", "port": "http"}
    router = discover(model, MAX_CONCURRENCY=2, QUEUE_SIZE=5, QUEUE_TIMEOUT_MS=20_000, **api.environ)
    crowd = Crowd(lambda _: chat(router).json()).send(2)
    old.wait_seen(2)
    crowd.send(2)
    until(lambda: router.metrics()["router_queued_requests"] == 2, "two wait for a permit")
    leaving = {"ready": False, "serving": True, "terminating": True}
    api.put("a", [endpoint("127.0.0.2", uid="1", **leaving), endpoint("127.0.0.3", uid="2", **pod)], port=old.port)
    until(lambda: known(router) == {new.url}, "the pod is gone for new requests")
    hold.release()
    crowd.join()
    assert sorted(map(str, crowd.answers.values())) == ["{'by': 'old'}", "{'by': 'old'}", "{}", "{}"]
    assert len(old.seen) == len(new.seen) == 2


def test_api_server_that_fails_changes_nothing(discover: Discovering, api: KubernetesApi) -> None:
    """An outage empties no set; what changed meanwhile is there after it."""
    with Upstream() as server:
        api.put("a", [endpoint("127.0.0.1", ready=True)], port=server.port)
        router = discover({"name": "m", "service": "ns/llm", "port": server.port}, **api.environ)
        for _ in range(3):
            api.fail("watch", 503, "ServiceUnavailable")
            api.fail("list", 403, "Forbidden")
        api.end_watches()
        until(lambda: outage(router), "it is logged")
        assert {chat(router).status_code for _ in range(10)} == {200}
        until(lambda: "discovery works again" in router.log(), "it works again")
        api.delete("a")
        until(lambda: not known(router), "the last slice is deleted")


def test_requests_wait_in_every_worker_and_starve_nobody(discover: Discovering, api: KubernetesApi) -> None:
    """Scaled to zero: as many requests as the queue has places wait, without a permit, and are served as soon as a pod
    is there; one more is rejected, one whose client leaves is forgotten, and another model uses the only permit."""
    with Upstream() as server:
        model = {"name": "m", "service": "ns/llm", "port": "http", "no_endpoint_wait_s": 60}
        router = discover(
            *(model, {"name": "s", "protocol": "simulated"}),
            **api.environ,
            MAX_CONCURRENCY=1,
            QUEUE_SIZE=6,
            QUEUE_TIMEOUT_MS=20_000,
            SIMULATED_LATENCY_MS=0,
        )
        leaver = raw(router.port, body=b'{"prompt": "x", "model": "m"}')
        crowd = Crowd(lambda _: chat(router).status_code).send(5)
        until(lambda: waiting(router) == 6, "all places are taken")
        assert router.metrics()["router_inflight_requests"] == router.metrics()["router_queued_requests"] == 0
        full = chat(router)
        assert (full.status_code, full.json()["error"]["code"]) == (503, "no_endpoint")
        assert {chat(router, "s").status_code for _ in range(5)} == {200}
        leaver.close()
        until(lambda: waiting(router) == 5, "the client that left is forgotten")
        crowd.send(1)
        until(lambda: waiting(router) == 6, "its place is free")
        api.put("a", [endpoint("127.0.0.1", ready=True)], port=server.port)
        crowd.join()
        assert crowd.counts() == {200: 6}
        assert waiting(router) == 0
        api.put("a", [])
        until(lambda: not known(router), "scaled to zero again")
        crowd.send(1)
        until(lambda: waiting(router) == 1, "it waits")
        router.signal(signal.SIGTERM)
        crowd.join()
        assert crowd.answers[6] == 503, "the drain ends the wait"
        assert router.wait_exit() == 0


def test_wait_ends_after_its_time_and_with_its_worker(discover: Discovering, api: KubernetesApi) -> None:
    """503 `no_endpoint` once the time is over; of a worker that is killed nothing stays counted."""
    model = {"name": "m", "service": "ns/llm", "port": "http", "no_endpoint_wait_s": 0.2}
    slow = {"name": "n", "service": "ns/llm", "port": "http", "no_endpoint_wait_s": 60}
    router = discover(model, slow, QUEUE_SIZE=5, **api.environ)
    rejected = chat(router)
    assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "no_endpoint")
    assert "0.2 s" in rejected.json()["error"]["message"]
    socks = [raw(router.port, body=b'{"prompt": "x", "model": "n"}') for _ in range(3)]
    until(lambda: waiting(router, "n") == 3, "they wait")
    replace_workers(router)
    until(lambda: waiting(router, "n") == 0, "nothing is left of them")
    for sock in socks:
        with sock:
            assert read_to_end(sock) == b""


def test_outside_a_cluster_it_says_so(discover: Discovering, tmp_path: Path) -> None:
    """Without KUBERNETES_SERVICE_HOST there is nothing to ask; other models are served."""
    (tmp_path / "dns_port").write_text("53")
    router = discover({"name": "m", "service": "ns/llm", "port": 80}, {"name": "s", "protocol": "simulated"})
    until(lambda: outage(router), "it is logged")
    assert "KUBERNETES_SERVICE_HOST" in outage(router)[0]
    assert chat(router, "s").status_code == 200
