"""A controller as a process of its own, against the fake API server."""

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from fake_api import until
from fake_server import FakeServer

from router_controller.kinds import Object

PACKAGE = Path(__file__).resolve().parents[1]


class Running:
    """A controller. Use it in a `with`: it ends with it."""

    def __init__(self, server: FakeServer, folder: Path, name: str = "controller-0", **settings: str) -> None:
        folder.mkdir(exist_ok=True)
        config = folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(_kubeconfig(server.url)))
        self.log_file = folder / f"{name}.log"
        environment = {
            "KUBECONFIG": str(config),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(PACKAGE),
            "POD_NAME": name,
            "POD_NAMESPACE": "system",
            "BIND": "127.0.0.1:0",
            "LEASE_DURATION_S": "3",
            **settings,
        }
        self._log = self.log_file.open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "router_controller"], env=environment, stderr=self._log, cwd=folder
        )

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._log.close()

    def terminate(self) -> int:
        """Send SIGTERM. Returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

    def log(self) -> str:
        return self.log_file.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Ask the controller's own server."""
        (address,) = until(lambda: re.findall(r'"address": "([^"]+)"', self.log()), "the controller's address")
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def rss_mib(self) -> float:
        """Returns the memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


def _kubeconfig(url: str) -> dict[str, Any]:
    return {
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": "none"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "system"}}],
    }


def resource(name: str = "llama", namespace: str = "inference", **spec: Any) -> Object:
    """Returns an InferenceService."""
    model = {"name": "llama", "protocol": "openai", "endpoints": ["http://llama-0:8000"]}
    return {
        "apiVersion": "inference-router.io/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": model} | spec,
    }
