"""`POST /infer` in the protocols of model servers: the call to make of a prompt, and the output in the answer."""

from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec

from app.config.route_schema import Protocol
from app.errors import UpstreamBroken, UpstreamErrorResponse
from app.protocols import Call, Inference, Reply

_OURS = [("content-type", "application/json"), ("accept", "application/json")]
_REPLACED = frozenset(("content-type", "accept", "accept-encoding"))
_MAX_DETAIL = 500


def ask(protocol: Protocol, model: str, request: Inference) -> Call:
    """The call that puts the prompt to the model.

    `openai`: a chat of one message. `v2`: one tensor `prompt` of type BYTES, unless the request has its own `inputs`.
    Its other members go along as they are; `stream` doesn't, because the answer is one object.
    """
    headers = [header for header in request.headers() if header[0] not in _REPLACED] + _OURS
    rename = partial(_asked_of, protocol, request)
    path, body = rename(model, "")
    return Call("POST", path, headers, body, request.key, request.version, model, rename)


def _asked_of(protocol: Protocol, request: Inference, model: str, version: str | None) -> tuple[str, bytes]:
    members = {name: value for name, value in request.options.items() if name != "stream"}
    if protocol == "openai":
        path = "/v1/chat/completions"
        members = {"messages": [{"role": "user", "content": request.prompt}], **members, "model": model}
    else:
        of_version = f"/versions/{quote(version, safe='')}" if version else ""
        path = f"/v2/models/{quote(model, safe='')}{of_version}/infer"
        members.setdefault("inputs", [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": [request.prompt]}])
    return path, msgspec.json.encode(members)


def output_of(protocol: Protocol, reply: Reply, body: bytes) -> Any:
    """The generated text, or the list of tensors. Raises UpstreamErrorResponse or UpstreamBroken."""
    if 400 <= reply.status < 600:
        raise UpstreamErrorResponse(
            f"the model server answered {reply.status}: {body[:_MAX_DETAIL].decode(errors='replace')}",
            reply.status,
            next((value for name, value in reply.headers if name == "retry-after"), None),
        )
    try:
        answer = msgspec.json.decode(body)
        return answer["choices"][0]["message"]["content"] if protocol == "openai" else answer["outputs"]
    except (msgspec.DecodeError, UnicodeError, LookupError, TypeError) as error:
        raise UpstreamBroken(f"the model server answered {reply.status} without an output") from error
