"""Who sent a request, and what they may use."""

from collections.abc import Callable
from typing import NamedTuple

from app.admission.tenant_limit import TenantLimits
from app.config.route_schema import Model


class Identity(NamedTuple):
    """What a credential says."""

    tenant: str
    models: tuple[frozenset[str], ...] = ()
    """Sets of names and aliases: a model may be used if each of the sets has it. None at all: every model may be."""
    credential: str = ""
    """What the log shows of it: the id of a key, or the kind of another credential."""

    def within(self, models: frozenset[str] | None) -> "Identity":
        """Returns the identity, for those only of its models that are among these; None: all are."""
        return self if models is None else self._replace(models=(*self.models, models))


class Caller:
    """The sender of one request, and the place of the tenant that the request takes."""

    __slots__ = ("_leave", "_limits", "credential", "models", "tenant")

    def __init__(self, identity: Identity, limits: TenantLimits) -> None:
        self.tenant, self.models, self.credential = identity
        self._limits = limits
        self._leave: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<caller {self.credential} of {self.tenant}, {'inside' if self._leave else 'outside'}>"

    @property
    def label(self) -> str:
        """The tenant's name in metrics."""
        return self._limits.label(self.tenant)

    def logged(self) -> dict[str, str]:
        """Returns what a log line says of the caller."""
        return {"tenant": self.tenant, "credential": self.credential}

    def may_use(self, model: Model) -> bool:
        """Whether the model is one of those allowed, by its name or an alias."""
        return all(model.name in models or not models.isdisjoint(model.aliases) for models in self.models)

    def enter(self) -> None:
        """Take a place of the tenant, unless the request has one. Raises TenantLimitReached."""
        if self._leave is None:
            self._leave = self._limits.acquire(self.tenant)

    def leave(self) -> None:
        """Give the place back, if the request has one."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
