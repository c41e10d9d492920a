"""The paths at which the router responds by itself, as the OpenAPI document describes them."""

from http import HTTPStatus
from typing import NamedTuple

from app.errors import (
    BodyStalled,
    BodyTooLarge,
    InvalidRequest,
    ModelNotAllowed,
    ModelNotFound,
    RouterError,
    UnsupportedBody,
)
from app.protocols import openai, problem
from app.protocols.adapters import PROTOCOLS
from app.protocols.interfaces import ErrorBody

DOCUMENT = "/openapi.json"
ABOUT_BODIES = (BodyStalled, BodyTooLarge, UnsupportedBody)
_READ = ("GET", "HEAD")


class OwnPath(NamedTuple):
    """One of them."""

    template: str
    summary: str
    error_body: ErrorBody = problem.error_body
    errors: tuple[type[RouterError], ...] = ()
    statuses: tuple[HTTPStatus, ...] = ()
    """Those of other errors."""
    methods: tuple[str, ...] = _READ
    content_type: str = "application/json"
    query: tuple[tuple[str, str], ...] = ()
    """Names and types of the parameters in the query. A value that is none of the type is a bad request."""


_V2 = PROTOCOLS[1].error_body
_UNAVAILABLE = (HTTPStatus.SERVICE_UNAVAILABLE,)
_ABSENT = (HTTPStatus.NOT_FOUND,)
_ABOUT_MODEL = (ModelNotFound, ModelNotAllowed)
_REFUSED = (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN)
_CHANGE = (*_REFUSED, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)

PATHS = (
    OwnPath("/healthz", "Liveness: 200 while the process lives."),
    OwnPath("/readyz", "Readiness: 200 while requests can be served.", statuses=_UNAVAILABLE),
    OwnPath(
        "/metrics",
        "The metrics, as Prometheus text or OpenMetrics. With ADMIN_BIND, only there.",
        statuses=_ABSENT,
        content_type="text/plain",
    ),
    OwnPath(DOCUMENT, "This document."),
    OwnPath("/v1/models", "The models that can be asked for, aliases included.", openai.ADAPTER.error_body),
    OwnPath("/v1/models/{name:path}", "One model.", openai.ADAPTER.error_body, _ABOUT_MODEL),
    OwnPath("/v2", "What this server is.", _V2),
    OwnPath("/v2/health/live", "Liveness.", _V2),
    OwnPath("/v2/health/ready", "Readiness.", _V2, statuses=_UNAVAILABLE),
    *(
        OwnPath(template, "Whether an endpoint of the model is up.", _V2, (*_ABOUT_MODEL, InvalidRequest), _UNAVAILABLE)
        for template in ("/v2/models/{name}/ready", "/v2/models/{name}/versions/{version}/ready")
    ),
    OwnPath("/v2/models/stats", "Statistics of all models. With ADMIN_BIND, only there.", _V2, statuses=_ABSENT),
    OwnPath("/v2/repository/index", "The models and their state.", _V2, (InvalidRequest, *ABOUT_BODIES), (), ("POST",)),
)
OF_ADMIN_LISTENER = (
    OwnPath("/", "The status page.", statuses=_REFUSED, content_type="text/html"),
    OwnPath(
        "/admin/live",
        "What the status page shows, as server-sent events.",
        statuses=_REFUSED,
        methods=("GET",),
        content_type="text/event-stream",
    ),
    OwnPath("/admin/config", "Every setting.", statuses=_REFUSED),
    OwnPath("/admin/routes", "The routes that are served.", statuses=_REFUSED),
    OwnPath("/admin/endpoints", "Every endpoint, its state and why.", statuses=_REFUSED),
    *(
        OwnPath(f"/admin/endpoints/{{shared_id:int}}/{verb}", about, statuses=_CHANGE, methods=("POST",))
        for verb, about in (
            ("drain", "Keep new requests away from an endpoint."),
            ("undrain", "End the drain of an endpoint."),
        )
    ),
    OwnPath("/admin/queue", "The cap, who is inside, and who waits.", statuses=_REFUSED),
    OwnPath(
        "/admin/requests",
        "The last requests, the newest first.",
        errors=(InvalidRequest,),
        statuses=_REFUSED,
        query=(("slow", "number"), ("rejected", "boolean"), ("limit", "integer")),
    ),
    OwnPath("/admin/requests/{request_id:path}", "One request, with an explanation in words.", statuses=_REFUSED),
)
"""Served only on ADMIN_BIND, and on BIND a 404."""
