"""How a model's endpoints are treated: the tables of a routes file that a model may have, as frozen records."""

from typing import Annotated, Literal

import msgspec

from app.config.context_errors import CONTEXT_TOO_LONG
from app.config.route_values import (
    Checks,
    Count,
    ErrorText,
    Path,
    PortNumber,
    Seconds,
    ServerError,
    Share,
    above_zero,
    allows,
    means,
    within,
)


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that each step of a request to an endpoint may take."""

    connect_s: Annotated[Seconds, means("To connect: name lookup, TCP and TLS together. At most `total_s`.")] = 5.0
    first_byte_s: Annotated[Seconds, means("From the end of the request to the first byte of the response's body.")] = (
        300.0
    )
    idle_s: Annotated[
        Seconds, means("Between two pieces of the response after that, or of the request while it is being sent.")
    ] = 60.0
    total_s: Annotated[Seconds, means("From the first attempt to the last byte of the response.")] = 3600.0
    connection_max_age_s: Annotated[
        Seconds, means("Age, more or less 10 %, at which a connection is not used for another request.")
    ] = 300.0


class Ejection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an endpoint that fails is ejected, and for how long."""

    consecutive_failures: Annotated[
        int, within(1, 1000), means("Number of failures in a row that eject an endpoint.")
    ] = 5
    failure_rate: Annotated[
        float,
        above_zero(1),
        means("Share of failed requests in a window that ejects an endpoint, once the window has `min_requests`."),
    ] = 0.5
    min_requests: Annotated[Count, means("With fewer requests in a window, `failure_rate` does not apply.")] = 20
    window_s: Annotated[Seconds, means("Length of a window, in seconds.")] = 10.0
    base_s: Annotated[
        Seconds, means("Length of the first ejection, in seconds. It doubles each time, up to `max_s`.")
    ] = 5.0
    max_s: Annotated[Seconds, means("Length of the longest ejection, in seconds. At least `base_s`.")] = 300.0
    max_share: Annotated[
        Share,
        means("Largest share of a version's endpoints that may be ejected at the same time; 0 disables ejection."),
    ] = 0.5
    ignored_statuses: Annotated[
        tuple[ServerError, ...], means("Statuses that are no failures of the endpoint, though they are 5xx.")
    ] = ()
    ignored_texts: Annotated[
        tuple[ErrorText, ...],
        means(
            "An error response that has one of these in its body is no failure of the endpoint, whatever its status, "
            "and is not retried. Case is ignored. The default is what model servers say of a prompt that is too long."
        ),
    ] = CONTEXT_TOO_LONG


class HealthCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How endpoints are checked, by one worker of the pod."""

    path: Annotated[
        Path | None,
        means(
            "Path of the GET request, appended to the path of the URL. "
            "Without it, that of the protocol: `/v1/models` or `/v2/health/ready`."
        ),
    ] = None
    interval_s: Annotated[
        float, within(0, 86_400), means("Seconds from one check to the next; 0 disables the checks.")
    ] = 5.0
    timeout_s: Annotated[Seconds, means("Seconds after which a check without a response has failed.")] = 2.0
    unhealthy_after: Annotated[Checks, means("Failed checks in a row that make an endpoint unhealthy.")] = 3
    healthy_after: Annotated[Checks, means("Successful checks in a row that make it healthy again.")] = 1
    panic_threshold: Annotated[
        Share,
        means(
            "If a smaller share than this of a version's endpoints is healthy and not ejected, "
            "health checks are ignored; 0: they never are."
        ),
    ] = 0.5


class LoadReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How endpoints report their load, for `least_load`."""

    source: Annotated[
        Literal["metrics", "header"],
        allows("metrics or header"),
        means(
            "`metrics`: one worker of the pod scrapes them. `header`: they come only with responses, in "
            "`endpoint-load-metrics`, which is read in both cases."
        ),
    ] = "metrics"
    path: Annotated[Path, means("Path of the metrics, appended to the path of the URL unless `port` is set.")] = (
        "/metrics"
    )
    port: Annotated[
        PortNumber | None, means("Port of the metrics, where it is not that of the URL; Triton's is 8002.")
    ] = None
    interval_s: Annotated[
        float,
        within(1, 3600),
        means("Seconds from one scrape to the next. A report that is three times as old is stale, and not used."),
    ] = 1.0
    timeout_s: Annotated[Seconds, means("Seconds that a scrape may take.")] = 1.0
