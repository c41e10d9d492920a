"""Which models are served, and by which endpoints: the schema of a routes file, as frozen records.

Each member's metadata holds what is allowed (`extra["allowed"]`), for error messages, and what it means
(`description`). The tables in docs/routing.md are generated from both; routes_file/ reads a file into these records.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from app.config.context_errors import CONTEXT_TOO_LONG
from app.config.fallback_reasons import DEFAULT_REASONS, REASONS, FallbackReason
from app.protocols.adapters import NAMES, SIMULATED
from app.protocols.interfaces import VERSION_NAME

Policy = Literal["least_inflight", "least_load", "p2c", "round_robin", "session", "prefix", "prefix_hash"]
_POLICIES = get_args(Policy)

NAME_RULE = (
    "1 to 200 printable ASCII characters, such as m, org/m or /models/m: no blank at either end, no slash at the end, "
    "and no segment between slashes that is . or .. or empty"
)
NAME_PATTERN = r"^(?!/?+(?:.*/)?\.{0,2}(?:/|\Z))[\x21-\x7e]([\x20-\x7e]{0,198}[\x21-\x7e])?\Z"
"""A name may become a part of a path, in which intermediaries take `a/../b` for `b`, and `a//b` for `a/b`.

It may begin with a slash all the same: vLLM's default name is the path of the model's files.
"""
OTHERS_NAME_RULE = "1 to 200 printable ASCII characters, no blank at either end, and not . or .."
_OTHERS_NAME_PATTERN = r"^(?!\.{1,2}\Z)[\x21-\x7e]([\x20-\x7e]{0,198}[\x21-\x7e])?\Z"
"""What a model server calls a model. vLLM's default is the path of its files, such as `/models/llama`."""
WORD_RULE = "1 to 63 letters, digits, dots, hyphens and underscores, the first a letter or a digit"
LISTED_PATH_RULE = (
    "a path such as /v1/custom, of up to 200 characters: segments of letters, digits, dots, hyphens and underscores, "
    "none of them only one or two dots"
)
_LISTED_PATH_PATTERN = r"^(?=.{2,200}\Z)(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)+\Z"
"""All of these characters are unreserved, so the path has one spelling (api/exact_paths.py)."""
HEADER_RULE = "1 to 64 letters, digits and hyphens"


def _allows(rule: str, **bounds: Any) -> Meta:
    return Meta(extra={"allowed": rule}, **bounds)


def _within(least: int, most: int) -> Meta:
    return _allows(f"{least} to {most}", ge=least, le=most)


def _above_zero(most: int) -> Meta:
    return _allows(f"above 0, up to {most}", gt=0, le=most)


def listed(choices: Sequence[str]) -> str:
    """Returns these choices in words."""
    *most, last = choices
    return f"{', '.join(most)} or {last}"


def _means(about: str) -> Meta:
    return Meta(description=about)


