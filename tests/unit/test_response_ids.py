"""The id of a response is read from the beginning of what the model server returns, however it is cut and written."""

import gzip
import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocols.response_ids import ResponseIdReader

JSON = [("content-type", "application/json")]
EVENTS = [("content-type", "text/event-stream; charset=utf-8")]
EVENT = (
    b"event: response.created\n"
    b'data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1","o":1}}\n\n'
)


def read(pieces: Iterable[bytes], headers: list[tuple[str, str]] = JSON) -> list[str]:
    """The ids that the reader returns."""
    reader = ResponseIdReader(headers)
    return [found for piece in pieces if (found := reader.feed(piece)) is not None]


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b'{"id":"resp_1","object":"response"}', ["resp_1"]),
        (b' {\r\n "id" :\t"resp_1" }', ["resp_1"]),
        (b'{"background":false,"error":null,"a":[{"id":"x"},"id",2],"o":{"id":"y"},"id":"resp_1"}', ["resp_1"]),
        (b'{"text":"\\"id\\":\\"x\\"","id":"resp_1"}', ["resp_1"]),
        (b'{"id":"r\\u0065sp"}', ["resp"]),
        (b'{"id":"resp_1","id":"other"}', ["resp_1"]),
        (b'{"id":5}', []),
        (b'{"id":null,"o":"x"}', []),
        (b'{"id":"\\ud800"}', []),
        (b'[{"id":"x"}]', []),
        (b'{"o":{"id":"x"}}', []),
        (b'{} {"id":"x"}', []),
        (b'"id":"x"', []),
        (b"", []),
        (b'{"a":"' + b"x" * 5000 + b'","id":"x"}', []),
    ],
)
def test_id_of_a_json_body(body: bytes, ids: list[str]) -> None:
    """It is the member of the object itself, wherever the body is cut; a value that is no string is no id."""
    assert read([body]) == ids
    step = 1 + len(body) // 100
    assert {tuple(read([body[:at], body[at:]])) for at in range(0, len(body), step)} <= {tuple(ids)}


@pytest.mark.parametrize(
    ("stream", "ids"),
    [
        (EVENT, ["resp_1"]),
        (b": ping\n\n" + EVENT, ["resp_1"]),
        (EVENT.replace(b"\n", b"\r\n"), ["resp_1"]),
        (b'data: {"response": {"id": "resp_1"}}', ["resp_1"]),
        (b'data:{"response":{"o":{"id":"x"},"id":"resp_1"},"id":"x"}', ["resp_1"]),
        (b'data: {"id":"x","response":null}\n\n' + EVENT, []),  # only the first event is looked at
        (b'data: {"error":{"id":"x"}}\n\n', []),
        (b'nodata: {"response":{"id":"x"}}\n\n', []),
        (b"data: [DONE]\n\n", []),
    ],
)
def test_id_of_a_stream(stream: bytes, ids: list[str]) -> None:
    """It is `response.id` of the first event, wherever the stream is cut."""
    assert read([stream], EVENTS) == ids
    assert {tuple(read([stream[:at], stream[at:]], EVENTS)) for at in range(len(stream))} == {tuple(ids)}


def test_id_is_known_with_the_piece_that_completes_it() -> None:
    """So it is noted before the client can know it, and nothing is held back."""
    reader = ResponseIdReader(EVENTS)
    end = EVENT.index(b'resp_1"') + len(b'resp_1"')
    assert reader.feed(EVENT[: end - 1]) is None
    assert reader.feed(EVENT[end - 1 : end]) == "resp_1"
    assert reader.feed(EVENT[end:] + EVENT) is None


@pytest.mark.parametrize("coding", ["gzip", "br"])
def test_compressed_body(coding: str) -> None:
    """The beginning of gzip is decompressed for it; what the router can't read has no id."""
    body = gzip.compress(b'{"id":"resp_1"}')
    assert read([body], [*JSON, ("content-encoding", coding)]) == (["resp_1"] if coding == "gzip" else [])


def test_many_pieces_are_not_looked_through_again_and_again() -> None:
    """A stream of single bytes costs some tries, and passes."""
    reader = ResponseIdReader(EVENTS)
    assert not any(reader.feed(b":") for _ in range(100_000))
    assert len(reader._begun) < 100


@pytest.mark.slow
@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda one: st.lists(one) | st.dictionaries(st.text() | st.just("id"), one),
    )
)
def test_any_json_is_read_as_a_parser_reads_it(value: object) -> None:
    """Whatever the body, the id is the one that a parser finds, or there is none."""
    text = json.dumps(value).encode()
    found = value.get("id") if isinstance(value, dict) else None
    readable = isinstance(found, str) and len(text) < 4000
    assert read([text]) == ([found] if readable else [])
