"""The strict parser in one process: how much work a dribbling client makes, what is too long, and what is malformed."""

import time
from typing import Any

import pytest
from gunicorn.http import errors
from hypothesis import given
from hypothesis import strategies as st

from app.http_fields import is_host
from app.net.peer_address import unmapped
from app.server import malformed
from app.server.request_parser import StrictParser
from tests.support.parsers import Wire, config, gunicorns
from tests.support.requests_corpus import chunks, get, post

CHUNKED = "POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
FIELD = b"X: y\r\n"


class Dribble(Wire):
    """A client that sends all but the last bytes at once, and those one by one. It notes the time that they take."""

    def __init__(self, data: bytes, last: int) -> None:
        super().__init__(data[:-last], *(data[at : at + 1] for at in range(len(data) - last, len(data))))
        self._last = last
        self.began = 0.0

    def recv(self, size: int) -> bytes:
        if not self.began and len(self.pieces) <= self._last:
            self.began = time.thread_time()
        return super().recv(size)


def read_all(cfg: Any, wire: Wire) -> None:
    """Read requests with their bodies until the client's end."""
    parser = StrictParser(cfg, wire, ("127.0.0.1", 1))
    try:
        while True:
            next(parser).body.read()
    except (StopIteration, OSError, errors.ParseException):
        pass


def seconds(before: bytes, unit: bytes, size: int, **settings: object) -> float:
    """The processor's time for the last 600 of `size` bytes after `before`, sent one by one; the best of some."""
    cfg = config(limit_request_field_size=1 << 20, limit_request_fields=30_000, **settings)
    cfg.settings["limit_request_fields"].value = 1 << 20
    data = before + (unit * (size // len(unit) + 1))[:size]
    found = []
    for _ in range(3):
        wire = Dribble(data, 600)
        read_all(cfg, wire)
        assert not wire.pieces, "it was rejected before"
        found.append(time.thread_time() - wire.began)
    return min(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "unit"),
    [
        (get()[:-2], FIELD),
        (get()[:-2] + b"X: ", b"y"),
        (CHUNKED.encode() + b"0\r\n", FIELD),
        (CHUNKED.encode() + b"0\r\nX: ", b"y"),
        (CHUNKED.encode() + b"5", b";a"),
        (CHUNKED.encode() + b"5;a=", b"b"),
        (CHUNKED.encode(), b"1\r\nx\r\n"),
    ],
    ids=["fields", "a field", "trailer", "a field of a trailer", "extensions", "an extension", "chunks"],
)
def test_byte_costs_no_more_after_a_long_beginning(before: bytes, unit: bytes) -> None:
    """What a client sends byte by byte is searched once: a byte costs as much after many as after few.

    gunicorn's parser searches, counts and copies all that it holds for each byte. Then the ratio is over 30.
    """
    assert seconds(before, unit, 400_000) < 4 * seconds(before, unit, 8_000)


def parse_in(pieces: list[bytes], **settings: object) -> str:
    """What comes of a request in these pieces: the error, with its text, or the path."""
    try:
        request = next(StrictParser(config(**settings), Wire(*pieces), ("127.0.0.1", 1)))
        request.body.read()
    except (errors.ParseException, errors.NoMoreData, StopIteration) as error:
        return f"{malformed.status_of(error).value} {error}"
    return request.path


def cut(data: bytes, size: int) -> list[bytes]:
    """The data in pieces of this size."""
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 8192, 1 << 20])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (get(f"X: {'a' * 3000}", f"Y: {'a' * 3000}"), "/p"),
        (
            get(f"X: {'a' * 5000}", f"Y: {'a' * 5000}"),
            "431 the header fields have more than 8190 bytes",
        ),
        (get("X: " + "a" * 9000)[:-4], "431 the header fields have more than 8190 bytes"),
        (get(*(f"X{n}: y" for n in range(100))), "431 there are more than 100 header fields; MAX_HEADER_FIELDS"),
        (get(*(f"X{n}: y" for n in range(99))), "/p"),
        (get(line=f"GET /{'a' * 9000} HTTP/1.1"), "414 Request Line is too large"),
        (b"GET /" + b"a" * 9000, "414 Request Line is too large"),
        (chunks(b"0\r\n" + FIELD * 1500), "431 the trailer section has more than 8190 bytes"),
        (chunks(b"0\r\nX: " + b"a" * 9000), "400 Invalid HTTP Header: \"trailer section: b'line over 8190 bytes'"),
        (chunks(b"5;" + b"a" * 9000), "400 Invalid chunk size: b'line over 8190 bytes'"),
        (chunks((b"1;" + b"a" * 4000 + b"\r\nx\r\n") * 6), "400 Invalid chunk extension: more chunk extensions than"),
    ],
    ids=range(11),
)
def test_what_is_too_long_is_too_long_in_any_pieces(data: bytes, says: str, size: int) -> None:
    """The limits are of the head as a whole, of its fields' number, of its line, of a trailer and of a chunk's head."""
    assert parse_in(cut(data, size), limit_request_line=8190).startswith(says)


