"""Endpoints as one worker sees them, and what all workers share of them."""

from app.admission.model_limit import ModelLimits
from app.admission.model_traffic import TrafficCounts
from app.config import route_schema
from app.observability.metrics import Metrics
from app.routing.attempt_record import PoolMembers
from app.routing.back_off import BackOffs
from app.routing.endpoint_health import EndpointHealth
from app.routing.last_errors import LastErrors
from app.routing.load_reports import LoadReports
from app.routing.outlier_detection import OutlierDetector, PoolRules
from app.routing.prefix_history import PrefixHistory
from app.routing.retry_budget import RetryBudget, RetryBudgets
from app.shared_memory.counters import InflightCounters
from app.shared_memory.table import SharedTable, name_hash
from app.upstream.pool import Pool


class Endpoint:
    """One model server, and this worker's connections to it."""

    __slots__ = ("back_off", "base_path", "connections", "head", "shared_id", "url", "url_hash")

    def __init__(  # noqa: PLR0913, PLR0917  # a record
        self, url: str, shared_id: int, back_off: int, connections: Pool, head: str, base_path: str
    ) -> None:
        self.url = url
        """As in metrics and logs."""
        self.url_hash = name_hash(url)
        self.shared_id = shared_id
        """Under which its requests are counted and its state is kept."""
        self.back_off = back_off
        """Under which its back-off for the model is kept."""
        self.connections = connections
        self.head = head
        """The fields that every request to it has: Host, and its credential if it has one."""
        self.base_path = base_path

    def renew_head(self, head: str) -> None:
        """Send requests with this head from now on. It is one store: each gets the old head or the new one."""
        self.head = head


class SharedRouting:
    """What all workers share, and the metrics."""

    __slots__ = (
        "back_offs",
        "budgets",
        "counters",
        "health",
        "last_errors",
        "limits",
        "loads",
        "metrics",
        "outliers",
        "prefixes",
        "table",
        "traffic",
    )

    def __init__(  # noqa: PLR0913, PLR0917  # a record
        self,
        table: SharedTable,
        counters: InflightCounters,
        outliers: OutlierDetector,
        health: EndpointHealth,
        back_offs: BackOffs,
        budgets: RetryBudgets,
        limits: ModelLimits,
        traffic: TrafficCounts,
        metrics: Metrics,
        loads: LoadReports,
        prefixes: PrefixHistory,
        last_errors: LastErrors,
    ) -> None:
        self.table = table
        self.counters = counters
        self.outliers = outliers
        self.health = health
        self.back_offs = back_offs
        self.budgets = budgets
        self.limits = limits
        self.traffic = traffic
        self.metrics = metrics
        self.loads = loads
        self.prefixes = prefixes
        self.last_errors = last_errors


class Target:
    """What the endpoints of a pool have in common."""

    __slots__ = ("budget", "pool", "reads_load", "route", "rules", "shared", "upstream_model", "upstream_version")

    def __init__(  # noqa: PLR0913, PLR0917  # a record
        self,
        route: route_schema.Model,
        upstream_model: str,
        upstream_version: str | None,
        rules: PoolRules,
        budget: RetryBudget,
        shared: SharedRouting,
        pool: PoolMembers,
    ) -> None:
        self.route = route
        self.upstream_model = upstream_model
        """What the endpoints call the model."""
        self.upstream_version = upstream_version
        """The version to ask them for: "" for none, None for the one that the request names."""
        self.rules = rules
        self.budget = budget
        self.shared = shared
        self.pool = pool
        self.reads_load = route.balancing == "least_load"
        """Whether responses may report the endpoint's load."""
