"""The paths that models list in their routes, beside those that are served anyway.

Routes change while the router runs. So these paths are not added to Falcon's router: they are looked up where it has
found nothing. Which of the models serves the path is seen later, from the body of the request.
"""

from dataclasses import replace
from typing import Any

from falcon.routing import map_http_methods, set_default_responders

from app.api.dispatch import Dispatcher
from app.api.operations import OperationResource
from app.protocols import openai

TEMPLATE = "/<listed>"
"""What stands for the URI template of all of them."""

_Route = tuple[OperationResource, dict[str, Any], dict[str, Any], str]


class ListedPaths:
    """Finds the routes of listed paths, in Falcon's form."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._known: dict[str, _Route] = {}

    def find(self, path: str) -> _Route | None:
        """Returns resource, responders by method, parameters and template; None if no model lists the path."""
        listed = self._dispatcher.registry.listed_paths()
        if path not in listed:
            return None
        if path not in self._known:
            self._known = {path: self._known[path] for path in listed & self._known.keys()}
            self._known[path] = self._route(path)
        return self._known[path]

    def _route(self, path: str) -> _Route:
        operation = replace(openai.operation(path), only_listed=True)
        resource = OperationResource(self._dispatcher, openai.ADAPTER, [operation])
        responders = map_http_methods(resource)
        set_default_responders(responders)
        return resource, responders, {}, TEMPLATE
