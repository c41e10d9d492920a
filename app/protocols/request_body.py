"""Reading a client's JSON body: what can't be read, or may be read in two ways, is an error before any permit."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import msgspec
from msgspec import Raw

from app.errors import InvalidRequest, UnsupportedBody
from app.protocols.interfaces import ClientRequest
from app.protocols.json_body import MalformedJson, T, Text, check_utf8, decode, given, type_of, without

_ESCAPED_LETTER = re.compile(rb"\\u(?:00[4-7]|017[Ff]|212[Aa])")
_OTHER_CASES = {"s": "\u017f", "k": "\u212a"}
"""Characters beyond ASCII that are ASCII letters when case is ignored: the long s and the Kelvin sign.

There are no others in Unicode's simple case folding (CaseFolding.txt, status C and S), by which Go's encoding/json
compares names. So `"me\u017f\u017fages"` is `messages` there.
"""

_START_BYTES = 1 << 10
_LONG_BYTES = 1 << 14
_MOST_MARKS = 200
"""After so many quotation marks, the rest of a long body is not one of a few long strings."""

_text: msgspec.json.Decoder[str | None] = msgspec.json.Decoder(str | None)


def read_request(decoder: Callable[[Text], T], request: ClientRequest, text: Text) -> T:
    """Returns the decoded body of a client's request, or the part of it that is JSON.

    Raises UnsupportedBody for one that is compressed, and InvalidRequest for any other that can't be read.
    """
    try:
        check_utf8(text)
        return decode(decoder, text)
    except MalformedJson as error:
        encoding = request.header("Content-Encoding")
        if encoding and encoding.strip().lower() != "identity":
            raise UnsupportedBody(f"the body has Content-Encoding {encoding!r}; send it uncompressed") from error
        if not bytes(text[:_START_BYTES]).strip():
            raise InvalidRequest("the body is empty; send a JSON object") from error
        raise InvalidRequest(f"the body is not a JSON object that can be read: {error}") from error


def refuse_ambiguous(
    decoder: Callable[[Text], msgspec.Struct], request: ClientRequest, found: Mapping[str, Raw], names: tuple[str, ...]
) -> None:
    """Raises InvalidRequest if the body has one of these members twice, or spelled with other capitals.

    Of `{"model": "a", "Model": "b"}` one parser takes a and another one b, so the router would limit and count one
    model and the model server would run the other. `found` is what `decoder` found in the body. Case is ignored as Go
    does (`strings.EqualFold`), whether characters are escaped or not.
    """
    body = request.body
    folds = _folds(names)
    for name in names:
        if _occurrences(_quoted(name), body) != (name in found):
            break  # perhaps in a nested object, or a value
    else:
        others = folds.raw and not body.isascii() and any(other in body for other, _ in folds.raw)
        if not others and (b"\\" not in body or _ESCAPED_LETTER.search(body) is None):
            return
    small = body.lower()
    for other, letter in (*folds.raw, *folds.escaped):
        small = small.replace(other, letter)
    first = given(read_request(decoder, request, small))
    rest = given(read_request(decoder, request, without(small, first.values())))
    for name in names:
        if name in rest:
            raise InvalidRequest(f"the body has the member `{name}` twice, the case of its letters ignored")
        if name in first and name not in found:
            raise InvalidRequest(f"the body has a member `{name}` with other capitals; write it in small letters")


class _Folds(NamedTuple):
    """What to replace by what in a body of small letters, so that names that are equal but for case are equal."""

    raw: tuple[tuple[bytes, bytes], ...]
    escaped: tuple[tuple[bytes, bytes], ...]
    """Escapes by escapes: what looks like one after a backslash that is itself escaped stays valid so."""


@cache
def _folds(names: tuple[str, ...]) -> _Folds:
    letters = sorted(set("".join(names)))
    others = [(_OTHER_CASES[letter], letter) for letter in letters if letter in _OTHER_CASES]
    capitals = [(letter.upper(), letter) for letter in letters]
    return _Folds(
        raw=tuple((other.encode(), letter.encode()) for other, letter in others),
        escaped=tuple((_escape(other), _escape(letter)) for other, letter in (*capitals, *others)),
    )


def _escape(character: str) -> bytes:
    """Returns JSON's escape of a character, in small letters."""
    return b"\\u%04x" % ord(character)


@cache
def _quoted(name: str) -> bytes:
    return b'"%b"' % name.encode()


def _occurrences(quoted: bytes, body: bytes) -> int:
    """Returns how often this text, which begins with a quotation mark, is in the body, whatever the case of either.

    Most of a long body may be one string, such as an image. It is skipped from one quotation mark to the next, as fast
    as memory is read; to make all of it small letters and to search them takes many times as long.
    """
    count = begin = 0
    if len(body) > _LONG_BYTES:
        for _ in range(_MOST_MARKS):
            begin = body.find(b'"', begin) + 1
            if not begin:
                return count
            count += body[begin - 1 : begin - 1 + len(quoted)].lower() == quoted
        body = body[begin:]
    return count + body.lower().count(quoted)


def text_of(name: str, value: Raw) -> str | None:
    """Returns a member that may be a string or null. Raises InvalidRequest."""
    try:
        return _text.decode(value)
    except msgspec.ValidationError as error:
        raise not_a_string(name, f"it is of type {type_of(value)}") from error


def not_a_string(name: str, found: str) -> InvalidRequest:
    """Returns the error for a member that should be a string."""
    return InvalidRequest(f"`{name}` must be a string - at `$.{name}`: {found}")
