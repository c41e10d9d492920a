"""The Grafana dashboard, made of the table of metrics: `python -m tests.docs.dashboard` writes it anew.

A gauge is shown by its labels, a counter as a rate, a histogram by its percentiles, and a time as how far off it is.
"""

import json
from pathlib import Path
from typing import Any

from app.observability.metric_families import Family
from tests.docs.tables import FAMILIES

FILE = Path(__file__).resolve().parents[2] / "ops/grafana/dashboard.json"
RATE_INTERVAL = "$__rate_interval"
_SELECTOR = 'job=~"$job"'
_QUANTILES = (0.5, 0.95, 0.99)
_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 7
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_TIMESTAMP = "_timestamp_seconds"
_REQUESTS = ("Requests", "Inference requests")
"""What a counter counts, its description says first."""
_ROWS = {"gauge": "State", "counter": "Rates", "histogram": "Times"}


def queries(family: Family) -> list[tuple[str, str]]:
    """Returns the queries of a metric, each with its legend."""
    legend = " ".join(f"{{{{{label}}}}}" for label in family.labels)
    by = f" by ({', '.join(family.labels)})" if family.labels else ""
    if family.name.endswith(_TIMESTAMP):
        return [(f"min{by} ({family.name}{{{_SELECTOR}}}) - time()", legend)]
    if family.kind == "gauge":
        return [(f"sum{by} ({family.name}{{{_SELECTOR}}})", legend or "all")]
    if family.kind == "counter":
        return [(f"sum{by} (rate({family.name}{{{_SELECTOR}}}[{RATE_INTERVAL}]))", legend or "all")]
    buckets = (
        f"sum by ({', '.join(('le', *family.labels))}) (rate({family.name}_bucket{{{_SELECTOR}}}[{RATE_INTERVAL}]))"
    )
    return [(f"histogram_quantile({q}, {buckets})", f"p{q * 100:g} {legend}".strip()) for q in _QUANTILES]


def unit(family: Family) -> str:
    """Returns Grafana's name for the unit of what the queries return. A rate is per second, of whatever is counted."""
    if family.kind == "histogram" or family.name.endswith(_TIMESTAMP):
        return "s"
    if family.kind == "gauge":
        return "short"
    if family.name == "router_tokens_total":
        return "suffix:tokens/s"
    return "reqps" if family.about.startswith(_REQUESTS) else "ops"


def dashboard() -> dict[str, Any]:
    """Returns the whole dashboard."""
    panels: list[dict[str, Any]] = []
    at = 0
    for kind, title in _ROWS.items():
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, at, 24, 1), "panels": []}
        )
        at += 1
        families = sorted((one for one in FAMILIES if one.kind == kind), key=lambda one: one.name)
        for number, family in enumerate(families):
            row, column = divmod(number, _COLUMNS)
            panels.append(_panel(family, _place(column * _WIDTH, at + row * _HEIGHT, _WIDTH, _HEIGHT)))
        at += -(-len(families) // _COLUMNS) * _HEIGHT
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "title": "Inference router",
        "uid": "inference-router",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                {
                    "name": "job",
                    "type": "query",
                    "datasource": _DATASOURCE,
                    "query": "label_values(router_workers, job)",
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                    "refresh": 2,
                },
            ]
        },
        "panels": panels,
    }


def _panel(family: Family, place: dict[str, int]) -> dict[str, Any]:
    is_time = family.name.endswith(_TIMESTAMP)
    return {
        "type": "timeseries",
        "title": family.name.removeprefix("router_").removesuffix("_total").replace("_", " "),
        "description": family.about,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit(family)} | ({} if is_time else {"min": 0}), "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _DATASOURCE, "expr": query, "legendFormat": legend}
            for number, (query, legend) in enumerate(queries(family))
        ],
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def render() -> str:
    """Returns the text of the file."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(render())
