"""From when to when the certificates in a PEM file are valid (RFC 5280 section 4.1.2.5).

Python's `ssl` tells that only of certificates which another side has shown. So the two times are read from the DER,
whose members precede one another in a fixed order. Nothing is trusted by what is read here: it is for a metric.
"""

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17  # tags
_FORMAT = "%Y%m%d%H%M%SZ"


class Validity(NamedTuple):
    """Both in seconds since 1970."""

    not_before: float
    not_after: float


def validity_of(file: Path) -> Validity | None:
    """Returns when all certificates in the file are valid: it also holds those that lead to the authority.

    None if there is none in it, or one that can't be read.
    """
    try:
        found = [_validity(ssl.PEM_cert_to_DER_cert(text)) for text in _CERTIFICATE.findall(file.read_text("latin-1"))]
    except (OSError, ValueError, IndexError):
        return None
    if not found:
        return None
    return Validity(max(each.not_before for each in found), min(each.not_after for each in found))


def _validity(der: bytes) -> Validity:
    at, _ = _content(der, 0)  # of the certificate
    at, _ = _content(der, at)  # of what is signed in it
    if der[at] == _VERSION:  # version 1 is left out
        _, at = _content(der, at)
    for _ in ("serial number", "signature algorithm", "issuer"):
        _, at = _content(der, at)
    at, _ = _content(der, at)
    not_before, at = _time(der, at)
    not_after, _ = _time(der, at)
    return Validity(not_before, not_after)


def _content(der: bytes, at: int) -> tuple[int, int]:
    """Returns where the content of the element at this place begins, and where it ends (X.690 section 8.1.3)."""
    length, begin = der[at + 1], at + 2
    if length >= 0x80:
        size = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + size], "big"), begin + size
    return begin, begin + length


def _time(der: bytes, at: int) -> tuple[float, int]:
    """Returns the time at this place, and where it ends. UTCTime has two digits of the year: 50 is 1950."""
    begin, end = _content(der, at)
    text = der[begin:end].decode("latin-1")
    if der[at] == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, _FORMAT).replace(tzinfo=UTC).timestamp(), end
