"""Request bodies: what is read, what is refused, and that bad input costs neither a permit nor a 500."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import falcon
import pytest
from falcon import testing
from gunicorn.http.errors import InvalidChunkSize, NoMoreData
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw, UnsetType

from app.api.body import read_body
from app.errors import BodyStalled, BodyTooLarge, ClientGone, InvalidRequest, UnsupportedBody
from app.protocols import openai
from app.protocols.calls import Inference
from app.protocols.infer import parse_inference, upstream_call
from tests.support.client_request import client_request
from tests.support.forks import acquire
from tests.support.local_router import LocalRouter
from tests.support.registry import OneModel, TestModel, application_over

LIMIT = 1000

# Bodies that are a JSON object with a prompt, and what reaches the model.
GOOD: dict[str, tuple[bytes, str, dict[str, Any]]] = {
    "plain": (b'{"prompt":"hello"}', "hello", {}),
    "white space around": (b' \r\n\t{ "prompt" : "hello" }\n', "hello", {}),
    "empty prompt": (b'{"prompt":""}', "", {}),
    "all of Unicode": ('{"prompt":"ü \U0001f600 \u2028"}'.encode(), "ü \U0001f600 \u2028", {}),
    "escapes": (b'{"prompt":"\\u00fc \\ud83d\\ude00 \\n \\u0000"}', "ü \U0001f600 \n \x00", {}),
    "numbers that no float holds": (b'{"prompt":"p","a":1e999,"b":[7e-320]}', "p", {"a": float("inf"), "b": [7e-320]}),
    "an integer of 4000 digits": (b'{"n":%b,"prompt":"p"}' % (b"9" * 4000), "p", {"n": int("9" * 4000)}),
    "other members": (
        b'{"temperature":0.5,"prompt":"p","stop":["a",null],"nested":{"prompt":1},"stream":false}',
        "p",
        {"temperature": 0.5, "stop": ["a", None], "nested": {"prompt": 1}, "stream": False},
    ),
    "an integer past 64 bits": (b'{"prompt":"p","n":%d}' % 10**40, "p", {"n": 10**40}),
    "200 levels": (
        b'{"prompt":"p","a":%b1%b}' % (b"[" * 200, b"]" * 200),
        "p",
        {"a": json.loads("[" * 200 + "1" + "]" * 200)},
    ),
}

# Bodies that are refused, and words of the reason.
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "white space": (b" \n", "empty"),
    "text": (b"hello", "not a JSON object"),
    "form": (b"prompt=hello", "not a JSON object"),
    "array": (b'["prompt"]', "got `array`"),
    "string": (b'"prompt"', "got `str`"),
    "number": (b"1", "got `int`"),
    "boolean": (b"true", "got `bool`"),
    "null": (b"null", "got `null`"),
    "cut short": (b'{"prompt":"hel', "not a JSON object"),
    "more behind": (b'{"prompt":"hello"}{}', "byte 19"),
    "trailing comma": (b'{"prompt":"hello",}', "byte 18"),
    "single quotes": (b"{'prompt':'hello'}", "byte 1"),
    "comment": (b'{"prompt":"hello"/*x*/}', "byte 17"),
    "NaN": (b'{"prompt":"p","n":NaN}', "byte 18"),
    "Infinity": (b'{"prompt":"p","n":-Infinity}', "not a JSON object"),
    "raw line break": (b'{"prompt":"a\nb"}', "byte 12"),
    "invalid UTF-8": (b'{"prompt":"\xff"}', "byte 0xff at 11"),
    "invalid UTF-8 in a key": (b'{"prompt":"p","\xff":1}', "byte 0xff at 15"),
    "UTF-8 cut short": (b'{"prompt":"p","x":"\xc3"}', "byte 0xc3 at 19"),
    "overlong UTF-8": (b'{"prompt":"\xc0\xaf"}', "byte 0xc0 at 11"),
    "surrogate in UTF-8": (b'{"prompt":"\xed\xa0\x80"}', "byte 0xed at 11"),
    "first surrogate alone": (b'{"prompt":"\\ud83d"}', r"the surrogate \ud83d has no other half (byte 11)"),
    "first surrogate, then text": (
        b'{"prompt":"\\ud83d and more"}',
        r"the surrogate \ud83d has no other half (byte 11)",
    ),
    "first surrogate twice": (b'{"prompt":"\\ud83d\\ud83d\\ude00"}', "has no other half"),
    "second surrogate alone": (b'{"prompt":"\\ude00 and more"}', r"the surrogate \ude00 has no other half (byte 11)"),
    "surrogate in a key": (b'{"prompt":"p","\\\\\\ud83d":1}', r"the surrogate \ud83d has no other half (byte 17)"),
    "byte order mark": (b'\xef\xbb\xbf{"prompt":"hello"}', "byte 0"),
    "UTF-16": ('{"prompt":"hello"}'.encode("utf-16"), "byte 0"),
    "zero byte": (b"\x00", "byte 0"),
    "100000 arrays": (b"[" * 100_000, "not a JSON object"),
    "100000 arrays inside": (b'{"prompt":"p","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "100000 objects inside": (b'{"prompt":' + b'{"a":' * 100_000, "nested too deeply"),
    "no prompt": (b"{}", "`$.prompt`"),
    "prompt in capitals": (b'{"Prompt":"hello"}', "`prompt` with other capitals"),
    "null for a prompt": (b'{"prompt":null}', "`$.prompt`"),
    "number for a prompt": (b'{"prompt":1}', "type number"),
    "array for a prompt": (b'{"prompt":["hello"]}', "type array"),
    "object for a prompt": (b'{"prompt":{"text":"hello"}}', "type object"),
    "model is a number": (b'{"prompt":"p","model":1}', "`model` must be a string - at `$.model`: it is of type number"),
    "two prompts": (b'{"prompt":"hello","prompt":"hello"}', "`prompt` twice"),
    "two models": (b'{"model":"a","prompt":"p","model":"a"}', "`model` twice"),
    "models in two spellings": (b'{"prompt":"p","model":"a","Model":"b"}', "`model` twice"),
    "models in two escapes": (b'{"prompt":"p","model":"a","\\u004dode\\u006c":"b"}', "`model` twice"),
    "model in capitals": (b'{"prompt":"p","MODEL":"a"}', "`model` with other capitals"),
}


class Server(TestModel):
    """The application over a model that remembers what reached it, with one permit in all."""

    def __init__(self, folder: Path) -> None:
        self.name = "recorder"
        self.seen: list[Inference] = []
        self._local = LocalRouter(folder, MAX_CONCURRENCY="1", MAX_BODY_BYTES=str(LIMIT)).start_worker()
        self.limiter = self._local.router.limiter
        self._app = application_over(self._local.router, OneModel(self))

    def close(self) -> None:
        """Close the router."""
        self._local.close()

    def infer(self, request: Inference) -> Raw | UnsetType:
        """A `Model`."""
        self.seen.append(request)
        return UNSET

    def post(self, body: bytes, **headers: str) -> testing.Result:
        """POST /infer, as a WSGI server hands it over."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return testing.simulate_request(self._app, "POST", "/infer", body=body, headers=named)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The application, idle."""
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture
def full_server(server: Server) -> Iterator[Server]:
    """The application with its only permit taken."""
    permit = acquire(server.limiter)
    yield server
    permit.release()


