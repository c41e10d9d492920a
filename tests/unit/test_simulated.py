"""The simulated model: it answers as a real model server would, always the same, and bad calls never raise."""

import math
import struct
import time
from base64 import b64decode
from typing import Any

import gevent
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from app.http_fields import Headers
from app.protocols.calls import Call, Inference, Model, Reply
from app.simulated.model import SimulatedModel
from app.simulated.text import MAX_TOKEN_CHARS, MAX_TOKENS

NAME = "org/model-a"
CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
INFER = f"/v2/models/{NAME}/infer"
HEAD_LENGTH = "inference-header-content-length"
JSON = [("content-type", "application/json")]

EARLY = 0.8
"""Part of a wait that surely passes: the event loop's clock may be a little behind."""

DESCRIBED = {"id": NAME, "object": "model", "created": 0, "owned_by": "simulated"}
METADATA = {
    "name": NAME,
    "versions": ["1", "2"],
    "platform": "simulated",
    "inputs": [{"name": "input", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [{"name": "output", "datatype": "BYTES", "shape": [-1]}],
}

# What is asked with GET, and its answer.
GETS: dict[str, dict[str, Any]] = {
    "/v1/models": {"object": "list", "data": [DESCRIBED]},
    "/v1/models?limit=1": {"object": "list", "data": [DESCRIBED]},
    f"/v1/models/{NAME}": DESCRIBED,
    "/v1/models/org%2Fmodel-a": DESCRIBED,
    "/v2": {"name": "simulated", "version": "1", "extensions": ["binary_tensor_data"]},
    "/v2/health/live": {"live": True},
    "/v2/health/ready": {"ready": True},
    f"/v2/models/{NAME}": METADATA,
    f"/v2/models/{NAME}/versions/1": METADATA,
    "/v2/models/org%2Fmodel-a/versions/2?x=/y": METADATA,
    f"/v2/models/{NAME}/ready": {"name": NAME, "ready": True},
    f"/v2/models/{NAME}/versions/2/ready": {"name": NAME, "ready": True},
}

# What is generated: path, request, text, finish_reason, prompt tokens, tokens.
MESSAGES = [
    {"role": "user", "content": "not this"},
    {"role": "user", "content": "one  two\nthree"},
    {"role": "assistant", "content": None},
]
PARTS = [{"type": "text", "text": "a b"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "c"}]
TEXTS: dict[str, tuple[str, dict[str, Any], str, str, int, int]] = {
    "chat": (CHAT, {"messages": MESSAGES}, "one two three", "stop", 3, 3),
    "chat, cut": (CHAT, {"messages": MESSAGES, "max_tokens": 2}, "one two", "length", 3, 2),
    "chat, by the newer name": (
        CHAT,
        {"messages": MESSAGES, "max_tokens": 1, "max_completion_tokens": 5, "n": 3},
        "one two three one two",
        "stop",
        3,
        5,
    ),
    "chat in parts": (CHAT, {"messages": [{"role": "user", "content": PARTS}]}, "a b c", "stop", 3, 3),
    "chat without a user": (CHAT, {"messages": [{"role": "system", "content": "x"}]}, "...", "stop", 0, 1),
    "nulls": (CHAT, {"messages": MESSAGES, "max_tokens": None, "stream_options": None}, "one two three", "stop", 3, 3),
    "completion": (COMPLETION, {"prompt": "ü 😀"}, "ü 😀", "stop", 2, 2),
    "completion of the first": (COMPLETION, {"prompt": ["a b", "c"], "max_tokens": 2}, "a b", "stop", 2, 2),
    "completion of nothing": (COMPLETION, {"prompt": " ", "max_tokens": 2}, "... ...", "stop", 0, 2),
}

# Tensors: the datatype, the elements, and their bytes.
TENSORS: dict[str, tuple[list[Any], bytes]] = {
    "BOOL": ([True, False], b"\x01\x00"),
    "UINT8": ([0, 255], b"\x00\xff"),
    "UINT16": ([1, 65535], b"\x01\x00\xff\xff"),
    "UINT32": ([1, 2**32 - 1], b"\x01\x00\x00\x00" + b"\xff" * 4),
    "UINT64": ([1, 2**64 - 1], b"\x01" + b"\x00" * 7 + b"\xff" * 8),
    "INT8": ([1, -1], b"\x01\xff"),
    "INT16": ([1, -1], b"\x01\x00\xff\xff"),
    "INT32": ([1, -1], b"\x01\x00\x00\x00" + b"\xff" * 4),
    "INT64": ([1, -1], b"\x01" + b"\x00" * 7 + b"\xff" * 8),
    "FP32": ([0.5, -2.0], struct.pack("<2f", 0.5, -2)),
    "FP64": ([0.1, -2.0], struct.pack("<2d", 0.1, -2)),
    "BYTES": (["ü", ""], b"\x02\x00\x00\x00\xc3\xbc\x00\x00\x00\x00"),
}


def tensor(**members: Any) -> dict[str, Any]:
    """An input that is right, but for what is given."""
    return {"name": "x", "shape": [2], "datatype": "INT32", "data": [1, 2], **members}


def raw_tensor(size: int, **members: Any) -> dict[str, Any]:
    """An input whose bytes follow the JSON."""
    without = {key: value for key, value in tensor(**members).items() if key != "data"}
    return {**without, "parameters": {"binary_data_size": size}}


# Bodies that are refused: path, body or JSON, and words of the reason.
BAD: dict[str, tuple[str, Any, str]] = {
    "nothing": (CHAT, b"", "truncated"),
    "no JSON": (CHAT, b"hello", "malformed"),
    "no UTF-8": (COMPLETION, b'{"prompt":"\xff"}', "utf-8"),
    "half a surrogate pair": (COMPLETION, b'{"prompt":"\\ud800 x","stream":true}', "surrogate"),
    "deep": (CHAT, b'{"messages":' + b"[" * 100_000, ""),
    "a list": (CHAT, [], "Expected `object`"),
    "no messages": (CHAT, {}, "`messages`"),
    "empty messages": (CHAT, {"messages": []}, "length >= 1"),
    "a message without a role": (CHAT, {"messages": [{"content": "x"}]}, "`role`"),
    "a number for content": (CHAT, {"messages": [{"role": "user", "content": 1}]}, "content"),
    "no tokens": (CHAT, {"messages": MESSAGES, "max_tokens": 0}, "max_tokens"),
    "tokens in words": (CHAT, {"messages": MESSAGES, "max_completion_tokens": "5"}, "max_completion_tokens"),
    "half a token": (CHAT, {"messages": MESSAGES, "max_tokens": 1.5}, "max_tokens"),
    "stream in words": (CHAT, {"messages": MESSAGES, "stream": "true"}, "stream"),
    "no prompt": (COMPLETION, {}, "`prompt`"),
    "a number for a prompt": (COMPLETION, {"prompt": 1}, "prompt"),
    "no prompt in the list": (COMPLETION, {"prompt": []}, "length >= 1"),
    "tokens for a prompt": (COMPLETION, {"prompt": [1, 2]}, "prompt"),
    "no input": (EMBEDDINGS, {}, "`input`"),
    "empty input": (EMBEDDINGS, {"input": []}, "length >= 1"),
    "mixed input": (EMBEDDINGS, {"input": ["a", 1]}, "mixes"),
    "objects for input": (EMBEDDINGS, {"input": [{}]}, "input"),
    "an unknown encoding": (EMBEDDINGS, {"input": "a", "encoding_format": "hex"}, "hex"),
    "v2: no JSON": (INFER, b"hello", "malformed"),
    "v2: no inputs": (INFER, {"inputs": []}, "length >= 1"),
    "v2: no name": (INFER, {"inputs": [{"shape": [1], "datatype": "BOOL", "data": [True]}]}, "`name`"),
    "v2: an unknown datatype": (INFER, {"inputs": [tensor(datatype="INT7")]}, "INT7"),
    "v2: a negative shape": (INFER, {"inputs": [tensor(shape=[-1])]}, ">= 0"),
    "v2: too many dimensions": (INFER, {"inputs": [tensor(shape=[1] * 65)]}, "length <= 64"),
    "v2: too few elements": (INFER, {"inputs": [tensor(shape=[3])]}, "2 elements; its shape says 3"),
    "v2: strings for numbers": (INFER, {"inputs": [tensor(data=["1", "2"])]}, "no INT32"),
    "v2: bools for numbers": (INFER, {"inputs": [tensor(data=[True, False])]}, "no INT32"),
    "v2: neither data nor size": (INFER, {"inputs": [{"name": "x", "shape": [1], "datatype": "BOOL"}]}, "either"),
    "v2: both data and size": (INFER, {"inputs": [tensor(parameters={"binary_data_size": 0})]}, "either"),
    "v2: a number for an id": (INFER, {"inputs": [tensor()], "id": 1}, "id"),
    "v2: a size without its bytes": (INFER, {"inputs": [raw_tensor(8)]}, "ends within"),
}

# Binary requests that are refused: inputs, what follows them, and words of the reason.
BAD_BINARY: dict[str, tuple[list[dict[str, Any]], bytes, str]] = {
    "too short": ([raw_tensor(8)], b"1234567", "ends within"),
    "too long": ([raw_tensor(8)], b"123456789", "1 bytes of the body"),
    "not the shape's size": ([raw_tensor(7)], b"1234567", "7 bytes, not 2 of INT32"),
    "not the shape's size, FP16": ([raw_tensor(5, datatype="FP16")], b"12345", "5 bytes, not 2 of FP16"),
    "FP16 as JSON": ([raw_tensor(4, datatype="FP16")], b"1234", "no JSON form"),
    "an element too long": ([raw_tensor(5, datatype="BYTES")], b"\x02\x00\x00\x00x", "longer than"),
    "half a length": ([raw_tensor(2, datatype="BYTES")], b"\x00\x00", "longer than"),
    "too few strings": ([raw_tensor(4, datatype="BYTES")], b"\x00\x00\x00\x00", "1 elements; its shape says 2"),
    "no text": ([raw_tensor(5, datatype="BYTES", shape=[1])], b"\x01\x00\x00\x00\xff", "utf-8"),
}


@pytest.fixture
def model() -> SimulatedModel:
    """A model of two versions that takes no time."""
    return SimulatedModel(NAME, 0, 0, ("1", "2"))


def post(model: Model, path: str, body: Any, headers: Headers | None = None) -> Reply:
    """POST bytes as they are, or anything else as JSON."""
    sent = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return model.relay(Call("POST", path, headers or [], sent))


def post_binary(model: Model, request: dict[str, Any], tail: bytes) -> Reply:
    """POST an inference whose tensors follow the JSON."""
    head = msgspec.json.encode(request)
    return post(model, INFER, head + tail, [("accept", "*/*"), (HEAD_LENGTH, str(len(head)))])


def whole(reply: Reply) -> bytes:
    """The body of an answer that is no stream, of the length it says."""
    pieces = list(reply.body)
    assert len(pieces) == 1
    assert reply.length == len(pieces[0])
    reply.close()
    reply.close()
    return pieces[0]


def served(reply: Reply) -> dict[str, Any]:
    """The JSON of an answer that went well."""
    body: dict[str, Any] = msgspec.json.decode(whole(reply))
    assert (reply.status, reply.headers) == (200, JSON), body
    return body


def refused(reply: Reply, path: str) -> tuple[int, str]:
    """Status and message of a refusal, which has the shape of the path's protocol."""
    error = msgspec.json.decode(whole(reply))
    assert reply.headers[0] == JSON[0]
    if path.startswith("/v2"):
        assert list(error) == ["error"]
        message = error["error"]
    else:
        message = error["error"]["message"]
        assert error == {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    assert isinstance(message, str)
    return reply.status, message


def events(reply: Reply) -> list[dict[str, Any]]:
    """The chunks of a stream that goes to its end, one a piece."""
    assert (reply.status, reply.headers, reply.length) == (200, [("content-type", "text/event-stream")], None)
    *chunks, done = reply.body
    assert done == b"data: [DONE]\n\n"
    assert all(chunk.startswith(b"data: {") and chunk.endswith(b"}\n\n") for chunk in chunks)
    return [msgspec.json.decode(chunk[6:]) for chunk in chunks]


def test_infer_takes_its_time_and_has_no_output() -> None:
    """The router's own protocol gets nothing but the wait."""
    model = SimulatedModel(NAME, 0.02, 0)
    began = time.monotonic()
    assert model.infer(Inference(Raw(b'"p"'), b"", {})) is UNSET
    assert time.monotonic() - began >= 0.02 * EARLY
    assert Model.unusable(model) is None


@pytest.mark.parametrize("path", GETS)
def test_get(model: SimulatedModel, path: str) -> None:
    """What a server tells of itself and of its model, whatever the query and however a slash is written."""
    assert served(model.relay(Call("GET", path, []))) == GETS[path]


@pytest.mark.parametrize("case", TEXTS)
def test_text(model: SimulatedModel, case: str) -> None:
    """The words of the prompt, in the protocol's shape; the same bytes for the same request."""
    path, request, text, finish, prompted, tokens = TEXTS[case]
    answer = served(post(model, path, request))
    chat = path == CHAT
    content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    name = answer["id"]
    assert name.startswith("chatcmpl-" if chat else "cmpl-")
    assert answer == {
        "id": name,
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": NAME,
        "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": finish}],
        "usage": {"prompt_tokens": prompted, "completion_tokens": tokens, "total_tokens": prompted + tokens},
    }
    again = post(model, path, request)
    assert served(again) == answer
    again.headers.append(("x-added", "by the router"))
    assert served(post(model, path, {**request, "seed": 1}))["id"] != name


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("case", TEXTS)
def test_stream(model: SimulatedModel, case: str, usage: bool) -> None:
    """The same text a token at a time, then why it ended, then the usage if it was asked for."""
    path, request, text, finish, prompted, tokens = TEXTS[case]
    asked = {**request, "stream": True, "stream_options": {"include_usage": usage}}
    chunks = events(post(model, path, asked))
    chat = path == CHAT
    head = {
        "id": chunks[0]["id"],
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 0,
        "model": NAME,
    }
    if usage:
        assert chunks.pop() == {
            **head,
            "choices": [],
            "usage": {"prompt_tokens": prompted, "completion_tokens": tokens, "total_tokens": prompted + tokens},
        }
    pieces = [word if at == 0 else f" {word}" for at, word in enumerate(text.split(" "))]
    contents: list[dict[str, Any]] = [{"delta": {"content": piece}} if chat else {"text": piece} for piece in pieces]
    if chat:
        contents[0]["delta"]["role"] = "assistant"
    contents.append({"delta": {}} if chat else {"text": ""})
    reasons = [None] * tokens + [finish]
    assert chunks == [
        {**head, "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": reason}]}
        for content, reason in zip(contents, reasons, strict=True)
    ]


