"""The RBAC rules of `deploy/`, and what they allow."""

from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
Rules = list[dict[str, Any]]


def rules_of(*files: str) -> Rules:
    """Returns the rules of all roles in these files."""
    roles = [item for name in files for item in yaml.safe_load_all((DEPLOY / name).read_text())]
    return [rule for item in roles for rule in item.get("rules", [])]


def allows(rules: Rules, group: str, resource: str, verb: str, name: str | None) -> bool:
    """Returns whether one of the rules allows a request."""
    return any(
        group in rule["apiGroups"]
        and resource in rule["resources"]
        and verb in rule["verbs"]
        and ("resourceNames" not in rule or name in rule["resourceNames"])
        for rule in rules
    )
