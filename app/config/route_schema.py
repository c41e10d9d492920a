"""Which models are served, and by which endpoints: the schema of a routes file, as frozen records.

Each member's metadata holds what is allowed (`extra["allowed"]`), for error messages, and what it means
(`description`). The tables in docs/routing.md are generated from both; routes_file/ reads a file into these records.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from app.config.fallback_reasons import DEFAULT_REASONS
from app.config.route_policies import Ejection, HealthCheck, LoadReport, Timeouts
from app.config.route_values import (
    POLICIES,
    SCHEMES,
    Count,
    CountOrZero,
    DnsName,
    File,
    Flag,
    HeaderName,
    HostName,
    ListedPath,
    Name,
    OthersName,
    Policy,
    Port,
    Protocol,
    Reason,
    Scheme,
    ServiceName,
    Share,
    Url,
    Variable,
    Word,
    allows,
    listed,
    means,
    within,
)

__all__ = ("Ejection", "Endpoint", "HealthCheck", "LoadReport", "Model", "Routes", "Timeouts", "Version")


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model server.

    The files of TLS are read again when they change, and hold for the connections made from then on.
    """

    url: Annotated[
        Url,
        means(
            "Address of the model server. A path in it precedes the path of every request. "
            "No credentials, query or fragment."
        ),
    ]
    credential_env: Annotated[
        Variable | None,
        means("Environment variable whose value is sent as `Authorization: Bearer …`. Read once, at the start."),
    ] = None
    credential_file: Annotated[
        File | None, means("The same from a file, read again when it changes. Not together with `credential_env`.")
    ] = None
    ca_file: Annotated[
        File | None,
        means("With `https`: the authorities of its certificate, in PEM, in place of the system's."),
    ] = None
    client_cert_file: Annotated[
        File | None,
        means("With `https`: the router's own certificate, in PEM, where the model server wants one (mutual TLS)."),
    ] = None
    client_key_file: Annotated[
        File | None, means("The key of that certificate, not encrypted. Without it, the key is in `client_cert_file`.")
    ] = None
    server_name: Annotated[
        HostName | None,
        means(
            "With `https`: the name that its certificate must have, where that is not the host of `url`. Sent as SNI."
        ),
    ] = None
    weight: Annotated[
        int,
        within(1, 1000),
        means("How much load it takes beside the others of its version: loads are compared divided by it."),
    ] = 1


