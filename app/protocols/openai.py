"""The OpenAI-compatible protocol: what OpenAI serves, and what vLLM, SGLang and others serve beside it.

A request names its model in the body, JSON or a form. Everything else in the body passes untouched. So most paths are a
row in a table. A request about an earlier response names no model: the response's id tells it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Raw
from msgspec.structs import astuple

from app.protocols import anthropic, json_body, problem, request_body
from app.protocols.calls import Call
from app.protocols.interfaces import ClientRequest, ErrorBody, Kind, Operation, ParsedCall, ProtocolAdapter
from app.protocols.json_body import MalformedJson, MaybeRaw

_CHAT = "/v1/chat/completions"
_ANY = ("messages", "prompt", "input")
_RERANK = ("query", "documents")
_SCORE = ("text_1", "text_2", "queries", "query", "documents", "items", "data_1", "data_2")
PATHS: dict[str, tuple[str, ...]] = {
    _CHAT: _ANY,
    "/v1/completions": _ANY,
    "/v1/embeddings": _ANY,
    "/v1/moderations": ("input",),
    "/v1/images/generations": ("prompt",),
    "/v1/audio/speech": ("instructions", "input"),
    "/v1/rerank": _RERANK,
    "/rerank": _RERANK,
    "/v2/rerank": _RERANK,
    "/v1/score": _SCORE,
    "/score": _SCORE,
    "/v1/classify": ("messages", "input", "text"),
    "/pooling": (*_ANY, "data"),
    "/tokenize": ("messages", "prompt"),
    "/detokenize": ("tokens",),
}
"""The members that make the prompt of a POST to each path, those that models read first in front.

Policies that look at the prompt compare these members as they are written, one after the other. Servers give some of
them different names; a request has one.
"""
_RESPONSES = "/v1/responses"
_INPUT_TOKENS = f"{_RESPONSES}/input_tokens"
_ABOUT_MODEL = ("/tokenize", "/detokenize", "/v1/messages/count_tokens", _INPUT_TOKENS)
"""Tokens are those of a model's own tokenizer."""
_RESPONSE = f"{_RESPONSES}/{{response_id}}"
_FORM_PATHS = ("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits")
_MAX_CHOICES_BYTES = 4 << 20
"""A longer response to /infer may have one choice only."""


class _Request(msgspec.Struct):
    """The members that the router has to know of; those of the prompt follow, in the record of each path."""

    model: MaybeRaw = UNSET

    def prompt_as_written(self) -> Sequence[memoryview]:
        """See ParsedRequest.prompt."""
        return [memoryview(part) for part in astuple(self)[1:] if part is not UNSET]


class _Creation(_Request):
    """The members of a request for a response."""

    instructions: MaybeRaw = UNSET
    input: MaybeRaw = UNSET
    previous_response_id: MaybeRaw = UNSET

    def prompt_as_written(self) -> Sequence[memoryview]:
        """See ParsedRequest.prompt. The response before is a part of it that the router does not have."""
        return [memoryview(part) for part in (self.instructions, self.input) if part is not UNSET]


class _Message(msgspec.Struct, gc=False):
    content: Raw


class _Choice(msgspec.Struct, gc=False):
    message: _Message


class _Chat(msgspec.Struct):
    choices: list[_Choice]


class _ChatOfOneChoice(msgspec.Struct):
    choices: tuple[_Choice]


_Decode = Callable[[json_body.Text], _Request]
_decode_creation = msgspec.json.Decoder(_Creation).decode
_decode_chat = msgspec.json.Decoder(_Chat).decode
_decode_chat_of_one_choice = msgspec.json.Decoder(_ChatOfOneChoice).decode


def operation(path: str, prompt: tuple[str, ...] = _ANY, error_body: ErrorBody | None = None) -> Operation:
    """Returns the operation at this path. `prompt` names the members that make the prompt."""
    record: Any = msgspec.defstruct("_RequestAtPath", [(name, MaybeRaw, UNSET) for name in prompt], bases=(_Request,))
    parse = partial(_parse, msgspec.json.Decoder(record).decode)
    return Operation("POST", (path,), path, parse, error_body=error_body, about_model=path in _ABOUT_MODEL)


def _parse(decode: _Decode, request: ClientRequest) -> ParsedCall:
    return _parsed(decode, request, request_body.read_request(decode, request, request.body))


def _parse_creation(request: ClientRequest) -> ParsedCall:
    members = request_body.read_request(_decode_creation, request, request.body)
    before = members.previous_response_id
    refers_to = None if before is UNSET else request_body.text_of("previous_response_id", before)
    call = _parsed(_decode_creation, request, members)
    call.refers_to = refers_to or ""
    return call