@pytest.mark.parametrize("size", [1, 50, 1000])
def test_proxy_line_is_bounded(size: int) -> None:
    """A PROXY line has at most 107 bytes (the protocol's section 2.1): more is rejected without waiting for its end."""
    line = b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 80\r\n"
    assert parse_in(cut(line + get(), size), proxy_protocol="v1") == "/p"
    assert parse_in(cut(b"PROXY " + b"a" * 1000, size), proxy_protocol="v1").startswith("400 Invalid PROXY line")


@pytest.mark.parametrize(
    "data",
    [b"nonsense\r\n", b"GET /p HTTP/0.7\r\n", b"GET /p#x HTTP/1.1\r\n", b"GET /p HTTP/1.1\r\nX: y\n", b"GET /\n"],
)
def test_what_can_not_become_a_request_is_rejected_at_once(data: bytes) -> None:
    """A client that speaks something else, or ends lines otherwise, is not waited for until the head ends."""
    assert parse_in(cut(data, 1)).startswith("400")


def test_many_extensions_are_fine_beside_much_content() -> None:
    """The allowance for extensions grows with the content, so that no honest client meets it."""
    body = b"".join(b"%x;signature=%s\r\n%s\r\n" % (8192, b"a" * 80, b"x" * 8192) for _ in range(50)) + b"0\r\n\r\n"
    assert parse_in(cut(chunks(body), 5000)) == "/p"
    assert parse_in([chunks(b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n")]) == "/p"


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=6),
    st.sampled_from((b"", b";a", b' ; a="b;c"', b";a=b")),
    st.sampled_from((b"", b"X: y\r\n", b"X: y\r\nZ:\r\n")),
    st.integers(1, 400),
)
def test_chunked_body_is_the_same_in_any_pieces(
    content: list[bytes], extension: bytes, trailer: bytes, size: int
) -> None:
    """However the network cuts a chunked body: its content comes out, and what follows it is left."""
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in content)
    data = chunks(body + b"0" + extension + b"\r\n" + trailer + b"\r\n") + get()
    found = gunicorns(*cut(data, size))
    assert (found.body, found.rest) == (b"".join(content), get())


@pytest.mark.parametrize("codings", ["gzip, chunked", "GZIP ,chunked", "deflate, chunked", "identity, chunked"])
def test_transfer_coding_that_is_not_implemented_is_501(codings: str) -> None:
    """Compressed content is not taken for plain (RFC 9112 section 6.1)."""
    body = b"5\r\nhello\r\n0\r\n\r\n"
    assert parse_in([get(f"Transfer-Encoding: {codings}", line="POST /p HTTP/1.1", body=body)]).startswith("501")
    lines = (f"Transfer-Encoding: {coding}" for coding in codings.split(","))
    assert parse_in([get(*lines, line="POST /p HTTP/1.1", body=body)]).startswith("501")


@pytest.mark.parametrize(
    "host", ["h", "h:80", "h:", "", "127.0.0.1:8080", "[::1]", "[::1]:80", "a_b", "A.b-c.", "a%20b"]
)
def test_host_is_a_host(host: str) -> None:
    """`uri-host [":" port]`, and nothing where the target has no authority (RFC 9112 section 3.2)."""
    assert is_host(host)
    assert parse_in([get(f"Host: {host}", host=False, line="PUT /p HTTP/1.1")]) == "/p"


@pytest.mark.parametrize(
    "host",
    ["a b", "a/b", "u@h", "h:x", "h:1:2", "[::1", "::1", "[::g]", "[fe80::1%eth0]", "[1.2.3.4]", "é", "a%2", "a\\b"],
)
def test_host_that_is_none_is_400(host: str) -> None:
    """What stands in Host and is no host is read differently by others; also in HTTP/1.0."""
    assert not is_host(host)
    for version in ("1.1", "1.0"):
        said = parse_in([get(f"Host: {host}", host=False, line=f"PUT /p HTTP/{version}")])
        assert said.startswith("400 Host is not a host")


def test_missing_and_second_host_are_400() -> None:
    """HTTP/1.1 has exactly one Host (RFC 9112 section 3.2); HTTP/1.0 may have none."""
    assert parse_in([get(host=False)]) == "400 there is no Host header field"
    assert parse_in([get(host=False, line="GET http://h/p HTTP/1.1")]) == "400 there is no Host header field"
    assert parse_in([get("Host: h")]).startswith("400")
    assert parse_in([get(host=False, line="GET /p HTTP/1.0")]) == "/p"


@pytest.mark.parametrize("version", ["2.0", "2.1", "3.7", "9.9"])
@pytest.mark.parametrize("line", ["GET /p", "PRI *"])
def test_higher_major_version_is_505_at_once(line: str, version: str) -> None:
    """A client that begins with a later version of HTTP is told so (RFC 9110 section 15.6.6), before its head ends."""
    said = f"505 HTTP/{version} is not supported; HTTP/1.1 is"
    assert parse_in(cut(f"{line} HTTP/{version}\r\n".encode(), 1)) == said
    assert parse_in([get(line=f"{line} HTTP/{version}")]) == said