def test_text_is_bounded(model: SimulatedModel) -> None:
    """Neither the number of tokens that is asked for nor the length of a word is taken without limit."""
    answer = served(post(model, COMPLETION, {"prompt": "x" * 1_000_000, "max_tokens": 10**12}))
    assert answer["usage"]["completion_tokens"] == MAX_TOKENS
    assert len(answer["choices"][0]["text"]) == MAX_TOKENS * (MAX_TOKEN_CHARS + 1) - 1


@pytest.mark.parametrize(
    ("path", "body", "least_s"),
    [
        (CHAT, {"messages": MESSAGES}, 0.05),  # latency and three tokens
        (COMPLETION, {"prompt": "a", "max_tokens": 4}, 0.06),
        (EMBEDDINGS, {"input": "a"}, 0.02),
        (INFER, {"inputs": [tensor()]}, 0.02),
    ],
)
def test_latency(path: str, body: dict[str, Any], least_s: float) -> None:
    """An answer takes the latency, and text the time of its tokens besides."""
    began = time.monotonic()
    served(post(SimulatedModel(NAME, 0.02, 0.01), path, body))
    assert time.monotonic() - began >= least_s * EARLY


def test_tokens_come_one_by_one() -> None:
    """Two streams at once take turns: neither waits for the other, nor for its own end."""
    model = SimulatedModel(NAME, 0.01, 0.02)
    order: list[str] = []

    def read(name: str) -> None:
        order.extend(name for _ in post(model, COMPLETION, {"prompt": "a b c", "stream": True}).body)

    gevent.joinall([gevent.spawn(read, "first"), gevent.spawn(read, "second")], raise_error=True)
    assert set(order[:3]) == {"first", "second"}, order
    assert len(order) == 10


