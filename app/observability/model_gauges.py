"""What the shared table says of each model, on the metrics page."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client.metrics_core import Metric

from app.observability.metric_families import Family, metric_of
from app.observability.metric_text import Lines

MODEL_INFLIGHT = Family(
    "gauge", "router_model_inflight", "Requests of a model that have a permit, over all workers.", ("model",)
)
MODEL_QUEUED = Family(
    "gauge", "router_model_queued", "Requests of a model that wait for a permit, over all workers.", ("model",)
)
MODEL_CAPACITY = Family(
    "gauge",
    "router_model_capacity",
    "How many requests of a model may have a permit: its `max_concurrency`, at most the cap.",
    ("model",),
)
MODEL_USABLE = Family(
    "gauge",
    "router_model_usable",
    "Whether requests of a model can be served: one of its endpoints is up and does not drain, or the model is scaled "
    "to zero, and requests wait for one.",
    ("model",),
)
DEMAND = Family(
    "gauge",
    "router_demand_requests",
    "Requests of a model that would be in progress if none were rejected: in flight, queued, and those rejected per "
    "second times the mean duration. It grows on when the cap is reached.",
    ("model",),
)
MODEL_REJECTED = Family(
    "counter",
    "router_model_rejected_requests_total",
    "Inference requests of a model that were rejected because of overload, or as no more may wait for an endpoint.",
    ("model",),
)


class ModelState(NamedTuple):
    """What the gauges say of a model."""

    name: str
    inflight: int
    queued: int
    capacity: int
    rejected: int
    demand: float
    usable: bool = True


_NUMBERS: Sequence[tuple[Family, Callable[[ModelState], float]]] = (
    (MODEL_INFLIGHT, lambda state: state.inflight),
    (MODEL_QUEUED, lambda state: state.queued),
    (MODEL_CAPACITY, lambda state: state.capacity),
    (MODEL_USABLE, lambda state: state.usable),
    (DEMAND, lambda state: state.demand),
    (MODEL_REJECTED, lambda state: state.rejected),
)


class ModelGauges:
    """Keeps the lines of every model from one page to the next."""

    def __init__(self) -> None:
        self._lines: dict[str, list[Lines]] = {}

    def of(self, states: Iterable[ModelState]) -> Iterator[tuple[Metric, Iterable[tuple[Lines, float]]]]:
        """Yields each metric with its lines and their numbers."""
        states = list(states)
        kept = self._lines
        self._lines = {state.name: kept.get(state.name) or _lines(state.name) for state in states}
        for at, (family, number) in enumerate(_NUMBERS):
            yield metric_of(family), ((self._lines[state.name][at], number(state)) for state in states)


def _lines(model: str) -> list[Lines]:
    return [Lines(metric_of(family), {"model": model}, [family.name]) for family, _ in _NUMBERS]
