"""The parts of the documents that are generated from the code: `python -m tests.docs.tables`.

A generated part stands between the lines `<!-- generated: NAME -->` and `<!-- end -->`. `make docs` rewrites all of
them; tests/unit/test_docs.py says whether they are current.
"""

import re
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec

from app import errors
from app.api import error_responses
from app.config import keys_schema, route_schema, route_values, routes_source
from app.config.auth_settings import AuthSettings
from app.config.routes_file.value_types import ValueType, members
from app.config.settings import Settings
from app.errors import RouterError
from app.observability import (
    auth_metrics,
    endpoint_gauges,
    model_gauges,
    route_metrics,
    tls_metrics,
    token_metrics,
)
from app.observability import metrics as metrics_module
from app.observability.metric_families import Family
from app.protocols import anthropic, infer, openai, v2
from app.routing import (
    attempt,
    back_off,
    created_responses,
    endpoint_health,
    first_byte,
    health_checks,
    outlier_detection,
    remote_model,
    retry_budget,
    route_store,
)
from app.shared_memory import counters
from app.upstream import dialer, pool, resolver, response_head
from tests.docs import command_tables, demand
from tests.support.malformed import MALFORMED

_MODULES = (metrics_module, auth_metrics, endpoint_gauges, model_gauges, route_metrics, tls_metrics, token_metrics)
FAMILIES = list(dict.fromkeys(one for module in _MODULES for one in vars(module).values() if isinstance(one, Family)))
"""Each once: a module may import those of another."""
ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = tuple(
    ROOT / name
    for name in (
        "docs/api.md",
        "docs/settings.md",
        "docs/metrics.md",
        "docs/routing.md",
        "docs/failures.md",
        "docs/balancing.md",
        "docs/kubernetes.md",
        "docs/security.md",
        "docs/tls.md",
        "docs/cli.md",
    )
)

Row = tuple[str, ...]

