"""Reading a client's JSON body: what can't be read, or may be read in two ways, is an error before any permit."""

import re
from collections.abc import Callable, Mapping
from functools import cache

import msgspec
from msgspec import Raw

from app.errors import InvalidRequest, UnsupportedBody
from app.protocols.interfaces import ClientRequest
from app.protocols.json_body import MalformedJson, T, Text, check_utf8, decode, given, type_of, without

_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")

_START_BYTES = 1 << 10

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
    model and the model server would run the other. `found` is what `decoder` found in the body.
    """
    small = request.body.lower()
    for name in names:
        if small.count(_quoted(name)) != (name in found):
            break  # perhaps in a nested object, or a value
    else:
        if b"\\" not in small or _ESCAPED_LETTER.search(small) is None:
            return
    # The same JSON in small letters, of the same length: what is a place in one is a place in the other.
    for capital, letter in _escaped_capitals(names):
        small = small.replace(capital, letter)
    first = given(read_request(decoder, request, small))
    rest = given(read_request(decoder, request, without(small, first.values())))
    for name in names:
        if name in rest:
            raise InvalidRequest(f"the body has the member `{name}` twice, the case of its letters ignored")
        if name in first and name not in found:
            raise InvalidRequest(f"the body has a member `{name}` with other capitals; write it in small letters")


@cache
def _escaped_capitals(names: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
    """Returns the escapes of the capitals of all letters in these names, each with that of the small letter."""
    return [(b"\\u00%02x" % ord(letter.upper()), b"\\u00%02x" % ord(letter)) for letter in set("".join(names))]


@cache
def _quoted(name: str) -> bytes:
    return b'"%b"' % name.encode()


def text_of(name: str, value: Raw) -> str | None:
    """Returns a member that may be a string or null. Raises InvalidRequest."""
    try:
        return _text.decode(value)
    except msgspec.ValidationError as error:
        raise not_a_string(name, f"it is of type {type_of(value)}") from error


def not_a_string(name: str, found: str) -> InvalidRequest:
    """Returns the error for a member that should be a string."""
    return InvalidRequest(f"`{name}` must be a string - at `$.{name}`: {found}")
