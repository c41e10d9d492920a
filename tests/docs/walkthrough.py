"""One document, followed as a reader would: its files are written, its commands run, what it shows is compared.

- The commands of a document run in one shell, in a new folder that has what a checkout has.
- A command that serves has a terminal of its own, until the document ends or another command serves at its address.
- Ports of the loopback interface are replaced by free ones, everywhere in the document.
- At ports from 8000 to 8009 that a document names, and at which it starts nothing, there is a model server. Where it
  starts no router, one with default settings serves at port 8080.
- A command must succeed, or fail where the document shows an error. One that only looks is repeated for some seconds,
  as a reader does who is faster than what happens in the background.
"""

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import requests

from tests.docs.documents import ROOT, Block, Command, blocks_of, tidy
from tests.docs.not_run import kind_of
from tests.docs.terminal import Running, Shell
from tests.support.ports import free_port
from tests.support.router import until
from tests.support.upstream import Reply, Seen, Upstream

INSTEAD = {"make run": "gunicorn -c gunicorn.conf.py"}
"""What is run in place of a command. `make run` is that, after it has installed and compiled for minutes."""
SERVES = re.compile(r"(\w+=\S+ )*(inference-router run\b|gunicorn -c gunicorn\.conf\.py|curl -N \S+/admin/live)")
LOOKS = re.compile(
    r"curl\b(?!.* (-d|-X|-F|--data))|inference-router (routes|explain|endpoints(?!.* --(un)?drain))|(cat|grep|tail) "
)
ENVIRON = {
    "BIND": "localhost:8080",  # the default is every interface
    "WEB_CONCURRENCY": "2",
    "GRACEFUL_TIMEOUT_S": "10",
    "POD_NAME": "router-0",
    "TERM": "xterm",
    "LANG": "C.UTF-8",
}
_DEFAULT_ROUTER = "localhost:8080"
_KEPT = ("HOME", "TMPDIR")
_PORT = re.compile(r"((?:localhost|127\.0\.0\.1):|--port )(\d+)\b")
_BOUND = re.compile(r"\bBIND=(\S+?:(\d+))")
_MODEL_SERVER_PORTS = {str(port) for port in range(8000, 8010)}
_PATIENCE_S = 30.0
_READY_S = 40.0
_MOST_PRINTED = 4000


class Server(NamedTuple):
    """A command that serves, or one whose output does not end, which has no address."""

    command: Command
    address: str
    running: Running

    def is_ready(self) -> bool:
        """Whether it serves, and has printed what the document shows. Raises AssertionError if it has ended."""
        printed = self.running.terminal.text
        assert self.running.process.poll() is None, "it has ended"
        serves = _responds(self.address, "/readyz") if self.address else bool(printed)
        return serves and self.command.shows_part_of(printed)


def follow(name: str, folder: Path) -> None:
    """Do all that a document says. Raises AssertionError if something comes out otherwise."""
    with ExitStack() as resources:
        _Walkthrough(name, folder, resources).follow()


