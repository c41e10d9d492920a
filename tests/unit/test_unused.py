"""What has no effect: every kind of it is warned of by `check` and by the log, and what has an effect is not."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from app.cli.main import cli
from tests.support.credentials import key, write_keys
from tests.support.routed_router import RoutedRouter

HTTP = ["http://a"]
TWO = ["http://a", "http://b"]
M = {"name": "m", "endpoints": HTTP}
DNS = {"name": "m", "dns": "m.test:80"}
SIMULATED = {"name": "m", "protocol": "simulated"}
LEAST_LOAD = {**M, "balancing": "least_load"}
OTEL = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
READ_WITH = "balancing is least_inflight: it is read with prefix and prefix_hash"
KEYS_ONLY: dict[str, str] = {}
TOKENS = {"JWT_ISSUER": "i", "JWT_AUDIENCE": "a", "JWT_JWKS": "http://127.0.0.1:9"}


def checked(
    folder: Path, models: list[dict[str, Any]], keys: dict[str, Any] | None = None, /, **environ: str
) -> Result:
    """Run `check --json` with these models, these keys and tenants, and these settings."""
    if models:
        environ["ROUTES_FILE"] = str(folder / "routes.json")
        Path(environ["ROUTES_FILE"]).write_text(json.dumps({"models": models}, indent=1))
    if keys is not None:
        environ["KEYS_FILE"] = write_keys(folder / "keys.json", *keys.get("keys", ()), tenants=keys.get("tenants", ()))
    return CliRunner(env={"MAX_CONCURRENCY": None, **environ}).invoke(cli, ["check", "--json"])


def unused(
    folder: Path, models: list[dict[str, Any]], keys: dict[str, Any] | None = None, /, **environ: str
) -> set[str]:
    """The names that `check` warns of. It finds nothing wrong."""
    done = checked(folder, models, keys, **environ)
    assert done.exit_code == 0, done.output
    return {one["name"] for one in json.loads(done.stdout)["warnings"]}


SETTINGS = [
    ("MODEL_REF", "m", [M], {}, [], {}),
    ("BACKEND_PROTOCOL", "v2", [M], {}, [], {"BACKENDS": "http://a"}),
    ("BACKEND_PROTOCOL", "v2", [], {}, [], {"BACKENDS": "http://a"}),
    ("INITIAL_HEALTH", "healthy", [SIMULATED], {}, [SIMULATED, {**M, "name": "n"}], {}),
    ("INITIAL_HEALTH", "healthy", [{**M, "health_check": {"interval_s": 0}}], {}, [M], {}),
    ("QUEUE_TIMEOUT_MS", "10", [M], {}, [M], {"QUEUE_SIZE": "1"}),
    ("SIMULATED_LATENCY_MS", "10", [M], {}, [M, {**SIMULATED, "name": "n"}], {}),
    ("SIMULATED_TOKEN_MS", "10", [], {"BACKENDS": "http://a"}, [], {}),
    ("JWT_LEEWAY_S", "10", [M], {}, [M], TOKENS),
    ("JWT_TENANT_CLAIM", "t", [M], {}, [M], TOKENS),
    ("TRACE_SAMPLE_RATIO", "0.5", [M], OTEL, [M], {**OTEL, "OTEL_SDK_DISABLED": "true"}),
]


@pytest.mark.parametrize(("variable", "value", "models", "beside", "other_models", "other_beside"), SETTINGS)
def test_setting_without_effect(
    tmp_path: Path,
    variable: str,
    value: str,
    models: list[dict[str, Any]],
    beside: dict[str, str],
    other_models: list[dict[str, Any]],
    other_beside: dict[str, str],
) -> None:
    """It is told where it is set and has none; not where it has one, nor where it is not set."""
    assert unused(tmp_path, models, **beside, **{variable: value}) == {variable}
    assert unused(tmp_path, other_models, **other_beside, **{variable: value}) == set()
    assert unused(tmp_path, models, **beside) == set()


def test_admin_key_protects_the_metrics_of_either_listener(tmp_path: Path) -> None:
    """It has an effect without ADMIN_BIND."""
    assert unused(tmp_path, [M], ADMIN_KEY_SHA256="a" * 64) == set()


MEMBERS = [
    ("load_report", {"interval_s": 3}, M, LEAST_LOAD),
    ("prefix_bytes", 9, M, {**M, "balancing": "prefix"}),
    ("load_bound", 2, M, {**M, "balancing": "prefix_hash"}),
    ("load_floor", 2, {**M, "balancing": "p2c"}, {**M, "balancing": "prefix"}),
    ("slow_start_s", 9, {**M, "balancing": "round_robin"}, M),
    ("no_endpoint_wait_s", 9, M, DNS),
    ("max_concurrency", 15, M, None),
    ("load_report", {"interval_s": 3}, {**SIMULATED, "balancing": "least_load"}, LEAST_LOAD),
    *(
        (member, value, SIMULATED, M)
        for member, value in (
            ("balancing", "p2c"),
            ("retry_budget", 0),
            ("forward_credentials", True),
            ("slow_start_s", 9),
            ("ejection", {"max_share": 0}),
            ("health_check", {"interval_s": 0}),
        )
    ),
]


@pytest.mark.parametrize(("member", "value", "model", "other"), MEMBERS)
def test_member_of_a_model_without_effect(
    tmp_path: Path, member: str, value: object, model: dict[str, Any], other: dict[str, Any] | None
) -> None:
    """It is told where the file has it and it has none."""
    room = {"MAX_CONCURRENCY": "10", "QUEUE_SIZE": "5"}
    name = f"models[0].{member}"
    assert name in unused(tmp_path, [{**model, member: value}], **room)
    assert name not in unused(tmp_path, [model], **room)
    if other is None:
        other, room = model, {**room, "QUEUE_SIZE": "6"}
    assert unused(tmp_path, [{**other, member: value}], **room) == set()


NESTED = [
    ("load_report.path", {**LEAST_LOAD, "load_report": {"source": "header", "path": "/x"}}),
    ("load_report.port", {**LEAST_LOAD, "load_report": {"source": "header", "port": 9}}),
    ("load_report.timeout_s", {**LEAST_LOAD, "load_report": {"source": "header", "timeout_s": 9}}),
    ("health_check.path", {**M, "health_check": {"interval_s": 0, "path": "/x"}}),
    ("health_check.timeout_s", {**M, "health_check": {"interval_s": 0, "timeout_s": 9}}),
    ("health_check.unhealthy_after", {**M, "health_check": {"interval_s": 0, "unhealthy_after": 9}}),
    ("health_check.healthy_after", {**M, "health_check": {"interval_s": 0, "healthy_after": 9}}),
    ("ejection.base_s", {**M, "ejection": {"max_share": 0, "base_s": 9}}),
    ("ejection.max_s", {**M, "ejection": {"max_share": 0, "max_s": 9}}),
    ("timeouts.first_byte_s", {**M, "timeouts": {"total_s": 60, "first_byte_s": 61}}),
    ("timeouts.idle_s", {**M, "timeouts": {"total_s": 30, "idle_s": 31}}),
    ("upstream_version", {**M, "upstream_version": "2"}),
    ("versions[0].weight", {**SIMULATED, "versions": [{"weight": 2}]}),
    ("versions[0].upstream_model", {**SIMULATED, "versions": [{"upstream_model": "x"}]}),
    ("versions[0].upstream_version", {**SIMULATED, "versions": [{"upstream_version": "x"}]}),
    (
        "versions[0].endpoints[0].weight",
        {"name": "m", "balancing": "round_robin", "versions": [{"endpoints": [{"url": "http://a", "weight": 2}]}]},
    ),
]


@pytest.mark.parametrize(("member", "model"), NESTED, ids=[member for member, _ in NESTED])
def test_member_of_a_table_without_effect(tmp_path: Path, member: str, model: dict[str, Any]) -> None:
    """It is told, and nothing else of its table is."""
    assert unused(tmp_path, [model]) == {f"models[0].{member}"}


@pytest.mark.parametrize(
    "model",
    [
        {**LEAST_LOAD, "load_report": {"source": "header", "interval_s": 9}},
        {**LEAST_LOAD, "load_report": {"path": "/x", "port": 9, "timeout_s": 9}},
        {**M, "health_check": {"interval_s": 0, "panic_threshold": 0}},
        {**M, "health_check": {"path": "/x", "timeout_s": 9, "unhealthy_after": 9, "healthy_after": 9}},
        {**M, "ejection": {"max_share": 0, "consecutive_failures": 9, "ignored_statuses": [500]}},
        {**M, "ejection": {"base_s": 9, "max_s": 9}},
        {**M, "timeouts": {"total_s": 60, "first_byte_s": 60, "idle_s": 60}},
        {**M, "protocol": "v2", "upstream_version": "2"},
        {**SIMULATED, "timeouts": {"total_s": 60}, "paths": ["/v1/x"], "aliases": ["n"]},
    ],
)
def test_members_with_an_effect_are_not_told(tmp_path: Path, model: dict[str, Any]) -> None:
    """What they belong to is on, or they are read whatever it is."""
    assert unused(tmp_path, [model]) == set()


def test_waiting_for_an_endpoint_needs_a_queue(tmp_path: Path) -> None:
    """Two settings that cancel each other."""
    waiting = {**DNS, "no_endpoint_wait_s": 9}
    assert unused(tmp_path, [waiting]) == {"models[0].no_endpoint_wait_s"}
    assert unused(tmp_path, [waiting], QUEUE_SIZE="1") == set()


def test_endpoints_are_asked_as_their_first_model_says(tmp_path: Path) -> None:
    """Another model's health check of the same endpoints, where it differs; not of others, nor where it is the same."""
    first = {"name": "n", "endpoints": TWO, "health_check": {"path": "/x"}}
    for endpoints, path, expected in (
        (HTTP, "/y", {"models[1].health_check.path"}),
        (HTTP, "/x", set()),
        (["http://a", "http://c"], "/y", set()),
    ):
        assert (
            unused(tmp_path, [first, {"name": "m", "endpoints": endpoints, "health_check": {"path": path}}]) == expected
        )
    scraped = {**first, "health_check": {}, "balancing": "least_load"}
    second = {**LEAST_LOAD, "load_report": {"path": "/y"}}
    assert unused(tmp_path, [scraped, second]) == {"models[1].load_report.path"}
    assert unused(tmp_path, [{**scraped, "balancing": "p2c"}, second]) == set()


