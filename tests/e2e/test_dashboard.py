"""The Grafana dashboard: it is the one that the metrics make, and each of its queries finds data."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.docs import dashboard
from tests.docs.tables import FAMILIES
from tests.e2e.test_prometheus import Prometheus
from tests.support.certificates import certificate, write_pair
from tests.support.clients import CHAT, Crowd
from tests.support.credentials import bearer, key, write_keys
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.scripted_dns import ScriptedDns, records

pytestmark = pytest.mark.slow


def test_dashboard_is_the_one_that_the_metrics_make() -> None:
    """`python -m tests.docs.dashboard` was run after a metric changed; every panel has a place of its own."""
    assert dashboard.FILE.read_text() == dashboard.render()
    panels = json.loads(dashboard.FILE.read_text())["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)


def test_every_panel_has_the_unit_of_its_queries() -> None:
    """A rate is so many per second, of requests, tokens or other events; times are seconds; the rest are numbers."""
    units: dict[str, set[str]] = {}
    for panel in json.loads(dashboard.FILE.read_text())["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            kind = "time" if query.startswith("histogram_quantile(") or "time()" in query else "number"
            kind = "rate" if "rate(" in query and kind == "number" else kind
            units.setdefault(kind, set()).add(panel["fieldConfig"]["defaults"]["unit"])
    assert units == {"time": {"s"}, "rate": {"reqps", "ops", "suffix:tokens/s"}, "number": {"short"}}
    of_counters = {family.name: dashboard.unit(family) for family in FAMILIES if family.kind == "counter"}
    assert {name for name, unit in of_counters.items() if unit == "ops"} == {
        "router_discovery_results_total",
        "router_jwks_refreshes_total",
        "router_keys_reloads_total",
        "router_permits_reclaimed_total",
        "router_routes_reloads_total",
        "router_tls_handshake_failures_total",
        "router_tls_reloads_total",
        "router_trace_spans_total",
    }
    assert [name for name, unit in of_counters.items() if unit.startswith("suffix:")] == ["router_tokens_total"]


@pytest.fixture
def names(tmp_path: Path) -> Iterator[None]:
    """A name server that knows one name, for discovery_conf."""
    with ScriptedDns(records("found.test. 1 A 127.0.0.1")) as server:
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        (tmp_path / "dns_port").write_text(str(server.port))
        yield


def has_data(prometheus: Prometheus, query: str) -> bool:
    """Whether the query returns a number. A percentile of nothing is none."""
    value = prometheus.value(query)
    return value is not None and not math.isnan(value)


@pytest.mark.usefixtures("names")
def test_every_query_of_the_dashboard_finds_data(
    start: Callable[..., Router], routes: Callable[..., str], tmp_path: Path
) -> None:
    """A real Prometheus scrapes a router that streams, falls back, balances by load, looks names up, and rejects: no
    panel is empty."""
    upstream = start(SIMULATED_LATENCY_MS=0, SIMULATED_TOKEN_MS=1, MODEL_REF="m", WEB_CONCURRENCY=1)
    certificate_file, key_file = write_pair(tmp_path, "own", certificate("router", [], leaf=True))
    dead = {"url": f"https://127.0.0.1:{free_port()}"}
    dead |= {"client_cert_file": str(certificate_file), "client_key_file": str(key_file)}
    file = routes(
        {"name": "m", "endpoints": [{"url": upstream.url}], "balancing": "least_load"},
        {"name": "gone", "endpoints": [dead], "fallback": ["m"]},
        {"name": "slow", "protocol": "simulated"},
        {"name": "found", "dns": f"found.test:{upstream.port}", "no_endpoint_wait_s": 1},
    )
    keys = write_keys(tmp_path / "keys.json", key("a"), tenants=({"name": "t", "max_concurrency": 1},))
    settings = {"ROUTES_FILE": file, "KEYS_FILE": keys, "TEST_DISCOVERY": tmp_path, "SIMULATED_LATENCY_MS": 2000}
    options = ("-c", "python:tests.support.discovery_conf")
    router = start(options=options, INITIAL_HEALTH="healthy", WEB_CONCURRENCY=1, **settings)
    messages = [{"role": "user", "content": "one two three"}]

    def load() -> None:
        for model in ("m", "gone"):
            body = {"model": model, "stream": True, "stream_options": {"include_usage": True}, "messages": messages}
            assert requests.post(router.url + CHAT, json=body, headers=bearer("a"), timeout=20).status_code == 200
        both = Crowd(lambda _: router.infer(members={"model": "slow"}, headers=bearer("a")).status_code).send(2)
        assert both.join().counts() == {200: 1, 429: 1}  # the tenant may have one at a time

    load()
    with Prometheus(tmp_path, router.port) as prometheus:
        empty = {
            query.replace("$job", ".*").replace(dashboard.RATE_INTERVAL, "1m")
            for family in FAMILIES
            for query, _ in dashboard.queries(family)
        }

        def all_have_data() -> bool:
            load()
            empty.difference_update([query for query in empty if has_data(prometheus, query)])
            return not empty

        try:
            until(all_have_data, "every query has data", 60)
        except AssertionError:
            raise AssertionError(f"no data: {sorted(empty)}") from None
