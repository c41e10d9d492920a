"""Bytes that clients, proxies and attackers send, for test_equivalence.py.

Each entry is everything that is sent on one connection. Names say what is unusual about it.
"""

from typing import NamedTuple

LIMIT_LINE = 4094
LIMIT_FIELD = 8190
"""Of each field with gunicorn's parser, of all together with ours."""
LIMIT_FIELDS = 100


class Entry(NamedTuple):
    """What is sent on one connection."""

    data: bytes
    stock_differs: str = ""
    """Why gunicorn's own worker is meant to do something else here; empty if it isn't."""
    fast_closes: bool = False
    """Whether the fast path closes where gunicorn's reader happens to have read ahead to the end of the body."""


def get(*fields: str, line: str = "GET /p?q=1 HTTP/1.1", body: bytes = b"", host: bool = True) -> bytes:
    """A request of these lines."""
    return raw(line, *(("Host: h",) if host else ()), *fields) + body


def raw(*lines: str) -> bytes:
    """A head of just these lines."""
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


def post(*fields: str, body: bytes = b"hello", length: int | None = None, target: str = "/p") -> bytes:
    """A POST with a Content-Length."""
    given = f"Content-Length: {len(body) if length is None else length}"
    return get(given, *fields, line=f"POST {target} HTTP/1.1", body=body)


def chunks(data: bytes, *fields: str, target: str = "/p") -> bytes:
    """A chunked POST; `data` with its framing."""
    return get("Transfer-Encoding: chunked", *fields, line=f"POST {target} HTTP/1.1", body=data)


_LINGERS = "our worker doesn't wait for a body that the application did not read"
_CONTINUES = "our worker says 100 Continue when the application first reads, gunicorn at once; nobody reads here"
_HOST = "our parser refuses a request without a Host, or with one that is none (RFC 9112 section 3.2)"
_COOKIES = "our parser joins cookies by a semicolon (RFC 9113 section 8.2.3)"
_LIST = "our parser looks for `close` in the whole of Connection (RFC 9112 section 9.3)"
_CODING = "our parser implements no coding but chunked (RFC 9112 section 6.1)"
_TARGET = "our parser refuses a fragment, and an authority that is not a host (RFC 9110 section 4.2.4)"
_VERSION = "our parser serves HTTP/1.2 as HTTP/1.1, and refuses HTTP/2.0 by 505 (RFC 9110 section 2.5)"
_BARE = "our reader of chunks rejects a bare line feed when it comes, gunicorn's waits for a line end that follows"
_TOTAL = "our parser limits all fields together"
_NEXT = get(line="GET /next HTTP/1.1")
_WHOLE = b"5\r\nhello\r\n0\r\n\r\n"


def _ordinary() -> dict[str, Entry]:
    return {
        "get": Entry(get()),
        "get, usual fields": Entry(get("User-Agent: a/1", "Accept: */*", "Accept-Encoding: gzip, deflate")),
        "head": Entry(get(line="HEAD /p HTTP/1.1")),
        "head with a body": Entry(get("Content-Length: 2", line="HEAD /p HTTP/1.1", body=b"ab")),
        "get with a body": Entry(get("Content-Length: 2", body=b"ab")),
        "post": Entry(post()),
        "post with a type": Entry(post("Content-Type: application/json", body=b'{"prompt": "x"}')),
        "post without a length": Entry(get(line="POST /p HTTP/1.1")),
        "post of nothing": Entry(post(body=b"")),
        "length with zeros": Entry(get("Content-Length: 0005", line="POST /p HTTP/1.1", body=b"hello")),
        "close": Entry(get("Connection: close") + _NEXT),
        "host with a port": Entry(get("Host: a.example:8080", host=False)),
        "host in brackets": Entry(get("Host: [::1]:8080", host=False)),
        "host with an underscore": Entry(get("Host: my_service", host=False)),
        "host of nothing": Entry(get("Host:", host=False)),
        "keep-alive": Entry(get("Connection: keep-alive") + _NEXT),
        "Connection in capitals": Entry(get("CONNECTION: CLOSE") + _NEXT),
        "names in odd case": Entry(get("hOST: x", "x-A: 1", host=False)),
        "odd names": Entry(get("!#$%&'*+.^`|~09-: v", "X--Y: 2", "-: 3")),
        "no space after colon": Entry(get("X:1", "Y:")),
        "spaces and tabs around a value": Entry(get("X: \t 1  ", "Y:\t2", "Z: \t ", "V:  a  b ")),
        "colons in a value": Entry(get("X: a:b:c", "Y::", "Z: :")),
        "non-ASCII values": Entry(get("X: \xe4\xff\x80", "Y: \xa0\x85\xad", "Z: \xa0z\x85 ")),
        "empty query": Entry(get(line="GET /p? HTTP/1.1")),
        "two question marks": Entry(get(line="GET /p?a?b=/?c HTTP/1.1")),
        "authorization": Entry(get("Authorization: Bearer x", "Cookie: a=b; c=d")),
        "X-Forwarded-For": Entry(get("X-Forwarded-For: 1.2.3.4", "X-Real-IP: 1.2.3.4", "Forwarded: for=1.2.3.4")),
    }


