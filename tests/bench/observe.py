"""`make observe`: a router with a simulated model, a load that is a little too much for it, and Prometheus.

Beside the metrics there are the status page and the admin API, on the listener that Prometheus scrapes.

Grafana is in neither PyPI nor Debian. Where it runs, import ops/grafana/dashboard.json and take this Prometheus as the
data source. It ends with Ctrl-C, SIGTERM or its terminal, or after the number of seconds that the first argument says.
However it ends, also for want of somebody who reads its output, what it has started ends with it.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests

from tests.support.clients import CHAT
from tests.support.ports import free_port
from tests.support.router import ROOT, Router

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


@contextmanager
def _clients(url: str) -> Iterator[None]:
    ends = threading.Event()
    threads = [threading.Thread(target=_load, args=(url, ends)) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ends.set()
        for thread in threads:
            thread.join()


@contextmanager
def _prometheus(folder: Path, port: int, target: int) -> Iterator[None]:
    config = folder / "prometheus.yml"
    job = {"job_name": "router", "scrape_interval": "2s", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    rules = [str(ROOT / "ops/prometheus/alerts.yaml")]
    often = {"evaluation_interval": "5s"}
    config.write_text(json.dumps({"global": often, "scrape_configs": [job], "rule_files": rules}))  # JSON is YAML
    data = f"--storage.tsdb.path={folder / 'data'}"
    options = [f"--config.file={config}", data, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen(["prometheus", *options])
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _signals() -> int:
    """Returns a descriptor that is readable once this process was told to end.

    A handler that raises could do so in the midst of an end, and one that sets an Event could wait for a lock that the
    code which it interrupts holds. One written in Python, whatever it does, runs in the main thread once that is awake:
    a signal that another thread gets, or that comes just before a select, would not wake it. So the byte is written
    where the signal arrives (https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd).
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reader


def main(seconds: float | None) -> None:
    """Run until the time is over, or until a signal."""
    told = _signals()
    settings: dict[str, Any] = {"MAX_CONCURRENCY": 8, "QUEUE_SIZE": 2, "SIMULATED_TOKEN_MS": 5, "ACCESS_LOG": "off"}
    with ExitStack() as stack:
        folder, port, admin_port = Path(stack.enter_context(tempfile.TemporaryDirectory())), free_port(), free_port()
        router = stack.enter_context(Router(folder, ADMIN_BIND=f"127.0.0.1:{admin_port}", **settings))
        stack.enter_context(_prometheus(folder, port, admin_port))
        stack.enter_context(_clients(router.url))
        print(f"router      {router.url}\nstatus page http://127.0.0.1:{admin_port}/", flush=True)
        print(f"Prometheus  http://127.0.0.1:{port}/alerts", flush=True)
        print("Grafana     import ops/grafana/dashboard.json where it is installed", flush=True)
        select.select([told], [], [], seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else None)
