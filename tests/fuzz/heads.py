"""Fuzzes the fast path's reader of requests beside the strict one: `python -m tests.fuzz.heads -max_total_time=60`.

For any bytes: the reader raises nothing and takes but a moment. What it takes, the strict parser takes too, and means
the same by it: environ, body, what follows the body, and whether the connection is kept.
"""

import time

from tests.fuzz.engine import fuzz, instrumented

with instrumented("app.server.fast_path", "app.server.request_parser", "app.server.chunked_body", "gunicorn.http"):
    from tests.support.parsers import Read, gunicorns, taken

from tests.support.requests_corpus import CORPUS, LIMIT_LINE

_LONGEST_SEED = LIMIT_LINE + 200  # a longer head is never ordinary
_MOMENT_S = 0.1  # of the processor's time, a hundred times what the longest head needs
_PEERS = (("127.0.0.9", 4711), ("127.0.0.1", 4711))  # the second may say by a header that it spoke https
_FIELDS = (
    *(b"Host: h", b"Content-Length: 5", b"Content-Length: +5", b"Content_Length: 5", b"Content-Type: a", b"X-A: a"),
    *(b"Transfer-Encoding: chunked", b"TE: a", b"Trailer: a", b"Upgrade: a", b"Expect: 100-continue"),
    *(
        b"Host:",
        b"Host: a b",
        b"Host: [::1]:80",
        b"Connection: close",
        b"Connection: a, close",
        b"Connection: a",
        b"HTTP2-Settings: a",
        b"Cookie: a",
        b"Proxy: a",
        b"Remote-User: a",
    ),
    *(b"X-Forwarded-Proto: https", b"X-Forwarded-Protocol: ssl", b"X-Forwarded-SSL: on"),
    *(b"SCRIPT_NAME: /", b"Script-Name: /", b"PATH_INFO: /"),
)
_TOKENS = (
    *(b"\r\n", b"\r\n\r\n", b"\r", b"\n", b"\r\n ", b" \t", b"\x00", b"\x0b", b"\x7f", b"\x85", b"\xa0", b"\xb2"),
    *(b": ", b" :", b"_", b"#", b"%2F", b"%00", b"//", b"?", b";", b",", b"+", b"-1", b"0x5", b"99999999999999999999"),
    *(b"GET ", b"HEAD ", b"POST ", b"GET / HTTP/1.1\r\n", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"http://h/"),
    *(b"\r\n0\r\n\r\n", *(b"\r\n" + field for field in _FIELDS)),
)


def head(data: bytes) -> None:
    """Read the bytes both ways, and compare."""
    peer = _PEERS[len(data) % 2]
    theirs = _gunicorns(data, peer)  # also of what the fast path refuses, so that the fuzzer learns what a request is
    began = time.thread_time()
    found = taken(data, peer=peer)
    took = time.thread_time() - began
    assert took < _MOMENT_S, f"read in {took:.3f} s"
    if found is None:
        return
    assert isinstance(theirs, Read), f"taken as {found}, and refused by gunicorn's parser: {theirs!r}"
    assert found == theirs, f"differ in {_differences(found, theirs)}"
    middle = (data.index(b"\r\n\r\n") + 4 + len(data)) // 2
    if middle < len(data):  # half of what follows the head has still to come
        assert taken(data[:middle], data[middle:], peer=peer) == found


def _gunicorns(data: bytes, peer: tuple[str, int]) -> Read | Exception:
    try:
        return gunicorns(data, peer=peer)
    except Exception as refusal:
        return refusal


def _differences(one: Read, other: Read) -> str:
    keys = [key for key in one.environ | other.environ if one.environ.get(key) != other.environ.get(key)]
    pairs = [(key, one.environ.get(key), other.environ.get(key)) for key in keys]
    pairs += [(name, getattr(one, name), getattr(other, name)) for name in ("body", "rest", "keep")]
    return ", ".join(f"{name}: {ours!r}, not {theirs!r}" for name, ours, theirs in pairs if ours != theirs)


if __name__ == "__main__":
    fuzz(head, (entry.data for entry in CORPUS.values() if len(entry.data) <= _LONGEST_SEED), _TOKENS)
