"""JSON bodies, read no further than the router has to understand them.

Decoding a float or a small integer may cost a hundred times as much as skipping it, in time and in memory. So a body is
decoded into a struct whose members are all `msgspec.Raw`: views of the bytes, checked but not decoded. A member is
replaced or left out by its place among the bytes; all other bytes stay as they were written.

`decode` is the only place that calls the decoder and maps its errors. Its nesting limit depends on the depth of the
caller's stack, so a text is decoded once and never looked through again later, where an error would cost a permit.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from ctypes import POINTER, PYFUNCTYPE, Structure, byref, c_byte, c_int, c_void_p, py_object, pythonapi
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from app.http_fields import Headers

Text = bytes | memoryview
T = TypeVar("T")
MaybeRaw = Raw | UnsetType

_UTF8_STEP = 1 << 16
_SPACE_AND_COMMA = re.compile(rb"[ \t\r\n]*,?")
_TO_THE_END = re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*")
_UNPAIRED = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])....|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)*+(\\u[dD][89a-fA-F]..)",
    re.DOTALL,
)
_TYPES = {b"n": "null", b"t": "boolean", b"f": "boolean", b'"': "string", b"[": "array", b"{": "object"}
_JSON = "application/json"
_CONTENT_TYPE = "content-type"
_CONTENT_ENCODING = "content-encoding"
_ABOUT_CONTENT = frozenset((_CONTENT_TYPE, _CONTENT_ENCODING))


class MalformedJson(ValueError):
    """The text is not JSON, or not of the expected form; the message says where it is wrong."""


def decode(decoder: Callable[[Text], T], text: Text) -> T:
    """Returns the decoded text. Raises MalformedJson, whatever is wrong with it."""
    try:
        return decoder(text)
    except msgspec.ValidationError as error:
        raise MalformedJson(str(error)) from error
    except msgspec.DecodeError as error:
        unpaired = _UNPAIRED.match(text)
        if unpaired is None:
            raise MalformedJson(str(error)) from error
        escape = unpaired[1].decode(errors="replace")
        raise MalformedJson(f"the surrogate {escape} has no other half (byte {unpaired.start(1)})") from error
    except UnicodeError as error:
        raise MalformedJson(f"it is not UTF-8: {error}") from error
    except RecursionError as error:
        raise MalformedJson("it is nested too deeply") from error


def check_utf8(text: Text) -> None:
    """Raises MalformedJson for bytes that are not UTF-8. The decoder checks only what it decodes."""
    if isinstance(text, bytes) and text.isascii():
        return
    # Piece by piece: decoded at once, it would be a copy of up to four times the size.
    step = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(text) + 1, _UTF8_STEP):
        piece = text[at : at + _UTF8_STEP]
        try:
            step.decode(piece, final=at + _UTF8_STEP > len(text))
        except UnicodeDecodeError as error:
            pending = len(error.object) - len(piece)
            where = at + error.start - pending
            raise MalformedJson(f"it is not UTF-8: byte 0x{error.object[error.start]:02x} at {where}") from error


def given(members: msgspec.Struct) -> dict[str, Raw]:
    """Returns the members that the text has, of a struct whose fields are all `MaybeRaw`."""
    return {name: value for name in members.__struct_fields__ if (value := getattr(members, name)) is not UNSET}


def span(text: bytes, value: Raw | memoryview) -> tuple[int, int]:
    """Returns where a value begins and ends in the text of which it is a view."""
    begin = _address(value) - _address(text)
    if not 0 <= begin <= len(text) - len(value):
        raise ValueError("the value is no view of this text")
    return begin, begin + len(value)


def with_member(text: bytes, name: str, value: Raw | memoryview | None, new: bytes) -> Sequence[Text]:
    """Returns the object with another value of a member, in parts.

    `value` is the one that it has, None if it has no such member.
    """
    view = memoryview(text)
    if value is not None:
        begin, end = span(text, value)
        return view[:begin], new, view[end:]
    begin = text.index(b"{") + 1
    comma = b"" if _TO_THE_END.fullmatch(text, begin) else b","
    return view[:begin], b'"%b":' % name.encode(), new, comma, view[begin:]


def without(text: bytes, values: Iterable[Raw]) -> bytes:
    """Returns the object without the members that have these values."""
    return object_of((), text, values)


def object_of(first: Sequence[Text], text: bytes, values: Iterable[Raw]) -> bytes:
    """Returns an object of the members `first`, text in parts, and those of `text` but the ones with these values."""
    view = memoryview(text)
    kept: list[memoryview] = []
    at = text.index(b"{") + 1
    for begin, end in sorted(span(text, value) for value in values):
        # Before a value are its colon and its key, of which no quote is a part. Before them is the comma of the member
        # before, if there is one.
        key_end = text.rindex(b'"', 0, text.rindex(b":", 0, begin))
        key = text.rindex(b'"', 0, key_end)
        comma = text.rfind(b",", at, key)
        if comma >= 0:
            kept.append(view[at:comma])
        after = _SPACE_AND_COMMA.match(text, end)
        at = after.end() if after else end
    if not _TO_THE_END.fullmatch(text, at):
        kept.append(view[at : text.rindex(b"}")])
    # Joined once: the members may be megabytes.
    parts = list(first)
    for member in kept:
        parts += (b",", member) if parts else (member,)
    return b"".join((b"{", *parts, b"}"))


def type_of(value: Raw) -> str:
    """Returns JSON's name for the type of a value."""
    return _TYPES.get(bytes(memoryview(value)[:1]), "number")


def as_json(headers: Headers) -> Headers:
    """Returns the headers of a body that was read as JSON: so it is JSON and not compressed, whatever was declared."""
    if (_CONTENT_TYPE, _JSON) in headers and _CONTENT_ENCODING not in dict(headers):
        return headers
    return [header for header in headers if header[0] not in _ABOUT_CONTENT] + [(_CONTENT_TYPE, _JSON)]


class _Buffer(Structure):
    """The beginning of CPython's Py_buffer, and room for the rest of it (80 bytes in all)."""

    _fields_ = (("address", c_void_p), ("rest", c_byte * 72))
    address: int


_get_buffer: Any = PYFUNCTYPE(c_int, py_object, POINTER(_Buffer), c_int)(("PyObject_GetBuffer", pythonapi))
_release_buffer: Any = PYFUNCTYPE(None, POINTER(_Buffer))(("PyBuffer_Release", pythonapi))


def _address(value: object) -> int:
    """Returns where an object's bytes are in memory. They stay there as long as the object is referred to."""
    buffer = _Buffer()
    _get_buffer(value, byref(buffer), 0)
    try:
        return buffer.address or 0
    finally:
        _release_buffer(byref(buffer))
