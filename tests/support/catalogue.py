"""A catalogue of one model, which a test brings along."""

from app import routes
from app.backends import Call, Inference, Model, Reply
from app.catalogue import Catalogue, Served
from app.errors import ModelNotFound


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


class OneModel(Catalogue):
    """Serves this model, to requests that name it or none."""

    def __init__(self, model: Model) -> None:
        self._only = model
        self._route = routes.Model(name=model.name, protocol="simulated", versions=(routes.Version(),))

    def find(self, name: str | None) -> Served:
        """See Catalogue."""
        if name not in (None, self._only.name):
            raise ModelNotFound(f"there is no model {name!r}")
        return Served(self._only, self._route)

    def names(self) -> list[str]:
        """See Catalogue."""
        return [self._only.name]

    def unusable(self) -> str | None:
        """See Catalogue."""
        return self._only.unusable()
