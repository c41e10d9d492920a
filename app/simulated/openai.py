"""The simulated model's OpenAI-compatible side: text from the words of the prompt, and embeddings from a hash.

A body that can't be used raises ValueError, a MsgspecError or RecursionError; the caller responds with `error`.
"""

import struct
from base64 import b64encode
from collections.abc import Iterable
from hashlib import blake2b
from typing import Annotated, Any, Literal

import gevent
import msgspec
from msgspec import Meta, Raw

from app.http_fields import Headers
from app.protocols.calls import Call
from app.simulated.media import MEDIA
from app.simulated.tasks import TASKS
from app.simulated.text import EVENTS, Events, Handle, Text, embedding, event, generate, inputs, whole


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Generation(msgspec.Struct, frozen=True):
    """The members that both kinds of request for text have."""

    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    def limit(self) -> int | None:
        """Returns the most tokens to generate, if the request says so."""
        return self.max_completion_tokens or self.max_tokens


class _Part(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: str | list[_Part] | None = None


class _Chat(_Generation, frozen=True, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]


class _Completion(_Generation, frozen=True, kw_only=True):
    prompt: str | Annotated[list[str], Meta(min_length=1)]


class _Embeddings(msgspec.Struct, frozen=True):
    input: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    """One text, one list of tokens, or a list of such."""
    encoding_format: Literal["float", "base64", None] = None


class OpenAIServer(msgspec.Struct, frozen=True):
    """Serves one model; it waits `latency_s` before the first token and `token_s` for each."""

    name: str
    latency_s: float
    token_s: float
    paths: tuple[str, ...] = ()
    """The further paths of its route."""

    def find(self, path: str) -> tuple[str, Handle] | None:
        """Returns the method of a path and its handler, or None where nothing is."""
        of_text = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._complete,
            "/v1/embeddings": self._embed,
            **dict.fromkeys(self.paths, self._echo),
        }
        if path in of_text:
            return "POST", of_text[path]
        if path == "/v1/models":
            return "GET", lambda call: whole({"object": "list", "data": [self._described()]})
        if path == f"/v1/models/{self.name}":
            return "GET", lambda call: whole(self._described())
        other = TASKS.get(path) or MEDIA.get(path)
        return None if other is None else ("POST", lambda call: self._after_latency(other(self.name, call.body)))

    @staticmethod
    def error(message: str, status: int = 400) -> bytes:
        """Returns the body that says what is wrong."""
        return msgspec.json.encode(
            {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
        )

    def _described(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "simulated"}

    def _chat(self, call: Call) -> tuple[Headers, bytes | Events]:
        request = msgspec.json.decode(call.body, type=_Chat)
        text = generate(_last_of_user(request.messages), request.limit())
        head = self._head("chatcmpl-", "chat.completion", call.body)
        if not request.stream:
            message = {"role": "assistant", "content": "".join(text.pieces)}
            return self._waited(head, text, {"message": message})
        head["object"] = "chat.completion.chunk"
        first = {"role": "assistant", "content": text.pieces[0]}
        deltas = ({"content": piece} if at else first for at, piece in enumerate(text.pieces))
        return [EVENTS], self._events(head, text, request, ({"delta": delta} for delta in deltas), {"delta": {}})

    def _complete(self, call: Call) -> tuple[Headers, bytes | Events]:
        request = msgspec.json.decode(call.body, type=_Completion)
        text = generate(request.prompt if isinstance(request.prompt, str) else request.prompt[0], request.limit())
        head = self._head("cmpl-", "text_completion", call.body)
        if not request.stream:
            return self._waited(head, text, {"text": "".join(text.pieces)})
        return [EVENTS], self._events(head, text, request, ({"text": piece} for piece in text.pieces), {"text": ""})

    def _embed(self, call: Call) -> tuple[Headers, bytes]:
        request = msgspec.json.decode(call.body, type=_Embeddings)
        given = inputs(request.input)
        vectors = [embedding(one) for one in given]
        if request.encoding_format == "base64":
            data: list[Any] = [b64encode(struct.pack("<8f", *vector)).decode() for vector in vectors]
        else:
            data = vectors
        tokens = sum(len(one.split() if isinstance(one, str) else one) for one in given)
        gevent.sleep(self.latency_s)
        return whole(
            {
                "object": "list",
                "data": [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(data)],
                "model": self.name,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    def _after_latency(self, response: tuple[Headers, bytes | Events]) -> tuple[Headers, bytes | Events]:
        gevent.sleep(self.latency_s)
        return response

    def _echo(self, call: Call) -> tuple[Headers, bytes | Events]:
        """Nobody can tell what a further path of a route is for."""
        msgspec.json.decode(call.body, type=dict[str, Raw])
        return self._after_latency(whole({"model": self.name, "request": Raw(call.body)}))

    def _head(self, prefix: str, kind: str, body: bytes) -> dict[str, Any]:
        # Neither a clock nor chance: responses can be compared byte for byte.
        name = blake2b(body, digest_size=12).hexdigest()
        return {"id": prefix + name, "object": kind, "created": 0, "model": self.name}

    def _waited(self, head: dict[str, Any], text: Text, content: dict[str, Any]) -> tuple[Headers, bytes]:
        gevent.sleep(self.latency_s + self.token_s * len(text.pieces))
        return whole({**head, "choices": [_choice(content, _finish_reason(text))], "usage": text.usage()})

    def _events(
        self,
        head: dict[str, Any],
        text: Text,
        request: _Generation,
        contents: Iterable[dict[str, Any]],
        last: dict[str, Any],
    ) -> Events:
        gevent.sleep(self.latency_s)
        for content in contents:
            if self.token_s:
                gevent.sleep(self.token_s)
            yield event({**head, "choices": [_choice(content, None)]})
        yield event({**head, "choices": [_choice(last, _finish_reason(text))]})
        if request.stream_options is not None and request.stream_options.include_usage:
            yield event({**head, "choices": [], "usage": text.usage()})
        yield b"data: [DONE]\n\n"


def _choice(content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}


def _finish_reason(text: Text) -> str:
    return "length" if text.is_cut else "stop"


def _last_of_user(messages: list[_Message]) -> str:
    content = next((message.content for message in reversed(messages) if message.role == "user"), None)
    if content is None or isinstance(content, str):
        return content or ""
    return " ".join(part.text for part in content if part.type == "text")