Name = Annotated[str, _allows(NAME_RULE, pattern=NAME_PATTERN)]
OthersName = Annotated[str, _allows(OTHERS_NAME_RULE, pattern=_OTHERS_NAME_PATTERN)]
Protocol = Annotated[str, _allows(listed((*NAMES, SIMULATED)), pattern=rf"^({'|'.join((*NAMES, SIMULATED))})\Z")]
Word = Annotated[str, _allows(WORD_RULE, pattern=rf"^{VERSION_NAME}\Z")]
HeaderName = Annotated[str, _allows(HEADER_RULE, pattern=r"^[A-Za-z0-9-]{1,64}\Z")]
Path = Annotated[str, _allows("a path that begins with /, without blanks", pattern=r"^/[\x21-\x7e]*\Z")]
ListedPath = Annotated[str, _allows(LISTED_PATH_RULE, pattern=_LISTED_PATH_PATTERN)]
Variable = Annotated[
    str, _allows("the name of a variable: letters, digits and underscores", pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z")
]
Url = Annotated[str, _allows("an http:// or https:// URL")]
File = Annotated[str, _allows("an absolute path")]
Flag = Annotated[bool, _allows("true or false")]
Seconds = Annotated[float, _above_zero(86_400)]
Share = Annotated[float, _within(0, 1)]
Count = Annotated[int, _within(1, 1_000_000)]
CountOrZero = Annotated[int, _within(0, 1_000_000)]
PortNumber = Annotated[int, _within(1, 65_535)]
Checks = Annotated[int, _within(1, 100)]
ServerError = Annotated[int, _within(500, 599)]
Reason = Annotated[FallbackReason, _allows(listed(REASONS))]
DnsName = Annotated[
    str,
    _allows("name:port, or _service._protocol.name", pattern=r"^(?=[^:]*[A-Za-z])[A-Za-z0-9_.-]{1,253}(:[0-9]+)?\Z"),
]
_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
ServiceName = Annotated[str, _allows("namespace/name", pattern=rf"^{_LABEL}/{_LABEL}\Z")]
Port = Annotated[str, _allows("the number or the name of a port", pattern=rf"^{_LABEL}\Z")]
ErrorText = Annotated[str, _allows("text of 1 to 200 characters", min_length=1, max_length=200)]


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that each step of a request to an endpoint may take."""

    connect_s: Annotated[Seconds, _means("To connect: name lookup, TCP and TLS together. At most `total_s`.")] = 5.0
    first_byte_s: Annotated[
        Seconds, _means("From the end of the request to the first byte of the response's body.")
    ] = 300.0
    idle_s: Annotated[
        Seconds, _means("Between two pieces of the response after that, or of the request while it is being sent.")
    ] = 60.0
    total_s: Annotated[Seconds, _means("From the first attempt to the last byte of the response.")] = 3600.0
    connection_max_age_s: Annotated[
        Seconds, _means("Age, more or less 10 %, at which a connection is not used for another request.")
    ] = 300.0


class Ejection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an endpoint that fails is ejected, and for how long."""

    consecutive_failures: Annotated[
        int, _within(1, 1000), _means("Number of failures in a row that eject an endpoint.")
    ] = 5
    failure_rate: Annotated[
        float,
        _above_zero(1),
        _means("Share of failed requests in a window that ejects an endpoint, once the window has `min_requests`."),
    ] = 0.5
    min_requests: Annotated[Count, _means("With fewer requests in a window, `failure_rate` does not apply.")] = 20
    window_s: Annotated[Seconds, _means("Length of a window, in seconds.")] = 10.0
    base_s: Annotated[
        Seconds, _means("Length of the first ejection, in seconds. It doubles each time, up to `max_s`.")
    ] = 5.0
    max_s: Annotated[Seconds, _means("Length of the longest ejection, in seconds. At least `base_s`.")] = 300.0
    max_share: Annotated[
        Share,
        _means("Largest share of a version's endpoints that may be ejected at the same time; 0 disables ejection."),
    ] = 0.5
    ignored_statuses: Annotated[
        tuple[ServerError, ...], _means("Statuses that are no failures of the endpoint, though they are 5xx.")
    ] = ()
    ignored_texts: Annotated[
        tuple[ErrorText, ...],
        _means(
            "An error response that has one of these in its body is no failure of the endpoint, whatever its status, "
            "and is not retried. Case is ignored. The default is what model servers say of a prompt that is too long."
        ),
    ] = CONTEXT_TOO_LONG


class HealthCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How endpoints are checked, by one worker of the pod."""

    path: Annotated[
        Path | None,
        _means(
            "Path of the GET request, appended to the path of the URL. "
            "Without it, that of the protocol: `/v1/models` or `/v2/health/ready`."
        ),
    ] = None
    interval_s: Annotated[
        float, _within(0, 86_400), _means("Seconds from one check to the next; 0 disables the checks.")
    ] = 5.0
    timeout_s: Annotated[Seconds, _means("Seconds after which a check without a response has failed.")] = 2.0
    unhealthy_after: Annotated[Checks, _means("Failed checks in a row that make an endpoint unhealthy.")] = 3
    healthy_after: Annotated[Checks, _means("Successful checks in a row that make it healthy again.")] = 1
    panic_threshold: Annotated[
        Share,
        _means(
            "If a smaller share than this of a version's endpoints is healthy and not ejected, "
            "health checks are ignored; 0: they never are."
        ),
    ] = 0.5


class LoadReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How endpoints report their load, for `least_load`."""

    source: Annotated[
        Literal["metrics", "header"],
        _allows("metrics or header"),
        _means(
            "`metrics`: one worker of the pod scrapes them. `header`: they come only with responses, in "
            "`endpoint-load-metrics`, which is read in both cases."
        ),
    ] = "metrics"
    path: Annotated[Path, _means("Path of the metrics, appended to the path of the URL unless `port` is set.")] = (
        "/metrics"
    )
    port: Annotated[
        PortNumber | None, _means("Port of the metrics, where it is not that of the URL; Triton's is 8002.")
    ] = None
    interval_s: Annotated[
        float,
        _within(1, 3600),
        _means("Seconds from one scrape to the next. A report that is three times as old is stale, and not used."),
    ] = 1.0
    timeout_s: Annotated[Seconds, _means("Seconds that a scrape may take.")] = 1.0


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model server."""

    url: Annotated[
        Url,
        _means(
            "Address of the model server. A path in it precedes the path of every request. "
            "No credentials, query or fragment."
        ),
    ]
    credential_env: Annotated[
        Variable | None,
        _means("Environment variable whose value is sent as `Authorization: Bearer …`. Read once, at the start."),
    ] = None
    credential_file: Annotated[
        File | None, _means("The same from a file, read again when it changes. Not together with `credential_env`.")
    ] = None
    weight: Annotated[
        int,
        _within(1, 1000),
        _means("How much load it takes beside the others of its version: loads are compared divided by it."),
    ] = 1


class Version(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version of a model, and the endpoints that serve it."""

    name: Annotated[Word, _means("Name by which requests pin the version.")] = "1"
    weight: Annotated[
        CountOrZero,
        _means("Its share of the requests that pin no version; 0 leaves only the requests that pin it."),
    ] = 1
    endpoints: Annotated[
        tuple[Endpoint, ...],
        _means(
            "The endpoints that serve it, at least one. A plain URL may stand in place of a table. "
            "`dns` or `service` may be there instead: exactly one of the three is."
        ),
    ] = ()
    dns: Annotated[
        DnsName | None,
        _means(
            "A name in the DNS: each of its addresses (A and AAAA) is an endpoint, at this port. A name that begins "
            "with `_` has SRV records, which hold the ports. See [discovery.md](discovery.md)."
        ),
    ] = None
    service: Annotated[
        ServiceName | None,
        _means("A Kubernetes Service: each ready pod of its EndpointSlices is an endpoint. `port` must be there too."),
    ] = None
    port: Annotated[
        Port | None,
        _means("For `service`: the port of the pods, by its name in the Service, or by its number on the pod."),
    ] = None
    credential_env: Annotated[
        Variable | None, _means("For `dns` and `service`: as in *An endpoint*, for all endpoints that are found.")
    ] = None
    credential_file: Annotated[File | None, _means("The same from a file. Not together with `credential_env`.")] = None
    upstream_model: Annotated[
        OthersName | None,
        _means(
            "Name of the model at the endpoints, where it differs from the model's name. With `openai` it may be a "
            "path, such as `/models/m`; with `v2` it must be a name."
        ),
    ] = None
    upstream_version: Annotated[
        Word | None, _means("Version to request from the endpoints, with `v2`. See *Versions*.")
    ] = None


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model: its versions, its names and its policies."""

    name: Annotated[Name, _means("Name by which requests select the model, and `model` in metrics.")]
    aliases: Annotated[
        tuple[Name, ...], _means("Other names for it. All names and aliases in the file must differ.")
    ] = ()
    protocol: Annotated[Protocol, _means("Protocol of its endpoints. `simulated` has no endpoints.")] = "openai"
    versions: Annotated[
        tuple[Version, ...],
        _means(
            "See *A version*. With one version, its members `endpoints`, `upstream_model` and `upstream_version` may "
            "stand in the model itself instead. A simulated model needs neither."
        ),
    ]
    max_concurrency: Annotated[
        Count | None,
        _means(
            "Limit of its requests at the same time, over all workers and within `MAX_CONCURRENCY`. Requests in the "
            "queue count. A request over this limit is rejected at once, even if the queue (`QUEUE_SIZE`) has room."
        ),
    ] = None
    no_endpoint_wait_s: Annotated[
        float,
        _within(0, 86_400),
        _means(
            "Seconds that a request waits while `dns` or `service` finds no endpoint at all, as when a model is scaled "
            "to zero. At most `QUEUE_SIZE` requests of the model wait so, without a permit; others get a 503 at once."
        ),
    ] = 0.0
    balancing: Annotated[Policy, _allows(listed(_POLICIES)), _means("The policy; see balancing.md.")] = "least_inflight"
    session_header: Annotated[
        HeaderName | None, _means("For `session`: the header whose value identifies the session.")
    ] = None
    session_cookie: Annotated[
        HeaderName | None,
        _means(
            "For `session`: the cookie whose value identifies the session. "
            "It is used where `session_header` is not set or the request lacks that header."
        ),
    ] = None
    prefix_bytes: Annotated[
        Count | None,
        _means(
            "For `prefix` and `prefix_hash`: the number of bytes at the beginning of a prompt that are compared. "
            "Without it, 65536 with `prefix`, and 256 with `prefix_hash`."
        ),
    ] = None
    load_bound: Annotated[
        float,
        _within(1, 100),
        _means("For `prefix` and `prefix_hash`: the largest load of an endpoint, as a multiple of the mean load."),
    ] = 1.25
    load_floor: Annotated[
        CountOrZero,
        _means(
            "For `prefix` and `prefix_hash`: a load up to this many requests is always accepted, whatever the mean."
        ),
    ] = 8
    slow_start_s: Annotated[
        float,
        _within(0, 86_400),
        _means(
            "Seconds over which the weight of an endpoint that is new, or in use again, grows from a tenth to the "
            "whole; 0: it has its whole weight at once."
        ),
    ] = 0.0
    retry_budget: Annotated[
        Share,
        _means("Retries after an error response or on a closed connection, as a share of requests; 0 disables them."),
    ] = 0.2
    fallback: Annotated[
        tuple[Name, ...],
        _means("Other models that serve a request when this one fails, in order; see [failover.md](failover.md)."),
    ] = ()
    fallback_on: Annotated[
        tuple[Reason, ...],
        _means(
            "When a request goes to a model of `fallback`: by the code of an error, or by the status of a response."
        ),
    ] = DEFAULT_REASONS
    forward_credentials: Annotated[Flag, _means("Whether the client's own credentials are passed on.")] = False
    paths: Annotated[
        tuple[ListedPath, ...],
        _means(
            "Further paths that its endpoints serve, with `openai`: each takes a POST with JSON, and `model` in the "
            "body, as `/v1/chat/completions` does. None that the router serves anyway."
        ),
    ] = ()
    timeouts: Annotated[Timeouts, _means("See *Timeouts*.")] = Timeouts()
    ejection: Annotated[Ejection, _means("See *Ejection*.")] = Ejection()
    load_report: Annotated[
        LoadReport, _means("How endpoints report their load, with `least_load`; see balancing.md.")
    ] = LoadReport()
    health_check: Annotated[HealthCheck, _means("See *Health checks*.")] = HealthCheck()


class Routes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All models that are served."""

    models: Annotated[tuple[Model, ...], Meta(min_length=1), _means("The models, at least one.")]
    default_model: Annotated[
        Name | None, _means("The model for requests that name none. Without it, the first model.")
    ] = None

    @property
    def default(self) -> Model:
        """The model for requests that name none."""
        return next(model for model in self.models if self.default_model in (None, model.name))
