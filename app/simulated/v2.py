"""The simulated model's Open Inference Protocol side (v2, REST): echoes the input tensors, JSON or binary.

A body that can't be used raises ValueError, a MsgspecError or RecursionError; the caller responds with `error`.
"""

import math
import struct
from itertools import repeat
from typing import Annotated, Any, Literal, NamedTuple

import gevent
import msgspec
from msgspec import UNSET, Meta, UnsetType

from app.http_fields import Headers
from app.protocols.calls import Call
from app.simulated.text import JSON, Handle, whole
from app.simulated.triton import TritonServer

HEAD_LENGTH = "inference-header-content-length"
"""Header with the length of the JSON before the binary tensors."""

_FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
"""The format characters of `struct` for the datatypes of a fixed size that JSON can show."""
_SIZES = {datatype: struct.calcsize(f"<{code}") for datatype, code in _FORMATS.items()} | {"FP16": 2, "BF16": 2}


class _InputParameters(msgspec.Struct, frozen=True):
    binary_data_size: Annotated[int, Meta(ge=0)] | None = None


class _Input(msgspec.Struct, frozen=True):
    name: str
    # No more dimensions than numpy takes, so that multiplying them stays cheap.
    shape: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=64)]
    datatype: Literal[
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
        "FP16", "BF16", "FP32", "FP64", "BYTES",
    ]  # fmt: skip
    parameters: _InputParameters = _InputParameters()
    data: list[Any] | UnsetType = UNSET


class _OutputParameters(msgspec.Struct, frozen=True):
    binary_data: bool | None = None


class _Output(msgspec.Struct, frozen=True):
    name: str
    parameters: _OutputParameters = _OutputParameters()


class _RequestParameters(msgspec.Struct, frozen=True):
    binary_data_output: bool = False


class _Request(msgspec.Struct, frozen=True):
    inputs: Annotated[list[_Input], Meta(min_length=1)]
    outputs: list[_Output] = []
    id: str | UnsetType = UNSET
    parameters: _RequestParameters = _RequestParameters()


_decode = msgspec.json.Decoder(_Request, float_hook=float).decode
"""With Python's own float: msgspec takes ten times as long for floats near 0."""


class _InferResponse(msgspec.Struct, frozen=True):
    """The members of a response, in order."""

    model_name: str
    model_version: str
    id: str | UnsetType
    outputs: list[dict[str, Any]]


class _Tensor(NamedTuple):
    """An input with what it holds: the `raw` bytes if it came as such, else `data` in the input itself."""

    given: _Input
    raw: memoryview | None


class V2Server(msgspec.Struct, frozen=True):
    """Serves one model in some versions, by default in the last of them; it waits `latency_s`."""

    name: str
    latency_s: float
    versions: tuple[str, ...]
    triton: TritonServer

    def find(self, path: str) -> tuple[str, Handle] | None:
        """Returns the method of a path and its handler, or None where nothing is."""
        match path:
            case "/v2":
                about = {"name": "simulated", "version": "1", "extensions": ["binary_tensor_data"]}
                return "GET", lambda call: whole(about)
            case "/v2/health/live":
                return "GET", lambda call: whole({"live": True})
            case "/v2/health/ready":
                return "GET", lambda call: whole({"ready": True})
        # A name may have slashes in it, so the path is not simply split.
        model = f"/v2/models/{self.name}"
        found = self._find_of_model(path.removeprefix(model)) if path.startswith(model) else None
        return found or self.triton.find(path)

    def _find_of_model(self, rest: str) -> tuple[str, Handle] | None:
        version = self.versions[-1]
        if rest.startswith("/versions/"):
            version, slash, rest = rest.removeprefix("/versions/").partition("/")
            rest = slash + rest
            if version not in self.versions:
                return None
        match rest:
            case "":
                return "GET", lambda call: whole(self._described())
            case "/ready":
                return "GET", lambda call: whole({"name": self.name, "ready": True})
            case "/infer":
                return "POST", lambda call: self._infer(call, version)
        return self.triton.find_of_model(rest, version)

    @staticmethod
    def error(message: str, status: int = 400) -> bytes:
        """Returns the body that says what is wrong."""
        return msgspec.json.encode({"error": message})

    def _described(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": self.versions,
            "platform": "simulated",
            "inputs": [{"name": "input", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "output", "datatype": "BYTES", "shape": [-1]}],
        }

    def _infer(self, call: Call, version: str) -> tuple[Headers, bytes]:
        head_length = _head_length(call)
        request = _decode(memoryview(call.body)[:head_length])
        tensors = _tensors(request.inputs, memoryview(call.body)[head_length:])
        default = request.parameters.binary_data_output
        outputs: list[dict[str, Any]] = []
        raws: list[memoryview] = []
        # Where the request names no outputs, they have the names of the inputs.
        for tensor, wanted in zip(tensors, request.outputs or repeat(None)):  # noqa: B905 - the shorter one decides
            given, raw = tensor
            name = wanted.name if wanted else given.name
            output: dict[str, Any] = {"name": name, "shape": given.shape, "datatype": given.datatype}
            binary = wanted.parameters.binary_data if wanted else None
            # What came as JSON goes back as JSON, which the protocol allows.
            if raw is None:
                output["data"] = given.data
            elif default if binary is None else binary:
                output["parameters"] = {"binary_data_size": len(raw)}
                raws.append(raw)
            else:
                output["data"] = _shown(given.datatype, raw)
            outputs.append(output)
        head = msgspec.json.encode(_InferResponse(self.name, version, request.id, outputs))
        gevent.sleep(self.latency_s)
        if not raws:
            return [JSON], head
        return [("content-type", "application/octet-stream"), (HEAD_LENGTH, str(len(head)))], b"".join([head, *raws])