T = {"name": "t"}
KEYS: list[tuple[set[str], dict[str, Any], dict[str, str]]] = [
    ({"keys[0].models[1]"}, {"keys": [key("s", models=["m", "SECRET"])]}, KEYS_ONLY),
    (set(), {"keys": [key("s", models=["m-alias", "m"])]}, KEYS_ONLY),
    ({"tenants[0].models[0]"}, {"keys": [key("s")], "tenants": ({**T, "models": ["SECRET"]},)}, KEYS_ONLY),
    ({"tenants[1]"}, {"keys": [key("s")], "tenants": (T, {"name": "SECRET"})}, KEYS_ONLY),
    (set(), {"keys": [key("s")], "tenants": (T, {"name": "SECRET"})}, TOKENS),
    ({"keys[0]"}, {"keys": [key("s", expires="2020-01-01T00:00:00Z")]}, KEYS_ONLY),
    (set(), {"keys": [key("s", expires="2999-01-01T00:00:00Z")]}, KEYS_ONLY),
    (
        {"keys[0]"},
        {"keys": [key("s", models=["m"])], "tenants": ({**T, "models": ["n"]},)},
        KEYS_ONLY,
    ),
    (set(), {"keys": [key("s", models=["m-alias"])], "tenants": ({**T, "models": ["m"]},)}, KEYS_ONLY),
    ({"tenants[0].max_concurrency"}, {"keys": [key("s")], "tenants": ({**T, "max_concurrency": 10},)}, KEYS_ONLY),
    (set(), {"keys": [key("s")], "tenants": ({**T, "max_concurrency": 9},)}, KEYS_ONLY),
]


