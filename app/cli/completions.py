"""What a running router knows of the values that are typed: its endpoints, models and latest requests.

A shell asks for them while somebody types. So a router that is not there, or takes too long, is no error: there are no
values then.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NotRequired, TypedDict

import click
from click.shell_completion import CompletionItem

from app.cli.admin import Admin, admin_at
from app.cli.admin_documents import EndpointsDocument, RecordDocument, RoutesDocument
from app.cli.output import shown

_TIMEOUT_S = 1.0
_MOST_REQUESTS = 20

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


class _Records(TypedDict):
    requests: NotRequired[list[RecordDocument]]


def _completion(values: Callable[[Admin], Iterable[tuple[object, object]]]) -> Complete:
    """Returns a completion that takes values, with what is said of each, from the router that a command is for."""

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            asked = context.params.get("admin") or admin_at(context.obj or {}, None)
            pairs = [(str(value), shown(about)) for value, about in values(asked.within(_TIMEOUT_S))]
        except click.ClickException:
            return []
        # What has a space or a character that shells obey would need quotes: it is typed by hand.
        return [
            CompletionItem(value, help=about)
            for value, about in pairs
            if value.startswith(incomplete) and value.isprintable() and not set(value) & set(" '\"\\$`!*?[](){}<>|&;#~")
        ]

    return complete


def _endpoints(admin: Admin) -> Iterator[tuple[object, object]]:
    for endpoint in admin.get("/admin/endpoints", EndpointsDocument)["endpoints"]:
        yield endpoint["id"], f"{endpoint['url']} {endpoint.get('state') or ''}"


def _models(admin: Admin) -> Iterator[tuple[object, object]]:
    for model in admin.get("/admin/routes", RoutesDocument)["models"]:
        yield model["name"], model.get("protocol")
        for alias in model.get("aliases", ()):
            yield alias, f"alias of {model['name']}"


def _requests(admin: Admin) -> Iterator[tuple[object, object]]:
    for record in admin.get(f"/admin/requests?limit={_MOST_REQUESTS}", _Records).get("requests", ()):
        yield record["request_id"], f"{record['status']} {record.get('model') or ''}"


endpoint_id: Any = _completion(_endpoints)
model_name: Any = _completion(_models)
request_id: Any = _completion(_requests)