_PART = re.compile(r"(?<=<!-- generated: )(\w+)( -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)

_FORBIDDEN = 403  # a PROXY line from an address that is not allowed, which only a listener behind a proxy takes
_BY_PARSER = sorted({_FORBIDDEN, *(status for _, status in MALFORMED.values())})
_ESTIMATE = "`Retry-After` estimates when a permit comes free."
_RETRY_AFTER: dict[type[RouterError], str] = {
    errors.LimitReached: _ESTIMATE,
    errors.QueueFull: _ESTIMATE,
    errors.QueueTimeout: _ESTIMATE,
    errors.ModelLimitReached: "`Retry-After` estimates when the model has room.",
    errors.TenantLimitReached: "`Retry-After` estimates when the tenant has room.",
    errors.NoEndpoint: "`Retry-After` says when one may, if that is known.",
}
_WITHOUT_CLASS = [
    (HTTPStatus.NOT_FOUND, "not_found", "Nothing is served at this path, or not for this model."),
    (HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", "The path takes other methods; `Allow` names them."),
]

_WORDS = {
    route_values.NAME_RULE: "a name",
    route_values.WORD_RULE: "a word",
    route_values.HEADER_RULE: "a header's name",
    route_values.LISTED_PATH_RULE: "a further path",
}
"""Short words for the rules that stand in several rows."""
_LISTS = {route_values.NAME_RULE: "a list of names", route_values.LISTED_PATH_RULE: "a list of further paths"}


def _table(head: str, rows: Iterable[Row]) -> list[str]:
    columns = head.split(", ")
    return [_line(columns), "|---" * len(columns) + "|", *map(_line, rows)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def settings(prefix: str = "") -> list[str]:
    """Every setting that begins so: variable, default, allowed values, meaning."""
    rows = []
    inherited = len(msgspec.structs.fields(AuthSettings))  # a record's fields come after those of its base
    fields = msgspec.structs.fields(Settings)
    for field in (*fields[inherited:], *fields[:inherited]):
        if not field.name.upper().startswith(prefix):
            continue
        meta = field.type.__metadata__[0]
        default = "the usable CPUs" if field.required else _default(field, nothing="unset")
        rows.append((f"`{field.name.upper()}`", default, meta.extra["allowed"], meta.description))
    return _table("Variable, Default, Allowed, Meaning", rows)


def metrics() -> list[str]:
    """Every metric: gauges first, then by name."""
    order = ("gauge", "counter", "histogram")
    families = sorted(FAMILIES, key=lambda family: (order.index(family.kind), family.name))
    return _table(
        "Name, Type, Labels, Meaning",
        (
            (f"`{one.name}`", one.kind, ", ".join(f"`{label}`" for label in sorted(one.labels)), one.about)
            for one in families
        ),
    )


def error_codes() -> list[str]:
    """Every error that a client may get, by status."""
    rows = [(str(status.value), error.code, _when(error)) for error, status in error_responses._STATUS.items()]
    rows.append((", ".join(map(str, _BY_PARSER)), errors.MalformedRequest.code, _when(errors.MalformedRequest)))
    rows.append((str(HTTPStatus.INTERNAL_SERVER_ERROR.value), RouterError.code, _when(RouterError)))
    rows.extend((str(status.value), code, when) for status, code, when in _WITHOUT_CLASS)
    last = ("the model server's", errors.UpstreamErrorResponse.code, _when(errors.UpstreamErrorResponse))
    return _table("Status, `code`, When", [(status, f"`{code}`", when) for status, code, when in (*sorted(rows), last)])


def _when(error: type[RouterError]) -> str:
    """The first paragraph of the error's docstring, and what `Retry-After` says."""
    paragraph = " ".join((error.__doc__ or "").split("\n\n")[0].split())
    return f"{paragraph} {_RETRY_AFTER.get(error, '')}".strip()


def words() -> list[str]:
    """What the short words of the tables of members stand for."""
    return [f"- {word} is {rule}." for rule, word in _WORDS.items()]


def record_members(record: type[msgspec.Struct]) -> list[str]:
    """Every member of a record: name, default, allowed values, meaning."""
    kinds = members(record)
    rows = [
        (f"`{field.name}`", _default(field, nothing="none"), _allowed(kinds[field.name]), kinds[field.name].about)
        for field in msgspec.structs.fields(record)
    ]
    return _table("Member, Default, Allowed, Meaning", rows)


def _default(field: msgspec.structs.FieldInfo, *, nothing: str) -> str:
    default: Any = field.default
    if field.required:
        return "required"
    if isinstance(default, msgspec.Struct):
        return "see below"
    if default in (None, ()):
        return nothing
    if isinstance(default, tuple):
        return ", ".join(f"`{item}`" for item in default)
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _allowed(kind: ValueType) -> str:
    if kind.item is not None:
        return "a list of tables" if kind.record else _LISTS.get(kind.item.allowed, f"a list: {kind.item.allowed}")
    if kind.record is not None:
        return "a table"
    return _WORDS.get(kind.allowed, kind.allowed)


def prompts() -> list[str]:
    """The members that make the prompt, by path."""
    paths: dict[tuple[str, ...], list[str]] = {("prompt",): [infer.ROUTE]}
    for path, names in (*openai.PATHS.items(), *anthropic.PATHS.items()):
        paths.setdefault(names, []).append(path)
    for name, actions in (("inputs", ("infer",)), ("text_input", ("generate", "generate_stream"))):
        paths[name,] = [f"{v2.MODELS}/{{name}}/{action}" for action in actions]
    paths[openai.PATHS["/v1/chat/completions"]].append("further paths of a route")
    rows = ((", ".join(map(_code, those)), ", ".join(map(_code, names))) for names, those in paths.items())
    return _table("Path, Members of the body", rows)


def _code(text: str) -> str:
    return text if " " in text else f"`{text}`"


def demand_simulation() -> list[str]:
    """What the simulated router of tests/docs/demand.py shows under rising loads."""
    return _table(demand.HEAD, demand.rows())


def fixed_values() -> list[str]:
    """The constants that no setting changes."""
    idle = f"{pool.MAX_IDLE}, each for {pool.MAX_IDLE_S:g} s"
    cool_down = f"{back_off.FIRST_COOL_DOWN_MS} ms to {back_off.MAX_COOL_DOWN_MS // 1000} s"
    rows = [
        ("Largest routes file", f"{routes_source._MAX_FILE_BYTES >> 10} KiB"),
        ("Largest routes in memory", f"{route_store.MAX_BYTES >> 10} KiB"),
        ("Most endpoints and models together", f"{counters.MAX_IDS}"),
        ("Largest response that is read to its end before it is sent", f"{attempt._READ_WHOLE_BYTES >> 10} KiB"),
        ("Most idle connections of a worker to an endpoint", idle),
        ("Age at which the addresses of a name are looked up again", f"{resolver.FRESH_S:g} s"),
        (
            "Most addresses of a name that a request tries",
            f"{dialer.MOST_ADDRESSES}, at most {dialer.DELAY_S:g} s apart",
        ),
        (
            "Longest head of a response, longest interim responses together, longest trailer",
            f"{response_head.MAX_BYTES >> 10} KiB each",
        ),
        ("Reserve of a retry budget", f"{retry_budget._RESERVE_MILLI // 1000} retries"),
        ("Responses of `/v1/responses` whose endpoint is known", f"{created_responses.MAX_RESPONSES:,}"),
        ("Statuses after which a request is retried", _listed(remote_model._RETRIED_STATUSES)),
        ("Statuses that count as failures of an endpoint", _listed(attempt._FAILURES)),
        ("Statuses with which a health check succeeds", f"2xx, {_listed(health_checks._RUNNING_STATUSES)}"),
        ("Longest back-off for an endpoint's `Retry-After`", f"{back_off.MAX_BACK_OFF_MS // 1000} s"),
        (
            "Cool-down without `Retry-After`",
            cool_down,
        ),
        ("Shortest wait of a client that leaves in vain", f"{first_byte.LEAST_US / 1e6:g} s"),
        ("The same while no request has been served yet", f"{first_byte.UNKNOWN_US / 1e6:g} s"),
        ("Readiness in panic after a request was served", f"{endpoint_health.RECENTLY_MS // 1000} s"),
        ("Longest half-open trial", f"{outlier_detection._TRIAL_LEASE_MS // 1000} s"),
    ]
    return _table("What, Value", rows)


def _listed(statuses: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(statuses)))


RECORDS: dict[str, type[msgspec.Struct]] = {
    "file": route_schema.Routes,
    "model": route_schema.Model,
    "version": route_schema.Version,
    "endpoint": route_schema.Endpoint,
    "keys_file": keys_schema.Keys,
    "key": keys_schema.Key,
    "tenant": keys_schema.Tenant,
    "timeouts": route_schema.Timeouts,
    "ejection": route_schema.Ejection,
    "load_report": route_schema.LoadReport,
    "health_check": route_schema.HealthCheck,
}
PARTS: dict[str, Callable[[], list[str]]] = {
    "settings": settings,
    "tls_settings": lambda: settings("TLS_"),
    "metrics": metrics,
    "errors": error_codes,
    "words": words,
    "prompts": prompts,
    "fixed_values": fixed_values,
    "demand": demand_simulation,
    "commands": lambda: _table("Command, Does, Exits with", command_tables.exits()),
    "options": lambda: _table("Option, Means", command_tables.options()),
    **{name: partial(record_members, record) for name, record in RECORDS.items()},
}


def parts_of(document: str) -> dict[str, str]:
    """The generated parts that a document has, by name."""
    return {name: content for name, _, content in _PART.findall(document)}


def render(name: str) -> str:
    """A generated part as it should be."""
    return "".join(f"{line}\n" for line in PARTS[name]())


def main() -> None:
    """Rewrite every generated part."""
    for file in DOCUMENTS:
        text = file.read_text()
        file.write_text(_PART.sub(lambda found: f"{found[1]}{found[2]}{render(found[1])}", text))


if __name__ == "__main__":
    main()
