"""The native module does what its Python twin does: it takes, refuses and returns the same.

These tests compare the compiled module with the twin, so they run where it is compiled (`make test-compiled`).
"""

import importlib.util
import json
import math
import os
import re
from array import array
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import app
from app import native
from tests.support.generated_requests import TOKENS, generated_requests
from tests.support.requests_corpus import CORPUS

pytestmark = pytest.mark.compiled

LONGEST = 65536
RESPONSES = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Y_z:\ta \t\xff b \t",
    b"HTTP/1.0 100",
    b"HTTP/1.9 599 \xff\t",
    b"HTTP/1.1 200\r\na:b\r\nC:\r\nd: \t",
    b"HTTP/1.1 600 OK",
    b"HTTP/1.1 099 OK",
    b"HTTP/1.1 20 OK",
    b"HTTP/1.1 2000 OK",
    b"HTTP/1.1 200OK",
    b"HTTP/2.1 200 OK",
    b"HTTP/1.12 200 OK",
    b"http/1.1 200 OK",
    b"HTTP/1.1  200 OK",
    b"HTTP/1.1 200 O\x00K",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n a: b",
    b"HTTP/1.1 200 OK\r\na : b",
    b"HTTP/1.1 200 OK\r\n: b",
    b"HTTP/1.1 200 OK\r\na",
    b"HTTP/1.1 200 OK\r\na: b\rc: d",
    b"HTTP/1.1 200 OK\r\na: b\nc: d",
    b"HTTP/1.1 200 OK\na: b",
    b"HTTP/1.1 200 OK\r\na: b\x7f",
    b"HTTP/1.1 200 OK\r\na\xe9: b",
    b"HTTP/1.1 200 OK\r\na:b:c\r\nd::",
    b"",
]


