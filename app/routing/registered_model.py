"""A model as the registry hands it out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from app.admission.model_limit import ModelLimit
from app.admission.model_traffic import ModelTraffic
from app.config import route_schema
from app.protocols.calls import Model


class WaitRule(NamedTuple):
    """How requests of a model wait while it has no endpoint (endpoint_wait.py)."""

    lacks_endpoints: Callable[[str], bool]
    """Takes the version that a request pins, or ""."""
    shared_id: int
    """Under which those that wait are counted."""
    name: int
    """The hash of the name of that id."""
    generation: int


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A model, its route, its own limit if it has one, and what counts its requests.

    `wait_rule` is there if requests wait while it has no endpoint.
    """

    model: Model
    route: route_schema.Model
    limit: ModelLimit | None = None
    traffic: ModelTraffic | None = None
    built_of: int = -1
    """What the cursor of the published routes was when it was built."""
    wait_rule: WaitRule | None = None
