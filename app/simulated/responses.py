"""The simulated model's `/v1/responses`: one message with the words of the input, and events for each word.

It keeps nothing: what is asked of a response later is made up from the response's id.
"""

import re
from collections.abc import Generator, Iterator
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple

import gevent
import msgspec
from msgspec import Meta

from app.http_fields import Headers
from app.protocols.calls import Call
from app.simulated.text import EVENTS, MAX_TOKEN_CHARS, MAX_TOKENS, Handle, event, whole

_ABOUT = re.compile(r"/v1/responses/([^/]+)(/cancel|/input_items)?")
_POSTED = {"/v1/responses": "_create", "/v1/responses/compact": "_compact", "/v1/responses/input_tokens": "_count"}
_METHODS = {"": ("GET", "DELETE"), "/cancel": ("POST",), "/input_items": ("GET",)}


_DETAILS = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}


class _Part(msgspec.Struct, frozen=True):
    text: str = ""


class _Item(msgspec.Struct, frozen=True):
    content: str | list[_Part] = ""


class _Creation(msgspec.Struct, frozen=True):
    input: str | list[_Item] = ""
    stream: bool | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    previous_response_id: str | None = None


class ResponsesServer(NamedTuple):
    """Serves one model; it waits `latency_s` before the first token and `token_s` for each."""

    name: str
    latency_s: float
    token_s: float

    def find(self, method: str, path: str) -> tuple[str, Handle] | None:
        """Returns the method of a path and its handler, or None where nothing is."""
        if path in _POSTED:
            return "POST", getattr(self, _POSTED[path])
        found = _ABOUT.fullmatch(path)
        if found is None:
            return None
        response_id, action = found[1], found[2] or ""
        methods = _METHODS[action]
        handle = self._listed if action == "/input_items" else self._deleted if method == "DELETE" else self._kept
        return (method if method in methods else methods[0]), lambda call: whole(handle(response_id, action))

    def _create(self, call: Call) -> tuple[Headers, bytes | Generator[bytes, None, None]]:
        request = msgspec.json.decode(call.body, type=_Creation)
        words = _text_of(request.input).split() or ["..."]
        tokens = [word[:MAX_TOKEN_CHARS] for word in words[: request.max_output_tokens or MAX_TOKENS]]
        response = self._response("resp_" + blake2b(call.body, digest_size=12).hexdigest(), " ".join(tokens))
        response["previous_response_id"] = request.previous_response_id
        counts = {"input_tokens": len(words), "output_tokens": len(tokens), "total_tokens": len(words) + len(tokens)}
        response["usage"] = counts | _DETAILS
        if request.stream:
            return [EVENTS], self._events(response, tokens)
        gevent.sleep(self.latency_s + self.token_s * len(tokens))
        return whole(response)

    def _compact(self, call: Call) -> tuple[Headers, bytes]:
        """Returns the input as it was, in the place of what a model would have made of it."""
        request = msgspec.json.decode(call.body, type=_Creation)
        text = _text_of(request.input)
        made = blake2b(call.body, digest_size=12).hexdigest()
        item = {"id": f"cmp_{made}", "type": "compaction", "encrypted_content": text}
        counts = {"input_tokens": len(text.split()), "output_tokens": 0, "total_tokens": len(text.split())}
        gevent.sleep(self.latency_s)
        return whole(
            {
                "id": f"resp_{made}",
                "object": "response.compaction",
                "created_at": 0,
                "output": [item],
                "usage": counts | _DETAILS,
            }
        )

    def _count(self, call: Call) -> tuple[Headers, bytes]:
        request = msgspec.json.decode(call.body, type=_Creation)
        return whole({"object": "response.input_tokens", "input_tokens": len(_text_of(request.input).split())})

    def _events(self, response: dict[str, Any], tokens: list[str]) -> Generator[bytes, None, None]:
        gevent.sleep(self.latency_s)
        for number, (kind, members) in enumerate(self._event_members(response, tokens)):
            yield event({"type": kind, "sequence_number": number, **members}, named=True)

    def _event_members(self, response: dict[str, Any], tokens: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        begun = {**response, "status": "in_progress", "output": [], "usage": None}
        yield "response.created", {"response": begun}
        yield "response.in_progress", {"response": begun}
        message = response["output"][0]
        part = message["content"][0]
        item = {"output_index": 0, "item": {**message, "status": "in_progress", "content": []}}
        yield "response.output_item.added", item
        place = {"item_id": message["id"], "output_index": 0, "content_index": 0}
        yield "response.content_part.added", {**place, "part": {**part, "text": ""}}
        for at, token in enumerate(tokens):
            if self.token_s:
                gevent.sleep(self.token_s)
            yield "response.output_text.delta", {**place, "delta": f" {token}" if at else token, "logprobs": []}
        yield "response.output_text.done", {**place, "text": part["text"], "logprobs": []}
        yield "response.content_part.done", {**place, "part": part}
        yield "response.output_item.done", {"output_index": 0, "item": message}
        yield "response.completed", {"response": response}

    def _response(self, response_id: str, text: str, status: str = "completed") -> dict[str, Any]:
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        message = {"id": f"msg_{response_id}", "type": "message", "role": "assistant", "status": "completed"}
        return {
            "id": response_id,
            "object": "response",
            "created_at": 0,
            "status": status,
            "model": self.name,
            "output": [{**message, "content": [part]}],
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
        }

    def _kept(self, response_id: str, action: str) -> dict[str, Any]:
        return self._response(response_id, "...", "cancelled" if action else "completed")

    def _deleted(self, response_id: str, _action: str) -> dict[str, Any]:
        return {"id": response_id, "object": "response", "deleted": True}

    def _listed(self, response_id: str, _action: str) -> dict[str, Any]:
        item_id = f"msg_in_{response_id}"
        content = [{"type": "input_text", "text": "..."}]
        item = {"id": item_id, "type": "message", "role": "user", "status": "completed", "content": content}
        return {"object": "list", "data": [item], "first_id": item_id, "last_id": item_id, "has_more": False}


def _text_of(given: str | list[_Item]) -> str:
    """Returns the text of the last item."""
    if isinstance(given, str):
        return given
    content = given[-1].content if given else ""
    return content if isinstance(content, str) else " ".join(part.text for part in content)
