"""Objects against the schemas of CRDs: types, unknown fields, defaults, and the rules (CEL)."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from tests.support.late import Late

cel: Any = Late("cel")
ROOT = Path(__file__).resolve().parents[3]
OPS = ROOT / "ops"
CRD = OPS / "controller/deploy/base/crd.yaml"
SHARED = ROOT.parent / "shared/crds"
Object = dict[str, Any]


def own_schema() -> Object:
    """Returns the schema of the CRD of the controller."""
    crd = yaml.safe_load(CRD.read_text())
    schema: Object = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


@cache
def foreign_schema(file: str, kind: str) -> Object:
    """Returns the schema of another project's CRD. Skips the test where the CRDs are missing."""
    if not SHARED.is_dir():
        pytest.skip("the CRDs of other projects are not here (../shared/crds)")
    for crd in yaml.load_all((SHARED / file).read_text(), yaml.CSafeLoader):
        if crd and crd["spec"]["names"]["kind"] == kind:
            schema: Object = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            return schema
    raise LookupError(kind)


def errors(schema: Object, item: Object) -> list[str]:
    """Returns what an API server would reject with `--validate=strict`: path and message of each error."""
    item = defaulted(schema, item)
    validator = jsonschema.Draft4Validator(schema)
    found = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(item)]
    return found or [*unknown(schema, item), *broken_rules(schema, item)]


def defaulted(schema: Object, value: Any) -> Any:
    """Returns the value with the defaults of the schema filled in."""
    value = copy.deepcopy(value)
    if isinstance(value, dict):
        for name, below in (schema.get("properties") or {}).items():
            if name not in value and "default" in below:
                value[name] = copy.deepcopy(below["default"])
            if name in value:
                value[name] = defaulted(below, value[name])
    elif isinstance(value, list):
        value = [defaulted(schema.get("items", {}), item) for item in value]
    return value


def unknown(schema: Object, value: Any, path: str = "") -> list[str]:
    """Returns the fields that would be dropped."""
    if isinstance(value, list):
        return [found for item in value for found in unknown(schema.get("items", {}), item, path)]
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields") or path == ".metadata":
        return []
    known, others = schema.get("properties") or {}, schema.get("additionalProperties")
    found = []
    for name, below in value.items():
        if name in known or isinstance(others, dict):
            found += unknown(known.get(name) or others or {}, below, f"{path}.{name}")
        else:
            found.append(f"unknown field {path}.{name}")
    return found


def broken_rules(schema: Object, value: Any, path: str = "") -> list[str]:
    """Returns the messages of the rules that do not hold, with the path of the field."""
    found = [
        f"{path}{rule.get('fieldPath', '')}: {rule['message']}"
        for rule in schema.get("x-kubernetes-validations", [])
        if "oldSelf" not in rule["rule"] and not cel.evaluate(rule["rule"], {"self": value})
    ]
    if isinstance(value, dict):
        for name, below in (schema.get("properties") or {}).items():
            if name in value:
                found += broken_rules(below, value[name], f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            found += broken_rules(schema.get("items", {}), item, path)
    return found
