"""What the leading worker asks every endpoint again and again: health checks and scrapes.

One endpoint's question never waits for another's, and none is asked again while its last question runs.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import gevent

from app.config import route_schema
from app.routing.registry import ModelRegistry

Subject: TypeAlias = tuple[route_schema.Endpoint, int, route_schema.Model]
"""An endpoint, its id, and the model that says how it is asked."""


@dataclass(slots=True)
class Asked:
    """What is remembered of one endpoint from question to question."""

    began: float = -math.inf
    """When the last question was asked."""
    is_running: bool = False


AskedT = TypeVar("AskedT", bound=Asked)


class EndpointRounds(Generic[AskedT]):
    """The questions to all endpoints."""

    def __init__(self, registry: ModelRegistry, new: Callable[[], AskedT]) -> None:
        """`new` makes what is remembered of an endpoint that was not there before."""
        self._registry = registry
        self._new = new
        self.asked: dict[str, AskedT] = {}
        """By URL. Endpoints that have gone are forgotten."""

    def run_due(
        self,
        subjects: Iterable[Subject],
        interval_s: Callable[[AskedT, Subject], float],
        ask: Callable[[AskedT, Subject], None],
        spawn: Callable[..., object] = gevent.spawn,
    ) -> None:
        """Ask those endpoints whose last question began `interval_s` ago. They are asked beside the caller."""
        now = time.monotonic()
        gone = set(self.asked)
        for subject in subjects:
            url = subject[0].url
            gone.discard(url)
            asked = self.asked.get(url)
            if asked is None:
                asked = self.asked[url] = self._new()
            if asked.began + interval_s(asked, subject) <= now and not asked.is_running:
                asked.began = now
                asked.is_running = True
                spawn(self._ask, ask, asked, subject)
        for url in gone:
            del self.asked[url]

    def has_gone(self, asked: AskedT, subject: Subject) -> bool:
        """Whether the endpoint went since it was asked. Its id may be another's then, also if its URL is back."""
        endpoint, shared_id, _ = subject
        return self.asked.get(endpoint.url) is not asked or self._registry.shared_id(endpoint.url) != shared_id

    @staticmethod
    def _ask(ask: Callable[[AskedT, Subject], None], asked: AskedT, subject: Subject) -> None:
        try:
            ask(asked, subject)
        finally:
            asked.is_running = False
