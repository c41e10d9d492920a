"""`check`: everything that is wrong, where it is, and what would be used; never a secret."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.cli.findings import check
from app.cli.main import cli
from app.config.settings import load_settings

WRONG = """
default_model = "none"

[[models]]
name = "llama"
balancing = "nope"
session_header = "x-session"
endpoints = ["ftp://user:SECRET@a", "http://b", "http://b"]
[models.timeouts]
connect_s = -1
total_s = 2

[[models]]
name = "llama"
endpoints = ["http://c", 5]
fallback = ["ghost"]

[[models]]
max_concurrency = "many"
[models.ejection]
base_s = 100
max_s = 5
"""
"""Wrong at every line that LINES has, and at no other."""
LINES = [2, 6, 8, 8, 10, 14, 15, 16, 18, 18, 19, 21]


def checked(*options: object, **environ: object) -> Result:
    """Run `check` with these settings and no others."""
    given = {name: str(value) for name, value in environ.items()}
    return CliRunner(env={"MAX_CONCURRENCY": None, **given}).invoke(cli, ["check", *map(str, options)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A routes file that is wrong in many places."""
    path = tmp_path / "routes.toml"
    path.write_text(WRONG)
    return path


def test_every_mistake_is_told_with_file_and_line(file: Path) -> None:
    """Not the first one only; and nothing that only follows from another one, such as a rule about a wrong value."""
    done = checked("--routes", file)
    assert done.exit_code == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    lines = [int(found[1]) for line in told if (found := re.match(rf"error: {re.escape(str(file))}:(\d+): ", line))]
    assert lines == LINES, done.stderr
    assert len(told) == len(LINES)
    assert done.stderr.endswith(f"{len(LINES)} errors\n")
    assert "session_header" not in "".join(line.partition(" must ")[0] for line in told)
    assert "SECRET" not in done.output


def test_files_of_keys_and_of_tls_are_read(tmp_path: Path) -> None:
    """What they hold would stop the start as well, so it is told: file and line, without a word of the file."""
    keys, pem = tmp_path / "keys.toml", tmp_path / "a.pem"
    keys.write_text('[[keys]]\nid = "a"\nsha256 = "SECRET"\ntenant = "t"\n')
    pem.write_text("SECRET")
    routes = tmp_path / "routes.toml"
    routes.write_text(f"""
[[models]]
name = "m"
[[models.endpoints]]
url = "https://a"
ca_file = "{pem}"
""")
    tokens = {"JWT_ISSUER": "https://i", "JWT_AUDIENCE": "a", "JWT_JWKS": tmp_path / "none"}
    done = checked(KEYS_FILE=keys, TLS_CERT_FILE=pem, ROUTES_FILE=routes, **tokens)
    told = "\n".join(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert f"error: {keys}:3: " in told
    assert f"error: {routes}:6: " in told
    assert "error: TLS_CERT_FILE=" in told
    assert "error: JWT_JWKS: " in told
    assert told.count("error: ") == 4, told
    assert "SECRET" not in done.output


def test_every_mistake_of_the_keys_file_is_told_beside_wrong_settings(tmp_path: Path) -> None:
    """Not the first one only, each with its line; a wrong variable hides none; nothing that only follows is told."""
    keys = tmp_path / "keys.toml"
    keys.write_text(
        """[[tenants]]
name = "t"
models = []
[[tenants]]
name = 5
[[keys]]
id = "a"
sha256 = "SECRET"
tenant = "t"
SECRET-member = 1
[[keys]]
id = "a"
tenant = ""
expires = "2030-02-31T00:00:00Z"
"""
    )
    done = checked("--json", KEYS_FILE=keys, MAX_CONCURRENCY="many")
    errors = json.loads(done.stdout)["errors"]
    assert [error["line"] for error in errors] == [None, 3, 5, 8, 10, 11, 12, 13, 14]
    assert {error["file"] for error in errors} == {None, str(keys)}
    assert "SECRET" not in done.output
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [{}] * 200}))
    assert len(json.loads(checked("--json", KEYS_FILE=tmp_path / "keys.json").stdout)["errors"]) == 101


def test_mistakes_for_programs(file: Path) -> None:
    """File, line and message of each, and nothing else on standard output."""
    document = json.loads(checked("--routes", file, "--json").stdout)
    assert (document["ok"], document["routes"]) == (False, None)
    assert [error["line"] for error in document["errors"]] == LINES
    assert {error["file"] for error in document["errors"]} == {str(file)}


