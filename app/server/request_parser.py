"""The parser of requests that are not ordinary: gunicorn's strict one, with these differences.

- **Linear.** gunicorn's parser looks through all of an incomplete head again for each piece of it that arrives. Here
  the head is collected first, with a search that goes on where the last one ended, and then parsed once. A PROXY line
  is bounded, and chunked bodies have a reader of their own (`chunked_body.py`).
- **Bounded.** gunicorn limits each field. Here `limit_request_field_size` limits all fields together.
- **Targets** (RFC 9112 section 3.2): a fragment is never sent, and the authority of an absolute target is that of an
  `http` URL: a host, perhaps a port, and no user or password (RFC 9110 sections 4.2.1 and 4.2.4).
- **Versions** (RFC 9110 section 2.5): a minor version above HTTP/1.1 is served as HTTP/1.1, and called so in the
  response. A higher major version is not supported: 505.
- **Host** (RFC 9112 section 3.2): a request of HTTP/1.1 has one, and a Host is `uri-host [":" port]`.
- **Transfer codings** other than chunked are not implemented: 501 (RFC 9112 section 6.1), where gunicorn passes the
  compressed content on as if it were plain.
- **Several Cookie fields** are one list (RFC 9113 section 8.2.3): `; ` joins them, where gunicorn puts a comma.
- **`close`** counts wherever it stands in Connection, and so does `keep-alive` (RFC 9112 section 9.3).
"""

import re
import sys
from typing import Any

from gunicorn.http import body, errors, message, parser

from app.http_fields import is_host
from app.net.peer_address import unmapped
from app.server.chunked_body import ChunkedBody
from app.server.malformed import UnsupportedVersion

_END_OR_BARE_LF = re.compile(rb"\r\n\r\n|(?<!\r)\n")
_MAX_PROXY_LINE_BYTES = 107  # with its end (the PROXY protocol, section 2.1)
_HIGHER_VERSION = re.compile(rb"HTTP/[2-9]\.[0-9]")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?]+)(?:[/?].*)?")


class InvalidTarget(errors.ParseException):
    """The target of a request is none. The text does not repeat it, as it may hold a password."""


class InvalidHost(errors.InvalidHeader):
    """Host is missing, or is no host. The text does not repeat it either."""

    def __str__(self) -> str:
        return str(self.hdr)