class Stream:
    """`wsgi.input` that remembers how much was asked for, and raises instead of answering if told to."""

    def __init__(self, body: bytes = b"", error: BaseException | None = None) -> None:
        self.asked: list[int] = []
        self._body = io.BytesIO(body)
        self._error = error

    def read(self, size: int) -> bytes:
        self.asked.append(size)
        if self._error is not None:
            raise self._error
        return self._body.read(size)


def request(stream: Stream, length: int | None, content_type: str | None = None) -> falcon.Request:
    """A request with this body; without a length it is a chunked one."""
    environ = testing.create_environ("/infer", method="POST")
    environ["wsgi.input"] = stream
    environ.pop("CONTENT_LENGTH", None)
    if length is not None:
        environ["CONTENT_LENGTH"] = str(length)
    if content_type is not None:
        environ["CONTENT_TYPE"] = content_type
    return falcon.Request(environ)


@pytest.mark.parametrize("name", GOOD)
def test_prompt_and_the_rest_are_told_apart(name: str) -> None:
    """The prompt is the prompt, and every other member is for the model, as the client gave it."""
    body, prompt, options = GOOD[name]
    inference = parse_inference(client_request(body))
    sent = json.loads(upstream_call(openai.ADAPTER, "m", inference).body)
    assert sent.pop("messages") == [{"role": "user", "content": prompt}]
    assert sent == {name: value for name, value in options.items() if name != "stream"}


@pytest.mark.parametrize("name", BAD)
def test_bad_body_is_refused_with_the_reason(name: str) -> None:
    """What is not a JSON object with a string `prompt` is refused, and the message says why."""
    body, words = BAD[name]
    with pytest.raises(InvalidRequest, match=re.escape(words)):
        parse_inference(client_request(body))


@pytest.mark.parametrize("name", [name for name in GOOD if len(GOOD[name][0]) <= LIMIT])
def test_answer_repeats_the_prompt(name: str, server: Server) -> None:
    """Every prompt that is accepted can be answered, exactly as it came."""
    body, prompt, _ = GOOD[name]
    answer = server.post(body)
    assert (answer.status_code, answer.json["prompt"]) == (200, prompt)
    assert [(json.loads(bytes(seen.prompt)), seen.body) for seen in server.seen] == [(prompt, body)]


