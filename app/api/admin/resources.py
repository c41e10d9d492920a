"""The admin API: settings, routes, endpoints, the queue and the last requests, over all workers, from any of them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import falcon
import msgspec
import structlog

from app.admission.limiter import Limiter
from app.api.admin.access import AdminAccess
from app.api.admin.records import RequestRecords
from app.api.admin.records_query import wanted_by
from app.api.exchange import ENVIRON_KEY
from app.config import route_schema
from app.config.settings import Settings
from app.config.shown_settings import shown_settings
from app.native import now_ms
from app.routing.endpoint_report import EndpointReport, EndpointReports
from app.routing.registry import ModelRegistry
from app.routing.route_store import RouteStore
from app.shared_memory.request_ring import RECORDS

_log = structlog.get_logger("router.admin")


class AdminApi(NamedTuple):
    """What the pages read."""

    access: AdminAccess
    settings: Settings
    registry: ModelRegistry
    store: RouteStore
    limiter: Limiter
    endpoints: EndpointReports
    records: RequestRecords


def _respond(resp: falcon.Response, document: object) -> None:
    """Respond with a document that nobody may keep: it is true for a moment only."""
    resp.content_type = falcon.MEDIA_JSON
    resp.set_header("Cache-Control", "no-store")
    resp.data = msgspec.json.encode(document)


class ConfigResource:
    """GET /admin/config: every setting, whether given or not, without secrets."""

    def __init__(self, api: AdminApi) -> None:
        self._api = api

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._api.access.check(req)
        _respond(resp, {"settings": shown_settings(self._api.settings)})

    on_head = on_get


class RoutesResource:
    """GET /admin/routes: the routes that all workers serve, with the endpoints that discovery has found."""

    def __init__(self, api: AdminApi) -> None:
        self._api = api

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        api = self._api
        api.access.check(req)
        document = {
            "generation": api.registry.generation,
            "source": _source(api.settings),
            "age_s": round(api.store.age_s(), 3),
            "stale": bool(api.store.stale[0]),
            "models": [_model(model) for model in api.registry.routes.models],
        }
        _respond(resp, document)

    on_head = on_get


def _source(settings: Settings) -> str:
    if settings.routes_file:
        return f"ROUTES_FILE {settings.routes_file}"
    return "BACKENDS" if settings.backends else "the simulated model"


def _model(model: route_schema.Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "protocol": model.protocol,
        "aliases": model.aliases,
        "balancing": model.balancing,
        "max_concurrency": model.max_concurrency,
        "fallback": model.fallback,
        "versions": [
            {
                "name": version.name,
                "weight": version.weight,
                "endpoints": [endpoint.url for endpoint in version.endpoints],
            }
            for version in model.versions
        ],
    }


class EndpointsResource:
    """GET /admin/endpoints; POST /admin/endpoints/{id}/drain and /undrain."""

    def __init__(self, api: AdminApi) -> None:
        self._api = api

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._api.access.check(req)
        now = now_ms()
        _respond(resp, {"endpoints": [endpoint_shown(report, now) for report in self._api.endpoints.all()]})

    on_head = on_get

    def on_post_drain(self, req: falcon.Request, resp: falcon.Response, shared_id: int) -> None:
        self._change(req, resp, shared_id, draining=True)

    def on_post_undrain(self, req: falcon.Request, resp: falcon.Response, shared_id: int) -> None:
        self._change(req, resp, shared_id, draining=False)

    def _change(self, req: falcon.Request, resp: falcon.Response, shared_id: int, *, draining: bool) -> None:
        self._api.access.check_change(req)
        report = self._api.endpoints.set_draining(shared_id, draining=draining)
        if report is None:
            raise falcon.HTTPNotFound(description=f"no endpoint that is served has the id {shared_id}")
        event = "endpoint drains" if draining else "endpoint is in use again"
        _log.warning(event, endpoint=report.url, client=req.remote_addr, request_id=req.env[ENVIRON_KEY].request_id)
        _respond(resp, endpoint_shown(report, now_ms()))


def endpoint_shown(report: EndpointReport, now: int) -> dict[str, Any]:
    """Returns an endpoint as it is shown. `now` is in ms of the monotonic clock."""
    error = report.last_error
    return {
        "id": report.id,
        "url": report.url,
        "models": report.models,
        "state": report.state,
        "why": report.why,
        "until_s": max(0, report.until_ms - now) / 1000 if report.until_ms else None,
        "in_flight": report.in_flight,
        "load": report.load,
        "last_error": error and {"text": error.text, "age_s": max(0, now - error.at_ms) / 1000},
    }


class QueueResource:
    """GET /admin/queue: the cap, who is inside, who waits, and the same of each model."""

    def __init__(self, api: AdminApi) -> None:
        self._api = api

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._api.access.check(req)
        limiter = self._api.limiter
        in_flight, queued = limiter.snapshot()
        document = {
            "limit": limiter.limit,
            "in_flight": in_flight,
            "queued": queued,
            "queue_size": limiter.queue_size,
            "expected_wait_ms": limiter.expected_wait_ms(queued) if in_flight >= limiter.limit or queued else 0,
            "models": list(self._models()),
        }
        _respond(resp, document)

    on_head = on_get

    def _models(self) -> Iterator[dict[str, Any]]:
        registry = self._api.registry
        limits = {model.name: model.max_concurrency for model in registry.routes.models}
        for state in registry.model_states(self._api.limiter.limit):
            yield {
                "name": state.name,
                "limit": limits.get(state.name),
                "in_flight": state.inflight,
                "queued": state.queued,
                "rejected": state.rejected,
            }


class RequestsResource:
    """GET /admin/requests and /admin/requests/{id}: the records of the last requests."""

    def __init__(self, api: AdminApi) -> None:
        self._api = api

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._api.access.check(req)
        _respond(resp, {"requests": self._api.records.newest(wanted_by(req.query_string))})

    on_head = on_get

    def on_get_one(self, req: falcon.Request, resp: falcon.Response, request_id: str) -> None:
        self._api.access.check(req)
        found = self._api.records.find(request_id)
        if found is None:
            raise falcon.HTTPNotFound(
                description="there is no record of this request: it is in progress, or its worker was killed before "
                "it ended, or it had no credential that is accepted, or it is not among the last "
                f"{RECORDS} inference requests of its worker"
            )
        _respond(resp, found)

    on_head_one = on_get_one
