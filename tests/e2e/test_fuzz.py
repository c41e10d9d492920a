"""Runs the fuzz targets for ten seconds each, side by side; `make fuzz` runs them for longer."""

import os
import platform
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.router import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(
        sys.version_info >= (3, 14) or platform.machine() != "x86_64",
        reason="atheris has no release for it (pyproject.toml)",
    ),
]

_TARGETS = ("heads", "chunks")
_FUZZ_S = 10
_GRACE_S = 30  # to start, and for the last input


class _Fuzzer:
    """A target being run."""

    def __init__(self, target: str, folder: Path) -> None:
        self._log, self._found = folder / f"{target}.log", folder / target
        self._found.mkdir()
        options = [f"-max_total_time={_FUZZ_S}", f"-artifact_prefix={self._found}/"]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"tests.fuzz.{target}", *options],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def check(self) -> None:
        """Wait for its end; fail if it found anything, or had nothing to look at."""
        code = self._process.wait(_FUZZ_S + _GRACE_S)
        said = self._log.read_text(errors="backslashreplace")
        inputs = [file.read_bytes() for file in self._found.iterdir()]
        assert (code, inputs) == (0, []), f"{inputs}\n{said[-5000:]}"
        executed = re.search(r"^stat::number_of_executed_units: (\d+)$", said, re.MULTILINE)
        assert executed is not None, said
        assert int(executed[1]) > 1000, said  # more than the inputs it is given to begin with

    def end(self) -> None:
        """Have it gone, and all that it started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # as it should be
        self._process.wait()


def test_fuzzing_finds_no_fault(tmp_path: Path) -> None:
    """No bytes that a fuzzer comes upon break what the targets say of all bytes; and it does come upon some."""
    with ExitStack() as stack:
        fuzzers = [_Fuzzer(target, tmp_path) for target in _TARGETS]  # at the same time, a core each
        for fuzzer in fuzzers:
            stack.callback(fuzzer.end)
        for fuzzer in fuzzers:
            fuzzer.check()
