"""What a request needs to be served, by its path alone (docs/security.md)."""

from enum import Enum, auto

_OPEN = frozenset(("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"))
_OF_OPERATORS = frozenset(("/", "/metrics", "/v2/models/stats", "/admin"))


class Needs(Enum):
    """Whose credential is needed, where such credentials are checked at all."""

    NOTHING = auto()
    """Probes: Kubernetes has no key for them, and they tell nothing but alive or ready."""
    ADMIN_KEY = auto()
    """What operators read and do."""
    CALLER = auto()
    """Everything else, also where nothing is served."""


def needs(path: str) -> Needs:
    """Returns what a request to this path needs. An empty path, as `GET http://host` has, is `/` to Falcon."""
    path = path or "/"
    if path in _OPEN:
        return Needs.NOTHING
    return Needs.ADMIN_KEY if path in _OF_OPERATORS or path.startswith("/admin/") else Needs.CALLER
