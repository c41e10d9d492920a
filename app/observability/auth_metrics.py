"""What is counted of authentication and of tenants."""

from app.errors import UNAUTHORIZED
from app.observability.metric_families import Family, counts, counts_of

TENANT_INFLIGHT = Family(
    "gauge",
    "router_tenant_inflight",
    "Requests of a tenant in progress or in the queue, over all workers. `other`: of all that the keys file lacks.",
    ("tenant",),
)
TENANT_REJECTED = Family(
    "counter",
    "router_tenant_rejected_total",
    "Inference requests of a tenant that were rejected because of overload, by the limit that was reached.",
    ("tenant", "reason"),
)
UNAUTHORIZED_REQUESTS = Family(
    "counter",
    "router_unauthorized_requests_total",
    "Requests without a credential that is accepted: it was missing, invalid, or expired.",
    ("reason",),
)
KEYS_STALE = Family(
    "gauge",
    "router_auth_keys_stale",
    "Whether the keys file (`keys`) or the key set of tokens (`jwks`) could not be used when it was last read: older "
    "keys are in use.",
    ("source",),
)
KEYS_RELOADED = Family(
    "counter",
    "router_keys_reloads_total",
    "Changed keys files, by what became of them: published (ok), or refused as invalid.",
    ("result",),
)
JWKS_REFRESHED = Family(
    "counter",
    "router_jwks_refreshes_total",
    "Key sets of the issuer of tokens that were fetched or read again (ok), or could not be (failed).",
    ("result",),
)


class AuthMetrics:
    """The counters."""

    def __init__(self) -> None:
        self.tenant_rejected = counts(TENANT_REJECTED)
        self.unauthorized = counts_of(UNAUTHORIZED_REQUESTS, UNAUTHORIZED)
        self.keys_reloads = counts_of(KEYS_RELOADED, ("ok", "refused"))
        self.jwks_refreshes = counts_of(JWKS_REFRESHED, ("ok", "failed"))
