"""The rules under ops/prometheus, and every metric that ops/ mentions: what Prometheus itself makes of them."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.certificates import certificate, write_pair
from tests.support.local_router import LocalRouter
from tests.support.ops import OPS, ROOT, Object, one, overlay

pytestmark = pytest.mark.slow  # it runs kubectl, Helm or promtool

ADAPTER_RULE = OPS / "prometheus/adapter-rule.yaml"
ALERTS = OPS / "prometheus/alerts.yaml"
ALERTS_TEST = OPS / "prometheus/alerts.test.yaml"
TARGET_LABELS = {"namespace", "job", "pod", "container", "deployment"}
"""What the Prometheus Operator and the PodMonitor add to every series of a pod."""
ROUTES = """
[[models]]
name = "m"
no_endpoint_wait_s = 300
dns = "model.invalid:80"
"""


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def _promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# Metrics: what is mentioned is what the application emits.


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every series that the application shows, and the names of its labels: after two requests to a simulated model,
    of a model that is scaled to zero, and of one with an endpoint; with TLS and tenants.
    """
    stream = '{"model": "simulated", "stream": true, "messages": [{"role": "user", "content": "a b"}]}'
    with LocalRouter(tmp_path_factory.mktemp("ops"), SIMULATED_LATENCY_MS="0") as local:
        assert local.ask("POST", "/infer", '{"prompt": "p"}').status == 200
        assert local.ask("POST", "/v1/chat/completions", stream).status == 200
        page = local.ask("GET", "/metrics").body
    routes = tmp_path_factory.mktemp("ops") / "routes.toml"
    routes.write_text(ROUTES)
    with LocalRouter(routes.parent, ROUTES_FILE=str(routes), QUEUE_SIZE="1") as local:
        pages = [page, local.ask("GET", "/metrics").body]
    folder = tmp_path_factory.mktemp("endpoint")
    certificate_file, key_file = map(str, write_pair(folder, "tls", certificate("router", [])))
    given = {"TLS_CERT_FILE": certificate_file, "TLS_KEY_FILE": key_file}
    given |= {"TENANT_HEADER": "X-Tenant", "TRUSTED_PROXIES": "127.0.0.1"}
    with LocalRouter(folder, BACKENDS="http://127.0.0.1:1", **given) as local:
        pages.append(local.ask("GET", "/metrics").body)
    families = [family for each in pages for family in text_string_to_metric_families(each)]
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def test_every_metric_mentioned_exists(emitted: dict[str, set[str]]) -> None:
    """A renamed metric would leave an alert that never fires and an autoscaler that sees nothing.

    Compared are names of series, so a histogram must be mentioned with its _bucket, _sum or _count.
    """
    files = [path for folder in ("prometheus", "k8s", "helm") for path in (OPS / folder).rglob("*.yaml")]
    mentioned = {(name, path.name) for path in files for name in re.findall(r"router_[a-z_]+", path.read_text())}
    assert {path for _, path in mentioned} == {
        "adapter-rule.yaml",
        "alerts.test.yaml",
        "alerts.yaml",
        "horizontal-pod-autoscaler.yaml",
        "model-servers.yaml",
        "scaled-object.yaml",
    }
    assert {(name, path) for name, path in mentioned if name not in emitted} == set()


def test_every_label_mentioned_exists(emitted: dict[str, set[str]]) -> None:
    """A renamed label would do the same, with less to notice."""
    series = re.findall(r"(router_[a-z_]+)\{([^}]*)\}", ALERTS.read_text() + ALERTS_TEST.read_text())
    assert series
    for name, matchers in series:
        assert set(re.findall(r"(\w+)(?==|!)", matchers)) <= emitted[name] | TARGET_LABELS


# The rules for Prometheus and its adapter.


@pytest.mark.slow
def test_alert_rules_are_valid() -> None:
    """Prometheus refuses a file with one bad rule whole."""
    _promtool("check", "rules", ALERTS)


def _alerts() -> list[str]:
    """The names of the alerts, in order."""
    return [rule["alert"] for group in _load(ALERTS)["groups"] for rule in group["rules"] if "alert" in rule]


def test_every_alert_has_a_runbook_entry() -> None:
    """docs/operations.md has a section for each alert, in the same order, and for no other."""
    sections = re.findall(r"^### (Router\w+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert sections == _alerts()


def test_alerts_fire_when_they_should() -> None:
    """Each alert is shown to fire in trouble and to keep quiet in health."""
    fires: dict[bool, set[str]] = {True: set(), False: set()}
    for test in _load(ALERTS_TEST)["tests"]:
        for case in test["alert_rule_test"]:
            fires[bool(case.get("exp_alerts"))].add(case["alertname"])
    assert fires[True] == fires[False] == set(_alerts())
    _promtool("test", "rules", ALERTS_TEST)


def _adapter_rules() -> dict[str, Any]:
    return {rule["name"]["as"]: rule for rule in _load(ADAPTER_RULE)["rules"]["custom"]}


def _query(name: str, **placeholders: str) -> str:
    """The adapter's query for a metric, with its placeholders replaced as the adapter does."""
    query: str = _adapter_rules()[name]["metricsQuery"]
    for placeholder, value in {"Series": name, **placeholders}.items():
        assert f"<<.{placeholder}>>" in query
        query = query.replace(f"<<.{placeholder}>>", value)
    return query


def _evaluates(folder: Path, query: str, series: dict[str, float], expected: dict[str, float]) -> None:
    """Have Prometheus evaluate a query of series that keep their values."""
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": f"{value}x5"} for name, value in series.items()],
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": "5m",
                "exp_samples": [{"labels": labels, "value": value} for labels, value in expected.items()],
            }
        ],
    }
    file = folder / "query.test.json"
    file.write_text(json.dumps({"evaluation_interval": "1m", "tests": [test]}))
    _promtool("test", "rules", file)


