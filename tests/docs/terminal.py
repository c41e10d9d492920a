"""A terminal that commands write to, and a shell that runs them as people type them."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import tty
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.router import until

_COLUMNS, _ROWS = 120, 50
_LONGEST_S = 60
# Commands come as the names of files, because a command may read standard input; its own is empty. \1 ends an output.
_LOOP = r"""while IFS= read -r file; do . "$file" </dev/null; printf '\1%s\1' "$?"; done"""
_END = re.compile("\1(\\d+)\1")


class Terminal:
    """Collects what is written to it."""

    def __init__(self) -> None:
        self._master, self.descriptor = pty.openpty()
        tty.setraw(self.descriptor)  # or each newline would become two characters
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        self._data = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 1 << 16):
                self._data += data
        except OSError:
            pass  # nobody has it open any longer

    @property
    def text(self) -> str:
        """All that was written."""
        return self._data.decode(errors="replace")

    def close(self) -> None:
        """Close it. Called when no process writes to it any longer."""
        os.close(self.descriptor)
        self._reader.join(10)
        os.close(self._master)


class Running:
    """A command that runs in a terminal and a process group of its own."""

    def __init__(self, script: str, folder: Path, environ: Mapping[str, str], stdin: int = subprocess.DEVNULL) -> None:
        self.terminal = Terminal()
        self.process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env=environ,
            stdin=stdin,
            stdout=self.terminal.descriptor,
            stderr=self.terminal.descriptor,
            start_new_session=True,
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process of it, as Ctrl-C does."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass  # all have ended

    def close(self) -> None:
        """It is gone afterwards, whatever happens."""
        self.signal(signal.SIGKILL)
        self.process.wait(10)
        if self.process.stdin:
            self.process.stdin.close()
        self.terminal.close()


class Shell:
    """`with Shell(folder, environ) as shell:` runs commands one after the other in one bash."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._notes = folder.with_name(folder.name + "-shell")
        self._notes.mkdir()
        self._running = Running(_LOOP, folder, environ, subprocess.PIPE)
        self._ran = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def run(self, text: str) -> tuple[int, str]:
        """Run a command to its end. Returns its exit code and what came to the terminal."""
        file = self._notes / f"{self._ran}.sh"
        file.write_text(text + "\n")
        self._ran += 1
        process, terminal = self._running.process, self._running.terminal
        assert process.stdin
        process.stdin.write(f"{file}\n".encode())
        process.stdin.flush()
        until(
            lambda: len(_END.findall(terminal.text)) == self._ran or process.poll() is not None,
            f"this ends: {text}",
            _LONGEST_S,
        )
        parts = _END.split(terminal.text)
        assert len(parts) == 2 * self._ran + 1, f"the shell ended at: {text}\n{parts[-1]}"
        return int(parts[-2]), parts[-3]

    def state(self) -> tuple[Path, dict[str, str]]:
        """Its working folder and exported variables, for a command in another terminal."""
        dump = self._notes / "environ"
        self.run(f"pwd -P > {dump}-folder; env -0 > {dump}")
        pairs = (pair.split("=", 1) for pair in dump.read_text().split("\0") if "=" in pair)
        return Path(Path(f"{dump}-folder").read_text().rstrip("\n")), dict(pairs)
