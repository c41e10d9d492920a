"""The simulated model's OpenAI-compatible side: text from the words of the prompt, and embeddings from a hash.

A body that can't be used raises ValueError, a MsgspecError or RecursionError; the caller responds with `error`.
"""

import math
import struct
from base64 import b64encode
from collections.abc import Callable, Generator, Iterable
from hashlib import blake2b
from itertools import cycle, islice
from typing import Annotated, Any, Literal, NamedTuple

import gevent
import msgspec
from msgspec import Meta

from app.http_fields import Headers
from app.protocols.interfaces import Call

MAX_TOKENS = 100_000
"""The longest text, whatever the request says."""
MAX_TOKEN_CHARS = 100
"""Longer words are cut, or one enormous word repeated would take all memory."""

Events = Generator[bytes, None, None]
Handle = Callable[[Call], tuple[Headers, bytes | Events]]

_JSON = ("content-type", "application/json")
_EVENTS = ("content-type", "text/event-stream")


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Generation(msgspec.Struct, frozen=True):
    """The members that both kinds of request for text have."""

    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


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


class _Text(NamedTuple):
    """The generated text."""

    pieces: list[str]
    """The tokens; together they are the text."""
    finish_reason: str
    usage: dict[str, int]


class OpenAIServer(msgspec.Struct, frozen=True):
    """Serves one model; it waits `latency_s` before the first token and `token_s` for each."""

    name: str
    latency_s: float
    token_s: float

    def find(self, path: str) -> tuple[str, Handle] | None:
        """Returns the method of a path and its handler, or None where nothing is."""
        match path:
            case "/v1/chat/completions":
                return "POST", self._chat
            case "/v1/completions":
                return "POST", self._complete
            case "/v1/embeddings":
                return "POST", self._embed
            case "/v1/models":
                return "GET", lambda call: _whole({"object": "list", "data": [self._described()]})
        if path == f"/v1/models/{self.name}":
            return "GET", lambda call: _whole(self._described())
        return None

    @staticmethod
    def error(message: str) -> bytes:
        """Returns the body that says what is wrong."""
        return msgspec.json.encode(
            {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
        )

    def _described(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "simulated"}

    def _chat(self, call: Call) -> tuple[Headers, bytes | Events]:
        request = msgspec.json.decode(call.body, type=_Chat)
        text = _generate(_last_of_user(request.messages), request)
        head = self._head("chatcmpl-", "chat.completion", call.body)
        if not request.stream:
            message = {"role": "assistant", "content": "".join(text.pieces)}
            return self._waited(head, text, {"message": message})
        head["object"] = "chat.completion.chunk"
        first = {"role": "assistant", "content": text.pieces[0]}
        deltas = ({"content": piece} if at else first for at, piece in enumerate(text.pieces))
        return [_EVENTS], self._events(head, text, request, ({"delta": delta} for delta in deltas), {"delta": {}})

    def _complete(self, call: Call) -> tuple[Headers, bytes | Events]:
        request = msgspec.json.decode(call.body, type=_Completion)
        text = _generate(request.prompt if isinstance(request.prompt, str) else request.prompt[0], request)
        head = self._head("cmpl-", "text_completion", call.body)
        if not request.stream:
            return self._waited(head, text, {"text": "".join(text.pieces)})
        return [_EVENTS], self._events(head, text, request, ({"text": piece} for piece in text.pieces), {"text": ""})

    def _embed(self, call: Call) -> tuple[Headers, bytes]:
        request = msgspec.json.decode(call.body, type=_Embeddings)
        inputs = _inputs(request.input)
        vectors = [_embedding(one) for one in inputs]
        if request.encoding_format == "base64":
            data: list[Any] = [b64encode(struct.pack("<8f", *vector)).decode() for vector in vectors]
        else:
            data = vectors
        tokens = sum(len(one.split() if isinstance(one, str) else one) for one in inputs)
        gevent.sleep(self.latency_s)
        return _whole(
            {
                "object": "list",
                "data": [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(data)],
                "model": self.name,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    def _head(self, prefix: str, kind: str, body: bytes) -> dict[str, Any]:
        # Neither a clock nor chance: responses can be compared byte for byte.
        name = blake2b(body, digest_size=12).hexdigest()
        return {"id": prefix + name, "object": kind, "created": 0, "model": self.name}

    def _waited(self, head: dict[str, Any], text: _Text, content: dict[str, Any]) -> tuple[Headers, bytes]:
        gevent.sleep(self.latency_s + self.token_s * len(text.pieces))
        return _whole({**head, "choices": [_choice(content, text.finish_reason)], "usage": text.usage})

    def _events(
        self,
        head: dict[str, Any],
        text: _Text,
        request: _Generation,
        contents: Iterable[dict[str, Any]],
        last: dict[str, Any],
    ) -> Events:
        gevent.sleep(self.latency_s)
        for content in contents:
            if self.token_s:
                gevent.sleep(self.token_s)
            yield _event({**head, "choices": [_choice(content, None)]})
        yield _event({**head, "choices": [_choice(last, text.finish_reason)]})
        if request.stream_options is not None and request.stream_options.include_usage:
            yield _event({**head, "choices": [], "usage": text.usage})
        yield b"data: [DONE]\n\n"


def _whole(value: dict[str, Any]) -> tuple[Headers, bytes]:
    return [_JSON], msgspec.json.encode(value)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(value)


def _choice(content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}


def _last_of_user(messages: list[_Message]) -> str:
    content = next((message.content for message in reversed(messages) if message.role == "user"), None)
    if content is None or isinstance(content, str):
        return content or ""
    return " ".join(part.text for part in content if part.type == "text")


def _generate(prompt: str, request: _Generation) -> _Text:
    """Returns the words of the prompt, one a token: all of them, or from the start again up to `max_tokens`."""
    prompted = prompt.split()
    words = prompted or ["..."]
    limit = request.max_completion_tokens or request.max_tokens or len(words)
    spaced = cycle(" " + word[:MAX_TOKEN_CHARS] for word in words)
    pieces = list(islice(spaced, min(limit, MAX_TOKENS)))
    pieces[0] = pieces[0][1:]
    usage = {
        "prompt_tokens": len(prompted),
        "completion_tokens": len(pieces),
        "total_tokens": len(prompted) + len(pieces),
    }
    return _Text(pieces, "length" if limit < len(words) else "stop", usage)


def _inputs(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """Returns what is to be embedded, one by one."""
    if isinstance(given, str):
        return [given]
    tokens = [one for one in given if isinstance(one, int)]
    if not tokens:
        return [one for one in given if not isinstance(one, int)]
    if len(tokens) < len(given):
        raise ValueError("`input` mixes tokens with other inputs")
    return [tokens]


def _embedding(one: str | list[int]) -> list[float]:
    """Returns a vector of length 1; its direction is the input's hash."""
    numbers = struct.unpack("<8i", blake2b(repr(one).encode(), digest_size=32).digest())
    length = math.hypot(*numbers)
    return [number / length for number in numbers]
