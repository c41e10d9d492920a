"""What goes wrong with an API server, and what the controller makes of it."""

import time
from collections.abc import Callable

import pytest
from fake_api import Fault, until
from fake_server import FakeServer
from running import Running, resource
from test_controller import KEY, at_rest, condition, deployed

pytestmark = pytest.mark.slow

Start = Callable[..., Running]


def spec_change(server: FakeServer, cap: int) -> None:
    """Change the cap of the resource."""
    server.cluster.edit("inferenceservices", KEY, lambda item: item["spec"].update(containerConcurrency=cap))


def arrives(server: FakeServer, cap: int, deadline_s: float = 15.0) -> None:
    """Wait until the cap has reached the pods."""
    until(lambda: f"'{cap}'" in str(server.cluster.get("deployments", KEY)), f"a cap of {cap}", deadline_s)


def test_an_api_server_that_is_gone_is_found_again(server: FakeServer, start: Start) -> None:
    """While it is gone the process lives on, and what was changed in the meantime is done when it is back."""
    running = start(LEASE_DURATION_S="1")
    deployed(server)
    server.down = True
    server.cut()
    until(lambda: "no longer leading" in running.log(), "the lease is given up")
    spec_change(server, 11)
    assert running.get("/healthz")[0] == 200
    server.down = False
    arrives(server, 11)
    assert running.process.poll() is None
    assert at_rest(server) == []


def test_a_history_that_is_gone_is_listed_again(server: FakeServer, start: Start) -> None:
    """After a 410 everything is listed anew, and nothing is written that is as planned."""
    running = start()
    deployed(server)
    before = len(server.writes())
    server.cluster.forget_history()
    until(lambda: running.log().count('"watch expired"') >= 9, "all watches expire")
    spec_change(server, 11)
    arrives(server, 11)
    assert {path.split("?")[0].rsplit("/", 2)[-2] for _, path in server.writes()[before:]} <= {
        "deployments",
        "horizontalpodautoscalers",
        "llama",
    }


def test_cut_and_silent_streams_are_replaced(server: FakeServer, start: Start) -> None:
    """A stream that is cut, or that brings neither events nor bookmarks, is opened again where it ended."""
    running = start(WATCH_READ_TIMEOUT_S="1.2", WATCH_SILENT_S="0.8")
    deployed(server)
    server.cut()
    spec_change(server, 11)
    arrives(server, 11)
    server.silent = True
    before = server.watches
    until(lambda: running.get("/healthz")[0] == 503 and "a watch was silent" in running.get("/healthz")[1], "unhealthy")
    until(lambda: server.watches >= before + 9, "all are opened again")
    spec_change(server, 12)
    server.silent = False
    server.epoch += 1
    arrives(server, 12)
    until(lambda: running.get("/healthz")[0] == 200, "healthy again")


def test_too_many_requests_are_spaced_as_asked(server: FakeServer, start: Start) -> None:
    """After a 429 nothing is sent for the resource before Retry-After is over, not even if it is changed meanwhile."""
    start()
    deployed(server)
    fault = Fault("PATCH", "/deployments/llama", 429, headers={"Retry-After": "5"})
    server.faults.append(fault)
    begun = time.monotonic()
    spec_change(server, 11)
    until(lambda: condition(server.cluster, "Reconciled")["status"] == "False", "the status")
    spec_change(server, 12)
    arrives(server, 12)
    assert time.monotonic() - begun >= 5


def test_a_resource_that_fails_delays_no_other(server: FakeServer, start: Start) -> None:
    """The one gets the API server's own words in its status and waits longer each time; the others are made."""
    fault = Fault("PATCH", "/deployments/bad-", 500, times=1000, message="admission webhook says no", hold_s=0.2)
    server.faults.append(fault)
    for number in range(5):
        server.cluster.put("inferenceservices", resource(f"bad-{number}"))
    start()
    deployed(server)
    reconciled = until(lambda: condition(server.cluster, "Reconciled", ("inference", "bad-0")), "a status")
    assert reconciled["status"] == "False"
    assert "admission webhook says no" in reconciled["message"]
    assert until(lambda: server.cluster.list("events"), "an event")[0]["reason"] == "Injected"
    until(lambda: fault.times <= 1000 - 10, "further tries")
    told = [event["involvedObject"]["name"] for event in server.cluster.list("events")]
    assert len(told) == len(set(told))
    fault.times = 0
    until(lambda: condition(server.cluster, "Reconciled", ("inference", "bad-0"))["status"] == "True", "it is made", 30)


