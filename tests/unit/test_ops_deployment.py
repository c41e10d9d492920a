"""The Deployment under ops/k8s is true to the application: its settings, ports, probes, drain and privileges."""

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests

from app.config.settings import Settings, load_settings
from tests.support.ops import ROOT, Object, one, overlay
from tests.support.ports import free_port

pytestmark = pytest.mark.slow  # it runs kubectl, Helm or promtool

GUIDE = ROOT / "docs/kubernetes.md"
OLDEST = "1.30"  # the first Kubernetes that has every field used without a feature gate


def _deployment() -> Object:
    return one(overlay("base"), "Deployment")


def _pod() -> Any:
    return _deployment()["spec"]["template"]


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
    assert one(overlay("base"), "ServiceAccount")["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert "volumes" not in pod


def test_every_environment_variable_names_its_version() -> None:
    """Without `apiVersion`, server-side apply after client-side apply conflicts on the field that the server filled."""
    references = [entry["valueFrom"]["fieldRef"] for entry in _container()["env"] if "valueFrom" in entry]
    assert references == [{"apiVersion": "v1", "fieldPath": "metadata.name"}]


def test_strategy_is_written_out() -> None:
    """A patch to another strategy must name the type, and finds it here."""
    assert _deployment()["spec"]["strategy"]["type"] == "RollingUpdate"


def test_guide_says_when_a_pod_terminates() -> None:
    """The page for operators names the Kubernetes needed, and the seconds of the drain that are set."""
    guide = GUIDE.read_text()
    assert f"Kubernetes {OLDEST}" in guide
    waits = _container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    moments = (0, waits, waits + _settings().graceful_timeout_s, _pod()["spec"]["terminationGracePeriodSeconds"])
    assert re.findall(r"^\| (\d+) s \|", guide, re.MULTILINE) == [str(moment) for moment in moments]


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
    ports = {name: free_port() for name in _container_ports()}
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
            pages = [requests.get(f"http://127.0.0.1:{ports[name]}/metrics", timeout=20) for name in ("http", "admin")]
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
            return requests.get(url, timeout=20).status_code
        except requests.ConnectionError:
            time.sleep(0.1)
    raise AssertionError(f"nothing answers {url}")
