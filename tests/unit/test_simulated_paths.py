"""The simulated model at the paths of other servers' APIs: always the same responses, and bad calls never raise."""

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from app.protocols import anthropic, openai
from app.protocols.calls import Call
from app.simulated.model import SimulatedModel

NAME = "m"
GENERATE = f"/v2/models/{NAME}/generate"
LISTED = "/v1/custom"
MODEL = SimulatedModel(NAME, 0, 0, ("1", "2"), (LISTED,))

GOOD: dict[str, Any] = {
    "/v1/moderations": {"input": "a b"},
    "/v1/images/generations": {"prompt": "a b", "stream": True, "partial_images": 3},
    "/v1/audio/speech": {"input": "a b", "response_format": "wav"},
    **{path: {"query": "a", "documents": ["a b", {"text": "c"}]} for path in ("/v1/rerank", "/rerank", "/v2/rerank")},
    **{path: {"text_1": ["a", "b"], "text_2": ["a", "c"]} for path in ("/v1/score", "/score")},
    "/v1/classify": {"input": ["a", "b"]},
    "/pooling": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
    "/tokenize": {"prompt": "a b"},
    "/detokenize": {"tokens": [97, 255]},
    "/v1/messages": {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 5, "system": None},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a b"}]}]},
    GENERATE: {"text_input": "a b"},
    f"{GENERATE}_stream": {"text_input": "a b", "max_tokens": 7},
    LISTED: {"anything": [1]},
}
BAD: list[tuple[str, Any, str]] = [
    ("/v1/moderations", {}, "`input` is missing"),
    ("/v1/images/generations", {"prompt": "a", "n": 11}, "n"),
    ("/v1/images/generations", {"n": 1}, "`prompt`"),
    ("/v1/audio/speech", {"input": "a", "response_format": "opus"}, "opus"),
    ("/v1/rerank", {"query": "a"}, "`documents`"),
    ("/rerank", {"query": "a", "documents": []}, "length >= 1"),
    ("/v1/score", {"text_1": "a"}, "`text_2` is missing"),
    ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "2 texts can't be compared with 3"),
    ("/v1/classify", {"input": 5}, "input"),
    ("/pooling", {"data": []}, "length >= 1"),
    ("/tokenize", {"prompt": {}}, "prompt"),
    ("/detokenize", {"tokens": [256]}, "<= 255"),
    ("/v1/messages", {"messages": [], "max_tokens": 5}, "length >= 1"),
    ("/v1/messages", {"messages": [{"role": "user", "content": "a"}]}, "`max_tokens`"),
    ("/v1/messages/count_tokens", {"messages": [{"role": "owner", "content": "a"}]}, "owner"),
    (GENERATE, {}, "`text_input`"),
    (GENERATE, {"text_input": "a", "parameters": {"max_tokens": 0}}, ">= 1"),
    (LISTED, [], "Expected `object`"),
    (LISTED, b"{", "truncated"),
]


def respond(path: str, body: Any, method: str = "POST") -> tuple[int, bytes]:
    """Status and whole body of the response to this, as JSON if it is no bytes."""
    sent = body if isinstance(body, bytes) else msgspec.json.encode(body)
    reply = MODEL.relay(Call(method, path, [], sent))
    content = b"".join(reply.body)
    assert reply.length in (None, len(content))
    reply.close()
    return reply.status, content


def message_of(path: str, body: bytes) -> str:
    """What an error says, in the shape of the path."""
    document = msgspec.json.decode(body)
    if path.startswith("/v1/messages"):
        assert document["type"] == "error"
        assert document["error"]["type"] in ("invalid_request_error", "not_found_error")
    error = document["error"]
    assert isinstance(error, str) == path.startswith("/v2/models")
    return str(error if isinstance(error, str) else error["message"])


def test_every_path_of_the_table_is_served() -> None:
    """A path that the router passes on is one that works without set-up."""
    served = {path for path, body in GOOD.items() if respond(path, body)[0] == 200}
    assert served == GOOD.keys()
    assert {*openai.PATHS, *anthropic.PATHS} <= served | {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"}


@pytest.mark.parametrize("path", GOOD)
def test_equal_requests_get_equal_responses(path: str) -> None:
    """Neither a clock nor chance is in a response, and the model's own name is."""
    body = {"model": NAME, **GOOD[path]}
    assert respond(path, body) == respond(path, body)
    status, refused = respond(path, body, "GET")
    assert status == 405
    assert "takes POST only" in message_of(path, refused)


@pytest.mark.parametrize(("path", "body", "words"), BAD)
def test_bad_body(path: str, body: Any, words: str) -> None:
    """A body that can't be used is a 400 that says why, in the shape of the path."""
    status, content = respond(path, body)
    assert status == 400
    assert words in message_of(path, content)


def test_triton_describes_its_models() -> None:
    """What names no model is there for a router in front, one entry for each version."""
    stats = msgspec.json.decode(respond("/v2/models/stats", b"", "GET")[1])["model_stats"]
    index = msgspec.json.decode(respond("/v2/repository/index", b"")[1])
    assert [one["version"] for one in stats] == [one["version"] for one in index] == ["1", "2"]
    (of_one,) = msgspec.json.decode(respond(f"/v2/models/{NAME}/versions/2/stats", b"", "GET")[1])["model_stats"]
    assert (of_one["version"], of_one["inference_stats"]["success"]) == ("2", {"count": 0, "ns": 0})
    assert respond(f"/v2/models/{NAME}/versions/3/config", b"", "GET")[0] == 404
    assert respond("/v1/messages/batches", b"", "GET")[0] == 404


@pytest.mark.slow
def test_long_texts_are_read_once() -> None:
    """A long query before many documents takes time in proportion to the body, not to the product of both."""
    body = {"query": "word " * 200_000, "documents": ["x"] * 100_000}
    began = time.monotonic()
    assert respond("/rerank", body)[0] == 200
    assert respond("/score", {"text_1": body["query"], "text_2": body["documents"]})[0] == 200
    assert time.monotonic() - began < 30  # the product would take an hour


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
MEMBERS = sorted({name for body in GOOD.values() for name in body} | {"data_1", "queries", "items", "text", "n"})


@pytest.mark.slow
@given(st.sampled_from(sorted(GOOD)), st.dictionaries(st.sampled_from(MEMBERS), VALUES, max_size=5))
@effort(max_examples=300)
def test_no_body_raises(path: str, members: dict[str, Any]) -> None:
    """Whatever the members hold, the response is one, and complete."""
    for body in (members, {**GOOD[path], **members}):
        assert respond(path, body)[0] in (200, 400)
