"""The id of a response of OpenAI's `/v1/responses`, from the beginning of what the model server returns.

It is `id` of the JSON body, or `response.id` in the first event of a stream (`response.created`). Nothing is decoded
but the id: the tokens before it are only passed over. It stands at the beginning in what OpenAI, vLLM and SGLang
return, so no more than `_MOST_BYTES` are looked at.
"""

import re
from collections.abc import Sequence

import msgspec

from app.http_fields import Headers
from app.protocols.content_coding import decompressed
from app.protocols.json_body import MalformedJson, decode

_MOST_BYTES = 1 << 12
_MOST_TRIES = 64
_TOKEN = re.compile(rb'[ \t\r\n]*+("(?:[^"\\]|\\.)*+"|[{}\[\],:]|[^ \t\r\n"{}\[\],:]++)', re.DOTALL)
_DATA = re.compile(rb"(?:\A|[\r\n])data:")
_IN_JSON: Sequence[bytes] = (b'"id"',)
_IN_EVENT = (b'"response"', b'"id"')

_text = msgspec.json.Decoder(str)


class ResponseIdReader:
    """Looks for the id in the pieces of a body."""

    __slots__ = ("_begun", "_headers", "_is_stream", "_tries")

    def __init__(self, headers: Headers) -> None:
        """`headers` are those of the response, names in lower case."""
        self._headers = headers
        declared = next((value for name, value in headers if name == "content-type"), "")
        self._is_stream = declared.lower().startswith("text/event-stream")
        self._begun = b""
        self._tries = _MOST_TRIES

    def feed(self, piece: bytes) -> str | None:
        """Returns the id if it is complete with this piece, once."""
        if not self._tries or len(self._begun) >= _MOST_BYTES:
            return None
        self._tries -= 1
        self._begun += piece[:_MOST_BYTES]
        found = self._find()
        if found is not None:
            self._tries = 0
        return found

    def _find(self) -> str | None:
        text = decompressed(self._headers, self._begun, _MOST_BYTES)
        at, path = 0, _IN_JSON
        if self._is_stream:
            data = _DATA.search(text)
            if data is None:
                return None
            at, path = data.end(), _IN_EVENT
        value = _member(text, at, path)
        if value is None:
            return None
        try:
            return decode(_text.decode, value)
        except MalformedJson:
            return None


def _member(text: bytes, at: int, path: Sequence[bytes]) -> bytes | None:
    """Returns the string at this path of the object that begins at this index, or None if it is not there yet."""
    depth = found = 0  # found: how many names of the path
    last = b""
    while token := _TOKEN.match(text, at):
        at, one = token.end(), token[1]
        if one == b":" and depth == found + 1 and last == path[found]:
            found += 1
            value = _TOKEN.match(text, at)
            if value is None or (found < len(path) and value[1] != b"{"):
                return None
            if found == len(path):
                return value[1] if value[1][:1] == b'"' else None
        elif one in (b"{", b"["):
            depth += 1
        elif one in (b"}", b"]"):
            depth -= 1
            if depth <= found:
                return None
        last = one
    return None
