"""`make observe`: a router with a simulated model, a load that is a little too much for it, and Prometheus.

Beside the metrics there are the status page and the admin API, on the listener that Prometheus scrapes.

Grafana is in neither PyPI nor Debian. Where it runs, import ops/grafana/dashboard.json and take this Prometheus as the
data source. It ends with Ctrl-C, or after the number of seconds that the first argument says.
"""

import json
import signal
import subprocess
import sys
import tempfile
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests

from tests.support.clients import CHAT
from tests.support.router import ROOT, Router, free_port

_CLIENTS = 12
_AFTER_REJECTION_S = 0.2
_BODY = {"model": "simulated", "stream": True, "messages": [{"role": "user", "content": "tell me about routers"}]}


def _load(url: str, ends: threading.Event) -> None:
    with requests.Session() as session:
        while not ends.is_set():
            try:
                if session.post(url + CHAT, json=_BODY, timeout=30).status_code == HTTPStatus.TOO_MANY_REQUESTS:
                    ends.wait(_AFTER_REJECTION_S)
            except requests.RequestException:
                ends.wait(1)


def _prometheus(folder: Path, port: int, target: int) -> "subprocess.Popen[bytes]":
    config = folder / "prometheus.yml"
    job = {"job_name": "router", "scrape_interval": "2s", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    rules = [str(ROOT / "ops/prometheus/alerts.yaml")]
    often = {"evaluation_interval": "5s"}
    config.write_text(json.dumps({"global": often, "scrape_configs": [job], "rule_files": rules}))  # JSON is YAML
    data = f"--storage.tsdb.path={folder / 'data'}"
    options = [f"--config.file={config}", data, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    return subprocess.Popen(["prometheus", *options])


def main(seconds: float) -> None:
    """Run until the time is over, or until Ctrl-C."""
    ends = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: ends.set())
    signal.signal(signal.SIGTERM, lambda *_: ends.set())
    with tempfile.TemporaryDirectory() as name:
        folder, port, admin_port = Path(name), free_port(), free_port()
        settings: dict[str, Any] = {"MAX_CONCURRENCY": 8, "QUEUE_SIZE": 2, "SIMULATED_TOKEN_MS": 5, "ACCESS_LOG": "off"}
        with Router(folder, ADMIN_BIND=f"127.0.0.1:{admin_port}", **settings) as router:
            prometheus = _prometheus(folder, port, admin_port)
            clients = [threading.Thread(target=_load, args=(router.url, ends)) for _ in range(_CLIENTS)]
            for thread in clients:
                thread.start()
            print(f"router      {router.url}\nstatus page http://127.0.0.1:{admin_port}/", flush=True)
            print(f"Prometheus  http://127.0.0.1:{port}/alerts", flush=True)
            print("Grafana     import ops/grafana/dashboard.json where it is installed", flush=True)
            ends.wait(seconds)
            ends.set()
            for thread in clients:
                thread.join()
            prometheus.terminate()
            prometheus.wait(10)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else threading.TIMEOUT_MAX)
