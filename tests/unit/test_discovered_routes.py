"""Endpoints that come and go: how they are published, counted, and given up, in the test's own process."""

import json
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gevent
import pytest
from cryptography import x509

from app.config.discovered import Source
from app.config.routes_file import parse_routes
from app.config.routes_source import Document, tls_files_of
from app.discovery import dns_lookup
from app.discovery.discovery import Discovery
from app.discovery.findings import DiscoveryFailed
from app.errors import RoutesError
from app.net.tls_files import TlsFiles
from app.routing.attempt import Attempt
from app.routing.endpoint_pool import EndpointPool
from app.routing.outlier_detection import Outcome
from app.routing.registered_model import RegisteredModel
from app.routing.remote_model import RemoteModel
from app.shared_memory.counters import MAX_IDS
from tests.support.certificates import certificate, write_pair
from tests.support.routed_router import RoutedRouter
from tests.support.scripted_server import ScriptedServer, answer_and_close
from tests.support.upstream import Upstream

KEY = "dns m.test:8000"
QUIET = {"interval_s": 0}


def urls(first: int, count: int) -> tuple[str, ...]:
    """So many URLs, from this number on."""
    return tuple(sorted(f"http://10.0.{n // 250}.{n % 250 + 1}:8000" for n in range(first, first + count)))


class Routed(RoutedRouter):
    """A router of the model `m`, found by the DNS, in a file that may be written again."""

    def __init__(self, folder: Path, **members: Any) -> None:
        super().__init__(folder, {"name": "m", "dns": "m.test:8000", **members}, QUEUE_SIZE="5")

    def found(self, *urls: str) -> tuple[str, ...]:
        """Publish that these URLs were found. Returns those that are current."""
        return super().found(KEY, *urls)

    def pool(self) -> EndpointPool:
        """The endpoints of the model, as a request gets them now."""
        model = self.registry.find("m").model
        assert isinstance(model, RemoteModel)
        return model._pools[0]

    def ready(self) -> bool:
        return self.ask("GET", "/readyz").status == 200


@pytest.fixture
def routed(tmp_path: Path) -> Iterator[Routed]:
    """Nothing found yet."""
    with Routed(tmp_path) as local:
        yield local


@pytest.mark.slow
def test_10_000_addresses_pass_through_512_counters(routed: Routed) -> None:
    """Sets of 200 in which 100 change each time, while requests run on for several changes: every endpoint has a
    counter of its own, which begins at 0, and none is counted under another one's."""
    counters, health = routed.router.counters, routed.router.models.health_checks._health
    running: list[tuple[Attempt, int]] = []
    before: set[str] = set()
    for first in range(0, 10_000, 100):
        current = urls(first, 200)
        assert routed.found(*current) == current
        pool = routed.pool()
        ids = {endpoint.url: endpoint.shared_id for endpoint in pool._endpoints}
        assert len(set(ids.values())) == 200
        assert not any(counters.total(ids[url]) or health.is_known(ids[url]) for url in ids.keys() - before)
        health.served(ids[current[-1]])
        held = {attempt.endpoint.url: attempt.endpoint.shared_id for attempt, _ in running}
        assert all(shared_id == ids.get(url, shared_id) for url, shared_id in held.items())
        assert not set(held.values()) & {shared_id for url, shared_id in ids.items() if url not in held}
        attempt = pool.choose(b"")
        assert attempt is not None
        running.append((attempt, first))
        for ended in [one for one in running if one[1] < first - 500]:
            ended[0].finish(Outcome.ABANDONED, None)
            running.remove(ended)
        before = set(current)
    for one, _ in running:
        one.finish(Outcome.ABANDONED, None)
    assert [counters.total(shared_id) for shared_id in range(MAX_IDS)] == [0] * MAX_IDS


def test_request_with_old_routes_is_counted_under_no_other_name(routed: Routed) -> None:
    """A request that waited while its endpoints went, and their counters were given to others, gets none of them."""
    routed.found(*urls(0, 500))
    old = routed.pool()
    old_ids = {endpoint.shared_id for endpoint in old._endpoints}
    routed.found(*urls(0, 1))
    routed.found(*urls(1000, 499))
    assert old_ids & {endpoint.shared_id for endpoint in routed.pool()._endpoints}, "their counters are used again"
    assert old.choose(b"") is None
    assert not any(routed.router.counters.total(shared_id) for shared_id in range(MAX_IDS))