def test_adapter_serves_what_the_autoscaler_asks_for() -> None:
    """Both metrics are found under the names that the autoscaler uses, for the kind of object that it names."""
    rules = _adapter_rules()
    demand, inflight = one(overlay("overlays/dev"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    asked = {demand["object"]["metric"]["name"]: "deployment", inflight["pods"]["metric"]["name"]: "pod"}
    assert rules.keys() == asked.keys()
    assert demand["object"]["describedObject"]["kind"] == "Deployment"
    for name, resource in asked.items():
        assert rules[name]["seriesQuery"] == f'{name}{{namespace!="",{resource}!=""}}'
        assert re.search(rules[name]["name"]["matches"], name)
        overrides = rules[name]["resources"]["overrides"]
        assert overrides.keys() == {"namespace", resource}
        assert overrides["namespace"] == {"resource": "namespace"}
        assert overrides[resource]["resource"] == resource


@pytest.mark.slow
def test_adapter_counts_each_ready_pod_once(tmp_path: Path) -> None:
    """One value a ready pod, its own, also when the pod shows in two series; a pod that isn't ready has none.

    With a 0 for each pod that starts, two full pods and two that start would look like four that are half empty.
    """
    values = {"a": (7, 1), "b": (3, 1), "starting": (0, 0)}
    series: dict[str, float] = {'router_inflight_requests{namespace="other", pod="a"}': 9}
    for pod, (value, ready) in values.items():
        for instance in ("1", "2"):
            series[f'router_inflight_requests{{namespace="n", pod="{pod}", instance="{instance}"}}'] = value
        for condition, truth in {"true": ready, "false": 1 - ready}.items():
            series[f'kube_pod_status_ready{{namespace="n", pod="{pod}", condition="{condition}"}}'] = truth
    matchers = 'namespace="n",pod=~"a|b|starting"'
    query = _query("router_inflight_requests", LabelMatchers=matchers, GroupBy="pod")
    _evaluates(tmp_path, query, series, {'{pod="a"}': 7, '{pod="b"}': 3})


@pytest.mark.slow
def test_adapter_adds_demand_up_over_pods_and_models(tmp_path: Path) -> None:
    """A Deployment has one value, in which each pod and model counts once."""
    query = _query("router_demand_requests", LabelMatchers='namespace="n",deployment="router"', GroupBy="deployment")
    _evaluates(tmp_path, query, DEMAND_SERIES, {'{deployment="router"}': 60})


DEMAND_SERIES = {
    f"router_demand_requests{{{labels}}}": value
    for labels, value in {
        'namespace="n", deployment="router", pod="a", model="m", instance="1"': 30.0,
        'namespace="n", deployment="router", pod="a", model="m", instance="2"': 30.0,
        'namespace="n", deployment="router", pod="a", model="l", instance="1"': 10.0,
        'namespace="n", deployment="router", pod="b", model="m", instance="3"': 20.0,
        'namespace="n", deployment="router-b", pod="c", model="m", instance="4"': 90.0,
        'namespace="other", deployment="router", pod="d", model="m", instance="5"': 90.0,
    }.items()
}


def _triggers(scaled_object: Object, namespace: str) -> dict[str, str]:
    return {
        trigger["name"]: trigger["metadata"]["query"].replace('namespace="inference"', f'namespace="{namespace}"')
        for trigger in scaled_object["spec"]["triggers"]
    }


@pytest.mark.slow
def test_keda_asks_for_the_demand_of_its_own_router(tmp_path: Path) -> None:
    """One number, in which each pod and model counts once, and neither another router nor another namespace."""
    query = _triggers(one(overlay("overlays/production"), "ScaledObject", name="router"), "n")["demand"]
    _evaluates(tmp_path, query, DEMAND_SERIES, {"{}": 60})


@pytest.mark.slow
def test_model_server_is_scaled_by_the_requests_of_its_model(tmp_path: Path) -> None:
    """In flight, queued and waiting for the first pod are added up over the routers."""
    query = _triggers(one(overlay("overlays/production"), "ScaledObject", name="model-server"), "n")["demand"]
    _evaluates(
        tmp_path,
        query,
        {
            'router_model_inflight{namespace="n", pod="a", model="my-model", instance="1"}': 8,
            'router_model_inflight{namespace="n", pod="a", model="my-model", instance="2"}': 8,
            'router_model_queued{namespace="n", pod="a", model="my-model", instance="1"}': 3,
            'router_model_inflight{namespace="n", pod="b", model="my-model", instance="3"}': 5,
            'router_model_inflight{namespace="n", pod="b", model="another", instance="3"}': 90,
            'router_endpoint_wait_requests{namespace="n", pod="b", model="my-model", instance="3"}': 2,
            'router_model_capacity{namespace="n", pod="b", model="my-model", instance="3"}': 90,
        },
        {"{}": 18},
    )


@pytest.mark.slow
def test_model_server_without_requests_is_seen_as_idle(tmp_path: Path) -> None:
    """Activity is 0 and not unknown where a model never had a request; else KEDA could never go down to no pod."""
    query = _triggers(one(overlay("overlays/production"), "ScaledObject", name="model-server"), "n")["activity"]
    _evaluates(tmp_path, query, {'router_requests_total{namespace="n", pod="a", model="another"}': 7}, {"{}": 0})
