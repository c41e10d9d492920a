"""The OpenAI-compatible protocol: chat completions, completions and embeddings.

A request names its model in the body. Everything else in the body passes untouched.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from app.errors import InvalidRequest
from app.protocols.interfaces import Call, ClientRequest, Inference, Operation, ParsedCall, ProtocolAdapter

_CHAT = "/v1/chat/completions"
_PATHS = (_CHAT, "/v1/completions", "/v1/embeddings")


class _Request(msgspec.Struct):
    """The members that the router has to know of."""

    model: str | None = None
    messages: msgspec.Raw | UnsetType = UNSET
    prompt: msgspec.Raw | UnsetType = UNSET
    input: msgspec.Raw | UnsetType = UNSET

    def prompt_as_written(self) -> Sequence[bytes]:
        """See ParsedRequest.prompt."""
        for part in (self.messages, self.prompt, self.input):
            if not isinstance(part, UnsetType):
                return (part,)
        return ()


_decode = msgspec.json.Decoder(_Request).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _parse(request: ClientRequest) -> ParsedCall:
    try:
        members = _decode(request.body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _unreadable(error) from error
    path = request.operation.route
    if request.query:
        path = f"{path}?{request.query}"
    return ParsedCall(ADAPTER, "POST", path, request.body, members.model, members.prompt_as_written)


def _encode(call: Call, model: str, _version: str | None) -> tuple[str, bytes]:
    """See ProtocolAdapter. The other members keep their bytes. The protocol knows no versions."""
    if call.model == model:
        return call.path, call.body
    try:
        members = _decode_members(call.body)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise _unreadable(error) from error
    members["model"] = msgspec.Raw(msgspec.json.encode(model))
    return call.path, msgspec.json.encode(members)


def _infer_call(model: str, request: Inference) -> tuple[str, bytes]:
    """A chat of one message. `stream` is left out, because the response to /infer is one object."""
    options = {name: value for name, value in request.options.items() if name != "stream"}
    members = {"messages": [{"role": "user", "content": request.prompt}], **options, "model": model}
    return _CHAT, msgspec.json.encode(members)


def _output(response: Any) -> Any:
    return response["choices"][0]["message"]["content"]


def _error_body(status: int, code: str, detail: str) -> tuple[str, bytes]:
    """The error object that OpenAI's clients expect."""
    kind = "invalid_request_error" if status < 500 and status != HTTPStatus.TOO_MANY_REQUESTS else "server_error"
    error = {"message": detail, "type": kind, "param": None, "code": code}
    return "application/json", msgspec.json.encode({"error": error})


def _unreadable(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"the body is not a JSON object that can be read: {error}")


ADAPTER = ProtocolAdapter(
    name="openai",
    root="/v1",
    title="the OpenAI-compatible endpoints",
    operations=tuple(Operation("POST", (path,), path, _parse) for path in _PATHS),
    encode=_encode,
    infer_call=_infer_call,
    output=_output,
    health_path="/v1/models",
    error_body=_error_body,
)