def test_endpoint_that_has_gone_gets_no_retry(routed: Routed) -> None:
    """A request that holds older routes is sent only to those of their endpoints that are still there."""
    one, two, three = urls(0, 3)
    routed.found(one, two)
    old = routed.pool()
    routed.found(two, three)
    chosen = [old.choose(b"") for _ in range(10)]
    assert {attempt.endpoint.url for attempt in chosen if attempt} == {two}
    for attempt in chosen:
        assert attempt is not None
        attempt.finish(Outcome.ABANDONED, None)


def test_what_is_known_of_endpoints_that_stay_is_kept(routed: Routed) -> None:
    """Their counters, their ejection and their connections: the same before and after."""
    one, two, three = urls(0, 3)
    routed.found(one, two)
    before = {endpoint.url: endpoint for endpoint in routed.pool()._endpoints}
    attempt = routed.pool().choose(b"")
    assert attempt is not None
    routed.router.table.array("endpoint_unavailable_until_ms")[before[two].shared_id] = 1 << 60
    routed.found(two, three)
    after = {endpoint.url: endpoint for endpoint in routed.pool()._endpoints}
    assert after[two].shared_id == before[two].shared_id
    assert after[two].connections is before[two].connections
    assert routed.router.table.array("endpoint_unavailable_until_ms")[after[two].shared_id] == 1 << 60
    attempt.finish(Outcome.ABANDONED, None)


def test_all_addresses_may_change_at_once(routed: Routed) -> None:
    """300 give way to 300 others, more than there are counters for both: the set is never empty, and soon complete."""
    routed.found(*urls(0, 300))
    current, steps = routed.found(*urls(1000, 300)), 1
    while current != urls(1000, 300):
        assert current
        current, steps = routed.found(*urls(1000, 300)), steps + 1
        assert steps < 10


def test_more_addresses_than_counters(routed: Routed) -> None:
    """As many are used as fit; the rest is left out, and nothing fails."""
    routed.found(*urls(0, 100))
    current: tuple[str, ...] = ()
    for _ in range(12):
        current = routed.found(*urls(0, 600))
    assert set(urls(0, 100)) < set(current) < set(urls(0, 600))
    assert len(current) >= 500


def test_set_may_be_empty(routed: Routed) -> None:
    """An empty one replaces what was there, for requests too."""
    routed.found(*urls(0, 2))
    assert routed.found() == ()
    response = routed.ask("POST", "/v1/chat/completions", '{"model": "m", "messages": []}')
    assert (response.status, json.loads(response.body)["error"]["code"]) == (503, "no_endpoint")


def test_changed_file_keeps_what_was_found(routed: Routed) -> None:
    """Sources that stay keep their endpoints, those that go lose them, and new ones begin with none."""
    routed.found(*urls(0, 2))
    routed.write(
        {"name": "m", "dns": "m.test:8000", "retry_budget": 0}, {"name": "n", "service": "ns/n", "port": "http"}
    )
    routed.publisher.republish()
    assert routed.pool().size == 2
    assert routed.registry.found() == {KEY: urls(0, 2)}
    assert list(routed.registry.sources()) == [KEY, "service ns/n:http"]
    routed.write({"name": "n", "service": "ns/n", "port": 8000})
    routed.publisher.republish()
    assert routed.registry.found() == {}


