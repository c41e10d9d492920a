"""Shells complete commands, options and values, those of a running router included."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import environ_of, run
from tests.support.router import ROOT
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

DOCUMENTS = {
    "/admin/endpoints": {
        "endpoints": [
            {"id": 3, "url": "http://a:1", "state": "healthy", "models": ["llama"]},
            {"id": 12, "url": "http://b:1", "state": "ejected", "models": ["llama"]},
        ]
    },
    "/admin/routes": {
        "generation": 1,
        "source": "s",
        "age_s": 1,
        "models": [
            {"name": "llama", "aliases": ["chat"], "protocol": "openai", "versions": []},
            {"name": "org/llama, of 8b", "protocol": "v2", "versions": []},
            {"name": "a,b", "protocol": "v2", "versions": []},
        ],
    },
    "/admin/requests": {"requests": [{"request_id": "r-1", "status": 200, "model": "llama"}]},
}
SHELLS = {
    "bash": "source <(inference-router completion bash); COMP_WORDS=({words} {last!r}); COMP_CWORD={at}; "
    '_inference_router_completion inference-router; printf "%s\\n" "${{COMPREPLY[@]}}"',
    # What zsh's own completion does with the words is left out: it needs a terminal.
    "zsh": "compdef() {{ function=$1 }}; _describe() {{ print -l -- ${{completions_with_descriptions%%:*}} }}; "
    "compadd() {{ print -l -- $completions }}; source <(inference-router completion zsh); "
    "words=({words} {last!r}); CURRENT={at}+1; $function",
    "fish": 'inference-router completion fish | source; complete -C "{words} {last}" | string split -f1 \\t',
}
ASKED = [
    ("inference-router", "ch", ["check"]),
    ("inference-router replay", "--queue", ["--queue-size", "--queue-timeout-ms"]),
    ("inference-router keys", "", ["digest", "new"]),
    ("inference-router endpoints --drain", "", ["12", "3"]),
    ("inference-router bench http://x --model", "l", ["llama"]),
    ("inference-router keys new --model", "a", ["a,b"]),
]


@pytest.fixture(scope="module")
def router() -> Iterator[str]:
    """What a router says at its admin listener."""

    def answer(seen: Seen, reply: Reply) -> None:
        reply.send(200, json.dumps(DOCUMENTS[seen.path.partition("?")[0]]).encode())

    with Upstream(answer) as server:
        yield server.url


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program by its name."""
    folder = tmp_path_factory.mktemp("programs")
    program = folder / "inference-router"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m app "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("words", "last", "wanted"), ASKED)
def test_shell_completes(
    shell: str, words: str, last: str, wanted: list[str], router: str, programs: Path, tmp_path: Path
) -> None:
    """The script of each shell runs in that shell, and offers what the command takes there."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: `make shells` installs it")
    script = SHELLS[shell].format(words=words, last=last, at=len(words.split()))
    environ = environ_of(ROUTER_ADMIN_URL=router, HOME=tmp_path) | {"PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(
        [shell, "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert (sorted(done.stdout.split("\n")[:-1]), done.stderr) == (wanted, "")


def completed(*words: str, **environ: str) -> list[str]:
    """What the program offers for the last of these words."""
    asked = {"COMP_WORDS": " ".join(("inference-router", *words)), "COMP_CWORD": str(len(words))}
    done = run(environ={"_INFERENCE_ROUTER_COMPLETE": "bash_complete", **asked, **environ})
    assert done.err == ""
    return [line.partition(",")[2] for line in done.out.splitlines() if line]


def test_values_are_those_of_the_router_that_is_named(router: str) -> None:
    """By the option or by the environment; what would need quotes is left to be typed."""
    assert completed("explain", "", ROUTER_ADMIN_URL=router) == ["r-1"]
    assert completed("explain", "--admin", router, "") == ["r-1"]
    assert completed("bench", "http://x", "--model", "", ROUTER_ADMIN_URL=router) == ["llama", "chat", "a,b"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense"])
def test_router_that_is_not_there_is_no_error_for_a_shell(url: str) -> None:
    """Nothing is offered, and nothing is printed into the line that somebody types."""
    assert completed("explain", "", ROUTER_ADMIN_URL=url) == []


def test_other_program_is_no_error_for_a_shell() -> None:
    """The same of one whose response is no router's."""
    with Upstream() as server:
        assert completed("endpoints", "--drain", "", ROUTER_ADMIN_URL=server.url) == []