def test_every_wrong_setting_is_told_and_routes_are_checked_too(file: Path) -> None:
    """One wrong variable hides no other, and none of what is wrong only beside a default is told."""
    done = checked(
        MAX_CONCURRENCY="many", BIND="8080", ADMIN_BIND="h:8080", KV_ENDPOINTS="redis://u:SECRET@h:0", ROUTES_FILE=file
    )
    told = done.stderr.splitlines()
    for variable in ("MAX_CONCURRENCY", "BIND", "KV_ENDPOINTS"):
        assert sum(line.startswith(f"error: {variable}=") for line in told) == 1
    assert not any("ADMIN_BIND" in line for line in told)  # 8080 is BIND's default, which nobody has chosen
    assert sum(str(file) in line for line in told) == len(LINES)
    assert "SECRET" not in done.output


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[[models]]\nname = ", 2),
        ("models: [", 1),
        ("", 1),
        ("[[models]]\nname = 'm'\nendpoints = ['http://h']\n'a b' = 1", 4),
    ],
)
def test_file_that_cannot_be_read_at_all(tmp_path: Path, text: str, line: int) -> None:
    """The line of what stops the reading."""
    path = tmp_path / ("routes.yaml" if text.startswith("models:") else "routes.toml")
    path.write_text(text)
    document = json.loads(checked("--routes", path, "--json").stdout)
    assert [(error["file"], error["line"]) for error in document["errors"]] == [(str(path), line)]


def test_file_that_is_not_there(tmp_path: Path) -> None:
    """It is a wrong configuration, 1, and not a wrong command, 2."""
    done = checked("--routes", tmp_path / "none.toml")
    assert done.exit_code == 1
    assert "can't be read: No such file or directory" in done.stderr


def test_credentials_must_be_there_and_are_not_shown(tmp_path: Path) -> None:
    """Each that is missing is told with the line that names it; one that is there is not repeated."""
    path = tmp_path / "routes.toml"
    path.write_text(
        "[[models]]\nname = 'm'\nendpoints = [\n"
        " {url = 'http://a', credential_env = 'TOKEN_A'},\n"
        " {url = 'http://b', credential_env = 'TOKEN_B'},\n"
        f" {{url = 'http://c', credential_file = '{tmp_path}/none'}},\n]\n"
    )
    done = checked("--routes", path, "--json", TOKEN_A="SECRET")
    assert [error["line"] for error in json.loads(done.stdout)["errors"]] == [5, 6]
    assert "SECRET" not in done.output


def test_effective_configuration_is_shown(tmp_path: Path) -> None:
    """Every setting with its value, defaults included, and the routes with what they leave to a default."""
    path = tmp_path / "routes.yaml"
    path.write_text("models: [{name: m, aliases: [n], endpoints: ['http://h/v1']}]")
    done = checked("--routes", path, "--json", KV_ENDPOINTS="redis://u:SECRET@h", QUEUE_SIZE=7)
    document: dict[str, Any] = json.loads(done.stdout)
    assert (done.exit_code, document["ok"]) == (0, True)
    settings = document["settings"]
    assert (settings["QUEUE_SIZE"], settings["KV_ENDPOINTS"]) == (7, ["redis://***@h"])
    assert len(settings) == len(load_settings({}, 1).__struct_fields__)
    (model,) = document["routes"]["models"]
    assert (model["balancing"], model["timeouts"]["connect_s"]) == ("least_inflight", 5.0)
    assert model["versions"][0]["endpoints"][0]["url"] == "http://h"  # as it is used
    shown = checked("--routes", path, QUEUE_SIZE=7)
    assert re.search(r"QUEUE_SIZE +7 +set", shown.stdout)
    assert re.search(r"MAX_CONCURRENCY +10 +default", shown.stdout)
    assert "ok: a router can start with these" in shown.stdout
    assert "SECRET" not in done.output


def test_cap_that_cannot_be_held_is_found() -> None:
    """What the start refuses for want of file descriptors is refused here."""
    done = checked(MAX_CONCURRENCY=1_000_000)
    assert done.exit_code == 1
    assert "open files" in done.stderr


def test_settings_that_exclude_each_other(tmp_path: Path) -> None:
    """ROUTES_FILE beside BACKENDS; `--routes` takes the place of both."""
    path = tmp_path / "routes.yaml"
    path.write_text("models: [{name: m, endpoints: ['http://h']}]")
    both = {"ROUTES_FILE": str(path), "BACKENDS": "http://h"}
    assert [problem.text.split("=")[0] for problem in check(both).problems] == ["ROUTES_FILE"]
    assert checked("--routes", path, BACKENDS="http://h").exit_code == 0


@pytest.mark.slow
def test_no_more_than_a_hundred_mistakes_are_collected(tmp_path: Path) -> None:
    """A file of nothing but mistakes ends with the last that is looked at, in no time."""
    path = tmp_path / "routes.json"
    path.write_text(json.dumps({"models": [{"name": 5, "endpoints": [5]}] * 2000}))
    document = json.loads(checked("--routes", path, "--json").stdout)
    assert len(document["errors"]) == 101