def _head_length(call: Call) -> int:
    given = next((value for name, value in call.headers if name == HEAD_LENGTH), None)
    if given is None:
        return len(call.body)
    if not (given.isascii() and given.isdigit() and int(given) <= len(call.body)):
        raise ValueError(f"{HEAD_LENGTH} {given!r} is not a length within the body's {len(call.body)} bytes")
    return int(given)


def _tensors(inputs: list[_Input], tail: memoryview) -> list[_Tensor]:
    """Returns the inputs, each with its part of the bytes after the JSON.

    Raises ValueError where an input does not hold what its shape says.
    """
    tensors = []
    for given in inputs:
        size = given.parameters.binary_data_size
        if (size is None) == (given.data is UNSET):
            raise ValueError(f"input {given.name!r} must have either `data` or `parameters.binary_data_size`")
        raw = None
        if size is None:
            _check_data(given)
        else:
            raw, tail = tail[:size], tail[size:]
            if len(raw) < size:
                raise ValueError(f"the body ends within input {given.name!r}")
            _check_raw(given, raw)
        tensors.append(_Tensor(given, raw))
    if tail:
        raise ValueError(f"{len(tail)} bytes of the body belong to no input")
    return tensors


def _check_data(given: _Input) -> None:
    count, wanted = 0, math.prod(given.shape)
    kinds = _kinds(given.datatype)
    left: list[Any] = [given.data]
    while left:
        for one in left.pop():
            if isinstance(one, list):
                left.append(one)
            elif type(one) in kinds:
                count += 1
            else:
                raise ValueError(f"input {given.name!r} has an element that is no {given.datatype}")
    if count != wanted:
        raise ValueError(f"input {given.name!r} has {count} elements; its shape says {wanted}")


def _kinds(datatype: str) -> tuple[type, ...]:
    """Returns the types that an element of the datatype may have once JSON is read."""
    if datatype == "BOOL":
        return (bool,)
    if datatype == "BYTES":
        return (str,)
    return (int, float) if datatype.startswith(("FP", "BF")) else (int,)


def _check_raw(given: _Input, raw: memoryview) -> None:
    count = math.prod(given.shape)
    if given.datatype == "BYTES":
        found = len(_split(raw))
        if found != count:
            raise ValueError(f"input {given.name!r} has {found} elements; its shape says {count}")
    elif len(raw) != count * _SIZES[given.datatype]:
        raise ValueError(f"input {given.name!r} has {len(raw)} bytes, not {count} of {given.datatype}")


def _split(raw: memoryview) -> list[memoryview]:
    """Returns the elements of a BYTES tensor: each has its length before it, in four bytes."""
    elements = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        if len(raw) < 4 + size:
            raise ValueError("an element of a BYTES input is longer than the input")
        elements.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    return elements


def _shown(datatype: str, raw: memoryview) -> list[Any]:
    """Returns a binary tensor's elements as JSON has them."""
    if datatype == "BYTES":
        return [str(element, "utf-8") for element in _split(raw)]
    code = _FORMATS.get(datatype)
    if code is None:
        raise ValueError(f"{datatype} has no JSON form; ask for binary output")
    return list(struct.unpack(f"<{len(raw) // _SIZES[datatype]}{code}", raw))