@pytest.mark.parametrize(("expected", "keys", "beside"), KEYS)
def test_member_of_the_keys_file_without_effect(
    tmp_path: Path, expected: set[str], keys: dict[str, Any], beside: dict[str, str]
) -> None:
    """A key or a tenant that nobody can use, and models that nobody serves. No word of the file is repeated."""
    models: list[dict[str, Any]] = [{**M, "aliases": ["m-alias"]}, {**SIMULATED, "name": "n"}]
    assert unused(tmp_path, models, keys, **beside) == expected
    assert "SECRET" not in checked(tmp_path, models, keys, **beside).output


def test_check_prints_file_and_line_and_exits_with_0(tmp_path: Path) -> None:
    """A warning in a line of its own on standard error; the end still says that a router can start."""
    routes = tmp_path / "routes.toml"
    routes.write_text('[[models]]\nname = "m"\nendpoints = ["http://a"]\nload_floor = 2\n')
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nid = "a"\nsha256 = "{"a" * 64}"\ntenant = "t"\nmodels = ["none"]\n')
    environ = {"ROUTES_FILE": str(routes), "KEYS_FILE": str(keys), "QUEUE_TIMEOUT_MS": "5", "MAX_CONCURRENCY": None}
    done = CliRunner(env=environ).invoke(cli, ["check"])
    assert done.exit_code == 0
    assert [line for line in done.stderr.splitlines() if line.startswith("warning: ")] == [
        "warning: QUEUE_TIMEOUT_MS has no effect: QUEUE_SIZE is 0: no request waits",
        f"warning: {routes}:4: models[0].load_floor has no effect: {READ_WITH}",
        f"warning: {keys}:5: keys[0].models[0] has no effect: no model of this name is served",
    ]
    assert done.stdout.endswith("ok: a router can start with these\n")
    (_, member, _) = json.loads(CliRunner(env=environ).invoke(cli, ["check", "--json"]).stdout)["warnings"]
    assert (member["file"], member["line"], member["name"]) == (str(routes), 4, "models[0].load_floor")


