"""The simulated model's side of Triton's extensions of v2: text generation, configuration, statistics, repository.

A body that can't be used raises ValueError, a MsgspecError or RecursionError.
"""

from typing import Annotated, Any

import gevent
import msgspec
from msgspec import Meta

from app.http_fields import Headers
from app.protocols.calls import Call
from app.simulated.text import EVENTS, Events, Handle, Text, event, generate, whole

_NO_TIME = {"count": 0, "ns": 0}
_TIMED = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")

_Limit = Annotated[int, Meta(ge=1)] | None


class _Parameters(msgspec.Struct, frozen=True):
    max_tokens: _Limit = None


class _Generation(msgspec.Struct, frozen=True):
    text_input: str
    max_tokens: _Limit = None
    """Where TensorRT-LLM has it."""
    parameters: _Parameters = _Parameters()


class TritonServer(msgspec.Struct, frozen=True):
    """Serves one model; it waits `latency_s` before the first token and `token_s` for each."""

    name: str
    latency_s: float
    token_s: float
    versions: tuple[str, ...]

    def find(self, path: str) -> tuple[str, Handle] | None:
        """Returns the method of a path that names no model, and its handler, or None where nothing is."""
        match path:
            case "/v2/models/stats":
                return "GET", lambda call: whole({"model_stats": [self._statistics(one) for one in self.versions]})
            case "/v2/repository/index":
                entry = {"name": self.name, "state": "READY", "reason": ""}
                return "POST", lambda call: whole([{**entry, "version": version} for version in self.versions])
        return None

    def find_of_model(self, action: str, version: str) -> tuple[str, Handle] | None:
        """Returns the same for what follows name and version of the model in a path."""
        match action:
            case "/generate":
                return "POST", lambda call: self._generate(call, version)
            case "/generate_stream":
                return "POST", lambda call: self._stream(call, version)
            case "/config":
                return "GET", lambda call: whole(self._config())
            case "/stats":
                return "GET", lambda call: whole({"model_stats": [self._statistics(version)]})
        return None

    def _config(self) -> dict[str, Any]:
        tensor = {"data_type": "TYPE_STRING", "dims": [-1]}
        return {
            "name": self.name,
            "platform": "simulated",
            "backend": "simulated",
            "max_batch_size": 0,
            "input": [{"name": "input", **tensor}],
            "output": [{"name": "output", **tensor}],
        }

    def _statistics(self, version: str) -> dict[str, Any]:
        """Returns zeros: the model keeps nothing, so that its responses depend on the request alone."""
        return {
            "name": self.name,
            "version": version,
            "last_inference": 0,
            "inference_count": 0,
            "execution_count": 0,
            "inference_stats": dict.fromkeys(_TIMED, _NO_TIME),
            "batch_stats": [],
        }

    def _generate(self, call: Call, version: str) -> tuple[Headers, bytes]:
        text = _text(call.body)
        gevent.sleep(self.latency_s + self.token_s * len(text.pieces))
        return whole(self._output("".join(text.pieces), version))

    def _stream(self, call: Call, version: str) -> tuple[Headers, Events]:
        return [EVENTS], self._events(_text(call.body), version)

    def _events(self, text: Text, version: str) -> Events:
        gevent.sleep(self.latency_s)
        for piece in text.pieces:
            if self.token_s:
                gevent.sleep(self.token_s)
            yield event(self._output(piece, version))

    def _output(self, text: str, version: str) -> dict[str, str]:
        return {"model_name": self.name, "model_version": version, "text_output": text}


def _text(body: bytes) -> Text:
    request = msgspec.json.decode(body, type=_Generation)
    return generate(request.text_input, request.max_tokens or request.parameters.max_tokens)
