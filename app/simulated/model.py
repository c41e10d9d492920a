"""The simulated model: it waits as long as a model would take, then responds. It is the default.

It speaks what a model server behind the router would speak, so a router can stand behind a router.
"""

from collections.abc import Generator
from urllib.parse import unquote

import gevent
import msgspec
from msgspec import UNSET, UnsetType

from app.errors import ModelNotFound
from app.http_fields import Headers
from app.protocols.calls import Call, Inference, Reply, RequestTrace
from app.simulated.anthropic import AnthropicServer
from app.simulated.forms import FormServer
from app.simulated.openai import OpenAIServer
from app.simulated.responses import ResponsesServer
from app.simulated.text import JSON
from app.simulated.triton import TritonServer
from app.simulated.v2 import V2Server

_BAD_BODY = (msgspec.MsgspecError, ValueError, RecursionError)


class SimulatedModel:
    """A `Model` that takes `latency_s` seconds for every request, and `token_s` more for every token of text."""

    def __init__(
        self,
        name: str,
        latency_s: float,
        token_s: float,
        versions: tuple[str, ...] = ("1",),
        paths: tuple[str, ...] = (),
    ) -> None:
        """`paths` are the further ones that its route lists."""
        self.name = name
        self._versions = versions
        self._latency_s = latency_s
        self._openai = OpenAIServer(name, latency_s, token_s, paths)
        self._responses = ResponsesServer(name, latency_s, token_s)
        self._forms = FormServer(latency_s, token_s)
        self._anthropic = AnthropicServer(name, latency_s, token_s)
        self._v2 = V2Server(name, latency_s, versions, TritonServer(name, latency_s, token_s, versions))

    def under(self, deadline: float, trace: RequestTrace | None) -> "SimulatedModel":
        """See `Model`. There are no attempts to trace, and nothing waits for a server."""
        return self

    def infer(self, request: Inference) -> UnsetType:
        if self._latency_s:
            gevent.sleep(self._latency_s)
        return UNSET

    def relay(self, call: Call) -> Reply:
        """Serve the call in the protocol of its path. Invalid ones get a 400, 404 or 405.

        Raises InvalidRequest where the model's own name can't be put in.
        """
        if call.adapter is not None:
            # The path names the version that a header pins, and the model's own name instead of an alias.
            path, parts = call.adapter.encode(call, self.name, call.version or None)
            body = b"".join(parts)
            call = Call(call.method, path, call.headers, body, call.key, call.version, rest=call.rest)
        path = unquote(call.path.partition("?")[0])
        server = self._server_of(path)
        found = self._responses.find(call.method, path) or self._forms.find(path) or server.find(path)
        if found is None:
            return _reply(404, [JSON], server.error(f"nothing is served at {path!r}", 404))
        method, handle = found
        if call.method != method:
            return _reply(405, [JSON, ("allow", method)], server.error(f"{path!r} takes {method} only"))
        try:
            return _reply(200, *handle(call))
        except _BAD_BODY as error:
            return _reply(400, [JSON], server.error(f"the body can't be used: {error}"))

    def _server_of(self, path: str) -> OpenAIServer | AnthropicServer | V2Server:
        if f"{path}/".startswith("/v1/messages/"):
            return self._anthropic
        if f"{path}/".startswith("/v2/") and self._openai.find(path) is None:  # /v2/rerank is a path of OpenAI's side
            return self._v2
        return self._openai

    def unusable(self, version: str = "") -> None:
        if version and version not in self._versions:
            raise ModelNotFound(f"{self.name} has no version {version!r}; it has {', '.join(self._versions)}")


def _reply(status: int, headers: Headers, body: bytes | Generator[bytes, None, None]) -> Reply:
    if isinstance(body, bytes):
        return Reply(status, headers, len(body), (body,), _nothing)
    return Reply(status, headers, None, body, body.close)


def _nothing() -> None:
    """There is nothing to stop: the response is whole."""