def _targets() -> dict[str, Entry]:
    targets = {
        "two slashes": "//path",
        "two slashes and a host": "//host:80/path?q",
        "two slashes and a bracket": "//[x/y",
        "three slashes": "///x//y",
        "dots": "/../a/./b",
        "escaped dots": "/%2e%2e/",
        "escaped slash": "/a%2Fb",
        "escaped NUL": "/a%00b",
        "escaped line break": "/a%0d%0aX:1",
        "escaped UTF-8": "/%e2%82%ac?%e2%82%ac",
        "bad escape": "/%zz?%zz",
        "half an escape": "/a%",
        "fragment": "/a#b",
        "fragment in a query": "/a?b#c",
        "only a fragment": "#b",
        "semicolon": "/a;b=c?d;e",
        "backslash": "/a\\b",
        "brackets": "/a[b]{c}|^`<>",
        "quotation mark": '/a"b',
        "colon": "/a:80/b",
        "at": "/@x",
        "scheme inside": "/http://x/y",
        "absolute": "http://other:80/path?q",
        "absolute without a path": "http://other",
        "absolute, odd scheme": "ftp://other/p",
        "absolute, open bracket": "http://[x/p",
        "absolute with a user": "http://user:pw@other/p",
        "absolute with an empty user": "http://@other/p",
        "absolute with an at in the path": "http://other/@p?@q",
        "absolute without a host": "http:///p",
        "absolute with a port alone": "http://:80/p",
        "absolute with an odd port": "http://other:x/p",
        "absolute with a fragment": "http://other/p#b",
        "absolute, IPv6": "http://[::1]:80/p",
        "authority": "host:80",
        "asterisk": "*",
        "relative": "p/q",
        "question mark alone": "?q",
        "a space": "/a b",
        "a tab": "/a\tb",
        "NUL": "/a\x00b",
        "escape character": "/a\x1bb",
        "DEL": "/a\x7fb",
        "non-ASCII": "/\xe4",
        "bare CR": "/a\rb",
        "bare LF": "/a\nb",
    }
    differs = (
        *("fragment", "fragment in a query", "absolute with a user", "absolute with an empty user"),
        *(
            "absolute without a host",
            "absolute with a port alone",
            "absolute with an odd port",
            "absolute with a fragment",
        ),
    )
    return {
        f"target: {name}": Entry(get(line=f"GET {target} HTTP/1.1") + _NEXT, _TARGET if name in differs else "")
        for name, target in targets.items()
    }


