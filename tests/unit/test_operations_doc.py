"""What docs/operations.md says is what the router does."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from app.api import accounting
from app.auth.caller import Caller, Identity

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "operations.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading."""
    table = DOCUMENT.partition(f"| {heading} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()[2:]]


def test_fields_of_the_access_log_are_documented() -> None:
    """A line that has all fields has those of the table, in another order."""
    lines: list[dict[str, Any]] = []
    exchange: Any = SimpleNamespace(
        method="POST",
        path="/infer",
        status=429,
        model="m",
        attempts=[SimpleNamespace(endpoint_url="http://a:1")],
        rejection="queue_full",
        error="queue_full",
        caller=Caller(Identity("acme", credential="acme-1"), None),  # type: ignore[arg-type]  # no limit is asked
        client_address="127.0.0.1",
        request_id="x",
        trace=SimpleNamespace(trace_id="0" * 32),
        seconds=lambda: 0.0,
        queue_s=0.0,
        model_s=0.0,
    )
    accounting._log_access(
        SimpleNamespace(info=lambda event, **fields: lines.append({"event": event, **fields})), exchange
    )
    (line,) = lines
    assert line.pop("event") == "request"
    documented = [name for names, _ in rows("Field") for name in re.findall(r"`(\w+)`", names)]
    assert sorted(documented) == sorted(line)


def test_alerts_and_gauges_of_files_exist() -> None:
    """Each alert of the table of files is on the gauge beside it."""
    alerts = (ROOT / "ops" / "prometheus" / "alerts.yaml").read_text()
    named = [(gauge.strip("`"), alert) for _, _, gauge, alert in rows("To replace") if alert]
    assert len(named) == 5
    for gauge, alert in named:
        rule = alerts.partition(f"- alert: {alert}\n")[2].partition("- alert:")[0]
        assert f"{gauge} == 1" in rule, alert
