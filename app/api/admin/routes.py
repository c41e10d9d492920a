"""The paths of the admin listener. Every resource asks `AdminAccess` first."""

import falcon

from app.api.admin.live import LiveFeed, LiveResource
from app.api.admin.resources import (
    AdminApi,
    ConfigResource,
    EndpointsResource,
    QueueResource,
    RequestsResource,
    RoutesResource,
)
from app.api.admin.status_page import StatusPageResource


def add_routes(app: falcon.App[falcon.Request, falcon.Response], admin: AdminApi, live: LiveFeed) -> None:
    """Serve the admin API, the status page, and the events that the page shows."""
    endpoints, requests = EndpointsResource(admin), RequestsResource(admin)
    for template, resource, suffix in (
        ("/", StatusPageResource(admin.access), None),
        ("/admin/live", LiveResource(live, admin.access), None),
        ("/admin/config", ConfigResource(admin), None),
        ("/admin/routes", RoutesResource(admin), None),
        ("/admin/endpoints", endpoints, None),
        ("/admin/endpoints/{shared_id:int}/drain", endpoints, "drain"),
        ("/admin/endpoints/{shared_id:int}/undrain", endpoints, "undrain"),
        ("/admin/queue", QueueResource(admin), None),
        ("/admin/requests", requests, None),
        ("/admin/requests/{request_id:path}", requests, "one"),
    ):
        app.add_route(template, resource, suffix=suffix)
