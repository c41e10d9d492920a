"""The blocks of the documents that are no commands: files, data and code are what those who read them take."""

import json
import re
import subprocess
import tempfile
import tomllib
from pathlib import Path

import pytest
import yaml

from app.config.keys_file import parse_keys
from app.config.routes_file import parse_routes
from tests.docs.documents import NAMES, ROOT, Block, blocks_of
from tests.support.ops import CHART, K8S, chart, kustomize

COMMANDS = ("console", "sh")
FOREIGN = {
    "model_list": "of LiteLLM's proxy, which docs/migration.md starts from",
    "apiVersion": "of Kubernetes: checked below, or by the tests of ops/",
    "metadata": "a part of a ScaledObject, which tests/unit/test_ops_deployment.py has as a whole",
}
"""YAML of others by its first member. It is only parsed."""
PROSE = ("text", "mermaid", "http")
"""What nobody but readers and GitHub takes."""

BLOCKS = [block for name in NAMES for block in blocks_of(name)]


def of(*languages: str) -> list[Block]:
    """The blocks of these languages."""
    return [block for block in BLOCKS if block.language in languages]


def test_every_block_says_what_it_is() -> None:
    """A block of another language, or an indented one, would be checked by nobody."""
    known = {*COMMANDS, *PROSE, "toml", "yaml", "json", "python", "promql"}
    assert [block.place for block in BLOCKS if block.language not in known] == []


def test_commands_are_no_files() -> None:
    """A script that is shown as a file would not be run where it stands."""
    assert [block.place for block in of(*COMMANDS) if block.file] == []


@pytest.mark.parametrize("block", of("toml"), ids=lambda block: block.place)
def test_toml_is_read_by_the_router(block: Block) -> None:
    """It is a routes file or a keys file, or endpoints of a model, and valid unless the document shows its errors."""
    text = block.text
    data = tomllib.loads(text)
    if isinstance(data.get("models"), dict):
        text = f'[[models]]\nname = "model"\n{text}'
    if block.file.startswith("wrong"):
        return  # the commands that follow show what is wrong
    if data.keys() <= {"keys", "tenants"}:
        assert parse_keys(text, "keys.toml").keys
    else:
        assert parse_routes(text, "routes.toml").models


@pytest.mark.parametrize("block", of("yaml"), ids=lambda block: block.place)
def test_yaml_is_read_by_what_it_is_for(block: Block, tmp_path: Path) -> None:
    """It is a routes file, a keys file, values of the chart, a part of a kustomization, or of another program."""
    documents = [each for each in yaml.safe_load_all(block.text) if each]
    first = next(iter(documents[0]))
    if first == "models":
        assert parse_routes(block.text, "routes.yaml").models
    elif first in ("keys", "tenants"):
        assert parse_keys(block.text, "keys.yaml").keys
    elif documents[0].keys() <= yaml.safe_load((CHART / "values.yaml").read_text()).keys():
        assert chart(documents[0])
    elif first not in FOREIGN:
        _build(documents[0])


def _build(part: dict[str, object]) -> None:
    """Have kustomize build an overlay of the base with this part."""
    with tempfile.TemporaryDirectory(dir=K8S.parent) as name:  # kustomize takes no absolute path
        folder = Path(name)
        (folder / "routes.toml").write_bytes((ROOT / "docs/routes.example.toml").read_bytes())
        (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["../k8s/base"], **part}))
        assert kustomize(folder)


@pytest.mark.parametrize("block", of("json"), ids=lambda block: block.place)
def test_json_is_valid(block: Block) -> None:
    """So that it can be sent as it stands."""
    assert json.loads(block.text)


@pytest.mark.parametrize("block", of("python"), ids=lambda block: block.place)
def test_python_compiles_and_is_a_file(block: Block) -> None:
    """A program is the file that a command of the document runs."""
    compile(block.text, block.place, "exec")
    commands = [command.text for other in blocks_of(block.document) for command in other.commands()]
    assert block.file
    assert any(re.search(rf"\bpython3? {re.escape(block.file)}", text) for text in commands)


@pytest.mark.parametrize("block", of("promql"), ids=lambda block: block.place)
def test_promql_is_understood_by_prometheus(block: Block, tmp_path: Path) -> None:
    """It is an expression that an alert could have."""
    rules = tmp_path / "rules.yaml"
    rule = {"alert": "Documented", "expr": block.text}
    rules.write_text(yaml.safe_dump({"groups": [{"name": "documented", "rules": [rule]}]}))
    subprocess.run(["promtool", "check", "rules", str(rules)], check=True, capture_output=True, timeout=30)


def test_foreign_yaml_is_still_there() -> None:
    """A kind that no document has any longer would one day hide a file of ours."""
    firsts = {next(iter(yaml.safe_load(block.text.partition("\n---")[0]))) for block in of("yaml")}
    assert firsts >= FOREIGN.keys()
