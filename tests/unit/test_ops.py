"""The operators' files under ops/: valid by themselves, in step with each other, and true to the application."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import msgspec
import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.config.settings import Settings, load_settings
from tests.support.local_router import LocalRouter

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "ops"
K8S = OPS / "k8s"
ADAPTER_RULE = OPS / "prometheus/adapter-rule.yaml"
ALERTS = OPS / "prometheus/alerts.yaml"
ALERTS_TEST = OPS / "prometheus/alerts.test.yaml"
GUIDE = ROOT / "docs/kubernetes.md"

OLDEST = "1.30"  # the first Kubernetes that knows every field used without a feature gate
KINDS = {
    "Deployment": "apps/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "PodDisruptionBudget": "policy/v1",
    "Service": "v1",
    "ServiceAccount": "v1",
}
TARGET_LABELS = {"namespace", "job", "pod", "container"}  # what the Prometheus Operator adds to every series of a pod


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@cache
def _objects() -> dict[str, Any]:
    return {manifest["kind"]: manifest for manifest in map(_load, K8S.glob("*.yaml"))}


def _pod() -> Any:
    return _objects()["Deployment"]["spec"]["template"]


def _container() -> Any:
    (container,) = _pod()["spec"]["containers"]
    return container


def _environment() -> dict[str, str]:
    """The container's variables as the kubelet would set them in a pod called router-0."""
    fields = {"metadata.name": "router-0"}
    return {
        entry["name"]: entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in _container()["env"]
    }


def _settings() -> Settings:
    return load_settings(_environment(), cpus=1)


def _container_ports() -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in _container()["ports"]}


def _promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# The objects by themselves.


