"""The reader of a form that is uploaded (multipart/form-data, RFC 7578), as it arrives and without keeping the files.

It finds the field `model`, and goes on looking for a second one to the end: a model server may take the last of two,
and the router would limit and count one model while another one runs. For the same reason it refuses what parsers
read in different ways, wherever it is: a delimiter after a bare line feed, one that goes on (`--boundaryX`), two names
in one part, a name in an extended notation (`name*=`), a `model` that is a file or encoded.

The grammar is RFC 2046 section 5.1.1. An epilogue is allowed and not looked at. A preamble is allowed, but may not have
the delimiter within a line: some parsers skip blanks before the first one.
"""

import re
from enum import Enum, auto
from typing import NamedTuple

from app.errors import InvalidRequest, UnsupportedBody
from app.http_fields import FIELD_NAME

FORM = "multipart/form-data"
MODEL_WITHIN_BYTES = 1 << 16
"""The field `model` begins within so many bytes of the body: what comes before it has to be held until it is known."""
NO_MODEL = f"the form needs a field `model` that begins in its first {MODEL_WITHIN_BYTES} bytes"
_MAX_PART_HEAD_BYTES = 1 << 14
_MAX_MODEL_BYTES = 1 << 10
_MAX_PADDING_BYTES = 256
_MODEL = "model"

_MEDIA_TYPE = re.compile(r"multipart/form-data(?=[ \t]*(?:;|\Z))", re.IGNORECASE)
_QUOTED = r'"((?:[^"\\\r\n]|\\[^\r\n])*+)"'
_PARAMETER = re.compile(rf"[ \t]*;[ \t]*(?:({FIELD_NAME})[ \t]*=[ \t]*(?:{_QUOTED}|({FIELD_NAME})))?[ \t]*")
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
"""RFC 2046 section 5.1.1: 1 to 70 characters, the last no blank."""
_AFTER_DELIMITER = re.compile(rb"(--)?[ \t]*+(\r\n)?")
_FIELD = re.compile(rf"({FIELD_NAME}):[ \t]*([^\x00\r\n]*)")
_FOLD = re.compile(r"\r\n[ \t]+")
_PLAIN_ENCODINGS = frozenset(("7bit", "8bit", "binary"))


class ModelField(NamedTuple):
    """The value of the field `model`, and where it is in the body."""

    name: str
    begin: int
    end: int


class _Where(Enum):
    """What the next byte belongs to."""

    PREAMBLE = auto()
    HEAD = auto()
    """The head of a part."""
    MODEL = auto()
    """The content of the part `model`."""
    CONTENT = auto()
    """The content of another part."""
    EPILOGUE = auto()


def boundary_of(content_type: str) -> bytes:
    """Returns the boundary that the content type of a form names.

    Raises UnsupportedBody for another media type, and InvalidRequest for a boundary that is missing or none.
    """
    found = _MEDIA_TYPE.match(content_type)
    if found is None:
        raise UnsupportedBody(f"this path takes a form; send {FORM}", accepts=FORM)
    boundary = _parameters(content_type[found.end() :], "Content-Type").get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise InvalidRequest("Content-Type needs a `boundary` of 1 to 70 characters (RFC 2046 section 5.1.1)")
    return boundary.encode()


