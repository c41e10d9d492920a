"""A real name server for tests: Debian's dnsmasq, on a free loopback port, with records that change."""

import shutil
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.ports import free_port
from tests.support.router import until

DNSMASQ = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
needs_dnsmasq = pytest.mark.skipif(DNSMASQ is None, reason="dnsmasq is not installed: `make dnsmasq` installs it")


class Dnsmasq:
    """`with Dnsmasq(folder) as names:` serves names below `test`, and nothing else. `folder` is discovery_conf's."""

    def __init__(self, folder: Path, ttl_s: int = 0) -> None:
        self.port = free_port()
        self._ttl_s = ttl_s
        self._hosts = folder / "hosts"
        self._hosts.write_text("")
        self._log = folder / "dnsmasq.log"
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1\n")
        (folder / "dns_port").write_text(str(self.port))
        self._process: subprocess.Popen[bytes] | None = None
        self._options: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *options: str) -> None:
        """Start, with more options than before."""
        assert DNSMASQ is not None
        command = [
            *(DNSMASQ, "--no-daemon", "--conf-file=/dev/null", "--pid-file=", "--user=", "--group="),
            *("--no-resolv", "--no-hosts", "--local=/test/", "--bind-interfaces", "--listen-address=127.0.0.1"),
            *(f"--port={self.port}", f"--addn-hosts={self._hosts}", f"--local-ttl={self._ttl_s}", *options),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        until(self._listens, f"dnsmasq listens: {self._log.read_text()}")

    def stop(self) -> None:
        """End it: nothing answers from now on."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(10)

    def set(self, **names: list[str]) -> None:
        """Let these names, and no others, have these addresses from now on."""
        lines = [f"{address} {name}.test\n" for name, addresses in names.items() for address in addresses]
        fresh = self._hosts.with_suffix(".new")
        fresh.write_text("".join(lines))
        fresh.replace(self._hosts)
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0
