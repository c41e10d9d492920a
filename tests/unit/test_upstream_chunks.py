"""Chunked bodies: cut anywhere they read alike, and what isn't exactly one is refused."""

import time
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from app.errors import UpstreamBroken
from app.upstream.chunks import ChunkReader

MAX_LINE = 4096
MAX_TRAILER = 1 << 16

# A body, and its content.
BODIES = [
    (b"0\r\n\r\n", b""),
    (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b"00005\r\nhello\r\n000\r\n\r\n", b"hello"),
    (b"000000000000001\r\nx\r\n000000000000000\r\n\r\n", b"x"),  # 15 digits
    (b"1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n0\r\n\r\n", b"abcdef"),
    (b"c\r\nabcdefghijkl\r\n0\r\n\r\n", b"abcdefghijkl"),
    (b"C\r\nabcdefghijkl\r\n0\r\n\r\n", b"abcdefghijkl"),
    (b"1B\r\n" + b"y" * 27 + b"\r\n0\r\n\r\n", b"y" * 27),
    (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
    (b"1;name=value\r\nx\r\n0;last\r\n\r\n", b"x"),
    (b'1 ;name="quoted; \xe4"\r\nx\r\n0\t;\r\n\r\n', b"x"),
    (b"1  \r\nx\r\n0\r\n\r\n", b"x"),  # as some old servers pad it
    (b"1\r\nx\r\n0\r\nServer-Timing: a;dur=1\r\nX-Sum: 0\r\n\r\n", b"x"),
    (b"0\r\nX-Empty:\r\n\r\n", b""),
    (b"1;" + b"e" * (MAX_LINE - 2) + b"\r\nx\r\n0\r\n\r\n", b"x"),
    (b"0\r\nX:" + b"t" * (MAX_TRAILER - 4) + b"\r\n\r\n", b""),
]
SHORT_BODIES = [(body, content) for body, content in BODIES if len(body) < 100]
LONG_BODIES = [(body, content) for body, content in BODIES if len(body) >= 100]

MALFORMED = [
    b"5\nhello\r\n0\r\n\r\n",
    b"5\rhello\r\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5\r\nhello\r0\r\n\r\n",
    b"5\r\nhello!\r\n0\r\n\r\n",
    b"5\r\nhell\r\n0\r\n\r\n",
    b"5\r\nhello!",  # wrong already, whatever may follow
    b"5\r\nhello\r!",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5h\r\nhello\r\n0\r\n\r\n",
    b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    b"\xb2\r\nab\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"\t5\r\nhello\r\n0\r\n\r\n",
    b"5 5\r\nhello\r\n0\r\n\r\n",
    b"5,5\r\nhello\r\n0\r\n\r\n",
    b"\r\n5\r\nhello\r\n0\r\n\r\n",
    b";name\r\nhello\r\n0\r\n\r\n",
    b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    b"5;a\x00b\r\nhello\r\n0\r\n\r\n",
    b"5;a\x7fb\r\nhello\r\n0\r\n\r\n",
    b"0000000000000005\r\nhello\r\n0\r\n\r\n",  # 16 digits
    b"1000000000000000\r\nhello\r\n",
    b"1;" + b"e" * (MAX_LINE - 1) + b"\r\nx\r\n0\r\n\r\n",
    b"1" + b" " * MAX_LINE + b"\r\nx\r\n0\r\n\r\n",
    b"e" * (MAX_LINE + 2),  # no end in sight
    b"0\r\nno field\r\n\r\n",
    b"0\r\n: no name\r\n\r\n",
    b"0\r\nName : value\r\n\r\n",
    b"0\r\nName: a\r\n folded\r\n\r\n",
    b"0\r\n folded\r\n\r\n",
    b"0\r\nName: a\nOther: b\r\n\r\n",
    b"0\r\nName: \x00\r\n\r\n",
    b"0\r\nN\xe4me: a\r\n\r\n",
    b"0\r\nX:" + b"t" * (MAX_TRAILER - 3) + b"\r\n\r\n",
    b"0\r\nX:" + b"t" * MAX_TRAILER,
]


def read(*pieces: bytes) -> tuple[bytes, bytes, bool]:
    """The content of these pieces, what is left over, and whether the body ended."""
    reader = ChunkReader()
    content = b"".join(reader.feed(piece) for piece in pieces)
    return content, reader.rest, reader.ended


def outcome(*pieces: bytes) -> object:
    """The same as far as it may not depend on the cuts, or UpstreamBroken."""
    try:
        content, rest, ended = read(*pieces)
    except UpstreamBroken:
        return UpstreamBroken
    return content, ended, ended and rest


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data, cut at these places."""
    borders = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(borders)]


@pytest.mark.parametrize(("body", "content"), SHORT_BODIES)
def test_body_cut_at_any_two_places_reads_alike(body: bytes, content: bytes) -> None:
    """Where the pieces of a body are cut makes no difference, and what follows the body is left alone."""
    for after in (b"", b"HTTP/1.1 200 OK\r\n\r\n"):
        data = body + after
        for places in combinations_with_replacement(range(len(data) + 1), 2):
            reader = ChunkReader()
            got = b""
            rest = b""
            for piece in cut(data, list(places)):
                if reader.ended:
                    rest += piece
                else:
                    got += reader.feed(piece)
            assert (got, reader.rest + rest, reader.ended) == (content, after, True), places


@pytest.mark.parametrize(("body", "content"), LONG_BODIES, ids=["line", "trailer"])
def test_longest_lines_are_read_however_they_are_cut(body: bytes, content: bytes) -> None:
    """A line or a trailer of exactly the greatest length passes, be its end cut or not."""
    for places in combinations_with_replacement(range(1, 12), 2):
        assert read(*cut(body, [len(body) - place for place in places])) == (content, b"", True)
    assert read(body) == (content, b"", True)
    start = body.index(b"\r\n", MAX_LINE)
    for place in range(start - 1, start + 4):
        assert read(*cut(body, [place])) == (content, b"", True)


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_body_is_refused_however_it_is_cut(body: bytes) -> None:
    """What isn't exactly a chunked body is no answer, whether it comes in one piece, in two, or byte by byte."""
    with pytest.raises(UpstreamBroken):
        read(body)
    for place in range(1, min(len(body), 40)):
        with pytest.raises(UpstreamBroken):
            read(*cut(body, [place]))
    if len(body) < 10_000:
        with pytest.raises(UpstreamBroken):
            read(*(body[at : at + 1] for at in range(len(body))))


@pytest.mark.parametrize("body", [body for body, _ in SHORT_BODIES])
def test_part_of_a_body_is_not_its_end(body: bytes) -> None:
    """A body that lacks as much as its last byte has not ended."""
    for end in range(len(body)):
        assert not read(body[:end])[2]


def test_content_is_given_as_it_comes() -> None:
    """Nothing waits for the end of a chunk: what has come of it is given at once."""
    reader = ChunkReader()
    assert reader.feed(b"ff\r\nfirst") == b"first"
    assert reader.feed(b"second") == b"second"
    assert reader.feed(b"x" * (255 - 11) + b"\r\n2\r\ny") == b"x" * (255 - 11) + b"y"
    assert not reader.ended


@pytest.mark.slow
@pytest.mark.alone
def test_trailer_that_drips_costs_the_same_for_each_byte() -> None:
    """The work for a byte of a trailer does not grow with what came before it, or one server could hold a core."""

    def cost(before: int) -> float:
        reader = ChunkReader()
        reader.feed(b"0\r\nX: " + b"a" * before)
        began = time.thread_time()
        for _ in range(2000):
            reader.feed(b"a")
        return time.thread_time() - began

    assert min(cost(60_000) for _ in range(5)) < 5 * max(cost(100) for _ in range(5))


EXTENSIONS = st.sampled_from([b"", b";", b";a", b" ;a=1", b';q="v w"', b" "])
SIZES = st.sampled_from(["%x", "%X", "%08x", "%015X"])
CHUNKS = st.lists(st.tuples(st.binary(min_size=1, max_size=40), SIZES, EXTENSIONS), max_size=6)
TRAILERS = st.lists(st.sampled_from([b"A: b\r\n", b"Server-Timing: t;dur=1\r\n", b"E:\r\n"]), max_size=3)
MAX_IDS = st.lists(st.integers(0, 400), max_size=12)


@given(CHUNKS, EXTENSIONS, TRAILERS, MAX_IDS, st.binary(max_size=20))
def test_any_body_reads_alike_under_any_cuts(
    chunks: list[tuple[bytes, str, bytes]], last: bytes, trailers: list[bytes], places: list[int], after: bytes
) -> None:
    """Every body of the grammar gives its content, whatever the data, the extensions, the trailer and the cuts."""
    body = b"".join(
        (size % len(data)).encode() + extension + b"\r\n" + data + b"\r\n" for data, size, extension in chunks
    )
    body += b"0" + last + b"\r\n" + b"".join(trailers) + b"\r\n"
    assert read(*cut(body, places)) == (b"".join(data for data, _, _ in chunks), b"", True)
    assert read(body + after) == (b"".join(data for data, _, _ in chunks), after, True)


WORDS = [b"0", b"1", b"3", b"A", b"f", b"\r\n", b"\r", b"\n", b";", b":", b" ", b"\x00", b"abc", b"\r\n0\r\n\r\n"]
NONSENSE = st.binary(max_size=80) | st.lists(st.sampled_from(WORDS), max_size=25).map(b"".join)


@pytest.mark.slow
@effort(max_examples=500)
@example(b"1\r\nA\rB", [6])
@example(b"0\r\n\r\n\x00", [])
@given(NONSENSE, MAX_IDS)
def test_nonsense_is_read_or_refused_alike_under_any_cuts(data: bytes, places: list[int]) -> None:
    """Whatever comes, the reader answers or raises UpstreamBroken, and which of the two depends on no cut."""
    assert outcome(*cut(data, places)) == outcome(data) == outcome(*(data[at : at + 1] for at in range(len(data))))
