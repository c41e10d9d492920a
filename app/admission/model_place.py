"""The place that a request takes of its model."""

from collections.abc import Callable

from app.admission.model_limit import ModelLimit
from app.admission.model_traffic import ModelTraffic


def place_of(limit: ModelLimit | None, traffic: ModelTraffic | None) -> Callable[[], object] | None:
    """Count a request for a model. Returns the function that takes it back. Raises ModelLimitReached."""
    if limit is not None:
        return limit.acquire()
    return None if traffic is None else traffic.enter()