@pytest.mark.parametrize("name", [name for name in BAD if len(BAD[name][0]) <= LIMIT])
def test_bad_body_takes_no_permit(name: str, full_server: Server) -> None:
    """Bad input is a 400 also when the cap is reached: it is refused before a permit is asked for."""
    answer = full_server.post(BAD[name][0])
    assert (answer.status_code, answer.json["code"]) == (400, "invalid_request")
    assert BAD[name][1] in answer.json["detail"]
    assert full_server.post(GOOD["plain"][0]).status_code == 429
    assert full_server.limiter.snapshot() == (1, 0)
    assert full_server.seen == []


@given(
    st.binary(max_size=60)
    | st.text('{}[]":,\\ud80prom t1e9.-ntf', max_size=40).map(str.encode)
    | st.text('\\ud8c09 "', max_size=20).map('{{"prompt":"{}"}}'.format).map(str.encode)
)
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    """Whatever the bytes: a prompt that can be encoded again, or InvalidRequest, never another error."""
    try:
        inference = parse_inference(client_request(body))
    except InvalidRequest:
        return
    assert isinstance(json.loads(bytes(inference.prompt)), str)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "application/json; charset=utf-16",
        "text/plain",
        "application/x-www-form-urlencoded",  # what `curl -d` sends
        "application/octet-stream",
        "no type at all",
    ],
)
def test_body_is_json_whatever_its_type(content_type: str | None, server: Server) -> None:
    """A declared type other than multipart doesn't matter: the bytes do."""
    headers = {} if content_type is None else {"Content_Type": content_type}
    assert server.post(b'{"prompt":"hello"}', **headers).status_code == 200
    assert [seen.prompt for seen in server.seen] == [Raw(b'"hello"')]


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=x", "Multipart/Mixed", "multipart/"])
def test_multipart_is_refused_unread(content_type: str, full_server: Server) -> None:
    """Multipart is 415, though it might hold JSON: nobody meant to send that here."""
    stream = Stream(b'{"prompt":"hello"}')
    with pytest.raises(UnsupportedBody):
        read_body(request(stream, 18, content_type), LIMIT)
    assert stream.asked == []
    answer = full_server.post(b'{"prompt":"hello"}', Content_Type=content_type)
    assert (answer.status_code, answer.json["code"]) == (415, "unsupported_media_type")


def test_body_of_the_greatest_length_is_read(server: Server) -> None:
    """MAX_BODY_BYTES bytes are accepted, however they come."""
    assert read_body(request(Stream(b"x" * LIMIT), LIMIT), LIMIT) == b"x" * LIMIT
    assert read_body(request(Stream(b"x" * LIMIT), None), LIMIT) == b"x" * LIMIT
    body = b'{"prompt":"' + b"x" * (LIMIT - 13) + b'"}'
    assert len(body) == LIMIT
    assert server.post(body).status_code == 200


def test_longer_body_is_refused_unread(full_server: Server) -> None:
    """A declared length over the limit is refused before a byte is read, or a permit asked for."""
    stream = Stream(b"x" * (LIMIT + 1))
    with pytest.raises(BodyTooLarge, match=f"{LIMIT + 1} bytes; at most {LIMIT}"):
        read_body(request(stream, LIMIT + 1), LIMIT)
    assert stream.asked == []
    answer = full_server.post(b"x" * (LIMIT + 1))
    assert (answer.status_code, answer.json["code"]) == (413, "body_too_large")


def test_longer_chunked_body_is_refused_at_the_limit() -> None:
    """Of a body of unknown length, no more is read than shows that it is too long."""
    stream = Stream(b"x" * (100 * LIMIT))
    with pytest.raises(BodyTooLarge, match=str(LIMIT)):
        read_body(request(stream, None), LIMIT)
    assert stream.asked == [LIMIT + 1]


def test_body_that_ends_early_is_that_of_a_client_that_left() -> None:
    """Half a body is never taken for a whole one, not even where it happens to be JSON."""
    with pytest.raises(ClientGone, match="ended after 2 of 20 bytes"):
        read_body(request(Stream(b"{}"), 20), LIMIT)


def test_body_of_malformed_chunks_is_a_bad_request() -> None:
    """It breaks its own rules: that is the client's fault, not a 500."""
    with pytest.raises(InvalidRequest):
        read_body(request(Stream(error=InvalidChunkSize(b"x")), None), LIMIT)


@pytest.mark.parametrize("error", [NoMoreData(), ConnectionResetError()], ids=repr)
def test_connection_that_ends_in_a_body_is_that_of_a_client_that_left(error: Exception) -> None:
    """Nobody is there to be told of a bad request, and there was none."""
    with pytest.raises(ClientGone):
        read_body(request(Stream(error=error), None), LIMIT)


def test_body_that_stalls_is_a_timeout() -> None:
    """A client that stops sending is told so; it is no failure of the router's."""
    with pytest.raises(BodyStalled):
        read_body(request(Stream(error=TimeoutError()), 5), LIMIT)


def test_client_that_left_is_no_bad_request() -> None:
    """ClientGone goes through to whoever ends the exchange."""
    with pytest.raises(ClientGone):
        read_body(request(Stream(error=ClientGone()), 5), LIMIT)
