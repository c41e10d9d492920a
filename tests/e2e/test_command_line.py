"""The command line against a real router: how it starts one, what it shows of it, and what docs/cli.md says."""

import contextlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from app.cli.main import COMMANDS
from tests.support.command_line import COMMAND, Commands, environ_of
from tests.support.ports import free_port
from tests.support.router import ROOT, Router, until
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {"ACCESS_LOG": "all", "MAX_CONCURRENCY": 2, "SIMULATED_LATENCY_MS": 3000}
MANUAL = (ROOT / "docs/cli.md").read_text()
LIVE = {"in_flight": 1, "limit": 2, "queued": 3, "requests_per_s": 4.5, "models": [], "endpoints": []}


@pytest.fixture(scope="module")
def run() -> Iterator[Commands]:
    """Runs commands."""
    with Commands() as running_commands:
        yield running_commands


class Running(NamedTuple):
    """A router that the command line has started, and what it serves."""

    url: str
    admin: str
    model_server: str
    log: Path
    folder: Path


def chat(seen: Seen, reply: Reply) -> None:
    """A model server that takes a moment."""
    reply.send(200, b'{"choices": []}')


@contextlib.contextmanager
def started(*options: str, cwd: Path = ROOT, **settings: object) -> Iterator[tuple[str, int]]:
    """Run `inference-router run` with standard error on a terminal. Yields its URL and the terminal's descriptor."""
    port = free_port()
    terminal, end = pty.openpty()
    environ = environ_of(BIND=f"127.0.0.1:{port}", WEB_CONCURRENCY=1, TERM="dumb", **settings)
    process = subprocess.Popen(
        [*COMMAND, "run", *options], cwd=cwd, env=environ, stderr=end, stdout=end, start_new_session=True
    )
    os.close(end)
    try:
        yield f"http://127.0.0.1:{port}", terminal
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        os.close(terminal)


def read_until(terminal: int, wanted: str) -> str:
    """What a terminal shows until these words come."""
    shown = ""
    os.set_blocking(terminal, False)

    def has_come() -> bool:
        nonlocal shown
        with contextlib.suppress(BlockingIOError, OSError):
            shown += os.read(terminal, 65536).decode(errors="replace").replace("\r\n", "\n")
        return wanted in shown

    until(has_come, wanted)
    return shown


def test_start_on_a_terminal_says_three_readable_lines(tmp_path: Path) -> None:
    """Where the router listens, what it serves, and where its page is; no JSON, unless it is asked for."""
    admin = f"127.0.0.1:{free_port()}"
    with started(ADMIN_BIND=admin, MAX_CONCURRENCY=7, QUEUE_SIZE=3, MODEL_REF="llama") as (url, terminal):
        shown = read_until(terminal, "page  ")
        lines = shown[shown.index("listening ") :].splitlines()
        assert lines[0].startswith(f"listening  {url} with 1 worker (inference-router ")
        assert lines[1] == "serving    llama: 7 requests at a time, 3 may wait"
        assert '{"' not in shown
    with started("--json", ADMIN_BIND=admin) as (url, terminal):
        line = re.search(r"^\{.*router ready.*\}$", read_until(terminal, "Booting worker"), re.MULTILINE)
        assert line is not None
        assert json.loads(line[0])["bind"] == [url.removeprefix("http://"), admin]


def test_page_is_named_or_how_to_get_one() -> None:
    """Without an admin listener there is no page; the line says what to set."""
    with started() as (_, terminal):
        assert "page       none: set ADMIN_BIND\n" in read_until(terminal, "set ADMIN_BIND\n")


def test_log_is_json_where_nobody_reads_it(start: Callable[..., Router]) -> None:
    """A pipe or a file is no terminal: collectors get JSON, as before."""
    router = start(WEB_CONCURRENCY=1)
    assert any(event["event"] == "router ready" for event in router.events())
    assert "listening  http" not in router.log()


