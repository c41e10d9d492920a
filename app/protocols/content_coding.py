"""The beginning of a body that may be compressed (RFC 9110 section 8.4.1)."""

import zlib

from app.http_fields import Headers

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""The codings that are decompressed (RFC 9110 section 8.4.1), and what zlib has to be told for them."""
_WITHOUT_ZLIB_HEADER = -15


def decompressed(headers: Headers, body: bytes, most: int) -> bytes:
    """Returns the beginning of the body, up to `most` bytes, without the content coding that the headers declare.

    It is empty for a coding that is not known, or wrong.
    """
    codings = ",".join(value for name, value in headers if name == "content-encoding").strip().lower()
    if codings in ("", "identity"):
        return body[:most]
    if codings not in _WINDOW_BITS:
        return b""
    try:
        return _inflated(body, _WINDOW_BITS[codings], most)
    except zlib.error:
        pass
    if codings != "deflate":
        return b""
    try:  # some servers leave out the header and checksum that belong to `deflate` (RFC 9110 section 8.4.1.2)
        return _inflated(body, _WITHOUT_ZLIB_HEADER, most)
    except zlib.error:
        return b""


def _inflated(body: bytes, window_bits: int, most: int) -> bytes:
    """Returns the beginning of what is compressed. Raises zlib.error."""
    return zlib.decompressobj(window_bits).decompress(body, most)
