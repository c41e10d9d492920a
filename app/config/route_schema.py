"""Which models are served, and from where: the schema of a routes file, as frozen records.

docs/routing.md explains every member with an example; routes_file/ reads a file into it.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Protocol = Literal["openai", "v2", "simulated"]
Policy = Literal["least_inflight", "p2c", "round_robin", "session", "prefix"]

Name = Annotated[str, Meta(pattern=r"^[\x21-\x7e]([\x20-\x7e]{0,198}[\x21-\x7e])?\Z")]
"""1 to 200 printable characters, no blank at either end."""
WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
Word = Annotated[str, Meta(pattern=rf"^{WORD}\Z")]
HeaderName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,64}\Z")]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that an upstream may take for each step."""

    connect_s: Seconds = 5.0
    """To be connected, TLS included."""
    first_byte_s: Seconds = 300.0
    """From the request sent to the first byte of the answer."""
    idle_s: Seconds = 60.0
    """Between two pieces of the answer, or of the request while it is being taken."""
    total_s: Seconds = 3600.0
    """From the first attempt to the last byte."""


class Ejection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an endpoint that fails is left out, and for how long."""

    consecutive_failures: Annotated[int, Meta(ge=1, le=1000)] = 5
    failure_rate: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Share of the requests of a window that fail, once there are `min_requests`."""
    min_requests: Annotated[int, Meta(ge=1, le=1_000_000)] = 20
    window_s: Seconds = 10.0
    base_s: Seconds = 5.0
    """How long the first time; it doubles with each time that follows, up to `max_s`."""
    max_s: Seconds = 300.0
    max_share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """The largest share of a version's endpoints that may be out at once; 0 ejects none."""


class HealthCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How endpoints are asked whether they are well, by one prober a pod."""

    path: Annotated[str, Meta(pattern=r"^/[\x21-\x7e]*\Z")] | None = None
    """None: the protocol's own, `/v1/models` or `/v2/health/ready`."""
    interval_s: Annotated[float, Meta(ge=0, le=86_400)] = 5.0
    """0 asks nothing."""
    timeout_s: Seconds = 2.0
    unhealthy_after: Annotated[int, Meta(ge=1, le=100)] = 3
    """Failed checks in a row that take an endpoint out."""
    healthy_after: Annotated[int, Meta(ge=1, le=100)] = 1


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model server."""

    url: str
    """http://host:port or https://host:port, perhaps with a path that goes before every request's."""
    credential_env: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z")] | None = None
    """Environment variable whose value is sent as `Authorization: Bearer …`."""
    credential_file: str | None = None
    """The same from a file, read again when it changes."""


class Version(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version of a model, and who serves it."""

    name: Word = "1"
    weight: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    """Its share of the requests that pin no version; 0 serves only those that pin it."""
    endpoints: tuple[Endpoint, ...] = ()
    upstream_model: Name | None = None
    """What the model is called at its endpoints, if not by the model's name."""
    upstream_version: Word | None = None
    """The version to ask its endpoints for (`v2`). None: with one version the client's, with several none."""


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model: its versions and how they are called."""

    name: Name
    aliases: tuple[Name, ...] = ()
    protocol: Protocol = "openai"
    versions: tuple[Version, ...]
    max_concurrency: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """At most so many of its requests at once, within MAX_CONCURRENCY."""
    balancing: Policy = "least_inflight"
    session_header: HeaderName | None = None
    session_cookie: HeaderName | None = None
    prefix_bytes: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    """How much of the beginning of a prompt, as it is written in JSON, makes two requests alike, for `prefix`."""
    load_bound: Annotated[float, Meta(ge=1, le=100)] = 1.25
    """The largest load of an endpoint, as a multiple of the mean, for `prefix`."""
    load_floor: Annotated[int, Meta(ge=0, le=1_000_000)] = 8
    """So many requests are never too large a load, whatever the mean, for `prefix`."""
    retry_budget: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """Retries of answered requests, as a share of all requests."""
    forward_credentials: bool = False
    """Whether the client's own credentials are passed on."""
    timeouts: Timeouts = Timeouts()
    ejection: Ejection = Ejection()
    health_check: HealthCheck = HealthCheck()


class Routes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that is served."""

    models: Annotated[tuple[Model, ...], Meta(min_length=1)]
    default_model: Name | None = None
    """For requests that name none. None: the first."""

    @property
    def default(self) -> Model:
        """The model for requests that name none."""
        return next(model for model in self.models if self.default_model in (None, model.name))
