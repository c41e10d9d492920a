"""A Service's EndpointSlices over a real HTTPS connection: list, watch, and everything that can go wrong in between."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.config.discovered import Source
from app.discovery import api_server as api_server_module
from app.discovery import kubernetes
from app.discovery.api_server import api_server_in
from app.discovery.findings import BackOff, Findings
from app.discovery.kubernetes import ServiceWatch
from tests.support.kubernetes_api import KubernetesApi, endpoint, status

pytestmark = pytest.mark.slow


class Stopped(BaseException):
    """Ends the thread that watches."""


class Watcher:
    """Follows `ns/llm` in a thread, and keeps what is reported."""

    def __init__(self, api: KubernetesApi) -> None:
        self.api = api
        self.sets: list[tuple[str, ...]] = []
        self.results: list[str] = []
        self._changed = threading.Condition()
        self._stopped = False
        server = api_server_in(api.environ)
        assert server is not None
        findings = Findings("service ns/llm:http", self._found, self._count)
        self._watch = ServiceWatch(Source("service", "ns/llm", "http"), server, findings)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            self._watch.follow()
        except Stopped:
            pass

    def _found(self, urls: tuple[str, ...]) -> None:
        with self._changed:
            self.sets.append(urls)
            self._changed.notify_all()

    def _count(self, key: str, result: str) -> None:
        with self._changed:
            self.results.append(result)
            self._changed.notify_all()
        if self._stopped:
            raise Stopped

    def expect(self, *hosts: str, port: int = 8000) -> None:
        """Return once the last set that was reported is this one."""
        urls = tuple(sorted(f"http://{host}:{port}" for host in hosts))
        with self._changed:
            reached = self._changed.wait_for(lambda: self.sets and self.sets[-1] == urls, 20)
            assert reached, f"{self.sets}, not {urls}"

    def expect_failures(self, count: int) -> None:
        """Return once discovery has failed so often in all."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.results.count("failed") >= count, 20), self.results

    def stop(self) -> None:
        """End the thread, which notices at its next result."""
        self._stopped = True
        self.api.end_watches()
        self.api.put("last", [])
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """An API server with one slice: 10.0.0.1."""
    monkeypatch.setattr(api_server_module, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(kubernetes, "_FIRST_BACK_OFF_S", 0.02)
    monkeypatch.setattr(kubernetes, "_MOST_BACK_OFF_S", 0.1)
    with KubernetesApi(tmp_path) as server:
        server.put("a", [endpoint("10.0.0.1", ready=True)])
        yield server


@pytest.fixture
def watcher(api: KubernetesApi) -> Iterator[Watcher]:
    """A watcher that has the first set, and watches."""
    watching = Watcher(api)
    watching.expect("10.0.0.1")
    api.wait_watched(1)
    yield watching
    watching.stop()


def test_changes_come_as_they_are_made(api: KubernetesApi, watcher: Watcher) -> None:
    """ADDED, MODIFIED and DELETED; a pod that terminates leaves the set; one list serves for all of it."""
    api.put("b", [endpoint("10.0.0.2", ready=True)], port=9000)
    with_two = ("http://10.0.0.1:8000", "http://10.0.0.2:9000")
    with watcher._changed:
        assert watcher._changed.wait_for(lambda: watcher.sets[-1] == with_two, 20)
    api.put("a", [endpoint("10.0.0.1", ready=False, serving=True, terminating=True), endpoint("10.0.0.3")])
    api.delete("b")
    watcher.expect("10.0.0.3")
    api.delete("a")
    watcher.expect()
    assert len(api.lists) == len(api.watches) == 1


def test_watch_goes_on_from_the_last_version(api: KubernetesApi, watcher: Watcher) -> None:
    """A watch that ends is made again from the newest version that was seen, a bookmark's included, without a list."""
    api.bookmark()
    bookmarked = str(api._version)
    api.put("a", [endpoint("10.0.0.2")])
    watcher.expect("10.0.0.2")
    api.bookmark()
    newest = str(api._version)
    api.end_watches()
    api.wait_watched(2)
    api.put("a", [endpoint("10.0.0.3")])
    watcher.expect("10.0.0.3")
    assert bookmarked < api.watches[1]["resourceVersion"] <= newest
    assert len(api.lists) == 1
    query = api.watches[1]
    assert (query["watch"], query["allowWatchBookmarks"]) == ("1", "true")
    assert 240 <= int(query["timeoutSeconds"]) <= 300
    assert "resourceVersion" not in api.lists[0], "a list from the cache might be older than what is known"


def test_410_as_an_event_lists_again(api: KubernetesApi, watcher: Watcher) -> None:
    """An ERROR event with the Status 410: the list is made anew, and this is no failure."""
    api.send_error(status(410, "Expired"))
    api.wait_watched(2)
    assert len(api.lists) == 2
    api.put("a", [endpoint("10.0.0.2")])
    watcher.expect("10.0.0.2")
    assert "failed" not in watcher.results


def test_410_as_a_status_lists_again(api: KubernetesApi, watcher: Watcher) -> None:
    """The same in response to a watch: changes that the history has lost are found by the list."""
    api.fail("watch", 410, "Gone")
    api.end_watches()
    api.wait_watched(3)
    assert len(api.lists) == 2
    assert "failed" not in watcher.results


@pytest.mark.parametrize(
    ("code", "reason"), [(500, "InternalError"), (503, "ServiceUnavailable"), (403, "Forbidden"), (401, "Unauthorized")]
)
def test_errors_change_nothing(api: KubernetesApi, watcher: Watcher, code: int, reason: str) -> None:
    """A watch and a list that fail leave the last set; it is followed again as soon as they work."""
    api.fail("watch", code, reason)
    api.fail("list", code, reason)
    api.end_watches()
    watcher.expect_failures(2)
    assert watcher.sets[-1] == ("http://10.0.0.1:8000",)
    assert () not in watcher.sets
    api.put("a", [endpoint("10.0.0.2")])
    watcher.expect("10.0.0.2")


def test_429_is_tried_again_after_its_time(
    api: KubernetesApi, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retry-After is added to the back-off, as is `retryAfterSeconds`; the watch goes on, without another list."""
    least: list[float] = []
    wait_s = BackOff.wait_s

    def noted(self: BackOff, least_s: float = 0.0) -> float:
        least.append(least_s)
        return wait_s(self)

    monkeypatch.setattr(BackOff, "wait_s", noted)
    api.fail("watch", 429, "TooManyRequests", Retry_After="7")
    api.end_watches()
    watcher.expect_failures(1)
    api.put("a", [endpoint("10.0.0.2")])
    watcher.expect("10.0.0.2")
    assert 7 in least
    assert len(api.lists) == 1
    assert status(429, "TooManyRequests", 5)["details"] == {"retryAfterSeconds": 5}


def test_error_event_lists_again(api: KubernetesApi, watcher: Watcher) -> None:
    """Any other ERROR event is a failure, and what is known may be incomplete: the list is made anew."""
    api.send_error(status(500, "InternalError"))
    watcher.expect_failures(1)
    api.wait_watched(2)
    assert len(api.lists) == 2
    assert () not in watcher.sets


def test_token_is_read_again(api: KubernetesApi, watcher: Watcher) -> None:
    """The kubelet replaces the token: the next request has the new one."""
    api.rotate_token("second")
    api.end_watches()
    api.wait_watched(2)
    api.put("a", [endpoint("10.0.0.2")])
    watcher.expect("10.0.0.2")
    assert "failed" not in watcher.results


def test_pages_of_a_list_are_put_together(api: KubernetesApi) -> None:
    """`continue` leads through a long list; nothing is reported before its end."""
    api.page = 1
    api.put("b", [endpoint("10.0.0.2")])
    api.put("c", [endpoint("10.0.0.3")])
    watching = Watcher(api)
    watching.expect("10.0.0.1", "10.0.0.2", "10.0.0.3")
    assert len(watching.sets) == 1
    assert len(api.lists) == 3
    watching.stop()


def test_wrong_authority_is_refused(api: KubernetesApi, watcher: Watcher, tmp_path: Path) -> None:
    """A server that the pod's CA has not signed is not asked, and its absence empties nothing."""
    genuine = (tmp_path / "ca.crt").read_bytes()
    with KubernetesApi(tmp_path):  # writes another authority
        (tmp_path / "token").write_text("first")
        api.end_watches()
        watcher.expect_failures(2)
        assert watcher.sets[-1] == ("http://10.0.0.1:8000",)
        (tmp_path / "ca.crt").write_bytes(genuine)
        api.put("a", [endpoint("10.0.0.2")])
        watcher.expect("10.0.0.2")


def test_back_off_doubles_with_jitter() -> None:
    """Each wait is half of a step to all of it; steps double up to the most; Retry-After is added."""
    back_off = BackOff(1, 8)
    for step in (1, 2, 4, 8, 8):
        assert step / 2 <= back_off.wait_s() <= step
    assert 34 <= back_off.wait_s(30) <= 38
    back_off.reset()
    assert back_off.wait_s() <= 1


@pytest.mark.parametrize(
    ("environ", "at"),
    [
        ({}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ("10.0.0.1", 443)),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"}, ("10.0.0.1", 6443)),
        ({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}, ("fd00::1", 443)),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "tcp"}, None),
    ],
)
def test_api_server_is_in_the_environment(environ: dict[str, str], at: tuple[str, int] | None) -> None:
    """As the kubelet sets it in every pod."""
    assert api_server_in(environ) == at
