"""The simulated model's side of Anthropic's Messages API: text from the words of the last message.

A body that can't be used raises ValueError, a MsgspecError or RecursionError; the caller responds with `error`.
"""

from hashlib import blake2b
from typing import Annotated, Any, Literal

import gevent
import msgspec
from msgspec import Meta

from app.http_fields import Headers
from app.protocols import anthropic
from app.protocols.calls import Call
from app.simulated.text import EVENTS, Events, Handle, Text, event, generate, whole


class _Block(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


_Content = str | list[_Block]


class _Message(msgspec.Struct, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: _Content


class _Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """The members that requests for text and for its length have."""

    messages: Annotated[list[_Message], Meta(min_length=1)]
    system: _Content | None = None

    def tokens(self) -> int:
        """Returns the words of the whole prompt."""
        return sum(
            len(_text_of(content).split()) for content in (self.system or "", *(m.content for m in self.messages))
        )


class _Request(_Prompt, frozen=True, kw_only=True):
    max_tokens: Annotated[int, Meta(ge=1)]
    stream: bool | None = None


class AnthropicServer(msgspec.Struct, frozen=True):
    """Serves one model; it waits `latency_s` before the first token and `token_s` for each."""

    name: str
    latency_s: float
    token_s: float

    def find(self, path: str) -> tuple[str, Handle] | None:
        """Returns the method of a path and its handler, or None where nothing is."""
        match path:
            case "/v1/messages":
                return "POST", self._create
            case "/v1/messages/count_tokens":
                return "POST", self._count
        return None

    @staticmethod
    def error(message: str, status: int = 400) -> bytes:
        """Returns the body that says what is wrong."""
        return anthropic.error_body(status, "invalid_request", message)[1]

    def _count(self, call: Call) -> tuple[Headers, bytes]:
        tokens = msgspec.json.decode(call.body, type=_Prompt).tokens()
        gevent.sleep(self.latency_s)
        return whole({"input_tokens": tokens})

    def _create(self, call: Call) -> tuple[Headers, bytes | Events]:
        request = msgspec.json.decode(call.body, type=_Request)
        prompt = next((_text_of(one.content) for one in reversed(request.messages) if one.role == "user"), "")
        text = generate(prompt, min(request.max_tokens, len(prompt.split()) or 1))
        message: dict[str, Any] = {
            "id": f"msg_{blake2b(call.body, digest_size=12).hexdigest()}",
            "type": "message",
            "role": "assistant",
            "model": self.name,
        }
        last = {"stop_reason": "max_tokens" if text.is_cut else "end_turn", "stop_sequence": None}
        tokens = request.tokens()
        if request.stream:
            return [EVENTS], self._events(message, text, last, tokens)
        gevent.sleep(self.latency_s + self.token_s * len(text.pieces))
        content = [{"type": "text", "text": "".join(text.pieces)}]
        usage = {"input_tokens": tokens, "output_tokens": len(text.pieces)}
        return whole({**message, "content": content, **last, "usage": usage})

    def _events(self, message: dict[str, Any], text: Text, last: dict[str, Any], tokens: int) -> Events:
        gevent.sleep(self.latency_s)
        begun = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
        begun["usage"] = {"input_tokens": tokens, "output_tokens": 0}
        yield event({"type": "message_start", "message": begun}, named=True)
        block = {"type": "text", "text": ""}
        yield event({"type": "content_block_start", "index": 0, "content_block": block}, named=True)
        for piece in text.pieces:
            if self.token_s:
                gevent.sleep(self.token_s)
            delta = {"type": "text_delta", "text": piece}
            yield event({"type": "content_block_delta", "index": 0, "delta": delta}, named=True)
        yield event({"type": "content_block_stop", "index": 0}, named=True)
        usage = {"output_tokens": len(text.pieces)}
        yield event({"type": "message_delta", "delta": last, "usage": usage}, named=True)
        yield event({"type": "message_stop"}, named=True)


def _text_of(content: _Content) -> str:
    if isinstance(content, str):
        return content
    return " ".join(block.text for block in content if block.type == "text")