def test_kustomization_lists_every_object() -> None:
    """A file that is not listed would never be applied."""
    files = {path.name for path in K8S.iterdir() if path.is_file()} - {"kustomization.yaml"}
    kustomization = _load(K8S / "kustomization.yaml")
    assert kustomization["kind"] == "Kustomization"
    assert kustomization["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
    assert sorted(kustomization["resources"]) == sorted(files)
    assert {kind: manifest["apiVersion"] for kind, manifest in _objects().items()} == {
        **KINDS,
        "Kustomization": "kustomize.config.k8s.io/v1beta1",
        "PodMonitor": "monitoring.coreos.com/v1",
    }


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("kind", KINDS)
def test_objects_fit_the_schemas_of_kubernetes(kind: str, version: str) -> None:
    """No field is unknown or of a wrong type, in the oldest Kubernetes that is promised and in the newest known."""
    kubernetes_validate.validate(_objects()[kind], version, strict=True)


def test_pod_monitor_is_one_the_operator_takes() -> None:
    """A PodMonitor has no schema here. Its port must be the name of a container's port, or nothing is scraped."""
    spec = _objects()["PodMonitor"]["spec"]
    assert spec.keys() == {"selector", "podMetricsEndpoints"}
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint.keys() == {"port", "path", "interval"}
    assert _container_ports()[endpoint["port"]] == int(_settings().admin_port or 0)
    assert endpoint["path"] == "/metrics"
    assert re.fullmatch(r"\d+s", endpoint["interval"])


# The objects with each other.


def test_selectors_choose_the_routers_pods() -> None:
    """Whatever selects pods by labels selects those of the Deployment, and what is named has that name."""
    specs = {kind: manifest.get("spec", {}) for kind, manifest in _objects().items()}
    selectors = [specs[kind]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor")]
    selectors.append(specs["Service"]["selector"])
    spread = _pod()["spec"]["topologySpreadConstraints"]
    selectors.extend(constraint["labelSelector"]["matchLabels"] for constraint in spread)
    for selector in selectors:
        assert selector
        assert selector.items() <= _pod()["metadata"]["labels"].items()
    assert {constraint["topologyKey"] for constraint in spread} == {
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    }
    deployment = _objects()["Deployment"]["metadata"]["name"]
    assert specs["HorizontalPodAutoscaler"]["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": deployment,
    }
    assert _pod()["spec"]["serviceAccountName"] == _objects()["ServiceAccount"]["metadata"]["name"]
    assert f'{{deployment="{deployment}"}}' in ALERTS.read_text()


def test_service_serves_requests_and_no_metrics() -> None:
    """Clients reach the request port by the Service, and the admin port not at all."""
    (port,) = _objects()["Service"]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (80, "http")


def test_nothing_fixes_the_number_of_pods() -> None:
    """The autoscaler owns it, and keeps enough of them that an eviction leaves one."""
    assert "replicas" not in _objects()["Deployment"]["spec"]
    evictable = _objects()["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    assert _objects()["HorizontalPodAutoscaler"]["spec"]["minReplicas"] > evictable >= 1


def test_autoscaler_aims_at_seventy_percent_of_the_cap() -> None:
    """The target is a number of requests, so it goes stale when MAX_CONCURRENCY alone is changed."""
    (metric,) = _objects()["HorizontalPodAutoscaler"]["spec"]["metrics"]
    target = metric["pods"]["target"]
    assert target["type"] == "AverageValue"
    assert "MAX_CONCURRENCY" in _environment()
    assert 0.65 <= float(target["averageValue"]) / _settings().max_concurrency <= 0.75


def test_autoscaler_is_quick_up_and_slow_down() -> None:
    """Load is followed at once; a lull of a few minutes costs no pods."""
    behavior = _objects()["HorizontalPodAutoscaler"]["spec"]["behavior"]
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 300
    assert all(policy["value"] < 100 for policy in behavior["scaleDown"]["policies"] if policy["type"] == "Percent")


# The Deployment and the application.


def test_environment_is_understood_by_the_application() -> None:
    """A variable that is no setting would be ignored without a word, and a bad value would stop the pod's start."""
    assert _environment().keys() <= {field.name.upper() for field in msgspec.structs.fields(Settings)}
    assert _settings().pod_name == "router-0"
    assert "envFrom" not in _container()


def test_ports_are_those_the_application_listens_on() -> None:
    """The port names, on which Service, probes and PodMonitor rely, stand for BIND and ADMIN_BIND, open to the pod."""
    settings = _settings()
    assert settings.binds == [f"0.0.0.0:{port}" for port in _container_ports().values()]
    assert list(_container_ports()) == ["http", "admin"]


def test_probes_ask_what_they_are_for() -> None:
    """Liveness never depends on /readyz: a pod that drains or lost its model must not be killed for it."""
    paths = {name: _container()[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert {_container()[f"{name}Probe"]["httpGet"]["port"] for name in paths} <= _container_ports().keys()


def test_drain_ends_before_the_grace_period() -> None:
    """SIGKILL must come after the wait for proxies and the wait for requests, with time for the exit itself."""
    waits = _container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert waits >= 5
    assert "GRACEFUL_TIMEOUT_S" in _environment()
    assert _pod()["spec"]["terminationGracePeriodSeconds"] >= waits + _settings().graceful_timeout_s + 5


def test_workers_have_the_cores_they_use() -> None:
    """A worker is one thread: fewer cores than workers starve them, and more lie idle."""
    assert "WEB_CONCURRENCY" in _environment()
    resources = _container()["resources"]
    assert int(resources["requests"]["cpu"]) == _settings().web_concurrency
    assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_metrics_files_are_cleared_after_a_kill() -> None:
    """/dev/shm is the pod's and outlives its containers: a fresh directory a start would fill it."""
    directory = _settings().prometheus_multiproc_dir
    assert directory is not None
    assert Path(directory).parent == Path("/dev/shm")


def test_pod_has_no_privileges() -> None:
    """The restricted Pod Security Standard, a root that can't be written, and no token for the Kubernetes API."""
    pod, own = _pod()["spec"], _container()["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert _objects()["ServiceAccount"]["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert "volumes" not in pod


READ_ONLY_ROOT = """
import errno, os, sys

def refuse(event, args):
    writes = event == "os.mkdir" or event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes and not isinstance(args[0], int) and not os.fsdecode(args[0]).startswith("/dev/"):
        raise OSError(errno.EROFS, "Read-only file system", args[0])

sys.addaudithook(refuse)
"""


@pytest.mark.slow
def test_deployment_starts_and_answers_its_probes(tmp_path: Path) -> None:
    """With the Deployment's settings and nowhere to write but /dev, every probe gets 200, and SIGTERM ends it well."""
    (tmp_path / "sitecustomize.py").write_text(READ_ONLY_ROOT)
    ports = dict.fromkeys(_container_ports(), 0)
    for name in ports:
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports[name] = free.getsockname()[1]
    metrics = Path("/dev/shm") / f"router-test-{ports['admin']}"
    environment = {
        **_environment(),
        "BIND": f"127.0.0.1:{ports['http']}",
        "ADMIN_BIND": f"127.0.0.1:{ports['admin']}",
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        "PYTHONPATH": str(tmp_path),
    }
    urls = [
        f"http://127.0.0.1:{ports[get['port']]}{get['path']}"
        for get in (_container()[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness"))
    ]
    command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert [_status_when_up(url, server) for url in urls] == [200, 200, 200]
            pages = [requests.get(f"http://127.0.0.1:{ports[name]}/metrics", timeout=5) for name in ("http", "admin")]
            assert [page.status_code for page in pages] == [404, 200]
            assert metrics.is_dir()
        finally:
            server.send_signal(signal.SIGTERM)
            too_long = threading.Timer(20, server.kill)
            too_long.start()
            log = server.communicate()[1]
            too_long.cancel()
    assert server.returncode == 0, log
    assert not metrics.exists()


def _status_when_up(url: str, server: "subprocess.Popen[str]") -> int:
    deadline = time.monotonic() + 20
    while server.poll() is None and time.monotonic() < deadline:
        try:
            return requests.get(url, timeout=5).status_code
        except requests.ConnectionError:
            time.sleep(0.1)
    raise AssertionError(f"nothing answers {url}")


# Metrics: what is mentioned is what the application emits.


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every series that the application shows after two requests, or with an endpoint, and the names of its labels."""
    stream = '{"model": "simulated", "stream": true, "messages": [{"role": "user", "content": "a b"}]}'
    with LocalRouter(tmp_path_factory.mktemp("ops"), SIMULATED_LATENCY_MS="0") as local:
        assert local.ask("POST", "/infer", '{"prompt": "p"}').status == 200
        assert local.ask("POST", "/v1/chat/completions", stream).status == 200
        page = local.ask("GET", "/metrics").body
    with LocalRouter(tmp_path_factory.mktemp("endpoint"), BACKENDS="http://127.0.0.1:1") as local:
        endpoints = local.ask("GET", "/metrics").body
    families = (*text_string_to_metric_families(page), *text_string_to_metric_families(endpoints))
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def test_every_metric_mentioned_exists(emitted: dict[str, set[str]]) -> None:
    """A renamed metric would leave an alert that never fires and an autoscaler that sees nothing.

    Compared are names of series, so a histogram must be mentioned with its _bucket, _sum or _count.
    """
    mentioned = {
        (name, path.name) for path in OPS.rglob("*.yaml") for name in re.findall(r"router_[a-z_]+", path.read_text())
    }
    assert {path for _, path in mentioned} == {
        "adapter-rule.yaml",
        "alerts.test.yaml",
        "alerts.yaml",
        "horizontal-pod-autoscaler.yaml",
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


def test_adapter_serves_what_the_autoscaler_asks_for() -> None:
    """The metric is found under the name that the autoscaler uses, for objects of kind Pod."""
    (rule,) = _load(ADAPTER_RULE)["rules"]["custom"]
    (metric,) = _objects()["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert metric["type"] == "Pods"
    assert rule["seriesQuery"] == f'{name}{{namespace!="",pod!=""}}'
    assert re.search(rule["name"]["matches"], name)
    assert rule["name"]["as"] == name
    overrides = rule["resources"]["overrides"]
    assert overrides == {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}


@pytest.mark.slow
def test_adapter_counts_each_pod_once(tmp_path: Path) -> None:
    """Prometheus itself evaluates the query: one value a pod, its own, also when the pod shows in two series."""
    (rule,) = _load(ADAPTER_RULE)["rules"]["custom"]
    query = rule["metricsQuery"]
    for placeholder, value in {
        "<<.Series>>": "router_inflight_requests",
        "<<.LabelMatchers>>": 'namespace="n",pod=~"a|b"',
        "<<.GroupBy>>": "pod",
    }.items():
        assert placeholder in query
        query = query.replace(placeholder, value)
    values = {
        'namespace="n", pod="a", instance="1"': 7,
        'namespace="n", pod="a", instance="2"': 7,
        'namespace="n", pod="b", instance="3"': 3,
        'namespace="other", pod="a", instance="4"': 9,
    }
    test = {
        "interval": "1m",
        "input_series": [
            {"series": f"router_inflight_requests{{{labels}}}", "values": f"{value}x5"}
            for labels, value in values.items()
        ],
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": "5m",
                "exp_samples": [{"labels": '{pod="a"}', "value": 7}, {"labels": '{pod="b"}', "value": 3}],
            }
        ],
    }
    file = tmp_path / "adapter.test.json"
    file.write_text(json.dumps({"evaluation_interval": "1m", "tests": [test]}))
    _promtool("test", "rules", file)


# The guide.


def test_guide_explains_every_file() -> None:
    """The page for operators names each file, the Kubernetes needed, and the seconds of the drain that are set."""
    guide = GUIDE.read_text()
    for path in OPS.rglob("*.yaml"):
        assert f"`{path.name}`" in guide
    assert f"Kubernetes {OLDEST}" in guide
    waits = _container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    moments = (0, waits, waits + _settings().graceful_timeout_s, _pod()["spec"]["terminationGracePeriodSeconds"])
    assert re.findall(r"^\| (\d+) s \|", guide, re.MULTILINE) == [str(moment) for moment in moments]