def test_keys_of_the_command_line_open_a_router(start: Callable[..., Router], tmp_path: Path, run: Commands) -> None:
    """The lines of `keys new` are a file that the router takes, and what `keys digest` prints opens its pages."""
    secret, _, lines = run("keys", "new", "--tenant", "t", "--expires", "2130-01-31").out.partition("\n")
    file, admin = tmp_path / "keys.toml", f"127.0.0.1:{free_port()}"
    file.write_text(lines)
    digest = run("keys", "digest", stdin="operator\n").out.strip()
    router = start(KEYS_FILE=file, ADMIN_KEY_SHA256=digest, ADMIN_BIND=admin, SIMULATED_LATENCY_MS=0)
    assert router.infer().status_code == 401
    assert router.infer(headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    refused = run("endpoints", ADMIN_BIND=admin)
    assert (refused.code, "401" in refused.err) == (1, True)
    for command in (["endpoints"], ["top", "--count", "1"]):
        done = run(*command, "--json", ADMIN_BIND=admin, ROUTER_ADMIN_KEY="operator")
        assert done.code == 0, done.err


def test_run_serves_without_a_checkout_and_passes_options_on(tmp_path: Path) -> None:
    """The configuration is found beside the package, from any folder, and gunicorn gets what follows."""
    with started("--access-logfile", "-", "--pid", str(tmp_path / "pid"), cwd=tmp_path) as (url, terminal):
        read_until(terminal, "Booting worker")
        until((tmp_path / "pid").exists, "gunicorn has written its pid")
        assert requests.post(f"{url}/infer", json={"prompt": "p"}, timeout=20).status_code == 200


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A router of one model, with an admin listener, which has served and rejected."""
    folder = tmp_path_factory.mktemp("cli")
    admin = f"127.0.0.1:{free_port()}"
    with Upstream(chat) as server:
        (folder / "routes.toml").write_text(
            f'[[models]]\nname = "llama"\nendpoints = ["{server.url}"]\n'
            '[[models]]\nname = "slow"\nprotocol = "simulated"\nmax_concurrency = 1\n'
        )
        file = folder / "routes.toml"
        with Router(folder, ADMIN_BIND=admin, ROUTES_FILE=file, **SETTINGS) as router:
            yield Running(router.url, f"http://{admin}", server.url, router.log_path, folder)


def ask(running: Running, model: str, request_id: str) -> int:
    """Send a chat. Returns the status."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"X-Request-Id": request_id}
    return requests.post(f"{running.url}/v1/chat/completions", json=body, headers=headers, timeout=20).status_code


def test_routes_and_endpoints_of_a_running_router(running: Running, run: Commands) -> None:
    """They are asked for at the admin listener, which the environment names, and shown as table and as JSON."""
    shown = run("routes", ROUTER_ADMIN_URL=running.admin)
    assert shown.code == 0
    assert re.search(rf"llama +openai .*{running.model_server}", shown.out)
    assert run("routes", "--json", "--admin", running.admin).json()["models"][0]["name"] == "llama"
    (endpoint,) = run("endpoints", "--json", ADMIN_BIND=running.admin.removeprefix("http://")).json()["endpoints"]
    assert (endpoint["url"], endpoint["models"]) == (running.model_server, ["llama"])


def test_endpoint_is_drained_and_used_again(running: Running, run: Commands) -> None:
    """Its state changes for all workers, by its id; an id that is not served is an error of one line."""
    one = ("--admin", running.admin, "--json")
    (endpoint,) = run("endpoints", *one).json()["endpoints"]
    (drained,) = run("endpoints", "--drain", endpoint["id"], *one).json()["endpoints"]
    assert (drained["id"], drained["state"]) == (endpoint["id"], "draining")
    (used,) = run("endpoints", "--undrain", endpoint["id"], *one).json()["endpoints"]
    assert used["state"] != "draining"
    wrong = run("endpoints", "--drain", 511, "--admin", running.admin)
    assert (wrong.code, wrong.out, wrong.err.count("\n")) == (1, "", 1)
    assert "404" in wrong.err


def test_request_is_explained_in_words(running: Running, run: Commands) -> None:
    """What became of it, its times and its attempts; a request that nobody knows is an error."""
    assert ask(running, "llama", "explained-1") == 200
    explain = ("explain", "explained-1", "--admin", running.admin)
    until(lambda: run(*explain).code == 0, "the record is written")  # after the response
    done = run(*explain)
    assert done.out.startswith("explained-1: ")
    assert re.search(rf"{running.model_server} +200 ", done.out)
    assert run(*explain, "--json").json()["status"] == 200
    unknown = run("explain", "a/../b", "--admin", running.admin)
    assert (unknown.code, unknown.out) == (1, "")


def test_router_that_is_not_there_is_one_line(run: Commands) -> None:
    """It says where it was looked for, and how to say where it is."""
    done = run("routes", "--admin", f"http://127.0.0.1:{free_port()}")
    assert (done.code, done.out) == (1, "")
    assert "no router can be reached at" in done.err
    assert "ROUTER_ADMIN_URL" in done.err
    assert "Traceback" not in done.err


def test_admin_key_is_sent_and_not_shown(run: Commands) -> None:
    """As a bearer token, from the environment; what the router says of a wrong one is passed on without it."""
    with Upstream(lambda seen, reply: reply.send(401, b'{"detail": "the key is wrong"}')) as server:
        done = run("routes", "--admin", server.url, ROUTER_ADMIN_KEY="SECRET")
        (seen,) = server.seen
    assert seen.headers["authorization"] == "Bearer SECRET"
    assert (done.code, done.err.strip()) == (1, f"Error: {server.url}/admin/routes: 401 the key is wrong")


@contextlib.contextmanager
def live(*events: dict[str, object]) -> Iterator[str]:
    """A server of these events."""

    def answer(seen: Seen, reply: Reply) -> None:
        reply.begin()
        reply.chunk(b"retry: 1000\n\n")
        for event in events:
            reply.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
        reply.chunk()

    with Upstream(answer) as server:
        yield server.url


def test_top_shows_each_event_once(run: Commands) -> None:
    """As a picture where nobody can move the cursor, as one line of JSON for programs, and no more than wanted."""
    with live(LIVE, {**LIVE, "in_flight": 2}, LIVE) as url:
        lines = run("top", "--count", 2, "--json", "--admin", url).out.splitlines()
        assert [json.loads(line)["in_flight"] for line in lines] == [1, 2]
        shown = run("top", "--count", 1, "--admin", url)
        ended = run("top", "--count", 9, "--json", "--admin", url)
    assert re.search(r"in flight +1 of 2 .*queued 3", shown.out)
    *figures, error = ended.out.splitlines()
    assert (ended.code, len(figures)) == (1, 3)
    assert "the router ended the stream" in ended.err
    assert "the router ended the stream" in json.loads(error)["error"]
    assert "4.5 requests" in shown.out


def test_top_of_a_running_router(running: Running, run: Commands) -> None:
    """Its load, its models and its endpoints, as the status page has them."""
    event = json.loads(run("top", "--count", 1, "--json", "--admin", running.admin).out)
    assert (event["limit"], [model["name"] for model in event["models"]]) == (2, ["llama", "slow"])
    shown = run("top", "--count", 1, "--admin", running.admin).out
    assert re.search(r"in flight +\d of 2 ", shown)
    assert re.search(rf"{running.model_server} +llama +", shown)


def test_replay_of_the_routers_own_log_agrees_with_it(running: Running, run: Commands) -> None:
    """A burst over a model's limit: the same requests are rejected again, and none with another limit."""
    before = running.log.stat().st_size
    with ThreadPoolExecutor(8) as clients:
        statuses = list(clients.map(lambda number: ask(running, "slow", f"burst-{number}"), range(8)))
    rejected = statuses.count(429)
    assert 0 < rejected < 8
    log = running.folder / "burst.log"
    until(lambda: running.log.read_bytes()[before:].count(b"burst-") == 8, "all requests are in the log")
    log.write_bytes(running.log.read_bytes()[before:])
    routes = running.folder / "routes.toml"
    said = run("replay", log, "--routes", routes, "--cap", 2, "--json").json()
    assert said["log"]["rejected"] == said["replay"]["rejected"] == {"model_limit_reached": rejected}
    wide = running.folder / "wide.toml"
    wide.write_text(routes.read_text().replace("max_concurrency = 1", "max_concurrency = 8"))
    assert run("replay", log, "--routes", wide, "--cap", 8, "--json").json()["replay"]["rejected"] == {}


def test_manual_shows_every_command() -> None:
    """None is left out. tests/docs runs those that it shows."""
    shown = set(re.findall(r"inference-router (\w+)", "\n".join(re.findall(r"```\w+\n(.*?)```", MANUAL, re.DOTALL))))
    assert shown == set(COMMANDS)


def test_bash_completes_after_the_manuals_line(tmp_path: Path) -> None:
    """The line of the manual defines a completion of the program by its name."""
    line = re.search(r"^(source <\(.*\))$", MANUAL, re.MULTILINE)
    assert line is not None
    program = tmp_path / "inference-router"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m app "$@"\n')
    program.chmod(0o755)
    environ = environ_of() | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = f"{line[1]}\ncomplete -p inference-router"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30, check=True
    )
    assert "inference_router_completion" in done.stdout