def logged(log: list[Any]) -> list[str]:
    """What the log says has no effect."""
    return [line.get("setting") or line["member"] for line in log if line["event"].endswith("has no effect")]


def test_log_says_it_once_and_again_when_it_changes(tmp_path: Path) -> None:
    """At the start, and after a reload with other members; by one of the processes that read the files."""
    unread = {**M, "load_floor": 2}
    with RoutedRouter(tmp_path, unread, QUEUE_TIMEOUT_MS="5") as local:
        router, arbiter = local.router, local.hooks._upkeep
        with capture_logs() as log:
            arbiter.log_unused(always=True)
            arbiter.log_unused()
            local.publish({**unread, "aliases": ["n"]})
            arbiter.log_unused()
        assert logged(log) == ["QUEUE_TIMEOUT_MS", "models[0].load_floor"]
        with capture_logs() as log:
            local.publish({**unread, "prefix_bytes": 9})
            router.log_unused()
            arbiter.log_unused()
        assert logged(log) == ["QUEUE_TIMEOUT_MS", "models[0].prefix_bytes", "models[0].load_floor"]
        with capture_logs() as log:
            local.publish({**unread, "prefix_bytes": 9, "balancing": "prefix"})
            arbiter.log_unused()
            local.publish({**unread, "prefix_bytes": 9, "balancing": "nonsense"})
            arbiter.log_unused()
        assert logged(log) == ["QUEUE_TIMEOUT_MS"]
