"""The fuzz targets, for a minute together: `make fuzz` runs them for longer."""

import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.router import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.version_info >= (3, 14) or platform.machine() != "x86_64",
        reason="atheris has no release for it (pyproject.toml)",
    ),
]

_PATIENCE_S = 30  # to start, and for the last input


@pytest.mark.parametrize(("target", "seconds"), [("heads", 44), ("chunks", 12)])
def test_fuzzing_finds_no_fault(target: str, seconds: int, tmp_path: Path) -> None:
    """No bytes that a fuzzer comes upon break what the target says of all bytes; and it does come upon some."""
    log, found = tmp_path / "log", tmp_path / "found"
    found.mkdir()
    command = [sys.executable, "-m", f"tests.fuzz.{target}", f"-max_total_time={seconds}", f"-artifact_prefix={found}/"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    try:
        code = process.wait(seconds + _PATIENCE_S)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # as it should be: it has ended, and all that it started
    said = log.read_text(errors="backslashreplace")
    inputs = [file.read_bytes() for file in found.iterdir()]
    assert (code, inputs) == (0, []), f"{inputs}\n{said[-5000:]}"
    executed = re.search(r"^stat::number_of_executed_units: (\d+)$", said, re.MULTILINE)
    assert executed is not None, said
    assert int(executed[1]) > 1000, said  # more than the inputs it is given to begin with