def test_two_publishers_undo_nothing_of_each_other(routed: Routed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is published while the leader is about to publish what it found: both hold in the end."""
    store = routed.publisher._store
    publish = store.publish

    def meanwhile(*arguments: Any) -> bool:
        monkeypatch.setattr(store, "publish", publish)
        routed.write({"name": "m", "dns": "m.test:8000", "aliases": ["alias"]})
        routed.publisher.republish()
        return publish(*arguments)

    monkeypatch.setattr(store, "publish", meanwhile)
    assert routed.found(*urls(0, 2)) == urls(0, 2)
    assert routed.registry.find("alias").route.versions[0].endpoints[0].url == urls(0, 2)[0]


def test_slower_publisher_does_not_bring_back_an_older_file(routed: Routed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file changes, and the leader publishes it, while the arbiter has read it for a HUP and not yet published."""
    source = routed.publisher._source
    load = source.load

    def slow() -> Document:
        document = load()
        monkeypatch.setattr(source, "load", load)
        routed.write({"name": "m", "dns": "m.test:8000", "aliases": ["alias"]})
        routed.publisher.republish()
        return document

    monkeypatch.setattr(source, "load", slow)
    routed.publisher.republish()
    assert routed.registry.find("alias").route.name == "m"


def test_credential_is_sent_to_all_that_are_found(tmp_path: Path) -> None:
    """`credential_file` beside `dns` holds for every endpoint, whoever is found later."""
    (tmp_path / "secret").write_text("s3cret")
    with Routed(tmp_path, credential_file=str(tmp_path / "secret")) as routed:
        routed.found(*urls(0, 2))
        assert all("authorization: Bearer s3cret\r\n" in endpoint.head for endpoint in routed.pool()._endpoints)


@pytest.mark.parametrize(
    ("source", "key", "name"),
    [
        ({"dns": "M.test:8000"}, "dns m.test:8000", "m.test"),
        ({"dns": "_http._tcp.m.test."}, "dns _http._tcp.m.test.", "m.test"),
        ({"service": "ns/m", "port": "http"}, "service ns/m:http", "m.ns.svc"),
        ({"dns": "m.test:8000", "server_name": "other.test"}, "dns m.test:8000", "other.test"),
    ],
)
def test_found_endpoints_have_the_tls_of_their_version(
    tmp_path: Path, source: dict[str, Any], key: str, name: str
) -> None:
    """`scheme`, files and the name in the certificates: that of the source, unless `server_name` says another one."""
    (ca_file, _) = map(str, write_pair(tmp_path, "ca", certificate("authority", [])))
    own, own_key = map(str, write_pair(tmp_path, "own", certificate("router", [], leaf=True)))
    tls = {"ca_file": ca_file, "client_cert_file": own, "client_key_file": own_key}
    with RoutedRouter(tmp_path, {"name": "m", **source, "scheme": "https", **tls}) as local:
        local.found(key, "http://10.0.0.1:8000", "http://[fd00::1]:8000")
        (version,) = local.registry.find("m").route.versions
        assert [one.url for one in version.endpoints] == ["https://10.0.0.1:8000", "https://[fd00::1]:8000"]
        assert {one.server_name for one in version.endpoints} == {name}
        assert {tls_files_of(one) for one in version.endpoints} == {TlsFiles(own, own_key, ca_file)}
        assert local.registry.found()[key] == ("http://10.0.0.1:8000", "http://[fd00::1]:8000")


def test_tls_files_of_a_source_are_tried_when_the_routes_are_read(tmp_path: Path) -> None:
    """Routes with files that can't be used are refused, before anything is found."""
    with pytest.raises(RoutesError, match=r"the TLS of m.test:8000: .*/absent: can't be read"):
        Routed(tmp_path, scheme="https", ca_file=str(tmp_path / "absent"))


@pytest.mark.parametrize(("host", "status"), [("m.test", 200), ("other.test", 502)])
def test_found_endpoint_must_show_a_certificate_of_the_source(tmp_path: Path, host: str, status: int) -> None:
    """What is at an address that was found is only taken for the model's if it shows the name of the source."""
    authority = certificate("authority", [])
    ca_file, _ = write_pair(tmp_path, "ca", authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_pair(tmp_path, "server", certificate("server", [x509.DNSName(host)], authority)))
    ok = answer_and_close(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    members: dict[str, Any] = {"scheme": "https", "ca_file": str(ca_file), "health_check": {"interval_s": 0}}
    with ScriptedServer(ok, tls=context) as server, Routed(tmp_path, **members, retry_budget=0) as routed:
        routed.found(f"http://127.0.0.1:{server.port}")
        assert routed.ask("POST", "/v1/chat/completions", '{"model": "m"}').status == status


@pytest.mark.parametrize(("wait_s", "ready"), [(0, False), (5, True)])
def test_readiness_of_a_model_that_is_scaled_to_zero(tmp_path: Path, wait_s: int, ready: bool) -> None:
    """Not before discovery has a response; then, without an endpoint, only if requests may wait for one."""
    with Routed(tmp_path, no_endpoint_wait_s=wait_s) as routed:
        assert not routed.ready()
        routed.found()
        assert routed.ready() is ready
        routed.found(*urls(0, 1))
        assert not routed.ready(), "there is one now, of which nothing is known"


class Leaders:
    """Two workers that may lead, with a name server of the test's own and the sets that are published."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.published: dict[str, tuple[str, ...]] = {}
        self.records: tuple[str, ...] | None = ()
        self.results: list[str] = []
        self.first, self.second = (Discovery(self._publish, None, self._count) for _ in range(2))
        self.sources = {KEY: Source("dns", "m.test", "8000")}
        monkeypatch.setattr(dns_lookup, "look_up", self._look_up)

    def _look_up(self, source: Source, last: object) -> dns_lookup.Records:
        if self.records is None:
            raise DiscoveryFailed("no response")
        return dns_lookup.Records(frozenset(self.records), 60)

    def _publish(self, found: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
        self.published.update(found)
        return self.published

    def _count(self, key: str, result: str) -> None:
        self.results.append(result)

    def run(self, leader: Discovery) -> None:
        """Let it lead, until what it has found is published."""
        done = len(self.results)
        leader.run(self.sources, self.published)
        with gevent.Timeout(10):
            while len(self.results) == done or (leader._flusher is not None and not leader._flusher.dead):
                gevent.sleep(0.01)


@pytest.fixture
def leaders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Leaders]:
    """Nobody leads yet."""
    made = Leaders(monkeypatch)
    yield made
    made.first.stop()
    made.second.stop()
    gevent.sleep(0)


def test_next_leader_empties_nothing(leaders: Leaders) -> None:
    """It begins with what is published, and changes that only once it has a response of its own."""
    leaders.records = urls(0, 2)
    leaders.run(leaders.first)
    assert leaders.published == {KEY: urls(0, 2)}
    leaders.first.stop()
    leaders.records = None
    leaders.run(leaders.second)
    leaders.second.run(leaders.sources, leaders.published)
    assert leaders.published == {KEY: urls(0, 2)}
    assert leaders.results == ["ok", "failed"]


def test_leader_corrects_what_an_old_one_published(leaders: Leaders) -> None:
    """Two workers may believe for a moment that they lead: what is published is the leader's a second later."""
    leaders.records = urls(0, 2)
    leaders.run(leaders.first)
    leaders.published[KEY] = ()
    leaders.first.run(leaders.sources, leaders.published)
    assert leaders.published == {KEY: urls(0, 2)}


def test_worker_that_leads_no_more_publishes_nothing(leaders: Leaders) -> None:
    """It was stopped, and another one may lead by now."""
    leaders.records = urls(0, 2)
    leaders.run(leaders.first)
    leaders.first._led_at -= 10
    leaders.first._found[KEY] = ()
    leaders.first._flush()
    assert leaders.published == {KEY: urls(0, 2)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dns: m:80\n  endpoints: [http://a]", "models[0].dns must not be there together with endpoints"),
        ("dns: m:80\n  service: ns/m\n  port: http", "models[0].service must not be there together with dns"),
        ("service: ns/m", "models[0].service must be there only together with port"),
        ("dns: m:80\n  port: http", "models[0].port must be there only together with service"),
        ("endpoints: [http://a]\n  port: http", "models[0].port must be there only together with service"),
        ("dns: m", "models[0].dns must have a port"),
        ("dns: _http._tcp.m:80", "models[0].dns must have a port, unless it begins with _"),
        ("dns: 10.0.0.1:80", "models[0].dns must be name:port"),
        ("dns: m:0", "models[0].dns is not a name"),
        ("dns: m..n:80", "models[0].dns is not a name"),
        ("dns: http://m:80", "models[0].dns must be name:port"),
        ("service: m\n  port: http", "models[0].service must be namespace/name"),
        ("service: ns/M\n  port: http", "models[0].service must be namespace/name"),
        ("service: ns/m\n  port: 0", "models[0].port is none"),
        ("service: ns/m\n  port: 65536", "models[0].port is none"),
        ("service: ns/m\n  port: HTTP", "models[0].port must be the number or the name"),
        ("endpoints: [http://a]\n  credential_env: A", "models[0].credential_env must be there only beside dns"),
        ("dns: m:80\n  credential_env: A\n  credential_file: /a", "must not be there together with credential_env"),
        ("dns: m:80\n  credential_file: a", "models[0].credential_file must be an absolute path"),
        ("dns: m:80\n  scheme: ftp", "models[0].scheme must be http or https"),
        ("endpoints: [http://a]\n  scheme: https", "models[0].scheme must be there only beside dns"),
        ("endpoints: [https://a]\n  ca_file: /a", "models[0].ca_file must be there only beside dns or service"),
        ("dns: m:80\n  ca_file: /a", "models[0].ca_file must be there only with scheme https"),
        ("dns: m:80\n  scheme: https\n  ca_file: a", "models[0].ca_file must be an absolute path"),
        ("dns: m:80\n  scheme: https\n  client_key_file: /a", "must be there only together with client_cert_file"),
        (
            "dns: M:80\n  scheme: https\n- name: n\n  dns: m:80\n  scheme: https\n  server_name: x",
            "models[1].dns is the same as models[0].dns: ca_file, client_cert_file, client_key_file, server_name must",
        ),
        ("dns: m:80\n  credential_env: A\n  forward_credentials: true", "must not be true where an endpoint has"),
        ("dns: m:80\n  protocol: simulated", "models[0].dns must not be there: a simulated model has none"),
        ("versions: [{name: a}]", "models[0].versions[0].endpoints must hold at least one endpoint"),
        ("dns: m:80\n  no_endpoint_wait_s: -1", "models[0].no_endpoint_wait_s must be a number, 0 to 86400"),
    ],
)
def test_version_has_one_source_of_endpoints(text: str, words: str) -> None:
    """Exactly one of endpoints, dns and service, each with what belongs to it."""
    with pytest.raises(RoutesError) as refused:
        parse_routes(f"models:\n- name: m\n  {text}\n", "routes.yaml")
    assert words in str(refused.value)


def test_sources_of_each_version() -> None:
    """Versions may differ in where their endpoints are found; a port may be a number."""
    text = (
        "models:\n- name: m\n  versions:\n"
        "  - {name: a, dns: M.test:80}\n  - {name: b, service: ns/b, port: 8000}\n  - {name: c, endpoints: [http://c]}\n"
        "  - {name: d, dns: _http._tcp.d}\n"
    )
    a, b, c, d = parse_routes(text, "routes.yaml").models[0].versions
    assert (a.dns, b.service, b.port, c.endpoints[0].url, d.dns) == (
        *("M.test:80", "ns/b", "8000", "http://c", "_http._tcp.d"),
    )


@pytest.mark.parametrize("fallback", [False, True])
def test_routes_that_change_just_before_the_choice_fail_no_request(tmp_path: Path, fallback: bool) -> None:
    """Another process publishes between the last look at the routes and the choice, and no endpoint is as before."""
    spare = {"name": "spare", "protocol": "openai", "endpoints": ["http://127.0.0.1:1"], "health_check": QUIET}
    with Upstream() as old, Upstream() as new:

        def routes(url: str) -> list[dict[str, Any]]:
            more = {"fallback": ["spare"], "fallback_on": ["upstream_broken"]} if fallback else {}
            return [{"name": "m", "endpoints": [url], "health_check": QUIET, **more}, spare]

        with RoutedRouter(tmp_path, *routes(old.url)) as local:
            look = local.registry.renewed

            def renewed(model: RegisteredModel) -> RegisteredModel:
                found = look(model)
                if not changed:
                    changed.append(True)
                    local.publish(*routes(new.url))
                return found

            changed: list[bool] = []
            local.registry.renewed = renewed  # type: ignore[method-assign]
            response = local.ask("POST", "/v1/chat/completions", '{"model":"m","messages":[]}')
            assert response.status == 200
            assert (len(old.seen), len(new.seen)) == (0, 1)
            assert local.router.limiter.snapshot() == (0, 0)