def load_twin() -> ModuleType:
    """Returns native.py as it stands, whatever was compiled."""
    spec = importlib.util.spec_from_file_location("twin", Path(app.__file__).with_name("native.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TWIN = load_twin()


def same_request(data: bytes, longest: int = LONGEST) -> None:
    """Both read a request alike."""
    assert native.split_request(data, longest) == TWIN.split_request(data, longest), data


def same_response(data: bytes) -> None:
    """Both read the head of a response alike."""
    assert native.split_response(data) == TWIN.split_response(data), data


def written(module: ModuleType, status: str, fixed: list[tuple[str, str]], fields: list[tuple[str, str]]) -> object:
    """Returns the head that a module writes, or that it refuses."""
    try:
        return module.join_response(status, fixed, fields)
    except ValueError:
        return "refused"


def test_it_is_the_compiled_one() -> None:
    """Or else a module would be compared with itself."""
    assert not str(native.__file__).endswith(".py")


@pytest.mark.parametrize("name", CORPUS)
def test_corpus_whole_and_cut_everywhere(name: str) -> None:
    """Every beginning of every request of the corpus, and every limit."""
    data = CORPUS[name].data[:600]
    for end in range(len(data) + 1):
        same_request(data[:end])
        same_request(data, end)


@pytest.mark.parametrize("data", RESPONSES)
def test_responses_whole_cut_and_changed_everywhere(data: bytes) -> None:
    """Every beginning of a head, and each of its bytes replaced by any other."""
    for at in range(len(data) + 1):
        same_response(data[:at])
        for byte in range(256):
            same_response(data[:at] + bytes([byte]) + data[at + 1 :])


def test_every_byte_at_every_place_of_a_request() -> None:
    """One byte is replaced, or put in between."""
    data = b"POST /v1/a?b=%41 HTTP/1.1\r\nHost: h\r\nX-A:\tb \r\nC:\r\n\r\n"
    for at in range(len(data) + 1):
        for byte in range(256):
            same_request(data[:at] + bytes([byte]) + data[at + 1 :])
            same_request(data[:at] + bytes([byte]) + data[at:])


@settings(max_examples=2000)
@given(generated_requests())
def test_generated_requests(pieces: tuple[bytes, ...]) -> None:
    """What hypothesis makes up, the first piece and all of it."""
    same_request(pieces[0])
    same_request(b"".join(pieces))


@settings(max_examples=2000)
@given(st.binary(max_size=60), st.binary(max_size=20))
def test_generated_responses(fields: bytes, line: bytes) -> None:
    """Any bytes as the status line, and after one."""
    same_response(b"HTTP/1.1 200 OK\r\n" + fields)
    same_response(b"HTTP/1.1 2" + line)
    same_response(line + fields)


_TEXT = st.text(st.characters(max_codepoint=300), max_size=8)


@settings(max_examples=2000)
@given(
    st.one_of(_TEXT, st.from_regex(r"[0-9]{3} [a-z]{0,3}", fullmatch=True)),
    st.lists(st.tuples(st.one_of(TOKENS, _TEXT), _TEXT), max_size=3),
    st.lists(st.tuples(TOKENS, st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=5)), max_size=3),
)
def test_heads_are_written_alike(status: str, odd: list[tuple[str, str]], plain: list[tuple[str, str]]) -> None:
    """Both write the same bytes, or both refuse: no text ends a line or a field before its time."""
    assert written(native, status, odd, plain) == written(TWIN, status, odd, plain)
    assert written(native, "200 OK", plain, odd) == written(TWIN, "200 OK", plain, odd)
    assert written(native, status, plain, plain) == written(TWIN, status, plain, plain)


_NAMES = st.sampled_from(("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "Other", ""))
_NUMBERS = st.one_of(
    st.integers(0, 1 << 45).map(str),
    st.sampled_from(("null", "nul", "0", "00", "01", "-1", "1.5", "1e3", '"1"', "{}", "9" * 12, "9" * 13)),
)
_BLANKS = st.text(" \t\r\n", max_size=2)


@st.composite
def usages(draw: st.DrawFn) -> str:
    """What may follow the name `usage`: mostly an object of counts."""
    parts = (_BLANKS, st.just('"'), _NAMES, st.just('"'), _BLANKS, st.just(":"), _BLANKS, _NUMBERS, _BLANKS)
    members = draw(st.lists(st.tuples(*parts).map("".join), max_size=4))
    return f"{draw(_BLANKS)}:{draw(_BLANKS)}{{{','.join(members)}}}" + draw(st.sampled_from(("", "}", "\n", "x")))


@given(usages(), st.integers(0, 200))
def test_counts_are_read_alike(text: str, cut: int) -> None:
    """Both read the same counts or none, wherever the text is cut; what they read is what a JSON parser reads."""
    for written in (text.encode(), text[:cut].encode(), text[:cut].encode() + b"}"):
        found = native.plain_usage(written, 0)
        assert found == TWIN.plain_usage(written, 0)
        if found is not None:
            usage = json.loads(written[written.index(b"{") : written.index(b"}") + 1])
            assert found == (usage["prompt_tokens"], usage.get("completion_tokens"))
    assert native.plain_usage(b"", 0) is TWIN.plain_usage(b"", 0) is None
    assert native.plain_usage(b"", 7) is TWIN.plain_usage(b"", 7) is None


@given(st.floats(allow_nan=False, min_value=-1e9, max_value=1e9), st.sampled_from((0.0, 1e-9, 0.0005, 1e300, math.inf)))
def test_times_are_written_alike(one: float, other: float) -> None:
    """With three decimals, rounded as Python rounds."""
    assert native.server_timing(one, other, one) == TWIN.server_timing(one, other, one)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 128, 200])
def test_ids_are_stored_alike(length: int) -> None:
    """The first 64 bytes, zeros up to there, and nothing beyond. Without room for them nothing is stored."""
    text = ("0123456789abcdef" * 13)[:length]
    ours, twins = memoryview(array("q", [-1] * 10)), memoryview(array("q", [-1] * 10))
    assert native.store_id(ours, 1, text) == TWIN.store_id(twins, 1, text)
    assert ours == twins
    assert ours.tobytes()[8:72] == text.encode()[:64].ljust(64, b"\0")
    assert ours[0] == ours[9] == -1
    for at in (-1, 3, 1 << 40):
        for one in (native, TWIN):
            with pytest.raises(IndexError, match="no room"):
                one.store_id(ours, at, text)
    assert ours == twins


def test_clocks_agree() -> None:
    """Both read the clock that all processes share, in the same unit."""
    before = TWIN.monotonic(), TWIN.now_ms()
    now = native.monotonic(), native.now_ms()
    after = TWIN.monotonic(), TWIN.now_ms()
    assert before[0] <= now[0] <= after[0]
    assert before[1] <= now[1] <= after[1]


def test_ids_differ_also_after_a_fork() -> None:
    """32 hexadecimal digits, which no other process makes, whenever it was forked."""
    reading, writing = os.pipe()
    if not os.fork():
        os.write(writing, "\n".join(native.new_id() for _ in range(1000)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        children = pipe.read().split()
    os.wait()
    ids = [*children, *(native.new_id() for _ in range(1000))]
    assert len(set(ids)) == 2000
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