class StrictRequest(message.Request):
    """See the module's opening lines."""

    def __init__(self, cfg: Any, unreader: Any, peer_addr: Any, req_number: int = 1) -> None:
        """Read a head. If it is rejected, all of it that was received goes back to the unreader."""
        self._received = bytearray()
        try:
            super().__init__(cfg, unreader, peer_addr, req_number)
        except errors.ParseException:
            unreader.unread(bytes(self._received))
            raise
        del self._received  # the request may take long

    def parse(self, unreader: Any) -> bytes:
        """Returns the bytes after the head. gunicorn calls this when the request is made."""
        rest = super().parse(unreader)
        if self.proxy_protocol_info and self.proxy_protocol_info["client_addr"]:
            self.proxy_protocol_info["client_addr"] = unmapped(self.proxy_protocol_info["client_addr"])
        self._check_host()
        self._join_cookies()
        return rest

    def _parse_python(self, unreader: Any, buf: bytearray) -> bytes:
        self._received = buf
        self._collect_head(unreader, buf)
        return super()._parse_python(unreader, buf)

    def _collect_head(self, unreader: Any, buf: bytearray) -> None:
        """Read until the head is complete, or until gunicorn's parser rejects what there is of it.

        Raises LimitRequestHeaders. What is too long for that is too long whatever the pieces that it came in.
        """
        limit = self.limit_request_field_size
        start, line_end = self._collect_line(unreader, buf)
        if line_end < 0:
            return
        searched = start
        while (found := _END_OR_BARE_LF.search(buf, searched)) is None:
            if searched == start:
                self.parse_request_line(bytes(buf[start:line_end]))  # what is no request is rejected at once
            searched = len(buf) - 3  # the blank line may begin with the last three bytes
            if searched - line_end > limit:
                break
            self.read_into(unreader, buf)
        end = found.start() if found else searched
        if end - line_end > limit:
            raise errors.LimitRequestHeaders(
                f"the header fields have more than {limit} bytes; MAX_HEADER_BYTES is the limit"
            )
        if buf.count(b"\r\n", line_end, end) > self.limit_request_fields:
            raise errors.LimitRequestHeaders(
                f"there are more than {self.limit_request_fields} header fields; MAX_HEADER_FIELDS is the limit"
            )

    def _collect_line(self, unreader: Any, buf: bytearray) -> tuple[int, int]:
        """Read the request line. Returns where it begins and ends; -1 for the end if gunicorn's parser rejects it."""
        limit = self.limit_request_line or sys.maxsize
        while buf[:1] == b"\r" and len(buf) < 2:
            self.read_into(unreader, buf)
        start = searched = 2 if buf[:2] == b"\r\n" else 0  # one empty line may come first (RFC 9112 section 2.2)
        while (line_feed := buf.find(b"\n", searched)) < 0 and len(buf) - 2 - start <= limit:
            searched = len(buf)
            self.read_into(unreader, buf)
        whole = buf[line_feed - 1 : line_feed] == b"\r" and line_feed - 1 - start <= limit
        return start, line_feed - 1 if whole else -1

    def parse_request_line(self, line_bytes: bytes) -> None:
        """Parse the request line. May be called again for the same line."""
        version = line_bytes.rpartition(b" ")[2]
        if _HIGHER_VERSION.fullmatch(version):  # looked at first: an HTTP/2 client sends `PRI * HTTP/2.0`
            raise UnsupportedVersion(f"{version.decode()} is not supported; HTTP/1.1 is")
        super().parse_request_line(line_bytes)
        if "#" in self.uri:
            raise InvalidTarget("the request target has a fragment (#)")
        if self.uri[0] not in "/*" and not self._has_authority():
            raise InvalidTarget("the request target has an authority that is not just a host and a port")
        self.version = min(self.version, (1, 1))

    def _has_authority(self) -> bool:
        """Whether a target that is no path has a valid authority: that of a URL, or the whole target of CONNECT."""
        found = _ABSOLUTE.fullmatch(self.uri)
        authority = self.uri if self.method == "CONNECT" else found[1] if found else ":"
        return not authority.startswith(":") and is_host(authority)

    def _parse_proxy_protocol_v1(self, unreader: Any, buf: bytearray) -> bytearray:
        while (end := buf.find(b"\r\n")) < 0 and len(buf) < _MAX_PROXY_LINE_BYTES:
            self.read_into(unreader, buf)
        if not 0 <= end <= _MAX_PROXY_LINE_BYTES - 2:
            raise errors.InvalidProxyLine(f"longer than {_MAX_PROXY_LINE_BYTES} bytes")
        return super()._parse_proxy_protocol_v1(unreader, buf)

    def _check_host(self) -> None:
        host = next((value for name, value in self.headers if name == "HOST"), None)
        if host is None:
            if self.version >= (1, 1):
                raise InvalidHost("there is no Host header field", req=self)
        elif not is_host(host):
            raise InvalidHost("Host is not a host", req=self)

    def _join_cookies(self) -> None:
        cookies = [value for name, value in self.headers if name == "COOKIE"]
        if len(cookies) > 1:
            first = next(at for at, (name, _) in enumerate(self.headers) if name == "COOKIE")
            others = [field for field in self.headers if field[0] != "COOKIE"]
            self.headers = [*others[:first], ("COOKIE", "; ".join(cookies)), *others[first:]]

    def set_body_reader(self) -> None:
        """Choose the reader of the body. gunicorn calls this when the head is parsed."""
        super().set_body_reader()
        if isinstance(self.body.reader, body.ChunkedReader):
            codings = [value.strip(" \t").lower() for name, value in self.headers if name == "TRANSFER-ENCODING"]
            if codings != ["chunked"]:
                raise errors.UnsupportedTransferCoding(", ".join(codings))
            self.body = body.Body(ChunkedBody(self, self.unreader, self.limit_request_field_size))

    def should_close(self) -> bool:
        """Whether no other request can follow on the connection."""
        options = {
            option.strip(" \t").lower()
            for name, value in self.headers
            if name == "CONNECTION"
            for option in value.split(",")
        }
        if self.must_close or self.method == "CONNECT" or "close" in options:
            return True
        return self.version <= (1, 0) and "keep-alive" not in options


class StrictParser(parser.RequestParser):
    """Reads the requests of one connection."""

    mesg_class = StrictRequest
