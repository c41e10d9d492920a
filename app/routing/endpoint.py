"""Endpoints as one worker sees them, and what all workers share of them."""

from typing import NamedTuple

from app.admission.model_limit import ModelLimits
from app.config import route_schema
from app.observability.metrics import Metrics
from app.routing.back_off import BackOffs
from app.routing.endpoint_health import EndpointHealth
from app.routing.outlier_detection import OutlierDetector, PoolRules
from app.routing.retry_budget import RetryBudget, RetryBudgets
from app.shared_memory.counters import InflightCounters
from app.shared_memory.table import SharedTable
from app.upstream.pool import Pool


class Endpoint(NamedTuple):
    """One model server, and this worker's connections to it."""

    url: str
    """As in metrics and logs."""
    shared_id: int
    """Under which its requests are counted and its state is kept."""
    back_off: int
    """Under which its back-off for the model is kept."""
    connections: Pool
    head: str
    """The fields that every request to it has: Host, and its credential if it has one."""
    base_path: str


class SharedRouting(NamedTuple):
    """What all workers share, and the metrics."""

    table: SharedTable
    counters: InflightCounters
    outliers: OutlierDetector
    health: EndpointHealth
    back_offs: BackOffs
    budgets: RetryBudgets
    limits: ModelLimits
    metrics: Metrics


class Target(NamedTuple):
    """What the endpoints of a pool have in common."""

    route: route_schema.Model
    upstream_model: str
    """What the endpoints call the model."""
    upstream_version: str | None
    """The version to ask them for: "" for none, None for the one that the request names."""
    rules: PoolRules
    budget: RetryBudget
    shared: SharedRouting