class _Walkthrough:
    """What is there while a document is followed."""

    def __init__(self, name: str, folder: Path, resources: ExitStack) -> None:
        self._blocks = blocks_of(name)
        self._resources = resources
        self._ports: dict[str, str] = {}
        self._servers: list[Server] = []
        self._unready: list[Server] = []
        checkout = folder / "checkout"
        _link_checkout(checkout)
        environ = {name: self._with_ports(value) for name, value in ENVIRON.items()}
        self._shell = resources.enter_context(Shell(checkout, _environ(folder, environ)))
        for port in _model_servers(self._blocks):
            resources.enter_context(Upstream(_chat, int(self._with_ports(f"localhost:{port}").partition(":")[2])))

    def follow(self) -> None:
        """Do all that the document says."""
        commands = [_instead(command.text) for block in self._blocks for command in block.commands()]
        if not any(SERVES.match(text) for text in commands) and any(_DEFAULT_ROUTER in text for text in commands):
            self._do(Command("", 0, "inference-router run", ""))
        for block in self._blocks:
            if block.file:
                self._write(block)
            for command in block.commands():
                if kind_of(command.text) is None:
                    self._do(command)
        self._wait_ready()

    def _with_ports(self, text: str) -> str:
        """The text with the ports that are used, in place of those that the document names."""

        def port(found: re.Match[str]) -> str:
            if found[2] not in self._ports:
                self._ports[found[2]] = str(free_port())
            return found[1] + self._ports[found[2]]

        return _PORT.sub(port, text)

    def _do(self, command: Command) -> None:
        text, shown = (self._with_ports(part) for part in (_instead(command.text), command.shown))
        command = command._replace(text=text, shown=shown)
        if command.text.startswith("curl") or not SERVES.match(command.text):
            self._wait_ready()  # routers and model servers may start at the same time
        if SERVES.match(command.text):
            self._serve(command)
        else:
            self._run(command)

    def _write(self, block: Block) -> None:
        folder, _ = self._shell.state()
        path = folder / block.file
        assert not path.is_symlink(), f"{block.place}: {block.file} would be written into the checkout"
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.new")  # as the documents advise: a file that is half written may be read
        new.write_text(self._with_ports(block.text))
        new.rename(path)

    def _run(self, command: Command) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            code, printed = self._shell.run(command.text)
            as_shown = (code != 0) == command.fails and (not command.shown or command.shows(printed))
            if as_shown or not LOOKS.match(command.text) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        assert as_shown, f"exit code {code} of {_described(command, printed)}"

    def _serve(self, command: Command) -> None:
        folder, environ = self._shell.state()
        bound = _BOUND.search(command.text)
        address = bound[1] if bound else environ["BIND"]
        if command.text.startswith("curl"):
            address = ""
        for server in [one for one in self._servers if address and one.address == address]:
            self._wait_ready()
            server.running.signal(signal.SIGTERM)
            until(lambda: not _responds(address, "/healthz"), f"{command.place}: the earlier server at {address} ends")
            self._servers.remove(server)
        running = Running(command.text, folder, environ)
        self._resources.callback(running.close)
        self._servers.append(Server(command, address, running))
        self._unready.append(self._servers[-1])

    def _wait_ready(self) -> None:
        """Wait until everything that was started serves."""
        for server in self._unready:
            try:
                until(server.is_ready, "it serves and shows what the document shows", _READY_S)
            except AssertionError as error:
                described = _described(server.command, server.running.terminal.text)
                raise AssertionError(f"{error}: {described}") from None
        self._unready.clear()


def _described(command: Command, printed: str) -> str:
    """A command of a document, what it has printed, and what the document shows."""
    return f"{command.place}\n$ {command.text}\n{tidy(printed)[:_MOST_PRINTED]}\n--- shown is\n{command.shown}"


def _model_servers(blocks: tuple[Block, ...]) -> list[str]:
    """The ports at which a document finds model servers, as far as it starts none there."""
    texts = [block.text for block in blocks]
    named = {found[2] for text in texts for found in _PORT.finditer(text)}
    bound = {found[2] for text in texts for found in _BOUND.finditer(text)}
    return sorted(_MODEL_SERVER_PORTS & named - bound)


def _chat(seen: Seen, reply: Reply) -> None:
    """A model server that speaks OpenAI's API, as far as documents show it."""
    if json.loads(seen.body or b"{}").get("stream"):
        reply.begin()
        for word in ("Hello", " there"):
            chunk = {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            reply.chunk(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        reply.chunk(b"data: [DONE]\n\n")
        reply.chunk()
    else:
        message = {"role": "assistant", "content": "Hello there"}
        reply.send(body=json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode())


def _responds(address: str, path: str) -> bool:
    """Whether what listens there responds to this path with 200."""
    try:
        return requests.get(f"http://{address}{path}", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def _instead(text: str) -> str:
    for command, other in INSTEAD.items():
        text = text.replace(command, other)
    return text


def _link_checkout(folder: Path) -> None:
    """Make a folder that has what a checkout has, and into which a document can write further files."""
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in (".git", "build"):
            (folder / entry.name).symlink_to(entry)


def _environ(folder: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a new terminal, in which the package is installed."""
    programs = folder / "bin"
    programs.mkdir()
    program = programs / "inference-router"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m app "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "PATH": path, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)), **given}