def _lines() -> dict[str, Entry]:
    lines = {
        "method in lower case": "get /p HTTP/1.1",
        "method in mixed case": "Get /p HTTP/1.1",
        "unknown method": "BREW /p HTTP/1.1",
        "method that begins alike": "GETS /p HTTP/1.1",
        "method of two letters": "GE /p HTTP/1.1",
        "method of 21 letters": f"{'M' * 21} /p HTTP/1.1",
        "method with a hash": "GE#T /p HTTP/1.1",
        "method with a colon": "GET: /p HTTP/1.1",
        "DELETE": "DELETE /p HTTP/1.1",
        "PUT": "PUT /p HTTP/1.1",
        "OPTIONS": "OPTIONS /p HTTP/1.1",
        "OPTIONS *": "OPTIONS * HTTP/1.1",
        "CONNECT": "CONNECT host:443 HTTP/1.1",
        "CONNECT with a user": "CONNECT u@host:443 HTTP/1.1",
        "CONNECT to a path": "CONNECT /p HTTP/1.1",
        "PRI": "PRI * HTTP/2.0",
        "HTTP/0.9": "GET /p",
        "HTTP/1": "GET /p HTTP/1",
        "HTTP/1.0": "GET /p HTTP/1.0",
        "version without a dot": "GET /p HTTP/1x1",
        "version and more": "GET /p HTTP/1.1x",
        "HTTP/1.2": "GET /p HTTP/1.2",
        "HTTP/1.10": "GET /p HTTP/1.10",
        "HTTP/2.0": "GET /p HTTP/2.0",
        "HTTP/3.0": "GET /p HTTP/3.0",
        "HTTP/0.9 with its name": "GET /p HTTP/0.9",
        "version in lower case": "GET /p http/1.1",
        "version with a digit of another script": "GET /p HTTP/1.\xb9",
        "other protocol": "GET /p SIP/1.1",
        "two spaces before the path": "GET  /p HTTP/1.1",
        "two spaces before the version": "GET /p  HTTP/1.1",
        "tab for a space": "GET\t/p HTTP/1.1",
        "space in front": " GET /p HTTP/1.1",
        "space behind": "GET /p HTTP/1.1 ",
        "NUL in front": "\x00GET /p HTTP/1.1",
        "NUL behind": "GET /p HTTP/1.1\x00",
        "bare CR behind": "GET /p HTTP/1.1\r",
        "empty": "",
        "two empty": "\r\n",
        "a byte order mark": "\xef\xbb\xbfGET /p HTTP/1.1",
        "PROXY": "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\nGET /p HTTP/1.1",
    }
    differs = {
        **dict.fromkeys(("PRI", "HTTP/1.2", "HTTP/2.0", "HTTP/3.0"), _VERSION),
        "CONNECT with a user": _TARGET,
    }
    return {f"line: {name}": Entry(get(line=line) + _NEXT, differs.get(name, "")) for name, line in lines.items()} | {
        "line: empty, then a request": Entry(b"\r\n" + get() + b"\r\n" + _NEXT),
        "line: two empty, then a request": Entry(b"\r\n\r\n" + get()),
        "line: bare LF in front": Entry(b"\n" + get()),
        "line: bare LF behind": Entry(b"GET /p HTTP/1.1\nHost: h\r\n\r\n"),
        "line: HTTP/1.0 with keep-alive": Entry(get("Connection: keep-alive", line="GET /p HTTP/1.0") + _NEXT),
        "line: HTTP/1.0 without a length in the answer": Entry(get(line="GET /chunked HTTP/1.0") + _NEXT),
        "line: HTTP/1.0 with chunks": Entry(
            get("Transfer-Encoding: chunked", line="POST /p HTTP/1.0", body=_WHOLE) + _NEXT
        ),
        "line: PROXY, second version": Entry(
            b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x01\x01\x01\x01\x02\x02\x02\x02\x00\x01\x00\x02" + get()
        ),
        "line: TLS hello": Entry(b"\x16\x03\x01\x00\x31\x01\x00\x00\x2d\x03\x03" + bytes(range(32)) + b"\x00\x00\r\n"),
        "line: HTTP/2 preface": Entry(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", _VERSION),
    }


def _fields() -> dict[str, Entry]:
    fields: dict[str, tuple[str, ...]] = {
        "space before the colon": ("X : 1",),
        "tab before the colon": ("X\t: 1",),
        "no name": (": 1",),
        "no colon": ("X",),
        "space in a name": ("X Y: 1",),
        "space before a name": ("X: 1", " Y: 2"),
        "tab before a name": ("X: 1", "\tY: 2"),
        "fold of nothing": ("X: 1", " "),
        "underscore": ("X_Y: 1",),
        "underscore beside a dash": ("X-Y: 1", "X_Y: 2"),
        "underscored length": ("Content_Length: 5",),
        "SCRIPT_NAME": ("SCRIPT_NAME: /p",),
        "Script-Name": ("Script-Name: /p",),
        "PATH_INFO": ("PATH_INFO: /x",),
        "non-ASCII name": ("X\xe4: 1",),
        "sharp s in a name": ("\xdf: 1",),
        "name in quotation marks": ('"X": 1',),
        "name in parentheses": ("(X): 1",),
        "NUL in a name": ("X\x00: 1",),
        "NUL in a value": ("X: a\x00b",),
        "SOH in a value": ("X: \x01",),
        "tab in a value": ("X: a\tb",),
        "tab behind a value": ("X: a \t ",),
        "vertical tab around a value": ("X: \x0ba\x0b",),
        "form feed around a value": ("X: \x0ca\x0c",),
        "escape in a value": ("X: \x1b[0m",),
        "unit separator in a value": ("X: a\x1fb",),
        "file separator behind a value": ("X: a\x1c",),
        "DEL in a value": ("X: a\x7f",),
        "bare CR in a value": ("X: a\rb",),
        "bare CR behind a value": ("X: a\r",),
        "bare CR before a field": ("\rX: a",),
        "bare LF in a value": ("X: a\nY: b",),
        "bare LF before a fold": ("X: a\n b",),
        "two hosts": ("Host: other",),
        "host of another name": ("host:",),
        "field twice": ("X: 1", "X: 2"),
        "field twice in other case": ("X-Y: 1", "x-y: 2", "X-Y: 1"),
        "cookie twice": ("Cookie: a=1", "Cookie: b=2"),
        "type twice": ("Content-Type: a/b", "Content-Type: a/b"),
        "forwarded for twice": ("X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 2.2.2.2"),
        "https in front": ("X-Forwarded-Proto: https",),
        "http in front": ("X-Forwarded-Proto: http",),
        "nonsense in front": ("X-Forwarded-Proto: ftp",),
        "ssl in front": ("X-Forwarded-SSL: on",),
        "protocol in front": ("X-Forwarded-Protocol: ssl",),
        "schemes that disagree": ("X-Forwarded-Proto: https", "X-Forwarded-SSL: off"),
        "upgrade to h2c": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        "upgrade to WebSocket": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: eA=="),
        "Upgrade alone": ("Upgrade: x",),
        "Connection: close, x": ("Connection: close, x",),
        "Connection: keep-alive, close": ("Connection: keep-alive, close",),
        "Connection: x": ("Connection: x",),
        "Connection of nothing": ("Connection:",),
        "Connection twice": ("Connection: keep-alive", "Connection: close"),
        "Connection names a field": ("Connection: X", "X: 1"),
        "Proxy-Connection": ("Proxy-Connection: close",),
        "Keep-Alive": ("Keep-Alive: timeout=1",),
        "TE": ("TE: trailers",),
        "Trailer": ("Trailer: X",),
        "Proxy": ("Proxy: http://x",),
        "Expect of nothing": ("Expect:",),
        "Expect unknown": ("Expect: wonders",),
        "Content-Encoding": ("Content-Encoding: gzip",),
    }
    differs = {
        "cookie twice": _COOKIES,
        "Connection: close, x": _LIST,
        "Connection: keep-alive, close": _LIST,
        "Connection twice": _LIST,
    }
    entries = {f"field: {name}": Entry(get(*lines) + _NEXT, differs.get(name, "")) for name, lines in fields.items()}
    entries |= {
        f"field first: {name}": Entry(get(*fields[name], host=False)) for name in ("fold of nothing", "no name")
    }
    hosts = ("a b", "a,b c", "a/b", "a@b", "h:x", "h:80:80", "[::1", "[::g]", "::1", "\xe4", "<h>", "h#", "h?", "a\\b")
    entries |= {f"Host: {host}": Entry(get(f"Host: {host}", host=False) + _NEXT, _HOST) for host in hosts}
    return entries | {
        "no Host": Entry(get(host=False) + _NEXT, _HOST),
        "no Host by POST": Entry(raw("POST /p HTTP/1.1", "Content-Length: 5") + b"hello" + _NEXT, _HOST),
        "no Host, HTTP/1.0": Entry(get(host=False, line="GET /p HTTP/1.0")),
        "Host: a b, HTTP/1.0": Entry(get("Host: a b", host=False, line="GET /p HTTP/1.0"), _HOST),
        "no Host, absolute": Entry(get(host=False, line="GET http://h/p HTTP/1.1"), _HOST),
        "cookie twice, by POST with chunks": Entry(
            chunks(_WHOLE, "Cookie: a=1", "Cookie: b=2", "X: 1") + _NEXT, _COOKIES
        ),
        "TE, close": Entry(get("TE: trailers", "Connection: TE, close") + _NEXT, _LIST),
        "close in a second line, HTTP/1.0": Entry(
            get("Connection: keep-alive", "Connection: Close", line="GET /p HTTP/1.0") + _NEXT, _LIST
        ),
        "keep-alive in a list, HTTP/1.0": Entry(
            get("Connection: TE , Keep-Alive", "TE: trailers", line="GET /p HTTP/1.0") + _NEXT, _LIST
        ),
        "field first: a fold": Entry(get(" X: 1", host=False)),
        "field: bare LF ends": Entry(b"GET /p HTTP/1.1\r\nHost: h\n\n"),
        "field: bare LF, then CRLF": Entry(b"GET /p HTTP/1.1\r\nHost: h\n\r\n"),
        "field: CR CR LF ends": Entry(b"GET /p HTTP/1.1\r\nHost: h\r\r\n\r\n"),
        "field: CR CR ends": Entry(b"GET /p HTTP/1.1\r\nHost: h\r\r"),
        "field: bare LF after the blank line": Entry(get() + b"\n" + _NEXT),
    }


def _framing() -> dict[str, Entry]:
    lengths = {
        "negative": "-1",
        "plus": "+5",
        "hexadecimal": "0x5",
        "fraction": "5.0",
        "exponent": "5e0",
        "underscore": "0_5",
        "list of equals": "5, 5",
        "list of others": "5, 6",
        "space inside": "5 5",
        "empty": "",
        "comma behind": "5,",
        "quoted": '"5"',
        "tab behind": "5\t",
        "vertical tab behind": "5\x0b",
        "superscript": "\xb2",
        "superscript behind": "5\xb2",
        "fraction sign": "\xbd",
        "no-break space behind": "5\xa0",
        "next line behind": "5\x85",
        "Arabic, in UTF-8": "\xd9\xa5",
        "word": "five",
    }
    codings = {
        "chunked": "chunked",
        "in capitals": "CHUNKED",
        "odd case": "cHuNkEd",
        "with a comma": "chunked,",
        "identity": "identity",
        "identity before": "identity, chunked",
        "identity behind": "chunked, identity",
        "gzip before": "gzip, chunked",
        "gzip behind": "chunked, gzip",
        "twice in one": "chunked, chunked",
        "quoted": '"chunked"',
        "with a parameter": "chunked;q=1",
        "vertical tab": "\x0bchunked",
        "tab": "\tchunked",
        "unknown": "xchunked",
        "empty": "",
        "NUL behind": "chunked\x00",
        "no-break space": "\xa0chunked",
    }
    named = {
        "space before the colon": "Transfer-Encoding : chunked",
        "underscore": "Transfer_Encoding: chunked",
        "fold": "Transfer-Encoding:\r\n chunked",
        "space in front": " Transfer-Encoding: chunked",
        "bare LF": "X: y\nTransfer-Encoding: chunked",
        "bare CR": "X: y\rTransfer-Encoding: chunked",
        "in capitals": "TRANSFER-ENCODING: chunked",
        "Content-Encoding": "Content-Encoding: chunked",
        "NUL": "Transfer-Encoding\x00: chunked",
    }
    start = "POST /p HTTP/1.1"
    entries = {
        f"length: {name}": Entry(get(f"Content-Length: {value}", line=start, body=b"hello") + _NEXT)
        for name, value in lengths.items()
    }
    entries |= {
        f"coding: {name}": Entry(
            get(f"Transfer-Encoding: {value}", line=start, body=_WHOLE) + _NEXT,
            _CODING if name in ("gzip before", "identity before") else "",
        )
        for name, value in codings.items()
    }
    entries |= {
        f"coding beside a length: {name}": Entry(get("Content-Length: 15", field, line=start, body=_WHOLE) + _NEXT)
        for name, field in named.items()
    }
    return entries | {
        "length twice, equal": Entry(get("Content-Length: 5", "Content-Length: 5", line=start, body=b"hello") + _NEXT),
        "length twice, other": Entry(get("Content-Length: 5", "content-length: 0", line=start, body=b"hello") + _NEXT),
        "length, then chunked": Entry(post("Transfer-Encoding: chunked", body=_WHOLE) + _NEXT),
        "chunked, then length": Entry(chunks(_WHOLE, "Content-Length: 4") + _NEXT),
        "chunked twice": Entry(chunks(_WHOLE, "Transfer-Encoding: chunked") + _NEXT),
        "gzip and chunked in two lines": Entry(
            get("Transfer-Encoding: gzip", "Transfer-Encoding: chunked", line=start, body=_WHOLE) + _NEXT, _CODING
        ),
        "chunked and identity": Entry(chunks(_WHOLE, "Transfer-Encoding: identity") + _NEXT),
        "length of 10 digits": Entry(post(length=4 * 10**9)),
        "length of 15 digits": Entry(post(length=10**15 - 1)),
        "length of 16 digits": Entry(post(length=10**15)),
        "length longer than the body": Entry(post(length=9)),
        "length shorter than the body": Entry(post(length=3)),
        "length shorter, then a request": Entry(post(length=3) + _NEXT),
        "length of 16 digits, most of them zeros": Entry(
            get("Content-Length: " + "0" * 15 + "5", line=start, body=b"hello") + _NEXT
        ),
    }


def _bodies() -> dict[str, Entry]:
    bodies = {
        "whole": _WHOLE,
        "two": b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        "hexadecimal": b"a\r\n0123456789\r\n0\r\n\r\n",
        "extension": b"5;a=b\r\nhello\r\n0\r\n\r\n",
        "trailer": b"5\r\nhello\r\n0\r\nX: 1\r\n\r\n",
        "forbidden trailer": b"5\r\nhello\r\n0\r\nContent-Length: 1\r\n\r\n",
        "bad size": b"x\r\nhello\r\n0\r\n\r\n",
        "size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
        "negative size": b"-5\r\nhello\r\n0\r\n\r\n",
        "no end of a chunk": b"5\r\nhelloX\r\n0\r\n\r\n",
        "bare LF": b"5\nhello\n0\n\n",
        "early end": b"5\r\nhel",
    }
    bad = ("forbidden trailer", "bad size", "size with 0x", "negative size", "no end of a chunk", "bare LF")
    entries = {
        f"chunks: {name}": Entry(chunks(data) + (b"" if name in bad else _NEXT), _BARE if name == "bare LF" else "")
        for name, data in bodies.items()
    }
    for then, more in (("", b""), (", then a request", _NEXT)):
        entries[f"/unread of a body{then}"] = Entry(post(target="/unread") + more, _LINGERS)
        entries[f"/unread of chunks{then}"] = Entry(chunks(_WHOLE, target="/unread") + more, _LINGERS)
        entries[f"/part of a body{then}"] = Entry(post(target="/part") + more, fast_closes=True)
        entries[f"/part of chunks{then}"] = Entry(chunks(_WHOLE, target="/part") + more)
    return entries | {
        "/unread of nothing": Entry(post(target="/unread", body=b"") + _NEXT),
        "/part of all": Entry(post(target="/part", body=b"abc") + _NEXT),
        "/part of no more": Entry(post(target="/part", body=b"ab") + _NEXT),
        "expect": Entry(post("Expect: 100-continue") + _NEXT),
        "expect in capitals": Entry(post("EXPECT: 100-CONTINUE") + _NEXT),
        "expect and unread": Entry(post("Expect: 100-continue", target="/unread"), _CONTINUES),
        "expect without a body": Entry(get("Expect: 100-continue") + _NEXT),
    }


def _answers() -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    late = "our worker closes where the body was not read before the head went out"
    paths = ("/chunked", "/chunked-empty", "/204", "/304", "/steps", "/late", "/too-long", "/empty", "/written")
    for path in paths:
        entries[f"{path}"] = Entry(get(line=f"GET {path} HTTP/1.1") + _NEXT)
        entries[f"{path} by HEAD"] = Entry(get(line=f"HEAD {path} HTTP/1.1") + _NEXT)
        entries[f"{path} by POST"] = Entry(post(target=path) + _NEXT, late if path == "/late" else "")
        entries[f"{path} by POST with chunks"] = Entry(
            chunks(_WHOLE, target=path) + _NEXT, late if path == "/late" else ""
        )
        entries[f"{path} with close"] = Entry(get("Connection: close", line=f"GET {path} HTTP/1.1") + _NEXT)
    for path in ("/fails", "/fails-late"):
        entries[path] = Entry(get(line=f"GET {path} HTTP/1.1") + _NEXT)
        entries[f"{path} by POST"] = Entry(post(target=path) + _NEXT)
    return entries


def _pipelined() -> dict[str, Entry]:
    one, two, three = get(line="GET /1 HTTP/1.1"), post(target="/2"), chunks(_WHOLE, target="/3")
    bad = get("X Y: 1", line="GET /bad HTTP/1.1")
    return {
        "three ordinary": Entry(one + two + one),
        "ordinary, unusual, ordinary": Entry(one + three + two),
        "unusual, ordinary, unusual": Entry(three + one + three),
        "unusual twice, then ordinary": Entry(three + three + one),
        "ordinary, malformed, ordinary": Entry(one + bad + two),
        "unusual, malformed": Entry(three + bad + one),
        "ordinary, then half": Entry(one + two[:-3]),
        "unusual, then half a head": Entry(three + one[:-3]),
        "ordinary, then nonsense": Entry(two + b"nonsense"),
        "ordinary, then closes": Entry(two + get("Connection: close") + one),
        "HEAD between": Entry(one + get(line="HEAD /h HTTP/1.1") + two),
        "1.0 between": Entry(one + get(line="GET /h HTTP/1.0") + two),
        "many": Entry(get(line="GET / HTTP/1.1") * 10),
        "body that is a request": Entry(post(body=one, target="/2") + three),
    }


def _limits() -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for size in (LIMIT_LINE - 1, LIMIT_LINE, LIMIT_LINE + 1, 8190, 8191):
        line = f"GET /{'a' * (size - len('GET / HTTP/1.1'))} HTTP/1.1"
        entries[f"line of {size}"] = Entry(get(line=line) + _NEXT)
    for size in (LIMIT_FIELD - 2, LIMIT_FIELD - 1, LIMIT_FIELD, LIMIT_FIELD + 1):
        lines = ("Host: h", "X: ")
        filling = "a" * (size - sum(len(line) + 2 for line in lines))
        entries[f"fields of {size}"] = Entry(get(f"X: {filling}") + _NEXT, _TOTAL if size > LIMIT_FIELD else "")
    for count in (LIMIT_FIELDS - 1, LIMIT_FIELDS, LIMIT_FIELDS + 1):
        entries[f"{count} fields"] = Entry(get(*(f"X{n}: {n}" for n in range(count - 1))) + _NEXT)
    for size in (LIMIT_LINE - 1, LIMIT_LINE, LIMIT_LINE + 1, 8191):
        entries[f"head of {size}"] = Entry(get(f"X: {'a' * (size - len(get('X: ')))}") + _NEXT)
    halves = (f"X: {'a' * (LIMIT_FIELD // 2)}", f"Y: {'a' * (LIMIT_FIELD // 2)}")
    return entries | {
        "fields that are too long together": Entry(get(*halves) + _NEXT, _TOTAL),
        "many fields, never ended": Entry(get(*(f"X{n}: {n}" for n in range(60)))[:-2]),
        "large body": Entry(post(body=b"b" * 100_000) + _NEXT),
        "large body in chunks": Entry(chunks(b"186a0\r\n" + b"b" * 100_000 + b"\r\n0\r\n\r\n") + _NEXT),
        "large body, unread": Entry(post(body=b"b" * 100_000, target="/unread"), _LINGERS),
    }


def _corpus() -> dict[str, Entry]:
    parts = (_ordinary, _targets, _lines, _fields, _framing, _bodies, _answers, _pipelined, _limits)
    corpus: dict[str, Entry] = {}
    for part in parts:
        fresh = part()
        assert not corpus.keys() & fresh.keys(), "a name stands for two entries"
        corpus |= fresh
    return corpus


CORPUS = _corpus()
"""Every entry by its name."""