def test_close_ends_a_stream() -> None:
    """A stream that is closed after some tokens has no more; closing again does nothing."""
    model = SimulatedModel(NAME, 0, 0.001)
    reply = post(model, COMPLETION, {"prompt": "a", "max_tokens": MAX_TOKENS, "stream": True})
    body = iter(reply.body)
    began = time.monotonic()
    received = [next(body) for _ in range(3)]
    assert time.monotonic() - began >= 0.003 * EARLY
    reply.close()
    received.extend(body)
    assert len(received) == 3
    reply.close()


def test_a_stream_is_interrupted_while_it_waits() -> None:
    """What is thrown into the greenlet reaches the wait for a token, and the stream is over."""
    reply = post(SimulatedModel(NAME, 0, 3600), COMPLETION, {"prompt": "a", "stream": True})
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        next(iter(reply.body))
    assert list(reply.body) == []
    reply.close()


@pytest.mark.parametrize(
    ("given_input", "count", "tokens"),
    [
        ("one two", 1, 2),
        (["one", "two three", "one"], 3, 4),
        ([1, 2, 3], 1, 3),
        ([[1, 2], [3], [1, 2]], 3, 5),
        ("", 1, 0),
    ],
    ids=str,
)
def test_embeddings(model: SimulatedModel, given_input: Any, count: int, tokens: int) -> None:
    """A vector of length 1 for each input, the same for the same input; base64 holds the same numbers."""
    answer = served(post(model, EMBEDDINGS, {"input": given_input, "encoding_format": "float"}))
    vectors = [one["embedding"] for one in answer["data"]]
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(vectors)],
        "model": NAME,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    assert [len(vector) for vector in vectors] == [8] * count
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1] * count)
    if count == 3:
        assert vectors[0] == vectors[2] != vectors[1]
    assert served(post(model, EMBEDDINGS, {"input": given_input})) == answer

    encoded = served(post(model, EMBEDDINGS, {"input": given_input, "encoding_format": "base64"}))
    for vector, one in zip(vectors, encoded["data"], strict=True):
        assert struct.unpack("<8f", b64decode(one["embedding"], validate=True)) == pytest.approx(vector, rel=1e-6)


