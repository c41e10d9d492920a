"""What the commands read of the admin API's documents, so that a response of something else is an error in words."""

from datetime import datetime
from typing import NotRequired, TypedDict


class RoutesVersion(TypedDict):
    """One version of a model."""

    name: str
    weight: int
    endpoints: list[str]


class RoutesModel(TypedDict):
    """One model of the routes."""

    name: str
    aliases: NotRequired[list[str]]
    protocol: NotRequired[str | None]
    balancing: NotRequired[str | None]
    max_concurrency: NotRequired[int | None]
    fallback: NotRequired[list[str]]
    versions: list[RoutesVersion]


class RoutesDocument(TypedDict):
    """`/admin/routes`."""

    generation: int
    source: str
    age_s: float
    stale: NotRequired[bool]
    models: list[RoutesModel]


class LastError(TypedDict):
    """The last failure of an endpoint."""

    text: str
    age_s: float


class EndpointDocument(TypedDict):
    """One endpoint."""

    id: int
    url: str
    models: NotRequired[list[str]]
    state: NotRequired[str | None]
    in_flight: NotRequired[int | None]
    until_s: NotRequired[float | None]
    why: NotRequired[str | None]
    last_error: NotRequired[LastError | None]


class EndpointsDocument(TypedDict):
    """`/admin/endpoints`."""

    endpoints: list[EndpointDocument]


class RecordedAttempt(TypedDict):
    """One attempt of a request."""

    endpoint: NotRequired[str | None]
    outcome: NotRequired[str | None]
    ms: NotRequired[float | None]


class RecordedCandidate(TypedDict):
    """An endpoint among which was chosen."""

    endpoint: NotRequired[str | None]
    in_flight: NotRequired[int | None]
    out: NotRequired[str | None]


class RecordDocument(TypedDict):
    """`/admin/requests/{id}`."""

    request_id: str
    status: int
    time: NotRequired[str | None]
    route: NotRequired[str | None]
    model: NotRequired[str | None]
    explanation: NotRequired[str | None]
    outcome: NotRequired[str | None]
    policy: NotRequired[str | None]
    queue_ms: NotRequired[float | None]
    model_ms: NotRequired[float | None]
    total_ms: NotRequired[float | None]
    attempts: NotRequired[list[RecordedAttempt] | None]
    candidates: NotRequired[list[RecordedCandidate] | None]


class LiveModel(TypedDict):
    """The figures of a model."""

    name: str
    in_flight: NotRequired[int | None]
    limit: NotRequired[int | None]
    queued: NotRequired[int | None]
    requests_per_s: NotRequired[float | None]
    rejections_per_s: NotRequired[float | None]
    failures_per_s: NotRequired[float | None]


class LiveEvent(TypedDict):
    """An event of `/admin/live`."""

    in_flight: int
    limit: int
    queued: NotRequired[int | None]
    draining: NotRequired[bool]
    requests_per_s: NotRequired[float | None]
    rejections_per_s: NotRequired[float | None]
    failures_per_s: NotRequired[float | None]
    times_s: NotRequired[dict[str, dict[str, float] | None] | None]
    time: NotRequired[datetime]
    pod: NotRequired[str | None]
    workers: NotRequired[int | None]
    models: NotRequired[list[LiveModel]]
    endpoints: NotRequired[list[EndpointDocument]]
    endpoints_complete: NotRequired[bool]
