"""The command line as a whole: what every command has in common, what it costs, and API keys."""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from app import __main__
from app.cli import main, output, top
from app.cli.output import shown
from app.config.keys_file import read_keys
from tests.docs.command_tables import commands
from tests.support.command_line import environ_of, run
from tests.support.router import ROOT

SHELLS = ("bash", "zsh", "fish")


ALL = {tuple(words.split()): command for words, command in commands()}


def printed_by(code: str) -> str:
    """What a Python of its own prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environ_of(), capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_prints_json_on_demand_and_has_help(words: tuple[str, ...]) -> None:
    """Programs can use each of them, and `-h` says what it does and what each option is."""
    command = ALL[words]
    assert "--json" in [name for parameter in command.params for name in parameter.opts]
    assert command.help
    done = CliRunner().invoke(main.cli, [*words, "-h"])
    assert done.exit_code == 0
    assert "--json" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("chek",), "there is no command 'chek'"),
        (("check", "--nothing"), "No such option"),
        (("endpoints", "--drain", "x"), "not a valid integer"),
        (("endpoints", "--drain", "1", "--undrain", "1"), "exclude each other"),
        (("routes", "--admin", "here"), "--admin: a URL must begin with http:// or https://"),
        (("bench", "127.0.0.1:1"), "a URL must begin with http:// or https://"),
        (("bench", "http://127.0.0.1:1", "-H", "x"), "NAME:VALUE"),
        (("bench", "http://127.0.0.1:1", "-H", "x: a\r\nb: c"), "printable"),
        (("bench", "http://127.0.0.1:1", "--path", "x"), "a path must begin with a slash"),
        (("bench", "http://127.0.0.1:1", "--path", "/a b"), "without spaces"),
        (("top", "--count", "9" * 30), "is not in the range"),
        (("bench", "http://127.0.0.1:1", "--duration", "nan"), "is no number"),
        (("bench", "http://127.0.0.1:1", "--timeout", "nan"), "is no number"),
        (("replay", "/nowhere"), "No such file"),
        (("completion", "tcsh"), "'tcsh' is not one of"),
        (("keys", "new"), "--tenant"),
    ],
)
def test_wrong_use_is_2_and_one_line(words: tuple[str, ...], said: str) -> None:
    """CI can tell a wrong command from a wrong configuration, and nobody sees a traceback."""
    done = CliRunner().invoke(main.cli, words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    for_programs = CliRunner().invoke(main.cli, [*words, "--json"])
    assert (for_programs.exit_code, for_programs.stderr) == (2, done.stderr)
    assert said in json.loads(for_programs.stdout)["error"]


def test_error_of_a_command_is_json_where_json_is_asked_for() -> None:
    """Standard output holds one JSON document whatever happens; the exit code tells what it is."""
    for words in (["routes", "--admin", "http://127.0.0.1:9"], ["replay", __file__]):
        done = CliRunner().invoke(main.cli, [*words, "--json"])
        assert done.exit_code == 1
        assert done.stderr == f"Error: {json.loads(done.stdout)['error']}\n"


def test_ctrl_c_is_130_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command is about, it ends with one line, and with the code that shells know."""

    def get(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.cli.admin.Admin.get", get)
    done = CliRunner().invoke(main.cli, ["routes", "--json"])
    assert (done.exit_code, done.stderr) == (130, "Error: interrupted\n")
    assert json.loads(done.stdout) == {"error": "interrupted"}


@pytest.mark.slow
def test_character_set_without_dashes_is_no_error() -> None:
    """A dash or a bar that a terminal or a file can't have is a question mark there."""
    done = run("check", environ={"PYTHONIOENCODING": "ascii"})
    assert (done.code, "Traceback" in done.err) == (0, False)
    assert "KEYS_FILE" in done.out


@pytest.mark.parametrize(("width", "fits"), [(110, True), (70, False)])
def test_narrow_terminal_gets_cells_below_each_other(width: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No word is broken into columns of two letters: each cell has a line of its own with its column's name."""
    url = "http://model-server-7.models.svc.cluster.local:8000"
    screen = StringIO()
    monkeypatch.setattr(output, "console", lambda **_: Console(file=screen, width=width, force_terminal=True))
    output.print_table(("Id", "Endpoint", "State", "Why"), [(7, url, "unhealthy", "its health checks fail")])
    said = re.sub("\x1b\\[[0-9;]*m", "", screen.getvalue())
    assert url in said
    assert ("Endpoint: http" in said, "State: unhealthy" in said) == (not fits, not fits)
    assert max(map(len, said.splitlines())) <= width


def test_endpoints_out_of_use_come_first_in_top() -> None:
    """A screen may be too small for all of them."""
    states = ("healthy", "unknown", "ejected", "healthy", "draining")
    endpoints = [{"url": f"http://{at}", "state": state} for at, state in enumerate(states)]
    screen = Console(file=StringIO(), width=200, record=True)
    screen.print(top.picture({"endpoints": endpoints}))
    assert re.findall(r"http://(\d)", screen.export_text()) == ["2", "4", "0", "1", "3"]


def test_top_shows_all_endpoints_of_events_that_have_some() -> None:
    """Those that an event leaves out are as before, but for the time that has passed; some may have gone."""
    a = {"url": "http://a", "state": "ejected", "until_s": 1.5, "last_error": {"text": "refused", "age_s": 7.0}}
    b, busy_b = ({"url": "http://b", "in_flight": in_flight} for in_flight in (0, 1))
    events = [
        {"time": f"2026-01-01T00:00:0{at}.000+00:00", "endpoints_complete": complete, "endpoints": endpoints}
        for at, (complete, endpoints) in enumerate(((True, [a, b]), (False, [busy_b]), (False, []), (True, [b])))
    ]
    shown = [event["endpoints"] for event in top.whole(events)]
    assert [[each["url"] for each in endpoints] for endpoints in shown] == [["http://a", "http://b"]] * 3 + [
        ["http://b"]
    ]
    assert [endpoints[0].get("until_s") for endpoints in shown] == [1.5, 0.5, 0, None]
    assert [endpoints[0]["last_error"]["age_s"] for endpoints in shown[:3]] == [7, 8, 9]
    assert [endpoints[1]["in_flight"] for endpoints in shown[:3]] == [0, 1, 1]


@pytest.mark.parametrize(("term", "moves"), [("dumb", False), ("xterm", True)])
def test_dumb_terminal_gets_one_picture_after_the_other(
    term: str, moves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the cursor can't be moved, `top` would show nothing, and a progress bar would be many lines."""
    monkeypatch.setenv("TERM", term)
    terminal = StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(output, "_stream", lambda **_: terminal)
    assert output.moves_cursor() is moves


def test_row_is_one_line_in_a_pipe() -> None:
    """`grep` finds a whole row, however long it is."""
    shown_rows = CliRunner().invoke(main.cli, ["check"], env={"CORS_ORIGINS": "https://a" + ",https://b" * 60}).stdout
    assert re.search(r"CORS_ORIGINS +https://a(, https://b){60} +set", shown_rows)


@pytest.mark.slow
def test_python_m_app_says_which_release_and_which_commands() -> None:
    """`python -m app` without a command tells what is installed, in which form, and what it can do."""
    done = run()
    assert done.code == 0
    assert done.out.startswith(f"{main.version()}\n")
    assert all(f"\n  {name} " in done.out for name in main.COMMANDS)
    assert run("--version").out == f"{main.version()}\n"


@pytest.mark.slow
def test_server_does_not_carry_the_command_line() -> None:
    """The server imports neither the command line nor the libraries that it alone uses: no time, no memory."""
    code = (
        "import runpy, sys; runpy.run_path('gunicorn.conf.py'); print(*(name for name, module in sys.modules.items() "
    )
    code += "if module and (name.split('.')[0] in ('click', 'rich') or name.startswith('app.cli'))))"
    assert printed_by(code) == "\n"


@pytest.mark.slow
def test_help_does_not_load_what_commands_use() -> None:
    """A word is completed at once: neither gevent nor rich is imported for it."""
    code = (
        "import sys, app.cli.main; print(*(n for n in ('gevent', 'rich', 'falcon', 'structlog') if n in sys.modules))"
    )
    assert printed_by(code) == "\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("inference-router ch", ["check"]),
        ("inference-router replay --queue", ["--queue-size", "--queue-timeout-ms"]),
        ("inference-router keys ", ["digest", "new"]),
        ("inference-router completion z", ["zsh"]),
    ],
)
def test_words_are_completed(words: str, wanted: list[str]) -> None:
    """Commands, options and values, as the script asks for them."""
    asked = {"_INFERENCE_ROUTER_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = run(environ=asked)
    assert [line.partition(",")[2] for line in done.out.splitlines()] == wanted


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_scripts(shell: str) -> None:
    """Each shell gets its script, which asks the program itself."""
    script = CliRunner().invoke(main.cli, ["completion", shell]).stdout
    assert f"_INFERENCE_ROUTER_COMPLETE={shell}_complete" in script
    found = json.loads(CliRunner().invoke(main.cli, ["completion", shell, "--json"]).stdout)
    assert found["script"] in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=20)


def test_program_is_installed_by_its_name() -> None:
    """The package has the command `inference-router`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["inference-router"].partition(":")
    assert getattr(import_module(module), function) is __main__.main


def test_cells_hold_nothing_that_a_terminal_obeys() -> None:
    """Clients choose request ids and models: what they write can't clear the screen or forge a line."""
    assert shown("a\x1b[2J\nb\u202ec") == "a\\u001b[2J\\u000ab\\u202ec"


@pytest.mark.parametrize("form", ["toml", "yaml"])
def test_new_key_is_printed_once_and_the_file_gets_its_digest(form: str) -> None:
    """The lines are what KEYS_FILE has, whatever is in the names, and the key is not among them."""
    words = ["keys", "new", "--tenant", "acme", "--id", "acme/1", "--model", "llama", "--model", 'odd "x" # y']
    done = CliRunner().invoke(main.cli, [*words, "--expires", "2130-01-31T12:00:00+02:00", "--format", form])
    assert done.exit_code == 0
    secret, _, lines = done.stdout.partition("\n")
    (key,) = (tomllib.loads(lines) if form == "toml" else yaml.safe_load(lines))["keys"]
    assert key == {
        "id": "acme/1",
        "sha256": hashlib.sha256(secret.encode()).hexdigest(),
        "tenant": "acme",
        "models": ["llama", 'odd "x" # y'],
        "expires": "2130-01-31T10:00:00Z",
    }
    assert secret not in lines + done.stderr


@pytest.mark.parametrize("expires", ["2130-01-31", "2130-01-31T12:00", "2130-01-31T12:00:00.25+02:00"])
@pytest.mark.parametrize("form", ["toml", "yaml"])
def test_router_takes_the_file_with_a_new_key(form: str, expires: str, tmp_path: Path) -> None:
    """Whatever of its forms a time is given in, the lines are ones that KEYS_FILE may have."""
    words = ["keys", "new", "--tenant", "acme", "--expires", expires, "--format", form]
    _, _, lines = CliRunner().invoke(main.cli, words).stdout.partition("\n")
    file = tmp_path / f"keys.{form}"
    file.write_text(lines)
    (key,) = read_keys(file).keys
    assert str(key.expires).startswith("2130-01-31T")


def test_keys_differ_and_have_256_random_bits() -> None:
    """No two are the same, and none is short enough to be guessed: SHA-256 is then enough of a digest."""
    made = [json.loads(CliRunner().invoke(main.cli, ["keys", "new", "--tenant", "t", "--json"]).stdout) for _ in "12"]
    assert all(re.fullmatch(r"ir-[A-Za-z0-9_-]{43}", one["secret"]) for one in made)
    assert made[0]["secret"] != made[1]["secret"]
    assert made[0]["key"]["id"] != made[1]["key"]["id"]


def test_key_that_expires_after_days() -> None:
    """`--days` counts from now."""
    done = CliRunner().invoke(main.cli, ["keys", "new", "--tenant", "t", "--days", "90", "--json"])
    left = datetime.fromisoformat(json.loads(done.stdout)["key"]["expires"]) - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--expires", "2020-01-01"], "over already"),
        (["--expires", "soon"], "a date or a time"),
        (["--expires", "2130-01-01", "--days", "3"], "exclude each other"),
        (["--id", "a b"], "--id: must be"),
        (["--days", "0"], "--days"),
        (["--model", ""], "models"),
    ],
)
def test_key_that_no_file_may_have_is_not_made(options: list[str], said: str) -> None:
    """What the router would refuse is refused here, before a key is printed."""
    done = CliRunner().invoke(main.cli, ["keys", "new", "--tenant", "t", *options])
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_digest_of_a_key_from_elsewhere() -> None:
    """It is read from standard input, where no process list shows it, without the line break of `echo`."""
    done = CliRunner().invoke(main.cli, ["keys", "digest"], input="s3cret\n")
    assert done.stdout == hashlib.sha256(b"s3cret").hexdigest() + "\n"
    assert CliRunner().invoke(main.cli, ["keys", "digest"], input="\n").exit_code == 2