@pytest.mark.parametrize(
    ("path", "version"),
    [(INFER, "2"), (f"/v2/models/{NAME}/versions/1/infer", "1"), ("/v2/models/org%2Fmodel-a/versions/2/infer?a", "2")],
)
def test_v2_echoes_json(model: SimulatedModel, path: str, version: str) -> None:
    """The inputs come back, nested as they were, from the version that was named or else the last."""
    nested = tensor(name="y", shape=[2, 1], datatype="FP32", data=[[1], [2.5]])
    half = tensor(name="z", shape=[], datatype="FP16", data=[0.5])
    answer = served(post(model, path, {"id": "7", "inputs": [tensor(), nested, half]}))
    assert answer == {
        "model_name": NAME,
        "model_version": version,
        "id": "7",
        "outputs": [tensor(), nested, half],
    }


def test_v2_outputs_are_named_by_the_request(model: SimulatedModel) -> None:
    """The outputs that are asked for take the inputs in order. JSON stays JSON, even where binary is asked for."""
    request = {
        "inputs": [tensor(), tensor(name="y")],
        "outputs": [{"name": "a", "parameters": {"binary_data": True, "classification": 3}}],
        "parameters": {"binary_data_output": True, "priority": 1},
    }
    answer = served(post(model, INFER, request))
    assert answer == {"model_name": NAME, "model_version": "2", "outputs": [tensor(name="a")]}


