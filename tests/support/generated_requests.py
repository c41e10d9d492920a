"""Requests as hypothesis makes them: most nearly ordinary, many a little wrong, in pieces."""

from hypothesis import strategies as st

from tests.support.requests_corpus import get

TOKENS = st.text("!#$%&'*+-.^`|~0123456789abcXYZ", min_size=1, max_size=6)
_NAMES = st.one_of(
    TOKENS,
    st.sampled_from(
        (
            *("Host", "host", "Accept", "Content-Type", "Content-Length", "content-length", "Connection", "CONNECTION"),
            *("Transfer-Encoding", "TE", "Trailer", "Upgrade", "Expect", "HTTP2-Settings", "X-Forwarded-Proto"),
            *("X-Forwarded-SSL", "X-Forwarded-Protocol", "Script-Name", "SCRIPT_NAME", "X_Y", "X-Y", "Proxy", "Cookie"),
        )
    ),
)
_VALUES = st.one_of(
    st.text(st.characters(max_codepoint=255), max_size=12),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
    st.sampled_from(
        ("keep-alive", "Close", "close ", "0", "3", "07", "+3", "\xb2", "chunked", "https", "100-continue")
    ),
)
_TARGETS = st.one_of(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12).map(lambda text: "/" + text),
    st.lists(st.sampled_from(("/", "..", "%2f", "%", "%zz", "%00", "?", "#", ";", ":", "[", "]", "@", "a"))).map(
        "".join
    ),
)
BODIES = st.binary(max_size=12)


@st.composite
def generated_requests(draw: st.DrawFn) -> tuple[bytes, ...]:
    """Mostly a request, some bytes of it changed; in pieces, the first of which holds the head if nothing did that."""
    method = draw(st.sampled_from(("GET", "GET", "POST", "POST", "HEAD", "PUT", "get")))
    version = draw(st.sampled_from(("HTTP/1.1",) * 6 + ("HTTP/1.0", "HTTP/1.2")))
    fields = draw(st.lists(st.tuples(_NAMES, st.sampled_from((":", ": ", ":\t", ": \t ", " :")), _VALUES), max_size=6))
    body = draw(BODIES)
    if draw(st.booleans()):
        fields.append(("Content-Length", ": ", str(len(body) + draw(st.sampled_from((0, 0, 0, -1, 2))))))
    host = draw(st.sampled_from((("Host: h",),) * 7 + ((),)))
    lines = [f"{method} {draw(_TARGETS)} {version}", *host, *map("".join, fields), "", ""]
    data = bytearray("\r\n".join(lines).encode("latin-1"))
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2)))):
        at, what = draw(st.integers(0, len(data) - 1)), draw(st.sampled_from((b"", b"\r", b"\n", b" ", b"\x00", b"_")))
        data[at : at + draw(st.sampled_from((0, 1)))] = what or draw(st.binary(min_size=1, max_size=1))
    split = draw(st.integers(0, len(body)))
    tail = draw(st.sampled_from((b"", get(), b"G", b"\r\n")))
    return bytes(data) + body[:split], *(piece for piece in (body[split:] + tail,) if piece)
