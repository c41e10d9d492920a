"""Settings: an environment mapping becomes one frozen, validated record.

Rules: this module never reads `os.environ`, which wsgi.py hands in. A blank variable counts as unset. A bad value
raises one `SettingsError` that names the variable, the value and what is allowed. No message contains a password.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from app.config import auth_settings
from app.config.auth_settings import AuthSettings
from app.config.kv_endpoints import mask_password
from app.config.route_values import NAME_PATTERN, NAME_RULE, listed
from app.config.setting import setting as _setting
from app.config.setting_texts import converted
from app.config.tls_settings import check_tls
from app.errors import SettingsError
from app.protocols.adapters import NAMES


class Settings(AuthSettings, frozen=True, kw_only=True):
    """All settings. The variable of a field is the field's name in capitals."""

    model_ref: Annotated[
        str,
        _setting(
            NAME_RULE,
            "Name of the model that is served, returned as `modelRef`.",
            pattern=NAME_PATTERN,
        ),
    ] = "simulated"
    max_concurrency: Annotated[
        int,
        _setting(
            "1 to 1000000",
            "Limit of requests inside the model at the same time, over all workers together.",
            ge=1,
            le=1_000_000,
        ),
    ] = 10
    kv_endpoints: Annotated[
        tuple[str, ...],
        _setting(
            "comma-separated host, host:port, redis:// or rediss:// URLs",
            "KV-cache nodes, returned as `kvEndpoints` with passwords masked.",
        ),
    ] = ()
    queue_size: Annotated[
        int,
        _setting("0 to 100000", "Requests that may wait for a permit; 0 rejects overflow at once.", ge=0, le=100_000),
    ] = 0
    queue_timeout_ms: Annotated[
        int,
        _setting("1 to 3600000", "Longest wait in the queue, in milliseconds.", ge=1, le=3_600_000),
    ] = 1000
    simulated_latency_ms: Annotated[
        int,
        _setting("0 to 3600000", "Time that the simulated model takes, in milliseconds.", ge=0, le=3_600_000),
    ] = 100
    simulated_token_ms: Annotated[
        int,
        _setting(
            "0 to 3600000", "Time that it takes for each token that it generates, in milliseconds.", ge=0, le=3_600_000
        ),
    ] = 0
    backends: Annotated[
        tuple[str, ...],
        _setting(
            "comma-separated http:// or https:// URLs",
            "Model servers that serve `MODEL_REF`. Unset: the model is simulated.",
        ),
    ] = ()
    backend_protocol: Annotated[
        str,
        _setting(
            listed(NAMES),
            "Protocol of the `BACKENDS`: OpenAI's API, or Open Inference Protocol v2.",
            pattern=rf"^({'|'.join(NAMES)})\Z",
        ),
    ] = "openai"
    initial_health: Annotated[
        Literal["unknown", "healthy"],
        _setting(
            "unknown or healthy",
            "Health of an endpoint before its first health check. `unknown`: the router is ready once it has reached "
            "an endpoint. `healthy`: it is ready at once.",
        ),
    ] = "unknown"
    routes_file: Annotated[
        str | None,
        _setting(
            "a path that ends in .toml, .yaml, .yml or .json; not beside BACKENDS",
            "Models, versions and endpoints (docs/routing.md), read again when it changes.",
        ),
    ] = None
    max_body_bytes: Annotated[
        int,
        _setting("1 to 1073741824", "Longest request body, in bytes.", ge=1, le=1 << 30),
    ] = 4 << 20
    max_upload_bytes: Annotated[
        int,
        _setting(
            "1 to 1099511627776",
            "Longest form with a file (multipart), in bytes. It is passed on as it arrives and not held in memory, so "
            "`MAX_BODY_BYTES` does not apply.",
            ge=1,
            le=1 << 40,
        ),
    ] = 1 << 30
    max_header_bytes: Annotated[
        int,
        _setting(
            "1024 to 1048576", "Longest header of a request: all its fields together, in bytes.", ge=1024, le=1 << 20
        ),
    ] = 1 << 16
    max_header_fields: Annotated[
        int,
        _setting("10 to 10000", "Most header fields of a request.", ge=10, le=10_000),
    ] = 100
    cors_origins: Annotated[
        tuple[str, ...],
        _setting(
            "* or comma-separated origins such as https://app.example.com",
            "Origins whose pages may use the router from a browser (CORS). Unset: none.",
        ),
    ] = ()
    web_concurrency: Annotated[
        int,
        _setting(
            "1 to 32", "Number of worker processes. Unset: one for each usable CPU, within the CPU quota.", ge=1, le=32
        ),
    ]
    bind: Annotated[
        str,
        _setting("host:port or [ipv6]:port", "Address to listen on."),
    ] = "0.0.0.0:8080"
    admin_bind: Annotated[
        str | None,
        _setting(
            "host:port or [ipv6]:port, on another port than BIND",
            "A second listener. Only there are `/metrics` and the admin API (docs/admin.md). Probes are on both.",
        ),
    ] = None
    graceful_timeout_s: Annotated[
        int,
        _setting("1 to 86400", "Longest time that a drain waits for requests in flight, in seconds.", ge=1, le=86_400),
    ] = 30
    keepalive_s: Annotated[
        int,
        _setting(
            "0 to 3600",
            "Time that an idle connection is kept open, in seconds; 0 closes it after each response.",
            ge=0,
            le=3600,
        ),
    ] = 75
    stall_timeout_s: Annotated[
        int,
        _setting(
            "1 to 3600",
            "Longest time for a TLS handshake or a request head to complete, in seconds. "
            "Also the longest pause while a client sends a body or reads a response.",
            ge=1,
            le=3600,
        ),
    ] = 30
    upload_timeout_s: Annotated[
        int,
        _setting("1 to 3600", "Longest time for a whole request body to arrive, in seconds.", ge=1, le=3600),
    ] = 300
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        _setting(
            "debug, info, warning, error or critical",
            "Lowest level that is logged. `ACCESS_LOG` controls the logging of requests.",
        ),
    ] = "info"
    log_format: Annotated[
        Literal["json", "console"],
        _setting(
            "json or console", "Form of the log lines, for machines or for people. Unset on a terminal: `console`."
        ),
    ] = "json"
    access_log: Annotated[
        Literal["off", "errors", "all"],
        _setting("off, errors or all", "Requests that are logged; `errors` means status 400 and above."),
    ] = "errors"
    trace_sample_ratio: Annotated[
        float,
        _setting(
            "0 to 1",
            "Share of the requests without a `traceparent` that get a sampled one; the others get one that is not "
            "sampled. 0: they get none.",
            ge=0,
            le=1,
        ),
    ] = 0.0
    pod_name: Annotated[
        str | None,
        _setting("any text", "Name of the pod, returned as `routerPod`. Unset: `HOSTNAME`."),
    ] = None
    prometheus_multiproc_dir: Annotated[
        str | None,
        _setting(
            "a directory of the router's own",
            "Where counters are kept while the router runs. It is emptied at the start and removed at the exit. "
            "Unset: a new directory in memory.",
        ),
    ] = None

    @property
    def kv_endpoints_masked(self) -> list[str]:
        """The KV endpoints as given, passwords masked."""
        return [mask_password(endpoint) for endpoint in self.kv_endpoints]

    @property
    def binds(self) -> list[str]:
        """The addresses to listen on, that of the admin listener last."""
        return [self.bind] if self.admin_bind is None else [self.bind, self.admin_bind]

    @property
    def admin_port(self) -> str | None:
        """Port of the admin listener, in the form of WSGI's SERVER_PORT, or None without one."""
        return None if self.admin_bind is None else self.admin_bind.rpartition(":")[2]


def load_settings(environ: Mapping[str, str], cpus: int) -> Settings:
    """Validate the environment. `cpus` is the default of WEB_CONCURRENCY. Raises SettingsError."""
    given = {name: value.strip() for name, value in environ.items() if value.strip()}
    values: dict[str, Any] = {"web_concurrency": min(cpus, 32)}
    fields = {field.name: field for field in msgspec.structs.fields(Settings)}
    if "HOSTNAME" in given:
        values["pod_name"] = converted("HOSTNAME", given["HOSTNAME"], fields["pod_name"].type)
    for field in fields.values():
        variable = field.name.upper()
        if variable in given:
            values[field.name] = converted(variable, given[variable], field.type)
    settings = Settings(**values)
    if settings.admin_port == settings.bind.rpartition(":")[2]:
        raise SettingsError(f"ADMIN_BIND={settings.admin_bind!r}: must be on another port than BIND={settings.bind!r}")
    if settings.backends and settings.routes_file:
        raise SettingsError(f"ROUTES_FILE={settings.routes_file!r}: must not be set beside BACKENDS")
    check_tls(settings)
    auth_settings.check_auth(settings)
    return settings
