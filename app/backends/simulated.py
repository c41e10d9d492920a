"""The simulated model: waits as long as a model would take, and answers. The default, needing no set-up."""

import gevent

from app.backends import Inference


class SimulatedModel:
    """A `Model` that takes `latency_s` seconds for every request."""

    def __init__(self, ref: str, latency_s: float) -> None:
        self.ref = ref
        self._latency_s = latency_s

    def infer(self, request: Inference) -> None:
        gevent.sleep(self._latency_s)

    def unusable(self) -> str | None:
        return None
