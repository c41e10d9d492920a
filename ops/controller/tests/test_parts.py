"""The parts of the controller by themselves: queue, store, watcher, back-off, and the server of health and metrics."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from http.client import HTTPConnection

import pytest
from running import resource

from router_controller import web
from router_controller.backoff import delay_s
from router_controller.errors import ApiFailure
from router_controller.events import Events
from router_controller.kinds import CHILDREN, DEPLOYMENT, INFERENCE_SERVICE, SCALED_OBJECT, Key, Kind, Object
from router_controller.plan import Defaults
from router_controller.reconciler import Reconciler
from router_controller.store import Store
from router_controller.watcher import Timing, Watcher
from router_controller.work_queue import WorkQueue

KEY = ("n", "a")


def test_one_key_is_never_worked_on_twice_at_once() -> None:
    """What is added meanwhile, however often, makes for one more run: the first may have read the state before."""

    async def script() -> None:
        gate, running, runs = asyncio.Event(), 0, 0

        async def work(key: Key) -> None:
            nonlocal running, runs
            runs += 1
            running += 1
            assert running == 1
            await gate.wait()
            running -= 1

        queue = WorkQueue(work, 4)
        queue.add(KEY, urgent=False)
        await asyncio.sleep(0)
        for _ in range(5):
            queue.add(KEY, urgent=False)
        gate.set()
        async with asyncio.timeout(5):
            while len(queue):
                await asyncio.sleep(0)
        assert runs == 2

    asyncio.run(script())


@pytest.mark.parametrize(("urgent", "runs"), [(False, 1), (True, 2)])
def test_only_something_urgent_cuts_a_delay_short(urgent: bool, runs: int) -> None:
    """The events that a failing write brings about must not be answered by the next write at once."""

    async def script() -> list[Key]:
        done: list[Key] = []

        async def fails(key: Key) -> float:
            done.append(key)
            return 3600

        queue = WorkQueue(fails, 4)
        queue.add(KEY, urgent=False)
        await _idle(queue)
        queue.add(KEY, urgent=urgent)
        await _idle(queue)
        await queue.stop()
        return done

    assert asyncio.run(script()) == [KEY] * runs


async def _idle(queue: WorkQueue) -> None:
    async with asyncio.timeout(5):
        while len(queue):
            await asyncio.sleep(0)


def test_a_key_that_hangs_holds_no_other() -> None:
    """Others are worked on meanwhile; at the stop, what hangs is cancelled."""

    async def script() -> None:
        done = asyncio.Event()

        async def work(key: Key) -> None:
            if key == KEY:
                await asyncio.Event().wait()
            done.set()

        queue = WorkQueue(work, 2)
        queue.add(KEY, urgent=False)
        queue.add(("n", "b"), urgent=False)
        await asyncio.wait_for(done.wait(), 5)
        await queue.stop()
        assert len(queue) == 0

    asyncio.run(script())


def test_delays_grow_to_their_bound_and_never_undercut_what_was_asked_for() -> None:
    """Half of a delay is random; Retry-After holds in any case."""
    for failures, longest in [(1, 0.5), (2, 1), (4, 4), (9, 60), (1000, 60)]:
        delays = {delay_s(failures, 60) for _ in range(50)}
        assert longest / 2 <= min(delays) < max(delays) <= longest
    assert delay_s(1, 60, 30) == 30


def _deployment(version: int, image: str) -> Object:
    return {"metadata": {"namespace": "n", "name": "a", "resourceVersion": str(version)}, "spec": {"image": image}}


def test_what_is_older_than_a_write_is_ignored() -> None:
    """The response of a write may overtake the watch, or come after the deletion. What is made again is a new one."""
    store = Store(DEPLOYMENT)
    assert store.put(_deployment(9, "new"))
    assert not store.put(_deployment(8, "old"))
    found = store.get(KEY)
    assert found
    assert found["spec"]["image"] == "new"
    store.remove(_deployment(11, "new"))
    assert not store.put(_deployment(10, "before the deletion"))
    assert store.get(KEY) is None
    assert store.put(_deployment(12, "other"))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_health_and_metrics_are_served(host: str) -> None:
    """On IPv6 too. Health is told apart from illness, and no other path exists."""
    ill: list[str] = []
    _, stop = web.serve(host, port := _free_port(host), lambda: ill[0] if ill else None)
    try:
        assert _get(host, port, "/healthz") == (200, "200 OK\n")
        assert "router_controller_leader" in _get(host, port, "/metrics")[1]
        assert _get(host, port, "/other")[0] == 404
        ill.append("stuck")
        assert _get(host, port, "/healthz") == (503, "stuck\n")
    finally:
        stop()


def _free_port(host: str) -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        return int(free.getsockname()[1])


def _get(host: str, port: int, path: str) -> tuple[int, str]:
    connection = HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_a_kind_that_appears_is_noticed() -> None:
    """A CRD may be installed after the controller: every resource is looked at again then."""

    class Api:
        """Lacks the kind at first."""

        def __init__(self) -> None:
            self.lists = 0

        async def list(self, kind: Kind, namespace: str | None, **_: str) -> tuple[str, list[Object]]:
            self.lists += 1
            if self.lists == 1:
                raise ApiFailure(404, "NotFound", "no such kind")
            return "5", []

        async def watch(self, *_: object, **__: object) -> AsyncIterator[tuple[str, Object]]:
            await asyncio.Event().wait()
            yield  # type: ignore[misc]

    async def script() -> list[Key]:
        changes: list[Key] = []
        appeared = asyncio.Event()

        def changed(kind: Kind, key: Key, gone: bool) -> None:
            changes.append(key)
            appeared.set()

        watcher = Watcher(Api(), SCALED_OBJECT, None, changed, Timing(absent_s=0.01))  # type: ignore[arg-type]
        task = asyncio.ensure_future(watcher.run())
        await watcher.listed()
        assert watcher.store.available is False
        await asyncio.wait_for(appeared.wait(), 5)
        assert watcher.store.available is True
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return changes

    assert asyncio.run(script()) == [("", "")]


@pytest.mark.parametrize("status", [403, 404])
def test_a_watch_that_is_refused_is_followed_by_a_list(status: int) -> None:
    """An API server that starts may refuse what it serves a moment later: the kind is not absent."""

    class Api:
        """Refuses the first watch."""

        def __init__(self) -> None:
            self.watches: list[str] = []
            self.watching = asyncio.Event()

        async def list(self, kind: Kind, namespace: str | None, **_: str) -> tuple[str, list[Object]]:
            return f"1{len(self.watches)}", [_deployment(9, "new")]

        async def watch(
            self, kind: Kind, namespace: str | None, version: str, *_: object, **__: object
        ) -> AsyncIterator[tuple[str, Object]]:
            self.watches.append(version)
            if len(self.watches) == 1:
                raise ApiFailure(status, "Refused", "not yet")
            self.watching.set()
            await asyncio.Event().wait()
            yield  # type: ignore[misc]

    async def script() -> None:
        api, changes = Api(), []
        watcher = Watcher(api, SCALED_OBJECT, None, lambda *change: changes.append(change), Timing())  # type: ignore[arg-type]
        task = asyncio.ensure_future(watcher.run())
        await asyncio.wait_for(api.watching.wait(), 10)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert api.watches == ["10", "11"]
        assert watcher.store.available is True
        assert watcher.store.get(KEY)
        assert changes == [(SCALED_OBJECT, KEY, False)]

    asyncio.run(script())


def test_a_spec_that_changes_while_the_status_is_written_is_still_news() -> None:
    """The response to the status holds the new spec already. The watch must tell it all the same, for it to be done."""

    def stored(version: int, generation: int) -> Object:
        item = resource()
        item["metadata"] |= {"uid": "u", "generation": generation, "resourceVersion": str(version)}
        return item

    class Api:
        """Stores what is applied. Somebody changes the spec just before the status is written."""

        async def list(self, *_: object, **__: object) -> tuple[str, list[Object]]:
            return "1", []

        async def apply(self, kind: Kind, body: Object, *, force: bool) -> Object:
            return body | {"metadata": body["metadata"] | {"uid": kind.plural, "resourceVersion": "2"}}

        async def apply_status(self, kind: Kind, body: Object) -> Object:
            return stored(10, 2) | {"status": body["status"]}

    api, stores = Api(), {kind: Store(kind) for kind in (INFERENCE_SERVICE, *CHILDREN)}
    for store in stores.values():
        store.available = True
    stores[INFERENCE_SERVICE].put(stored(8, 1))
    reconciler = Reconciler(api, stores, Defaults(), Events(api, "controller-0"))  # type: ignore[arg-type]
    assert asyncio.run(reconciler.reconcile(("inference", "llama"))) is None
    assert stores[INFERENCE_SERVICE].put(stored(9, 2))
