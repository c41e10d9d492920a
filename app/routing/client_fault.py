"""Whether an error response says that the request is at fault, and not the model server.

Some model servers respond with 500, or even 503, to a request that none could serve, such as a prompt that is too long.
The status does not tell that, so the text of the body is searched for what the model's route lists. Nothing is parsed:
the text may be JSON, HTML or anything else.
"""

import re
import zlib
from collections.abc import Iterable

from app.http_fields import Headers

MOST_BYTES = 1 << 16
"""No more of a body is searched. The limit holds before and after it is decompressed."""

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""The codings that are decompressed (RFC 9110 section 8.4.1), and what zlib has to be told for them."""
_WITHOUT_ZLIB_HEADER = -15
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


def is_clients_fault(headers: Headers, body: bytes, texts: Iterable[str]) -> bool:
    """Whether one of these texts is in the body of an error response, or in its beginning. Case is ignored."""
    plain = _decompressed(headers, body[:MOST_BYTES])
    if not plain:
        return False
    text = plain.decode(errors="replace").casefold()
    # A text is listed as people read it or as it is sent: some servers escape an apostrophe.
    unescaped = _ESCAPE.sub(lambda found: chr(int(found[1], 16)).casefold(), text)
    return any(each in text or each in unescaped for each in map(str.casefold, texts))


def _decompressed(headers: Headers, body: bytes) -> bytes:
    """Returns the beginning of the body without its content coding, empty for a coding that is not known or wrong."""
    codings = ",".join(value for name, value in headers if name == "content-encoding").strip().lower()
    if codings in ("", "identity"):
        return body
    if codings not in _WINDOW_BITS:
        return b""
    try:
        return _inflated(body, _WINDOW_BITS[codings])
    except zlib.error:
        pass
    if codings != "deflate":
        return b""
    try:  # some servers leave out the header and checksum that belong to `deflate` (RFC 9110 section 8.4.1.2)
        return _inflated(body, _WITHOUT_ZLIB_HEADER)
    except zlib.error:
        return b""


def _inflated(body: bytes, window_bits: int) -> bytes:
    """Returns the beginning of what is compressed. Raises zlib.error."""
    return zlib.decompressobj(window_bits).decompress(body, MOST_BYTES)