class Version(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version of a model, and the endpoints that serve it."""

    name: Annotated[Word, means("Name by which requests pin the version.")] = "1"
    weight: Annotated[
        CountOrZero,
        means("Its share of the requests that pin no version; 0 leaves only the requests that pin it."),
    ] = 1
    endpoints: Annotated[
        tuple[Endpoint, ...],
        means(
            "The endpoints that serve it, at least one. A plain URL may stand in place of a table. "
            "`dns` or `service` may be there instead: exactly one of the three is."
        ),
    ] = ()
    dns: Annotated[
        DnsName | None,
        means(
            "A name in the DNS: each of its addresses (A and AAAA) is an endpoint, at this port. A name that begins "
            "with `_` has SRV records, which hold the ports. See [discovery.md](discovery.md)."
        ),
    ] = None
    service: Annotated[
        ServiceName | None,
        means("A Kubernetes Service: each ready pod of its EndpointSlices is an endpoint. `port` must be there too."),
    ] = None
    port: Annotated[
        Port | None,
        means("For `service`: the port of the pods, by its name in the Service, or by its number on the pod."),
    ] = None
    credential_env: Annotated[
        Variable | None, means("For `dns` and `service`: as in *An endpoint*, for all endpoints that are found.")
    ] = None
    credential_file: Annotated[File | None, means("The same from a file. Not together with `credential_env`.")] = None
    scheme: Annotated[
        Scheme, allows(listed(SCHEMES)), means("For `dns` and `service`: how the endpoints that are found are reached.")
    ] = "http"
    ca_file: Annotated[
        File | None, means("With `scheme` `https`: as in *An endpoint*, for all endpoints that are found.")
    ] = None
    client_cert_file: Annotated[File | None, means("The same.")] = None
    client_key_file: Annotated[File | None, means("The same.")] = None
    server_name: Annotated[
        HostName | None,
        means(
            "The same. Without it, the certificates must have the name of `dns`, without the labels that begin with "
            "`_`, or that of `service`, `name.namespace.svc`: endpoints are found by their addresses."
        ),
    ] = None
    upstream_model: Annotated[
        OthersName | None,
        means(
            "Name of the model at the endpoints, where it differs from the model's name. With `openai` it may be a "
            "path, such as `/models/m`; with `v2` it must be a name."
        ),
    ] = None
    upstream_version: Annotated[
        Word | None, means("Version to request from the endpoints, with `v2`. See *Versions*.")
    ] = None


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model: its versions, its names and its policies."""

    name: Annotated[Name, means("Name by which requests select the model, and `model` in metrics.")]
    aliases: Annotated[
        tuple[Name, ...], means("Other names for it. All names and aliases in the file must differ.")
    ] = ()
    protocol: Annotated[Protocol, means("Protocol of its endpoints. `simulated` has no endpoints.")] = "openai"
    versions: Annotated[
        tuple[Version, ...],
        means(
            "See *A version*. With one version, its members `endpoints`, `upstream_model` and `upstream_version` may "
            "stand in the model itself instead. A simulated model needs neither."
        ),
    ]
    max_concurrency: Annotated[
        Count | None,
        means(
            "Limit of its requests at the same time, over all workers and within `MAX_CONCURRENCY`. Requests in the "
            "queue count. A request over this limit is rejected at once, even if the queue (`QUEUE_SIZE`) has room."
        ),
    ] = None
    no_endpoint_wait_s: Annotated[
        float,
        within(0, 86_400),
        means(
            "Seconds that a request waits while `dns` or `service` finds no endpoint at all, as when a model is scaled "
            "to zero. At most `QUEUE_SIZE` requests of the model wait so, without a permit; others get a 503 at once."
        ),
    ] = 0.0
    balancing: Annotated[Policy, allows(listed(POLICIES)), means("The policy; see balancing.md.")] = "least_inflight"
    session_header: Annotated[
        HeaderName | None, means("For `session`: the header whose value identifies the session.")
    ] = None
    session_cookie: Annotated[
        HeaderName | None,
        means(
            "For `session`: the cookie whose value identifies the session. "
            "It is used where `session_header` is not set or the request lacks that header."
        ),
    ] = None
    prefix_bytes: Annotated[
        Count | None,
        means(
            "For `prefix` and `prefix_hash`: the number of bytes at the beginning of a prompt that are compared. "
            "Without it, 65536 with `prefix`, and 256 with `prefix_hash`."
        ),
    ] = None
    load_bound: Annotated[
        float,
        within(1, 100),
        means("For `prefix` and `prefix_hash`: the largest load of an endpoint, as a multiple of the mean load."),
    ] = 1.25
    load_floor: Annotated[
        CountOrZero,
        means("For `prefix` and `prefix_hash`: a load up to this many requests is always accepted, whatever the mean."),
    ] = 8
    slow_start_s: Annotated[
        float,
        within(0, 86_400),
        means(
            "Seconds over which the weight of an endpoint that is new, or in use again, grows from a tenth to the "
            "whole; 0: it has its whole weight at once."
        ),
    ] = 0.0
    retry_budget: Annotated[
        Share,
        means("Retries after an error response or on a closed connection, as a share of requests; 0 disables them."),
    ] = 0.2
    fallback: Annotated[
        tuple[Name, ...],
        means("Other models that serve a request when this one fails, in order; see [failover.md](failover.md)."),
    ] = ()
    fallback_on: Annotated[
        tuple[Reason, ...],
        means("When a request goes to a model of `fallback`: by the code of an error, or by the status of a response."),
    ] = DEFAULT_REASONS
    forward_credentials: Annotated[Flag, means("Whether the client's own credentials are passed on.")] = False
    paths: Annotated[
        tuple[ListedPath, ...],
        means(
            "Further paths that its endpoints serve, with `openai`: each takes a POST with JSON, and `model` in the "
            "body, as `/v1/chat/completions` does. None that the router serves anyway."
        ),
    ] = ()
    timeouts: Annotated[Timeouts, means("See *Timeouts*.")] = Timeouts()
    ejection: Annotated[Ejection, means("See *Ejection*.")] = Ejection()
    load_report: Annotated[
        LoadReport, means("How endpoints report their load, with `least_load`; see balancing.md.")
    ] = LoadReport()
    health_check: Annotated[HealthCheck, means("See *Health checks*.")] = HealthCheck()


class Routes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All models that are served."""

    models: Annotated[tuple[Model, ...], Meta(min_length=1), means("The models, at least one.")]
    default_model: Annotated[
        Name | None, means("The model for requests that name none. Without it, the first model.")
    ] = None

    @property
    def default(self) -> Model:
        """The model for requests that name none."""
        return next(model for model in self.models if self.default_model in (None, model.name))
