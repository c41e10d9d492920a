"""A registry of one model, which a test brings along."""

from app.config import route_schema as routes
from app.errors import ModelNotFound
from app.protocols import Call, Inference, Model, Reply
from app.routing.registry import ModelRegistry, RegisteredModel


class TestModel:
    """A `Model` that a test derives its own from; it relays nothing."""

    __test__ = False  # not for pytest to collect
    name = "test"

    def infer(self, request: Inference) -> object:
        """See Model."""
        raise NotImplementedError

    def relay(self, call: Call) -> Reply:
        """See Model."""
        raise NotImplementedError

    def unusable(self, version: str = "") -> str | None:
        """See Model."""
        return None


class OneModel(ModelRegistry):
    """Holds this model, for requests that name it or none."""

    def __init__(self, model: Model) -> None:
        self._only = model
        self._route = routes.Model(name=model.name, protocol="simulated", versions=(routes.Version(),))

    def find(self, name: str | None) -> RegisteredModel:
        """See ModelRegistry."""
        if name not in (None, self._only.name):
            raise ModelNotFound(f"there is no model {name!r}")
        return RegisteredModel(self._only, self._route)

    def names(self) -> list[str]:
        """See ModelRegistry."""
        return [self._only.name]

    def unusable(self) -> str | None:
        """See ModelRegistry."""
        return self._only.unusable()