@pytest.mark.parametrize("datatype", TENSORS)
def test_v2_binary_there_and_back(model: SimulatedModel, datatype: str) -> None:
    """Bytes come back as they were sent where binary is asked for, else as JSON."""
    elements, raw = TENSORS[datatype]
    sent = raw_tensor(len(raw), datatype=datatype)
    answer = served(post_binary(model, {"inputs": [sent]}, raw))
    shown = {"name": "x", "shape": [2], "datatype": datatype, "data": elements}
    assert answer == {"model_name": NAME, "model_version": "2", "outputs": [shown]}
    assert served(post(model, INFER, {"inputs": [shown]})) == answer

    reply = post_binary(model, {"inputs": [sent], "parameters": {"binary_data_output": True}}, raw)
    body = whole(reply)
    (_, length) = reply.headers[1]
    assert (reply.status, reply.headers) == (
        200,
        [("content-type", "application/octet-stream"), (HEAD_LENGTH, length)],
    )
    assert msgspec.json.decode(body[: int(length)]) == {**answer, "outputs": [sent]}
    assert body[int(length) :] == raw


def test_v2_each_output_has_its_own_form(model: SimulatedModel) -> None:
    """An output's own `binary_data` goes before the request's; the bytes keep the order of the outputs."""
    request = {
        "inputs": [
            raw_tensor(8, name="a"),
            tensor(name="b"),
            raw_tensor(2, name="c", datatype="BOOL"),
            raw_tensor(4, name="d", datatype="BF16"),
        ],
        "outputs": [{"name": "A"}, {"name": "B"}, {"name": "C", "parameters": {"binary_data": False}}, {"name": "D"}],
        "parameters": {"binary_data_output": True},
    }
    reply = post_binary(model, request, b"12345678\x01\x00abcd")
    body = whole(reply)
    length = int(dict(reply.headers)[HEAD_LENGTH])
    assert msgspec.json.decode(body[:length])["outputs"] == [
        raw_tensor(8, name="A"),
        tensor(name="B"),
        tensor(name="C", datatype="BOOL", data=[True, False]),
        raw_tensor(4, name="D", datatype="BF16"),
    ]
    assert body[length:] == b"12345678abcd"


