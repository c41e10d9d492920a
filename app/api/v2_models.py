"""What Triton's extensions of Open Inference Protocol v2 say of all models together.

No endpoint could tell: each has its own models, and its share of the requests. So the router responds itself.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import falcon
import msgspec

from app.api.body import read_body
from app.api.dispatch import Dispatcher
from app.api.exchange import ENVIRON_KEY
from app.api.metrics_page import check_admin_port
from app.errors import InvalidRequest
from app.observability.metrics import REQUEST_SECONDS, REQUESTS, Metrics
from app.protocols.adapters import speaks
from app.protocols.v2 import ADAPTER
from app.routing.registered_model import RegisteredModel
from app.routing.registry import ModelRegistry

_NO_INFERENCE = frozenset(operation.route for operation in ADAPTER.operations if not operation.has_body)
"""The routes of requests for what a model is, which count as requests and are no inference."""


class _IndexRequest(msgspec.Struct):
    ready: bool = False


_decode = msgspec.json.Decoder(_IndexRequest).decode


class RepositoryIndexResource:
    """POST /v2/repository/index: names, aliases and versions of the models, and whether each is usable."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        body = read_body(req, self._dispatcher.max_body_bytes)
        try:
            only_ready = bool(body.strip()) and _decode(body).ready
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise InvalidRequest(
                f'the body must be empty, or a JSON object such as {{"ready": true}}: {error}'
            ) from error
        models = _of_protocol(self._dispatcher.usable(req.env[ENVIRON_KEY]))
        entries = (entry for name, model in models for entry in _entries(name, model))
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.encode([entry for entry in entries if not only_ready or entry["state"] == "READY"])


class StatisticsResource:
    """GET /v2/models/stats: what the router counts of each model, over all workers. Served where `/metrics` is."""

    def __init__(self, registry: ModelRegistry, metrics: Metrics, admin_port: str | None) -> None:
        self._registry = registry
        self._metrics = metrics
        self._admin_port = admin_port

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        check_admin_port(req, self._admin_port)
        models = ((name, self._registry.find(name)) for name in self._registry.names())
        counts = {model.route.name: _Counts() for _, model in _of_protocol(models)}
        for family, labels, numbers in self._metrics.totals(REQUESTS, REQUEST_SECONDS):
            of_model = counts.get(labels["model"])
            if of_model is None or labels["route"] in _NO_INFERENCE:
                continue
            if family is REQUEST_SECONDS:
                of_model.seconds += numbers.get(f"{family.name}_sum", 0)
            elif labels["code"].startswith("2"):
                of_model.successes += sum(numbers.values())
            else:
                of_model.failures += sum(numbers.values())
        resp.content_type = falcon.MEDIA_JSON
        resp.data = msgspec.json.encode({"model_stats": [each.shown(name) for name, each in counts.items()]})

    on_head = on_get


class _Counts:
    """The requests of one model, and the time from their arrival to the last byte of their responses."""

    def __init__(self) -> None:
        self.successes = self.failures = self.seconds = 0.0

    def shown(self, name: str) -> dict[str, Any]:
        """Returns the model's entry. Durations are not known apart from one another, and failures are short."""
        success = {"count": int(self.successes), "ns": int(self.seconds * 1e9)}
        return {
            "name": name,
            "version": "",  # all versions together
            "inference_count": success["count"],
            "execution_count": success["count"],
            "inference_stats": {"success": success, "fail": {"count": int(self.failures), "ns": 0}},
        }


def _of_protocol(models: Iterable[tuple[str, RegisteredModel]]) -> Iterator[tuple[str, RegisteredModel]]:
    """Yields those of the models that speak the protocol."""
    return ((name, model) for name, model in models if speaks(model.route.protocol, ADAPTER))


def _entries(name: str, model: RegisteredModel) -> Iterator[dict[str, str]]:
    """Yields an entry of the index for each version of the model."""
    for version in model.route.versions:
        reason = model.model.unusable(version.name)
        state = "READY" if reason is None else "UNAVAILABLE"
        yield {"name": name, "version": version.name, "state": state, "reason": reason or ""}