def test_a_webhook_that_changes_what_is_written_is_no_reason_to_write_for_ever(
    server: FakeServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is never as planned is written with growing delays, and the status says so."""
    apply = server.cluster.apply

    def mutated(plural: str, key: tuple[str, str], body: dict[str, object], *args: object, **rest: object) -> object:
        applied = apply(plural, key, body, *args, **rest)  # type: ignore[arg-type]
        if plural == "services" and "appProtocol" in applied["spec"]["ports"][0]:
            return server.cluster.edit(plural, key, lambda item: item["spec"]["ports"][0].pop("appProtocol"), "webhook")
        return applied

    monkeypatch.setattr(server.cluster, "apply", mutated)
    start()
    server.cluster.put("inferenceservices", resource())
    until(lambda: condition(server.cluster, "Reconciled").get("reason") == "Changed", "it is noticed")
    before = len(server.writes())
    time.sleep(1)
    assert len(server.writes()) - before <= 4


def test_sigkill_of_the_leader(server: FakeServer, start: Start) -> None:
    """Another one takes over when the lease has run out, and does what was left."""
    first, second = start("controller-0", LEASE_DURATION_S="6"), start("controller-1", LEASE_DURATION_S="6")
    deployed(server)
    leader, other = (first, second) if '"leading"' in first.log() else (second, first)
    assert '"leading"' not in other.log()
    leader.process.kill()
    spec_change(server, 11)
    arrives(server, 11, 30)
    assert '"leading"' in other.log()


def test_sigterm_releases_the_lease(server: FakeServer, start: Start) -> None:
    """The process ends with 0, and another one need not wait for the lease to run out."""
    first = start("controller-0", LEASE_DURATION_S="60")
    deployed(server)
    assert first.terminate() == 0
    lease = server.cluster.get("leases", ("system", "inference-router-controller"))
    assert lease
    assert lease["spec"]["holderIdentity"] == ""
    start("controller-1", LEASE_DURATION_S="60")
    spec_change(server, 11)
    arrives(server, 11, 30)


@pytest.mark.parametrize(
    ("name", "value"),
    [("BIND", "nowhere"), ("LOG_LEVEL", "loud"), ("LOG_FORMAT", "xml"), ("LEASE_DURATION_S", "soon")],
)
def test_a_bad_setting_is_named(server: FakeServer, start: Start, name: str, value: str) -> None:
    """It ends the start with one line that names the variable."""
    running = start(**{name: value})
    assert running.process.wait(10) == 1
    (line,) = running.log().splitlines()
    assert line.startswith(f"router-controller: {name}=")


def test_an_object_that_is_made_at_the_same_moment_is_not_taken_over(
    server: FakeServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look-up and the write somebody else makes a Service of that name: it stays theirs."""
    apply, foreign = server.cluster.apply, {"selector": {"app": "theirs"}, "ports": [{"port": 80, "targetPort": 1}]}

    def overtaken(plural: str, *args: object, **rest: object) -> object:
        if plural == "services" and not server.cluster.list("services"):
            metadata = {"name": "llama", "namespace": "inference"}
            server.cluster.put("services", {"kind": "Service", "metadata": metadata, "spec": foreign})
        return apply(plural, *args, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(server.cluster, "apply", overtaken)
    start()
    server.cluster.put("inferenceservices", resource())
    until(lambda: condition(server.cluster, "Ready").get("reason") == "Conflict", "a conflict")
    (service,) = server.cluster.list("services")
    assert service["spec"]["selector"] == {"app": "theirs"}
    assert "ownerReferences" not in service["metadata"]