@pytest.mark.parametrize("case", BAD)
def test_bad_body(model: SimulatedModel, case: str) -> None:
    """A body that can't be used gets a 400 that says why."""
    path, body, reason = BAD[case]
    status, message = refused(post(model, path, body), path)
    assert status == 400
    assert reason in message


@pytest.mark.parametrize("case", BAD_BINARY)
def test_bad_binary(model: SimulatedModel, case: str) -> None:
    """Bytes that don't fit the inputs get a 400 that says why."""
    inputs, tail, reason = BAD_BINARY[case]
    status, message = refused(post_binary(model, {"inputs": inputs}, tail), INFER)
    assert status == 400
    assert reason in message


@pytest.mark.parametrize("length", ["", "x", "-1", "1.0", "²", "3", "9" * 5000])
def test_bad_head_length(model: SimulatedModel, length: str) -> None:
    """The length of the JSON is a number within the body."""
    assert refused(post(model, INFER, b"{}", [(HEAD_LENGTH, length)]), INFER)[0] == 400


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "*",
        "/v1",
        "/v1/models/other",
        f"/v1/models/{NAME}/x",
        "/v1/audio/speeches",
        "/v2x",
        "/v2/",
        "/v2/health",
        "/v2/models",
        "/v2/models/other/infer",
        f"/v2/models/{NAME}x",
        f"/v2/models/{NAME}/",
        f"/v2/models/{NAME}/generated",
        f"/v2/models/{NAME}/versions/3/infer",
        f"/v2/models/{NAME}/versions/",
        "/v2/%ff\ud800",
    ],
    ids=ascii,
)
def test_unknown_path(model: SimulatedModel, path: str) -> None:
    """A path where nothing is gets a 404, whatever the method."""
    shape = "/v1" if path == "/v2x" else path
    assert refused(model.relay(Call("GET", path, [])), shape)[0] == 404
    assert refused(model.relay(Call("POST", path, [], b"{}")), shape)[0] == 404


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(CHAT, "POST"), (COMPLETION, "POST"), (EMBEDDINGS, "POST"), (INFER, "POST"), *((path, "GET") for path in GETS)],
)
def test_wrong_method(model: SimulatedModel, path: str, allowed: str) -> None:
    """Every path takes one method."""
    for method in {"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"} - {allowed}:
        reply = model.relay(Call(method, path, [], b"{}"))
        assert refused(reply, path)[0] == 405
        assert reply.headers[1:] == [("allow", allowed)]


# Bodies that come near to what is right, so that more than the first check is met.
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)
)
KEYS = (
    "messages",
    "prompt",
    "input",
    "inputs",
    "outputs",
    "id",
    "max_tokens",
    "stream",
    "stream_options",
    "parameters",
)
TENSOR_LIKE = st.fixed_dictionaries(
    {"name": st.just("x"), "shape": st.lists(st.integers(0, 3), max_size=2), "datatype": st.sampled_from([*TENSORS])},
    optional={
        "data": st.lists(VALUES, max_size=3),
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(0, 12)}),
    },
)
BODIES = (
    st.binary()
    | st.dictionaries(st.sampled_from(KEYS), VALUES).map(msgspec.json.encode)
    | st.fixed_dictionaries(
        {"inputs": st.lists(TENSOR_LIKE, max_size=2)},
        optional={"parameters": st.fixed_dictionaries({"binary_data_output": st.booleans()})},
    ).map(msgspec.json.encode)
    | st.fixed_dictionaries({"prompt": st.text(), "stream": st.booleans()}).map(msgspec.json.encode)
)


@pytest.mark.slow
@given(
    path=st.sampled_from([CHAT, COMPLETION, EMBEDDINGS, INFER]),
    body=BODIES,
    tail=st.binary(max_size=12),
    cut=st.integers(-2, 2),
)
def test_no_body_raises(path: str, body: bytes, tail: bytes, cut: int) -> None:
    """Whatever is sent, the answer is a 200 or a 400, and its body comes to its end."""
    model = SimulatedModel(NAME, 0, 0)
    for headers in ([], [(HEAD_LENGTH, str(len(body) + cut))], [(HEAD_LENGTH, str(len(body)))]):
        reply = post(model, path, body + tail if headers else body, headers)
        assert reply.status in {200, 400}
        assert all(reply.body)
        reply.close()
