"""`make observe`: a router under load, its status page, and a Prometheus that has the rules."""

import re
import signal
import subprocess
import sys

import pytest
import requests

from tests.support.router import ROOT, children, until

pytestmark = pytest.mark.slow


def test_observe_shows_a_loaded_router_and_ends_by_ctrl_c() -> None:
    """Prometheus scrapes requests that were served and some that were rejected; the page and the admin API are there;
    Ctrl-C ends all of it."""
    command = [sys.executable, "-m", "tests.bench.observe", "60"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            told = [process.stdout.readline() for _ in range(4)]
            _, page, prometheus = re.findall(r"http://[0-9.:]+", "".join(told))

            def codes() -> set[str]:
                query = {"query": "router_requests_total > 0"}
                try:
                    answer = requests.get(f"{prometheus}/api/v1/query", params=query, timeout=20)
                except requests.ConnectionError:
                    return set()
                found = answer.json() if answer.ok else {"data": {"result": ()}}  # 503: it starts
                return {each["metric"]["code"] for each in found["data"]["result"]}

            until(lambda: codes() == {"200", "429"}, "the load is seen")
            rules = requests.get(f"{prometheus}/api/v1/rules", timeout=20).json()["data"]["groups"]
            assert {group["name"] for group in rules} == {"router objectives", "router"}
            assert "text/html" in requests.get(f"{page}/", timeout=20).headers["Content-Type"]
            assert requests.get(f"{page}/admin/queue", timeout=20).json()["limit"] == 8
            begun = children(process.pid)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
            assert len(begun) == 2
        finally:
            process.terminate()  # it ends what it has started