@pytest.mark.parametrize(("given", "version"), [("1.0", "1.0"), ("1.1", "1.1"), ("1.2", "1.1"), ("1.9", "1.1")])
def test_higher_minor_version_is_the_highest_we_have(given: str, version: str) -> None:
    """HTTP/1.2 is processed, and named to the application, as HTTP/1.1 (RFC 9110 section 2.5)."""
    found = gunicorns(get(line=f"PUT /p HTTP/{given}"))
    assert (found.environ["SERVER_PROTOCOL"], found.keep) == (f"HTTP/{version}", version == "1.1")


@pytest.mark.parametrize("target", ["h:443", "[::1]:443"])
def test_authority_of_connect_is_a_host_and_a_port(target: str) -> None:
    """RFC 9112 section 3.2.3."""
    gunicorns(get(line=f"CONNECT {target} HTTP/1.1"))
    for odd in (f"u:p@{target}", f"{target}x", f":{target}", f"http://{target}"):
        assert parse_in([get(line=f"CONNECT {odd} HTTP/1.1")]).startswith("400 the request target has an authority")


def test_rejected_head_goes_back_whole() -> None:
    """Whoever responds to a head that is rejected finds all of it that came, also after a good request."""
    good, head = get(line="PUT /p HTTP/1.1"), get("Origin: https://a", "X Y: 1")
    for size in (1, 9, 1000):
        parser = StrictParser(config(), Wire(*cut(good + head, size)), ("127.0.0.1", 1))
        next(parser)
        with pytest.raises(errors.ParseException):
            next(parser)
        assert malformed.origin_in(parser.unreader.take_buffered()) == "https://a"


def test_origin_is_that_of_the_head() -> None:
    """Neither a body nor the next request says what page sent this one."""
    assert malformed.origin_in(get("X: 1") + get("Origin: https://a")) == ""
    assert malformed.origin_in(b"GET / HTTP/1.1\r\nX Y: 1\r\nORIGIN:\t https://a \r\nOri") == "https://a"


def test_cookies_in_several_fields_are_one_list() -> None:
    """Fields of Cookie are joined by a semicolon (RFC 9113 section 8.2.3), others by a comma, each in order."""
    environ = gunicorns(post("Cookie: theme=dark", "X: 1", "cookie: sid=s1", "X: 2", "Cookie: a=b; c=d")).environ
    assert environ["HTTP_COOKIE"] == "theme=dark; sid=s1; a=b; c=d"
    assert environ["HTTP_X"] == "1,2"


@pytest.mark.parametrize(
    ("version", "lines", "keeps"),
    [
        ("1.1", (), True),
        ("1.1", ("close",), False),
        ("1.1", ("TE, close",), False),
        ("1.1", ("close,TE",), False),
        ("1.1", ("TE", "Close"), False),
        ("1.1", ("keep-alive, CLOSE",), False),
        ("1.1", ("keep-alive", "x", "close"), False),
        ("1.1", ("closed, not-close",), True),
        ("1.0", (), False),
        ("1.0", ("keep-alive",), True),
        ("1.0", ("TE, Keep-Alive",), True),
        ("1.0", ("TE", "keep-alive"), True),
        ("1.0", ("keep-alive, close",), False),
    ],
)
def test_close_counts_wherever_it_stands(version: str, lines: tuple[str, ...], keeps: bool) -> None:
    """Connection is a list, in any number of fields and in any case (RFC 9112 sections 9.3 and 9.6)."""
    fields = (f"Connection: {line}" for line in lines)
    assert gunicorns(get(*fields, line=f"PUT /p HTTP/{version}")).keep is keeps


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("::FFFF:7f00:1", "127.0.0.1"),
        ("0:0:0:0:0:ffff:192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("2001:db8::ffff:1", "2001:db8::ffff:1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("", ""),
    ],
)
def test_mapped_address_is_the_ipv4_address(address: str, shown: str) -> None:
    """An IPv4 client of a listener on `::` has its IPv4 address, and every other address stays as it is."""
    assert unmapped(address) == shown


def test_mapped_address_in_a_proxy_line_is_the_ipv4_address() -> None:
    """A load balancer may write an IPv4 client's address in the form of IPv6."""
    line = b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.1 5555 80\r\n"
    found = gunicorns(line + get(), cfg=config(proxy_protocol="v1"), peer=("127.0.0.1", 1))
    assert found.environ["REMOTE_ADDR"] == "192.0.2.7"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.LimitRequestHeaders("x"), "431 Request Header Fields Too Large"),
        (errors.UnsupportedTransferCoding("x"), "501 Not Implemented"),
        (errors.InvalidHeader("x"), "400 Bad Request"),
        (errors.InvalidResponseHeader("x"), "500 Internal Server Error"),
        (RuntimeError("x"), "500 Internal Server Error"),
    ],
    ids=repr,
)
def test_status_and_phrase_agree(error: Exception, status: str) -> None:
    """The status line and the title have the phrase of the status, whatever was wrong."""
    found = malformed.status_of(error)
    answer = malformed.response(found, malformed.detail_of(found, error)).decode()
    assert answer.startswith(f"HTTP/1.1 {status}\r\n")
    assert f'"title":"{status[4:]}"' in answer