def _parse_reference(request: ClientRequest) -> ParsedCall:
    """A request about an earlier response: it names no model, and nothing of it is read."""
    response_id = request.params["response_id"]
    path = request.operation.route.format(response_id=quote(response_id, safe=""))
    query = f"?{request.query}" if request.query else ""
    return ParsedCall(None, request.operation.method, path + query, request.body, None, tuple, refers_to=response_id)


def _parse_form(request: ClientRequest) -> ParsedCall:
    form = request.form
    assert form is not None
    written = memoryview(request.body)[form.begin : form.end]
    path = request.operation.route
    if request.query:
        path = f"{path}?{request.query}"
    return ParsedCall(_FORMS, "POST", path, request.body, form.model, tuple, "", written, rest=form.rest)


def _parsed(decode: _Decode, request: ClientRequest, members: _Request) -> ParsedCall:
    model = None if members.model is UNSET else members.model
    request_body.refuse_ambiguous(decode, request, {} if model is None else {"model": model}, ("model",))
    path = request.operation.route
    if request.query:
        path = f"{path}?{request.query}"
    name = None if model is None else request_body.text_of("model", model)
    return ParsedCall(ADAPTER, "POST", path, request.body, name, members.prompt_as_written, "", model, is_json=True)


def _encode(call: Call, model: str, _version: str | None) -> tuple[str, Sequence[bytes | memoryview]]:
    """See ProtocolAdapter. The other members keep their bytes. The protocol knows no versions."""
    if call.model == model:
        return call.path, (call.body,)
    return call.path, json_body.with_member(call.body, "model", call.model_as_written, msgspec.json.encode(model))


def _encode_form(call: Call, model: str, _version: str | None) -> tuple[str, Sequence[bytes | memoryview]]:
    """See ProtocolAdapter. All bytes but the name stay as they are."""
    if call.model == model:
        return call.path, (call.body,)
    return call.path, json_body.with_member(call.body, "model", call.model_as_written, model.encode())


def _infer_call(_model: str, prompt: Raw) -> tuple[str, Sequence[bytes]]:
    """A chat of one message. The protocol has the model in the body, where `_encode` puts it."""
    return _CHAT, (b'[{"role":"user","content":', prompt, b"}]")


def _output(response: bytes) -> Raw:
    if len(response) > _MAX_CHOICES_BYTES:
        # Many empty choices would be decoded into a multiple of their size.
        return json_body.decode(_decode_chat_of_one_choice, response).choices[0].message.content
    choices = json_body.decode(_decode_chat, response).choices
    if not choices:
        raise MalformedJson("`choices` is empty")
    return choices[0].message.content


def _error_body(
    status: int, code: str, detail: str, more: Mapping[str, object] = problem.NO_MORE, /
) -> tuple[str, bytes]:
    """The error object that OpenAI's clients expect."""
    kind = "invalid_request_error" if status < 500 and status != HTTPStatus.TOO_MANY_REQUESTS else "server_error"
    error = {"message": detail, "type": kind, "param": None, "code": code, **more}
    return "application/json", msgspec.json.encode({"error": error})


ADAPTER = ProtocolAdapter(
    name="openai",
    root="/v1",
    title="the OpenAI-compatible endpoints",
    operations=(
        *(operation(path, prompt) for path, prompt in PATHS.items()),
        *(operation(path, prompt, anthropic.error_body) for path, prompt in anthropic.PATHS.items()),
        *(Operation("POST", (path,), path, _parse_form, kind=Kind.FORM) for path in _FORM_PATHS),
        *(
            Operation(
                "POST", (path,), path, _parse_creation, kind=Kind.CREATES_RESPONSE, about_model=path in _ABOUT_MODEL
            )
            for path in (_RESPONSES, f"{_RESPONSES}/compact", _INPUT_TOKENS)
        ),
        *(
            Operation(method, (path,), path, _parse_reference, method == "POST", Kind.ABOUT_RESPONSE)
            for method, path in (
                ("GET", _RESPONSE),
                ("DELETE", _RESPONSE),
                ("POST", f"{_RESPONSE}/cancel"),
                ("GET", f"{_RESPONSE}/input_items"),
            )
        ),
    ),
    encode=_encode,
    prompt_member="messages",
    infer_call=_infer_call,
    output=_output,
    health_path="/v1/models",
    error_body=_error_body,
)
_FORMS = ADAPTER._replace(encode=_encode_form)
"""What puts the name of a model into a form."""