class FormReader:
    """Reads a form from pieces that are cut anywhere."""

    __slots__ = (
        "_before",
        "_closed",
        "_content_begin",
        "_dash_boundary",
        "_data",
        "_part_begin",
        "_pos",
        "_where",
        "model",
    )

    def __init__(self, boundary: bytes) -> None:
        self._dash_boundary = b"--" + boundary
        self._data = b"\r\n"  # as if a line ended before the body: a delimiter may be its first bytes
        self._pos = 0  # all before this index of `_data` is read
        self._before = -2  # bytes of the body before `_data`
        self._where = _Where.PREAMBLE
        self._part_begin = 0
        self._content_begin = -2
        self._closed = False  # whether the last delimiter has come
        self.model: ModelField | None = None
        """The field, once all of it has come."""

    @property
    def model_may_come(self) -> bool:
        """Whether a field `model` may yet begin within `MODEL_WITHIN_BYTES`, or has begun there."""
        inside = self._where in (_Where.HEAD, _Where.MODEL)
        read = self._part_begin if inside else self._before + self._pos
        return self._where is not _Where.EPILOGUE and read <= MODEL_WITHIN_BYTES

    def feed(self, piece: bytes) -> None:
        """Read more of the body. Raises InvalidRequest."""
        if self._where is _Where.EPILOGUE:
            return
        self._before += self._pos
        self._data = self._data[self._pos :] + piece
        self._pos = 0
        while self._read_head() if self._where is _Where.HEAD else self._read_content():
            pass

    def end(self) -> None:
        """The body has ended. Raises InvalidRequest if the form has not."""
        if not self._closed:
            raise InvalidRequest("the form ends without its last delimiter")

    def _read_content(self) -> bool:
        """Read up to the end of the next delimiter. Returns whether it was there, and a part follows."""
        data, pos = self._data, self._pos
        begin = data.find(self._dash_boundary, pos)
        while begin >= 0 and self._is_within_line(begin):
            if self._where is _Where.PREAMBLE:
                raise InvalidRequest("the form has its delimiter within a line before the first part")
            begin = data.find(self._dash_boundary, begin + 1)
        if begin < 0:
            self._keep_tail()
            return False
        if data[begin - 2 : begin] != b"\r\n" or begin - 2 < pos:
            raise InvalidRequest("the form has a delimiter that does not follow a line end, which is CR LF")
        after = _AFTER_DELIMITER.match(data, begin + len(self._dash_boundary))
        assert after is not None
        self._closed = bool(after[1])
        if after[1] or after[2]:
            self._end_content(begin - 2)
        if after[2] is None:
            self._check_incomplete(begin, after)
            return False
        self._part_begin = self._before + begin
        self._pos = after.end()
        self._where = _Where.EPILOGUE if after[1] else _Where.HEAD
        return self._where is _Where.HEAD

    def _is_within_line(self, begin: int) -> bool:
        """Whether what looks like a delimiter at this index is content, because something precedes it in its line."""
        if begin > self._pos:
            return self._data[begin - 1] not in b"\r\n"
        # What precedes it is not kept. It has been looked at before (see `_keep_tail`), or it is the head of the part.
        return self._before + begin != self._content_begin

    def _check_incomplete(self, begin: int, after: "re.Match[bytes]") -> None:
        """Raises InvalidRequest unless what is there may become a delimiter when more comes, or the body ends."""
        rest = self._data[after.end() :]
        if rest not in (b"", b"\r") and not (rest == b"-" and not after[0]):
            raise InvalidRequest("the form has a line that begins with its delimiter and goes on")
        if after.end() - begin - len(self._dash_boundary) > _MAX_PADDING_BYTES:
            raise InvalidRequest("the form has a delimiter with too many blanks after it")

    def _keep_tail(self) -> None:
        """Pass over what is content for sure. The rest may be a line end and the beginning of a delimiter.

        So a delimiter that is not complete yet begins at least two bytes after `_pos`.
        """
        settled = len(self._data) - len(self._dash_boundary) - 1
        if self._where is _Where.MODEL:
            self._check_model_length(settled - self._pos)
        elif settled > self._pos:
            self._pos = settled

    def _end_content(self, end: int) -> None:
        """The content of a part ends at this index of `_data`."""
        if self._where is not _Where.MODEL:
            return
        pos = self._pos
        self._check_model_length(end - pos)
        try:
            name = self._data[pos:end].decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest("the form field `model` is not UTF-8") from error
        self.model = ModelField(name, self._before + pos, self._before + end)
        self._where = _Where.CONTENT

    def _check_model_length(self, length: int) -> None:
        if length > _MAX_MODEL_BYTES:
            raise InvalidRequest(f"the form field `model` is longer than {_MAX_MODEL_BYTES} bytes")

    def _read_head(self) -> bool:
        """Read the head of a part. Returns whether all of it was there."""
        if self._data.startswith(b"\r\n", self._pos):
            raise InvalidRequest("the form has a part without a head")
        end = self._data.find(b"\r\n\r\n", self._pos)
        if (len(self._data) if end < 0 else end) - self._pos > _MAX_PART_HEAD_BYTES:
            raise InvalidRequest(f"the form has a part whose head is longer than {_MAX_PART_HEAD_BYTES} bytes")
        if end < 0:
            return False
        is_model = _is_model(self._data[self._pos : end].decode("latin-1"))
        if is_model and self.model is not None:
            raise InvalidRequest("the form has the field `model` twice")
        if is_model and self._part_begin > MODEL_WITHIN_BYTES:
            raise InvalidRequest(NO_MODEL)
        self._where = _Where.MODEL if is_model else _Where.CONTENT
        self._pos = end + 4
        self._content_begin = self._before + self._pos
        return True


def _is_model(head: str) -> bool:
    """Whether this is the head of the part `model`. Raises InvalidRequest for a head that is malformed."""
    disposition, encoding = None, "8bit"
    for line in _FOLD.sub(" ", head).split("\r\n"):
        found = _FIELD.fullmatch(line)
        if found is None:
            raise InvalidRequest("the form has a part whose head is malformed")
        name, value = found[1].lower(), found[2].strip(" \t")
        if name == "content-disposition":
            if disposition is not None:
                raise InvalidRequest("the form has a part with two Content-Disposition")
            disposition = value
        elif name == "content-transfer-encoding":
            encoding = value.lower()
    if disposition is None or disposition.partition(";")[0].strip(" \t").lower() != "form-data":
        raise InvalidRequest("the form has a part without Content-Disposition: form-data (RFC 7578 section 4.2)")
    given = _parameters(disposition[len("form-data") :], disposition)
    if any(name.startswith("name*") for name in given):
        raise InvalidRequest("the form has a name in an extended notation (RFC 7578 section 5.1)")
    if given.get("name") != _MODEL:
        return False
    if len(given) > 1 or "\\" in disposition or encoding not in _PLAIN_ENCODINGS:
        raise InvalidRequest("the form field `model` must be plain text: no file, not encoded, its name not escaped")
    return True


def _parameters(text: str, whole: str) -> dict[str, str]:
    """Returns the parameters (RFC 9110 section 5.6.6), names in small letters, quoted pairs resolved."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        one = _PARAMETER.match(text, at)
        if one is None:
            raise InvalidRequest(f"the parameters of {whole[:200]!r} are malformed")
        at = one.end()
        if one[1] is None:
            continue  # a semicolon at the end, or two in a row
        name, quoted, token = one[1].lower(), one[2], one[3]
        if name in found:
            raise InvalidRequest(f"{whole[:200]!r} has the parameter {name!r} twice")
        found[name] = token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    return found
