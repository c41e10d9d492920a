"""The fast path in one process: its parser beside gunicorn's over the same bytes, its body, and its answer."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise, product
from typing import Any

import pytest
from gunicorn import http
from gunicorn.http import wsgi
from hypothesis import given, settings
from hypothesis import strategies as st

from app.server.declared_body import DeclaredBody
from app.server.fast_path import FastPath, Request, ResponseWriter
from tests.support.generated_requests import BODIES, TOKENS, generated_requests
from tests.support.parsers import LISTENER, PATH, PEER, PLAIN, Wire, config, gunicorns, ordinary, taken
from tests.support.requests_corpus import CORPUS, get, post

pytestmark = pytest.mark.slow

_REFUSALS = (ValueError, TypeError, AttributeError, http.errors.ParseException)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if it takes longer; a match can be interrupted."""

    def late(*_: object) -> None:
        raise AssertionError(f"not within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# What is taken, beside gunicorn's parser.


@settings(max_examples=1500)
@given(generated_requests())
def test_what_is_taken_gunicorn_takes_too_with_the_same_meaning(pieces: tuple[bytes, ...]) -> None:
    """Whatever is sent: what the fast path takes, gunicorn's parser takes, equal in environ, body, rest and keeping."""
    found = taken(*pieces)
    assert found is None or found == gunicorns(*pieces)


@settings(max_examples=500)
@given(
    st.sampled_from(("GET", "HEAD", "POST")),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=12),
    st.dictionaries(
        TOKENS.map(lambda name: "X" + name.lower()), st.text("a: \xe4\xa0=;,\x80\xff", max_size=9), max_size=9
    ),
    st.sampled_from(("", "keep-alive", "Close")),
    BODIES,
)
def test_what_is_ordinary_is_taken(
    method: str, target: str, fields: dict[str, str], connection: str, body: bytes
) -> None:
    """The comparison above is of something: requests as HTTP libraries send them go the fast path."""
    lines = [*(f"{name}: {value}" for name, value in fields.items()), f"Content-Length: {len(body)}"]
    if connection:
        lines.append(f"Connection: {connection}")
    data = get(*lines, line=f"{method} /{target} HTTP/1.1", body=body)
    found = taken(data, get())
    assert found is not None
    assert found == gunicorns(data, get())


@pytest.mark.parametrize("name", CORPUS)
def test_corpus_means_the_same(name: str) -> None:
    """Of every entry, and of every beginning of it: what is taken, gunicorn's parser takes with the same meaning."""
    data = CORPUS[name].data
    ends = range(1, len(data) + 1) if len(data) < 500 else (len(data) - 1, len(data))
    with within(10):
        for end in ends:
            found = taken(data[:end], data[end:])
            assert found is None or found == gunicorns(data[:end], data[end:])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit_request_line", 0),
        ("limit_request_line", 20),
        ("limit_request_line", 8190),
        ("limit_request_field_size", 0),
        ("limit_request_field_size", 12),
        ("limit_request_field_size", 20000),
        ("limit_request_fields", 0),
        ("limit_request_fields", 1),
        ("limit_request_fields", 2),
        ("limit_request_fields", 5000),
        ("header_map", "dangerous"),
        ("header_map", "refuse"),
        ("forwarder_headers", "*"),
        ("forwarded_allow_ips", "*"),
        ("forwarded_allow_ips", "127.0.0.0/8"),
        ("forwarded_allow_ips", "127.0.0.9"),
        ("secure_scheme_headers", {"X-SCHEME": "tls"}),
        ("secure_scheme_headers", {"X-FORWARDED-PROTO": "https", "HOST": "h"}),
        ("casefold_http_method", True),
        ("permit_unconventional_http_method", True),
        ("permit_unconventional_http_version", True),
        ("permit_obsolete_folding", True),
        ("strip_header_spaces", True),
        ("workers", 4),
    ],
    ids=repr,
)
def test_settings_are_kept(name: str, value: object) -> None:
    """Whatever gunicorn's limits and permissions are: nothing is taken beyond them, or understood otherwise."""
    cfg = config(**{name: value})
    for data in (entry.data for entry in CORPUS.values() if len(entry.data) < 10_000):
        if data.count(b"\r\n") in range(25, 80):
            continue  # test_time_grows_with_the_length
        found = taken(data, cfg=cfg)
        assert found is None or found == gunicorns(data, cfg=cfg)


@pytest.mark.parametrize(
    "block",
    [
        "".join(f"X{n}: {n}\r\n" for n in range(60)),
        "".join(f"X{n}:    {n}\r\n" for n in range(60)) + "X\r\n\r\n",
        "a:\t \t \r\n" * 400,
        "X:" + " " * 4000 + "\x00\r\n\r\n",
        "X: " + "a " * 1900 + "\x00\r\n\r\n",
        "X" * 4000,
    ],
    ids=["head not yet whole", "malformed at the end", "blank values", "spaces", "words", "name"],
)
def test_time_grows_with_the_length(block: str) -> None:
    """No head, whole or not, takes more than a moment to be found unusual: the whole worker waits for it."""
    with within(0.5):
        assert ordinary(get(host=False)[:-2] + block.encode()) is None


def test_ordinary_entries_of_the_corpus_are_taken() -> None:
    """What the corpus calls ordinary does go the fast path, so that the tests over servers compare something."""
    names = list(CORPUS)
    ours = names[: names.index("target: two slashes")]
    assert len(ours) > 20
    assert [name for name in ours if ordinary(CORPUS[name].data) is None] == []


@pytest.mark.parametrize(
    ("trusted", "peer"),
    [
        ("127.0.0.1", ("127.0.0.1", 1)),
        ("127.0.0.1", ("127.0.0.2", 1)),
        ("10.0.0.0/8", ("10.1.1.1", 1)),
        ("*", ("10.1.1.1", 1)),
        ("", ("127.0.0.1", 1)),
        ("::1", ("::1", 1, 0, 0)),
        ("0:0:0:0:0:0:0:1", ("::1", 1, 0, 0)),
        ("FE80::1", ("fe80::1", 1, 0, 0)),
        ("::ffff:10.0.0.1", ("::ffff:10.0.0.1", 1, 0, 0)),
        ("::ffff:a00:1", ("::ffff:10.0.0.1", 1, 0, 0)),
    ],
)
def test_schemes_are_believed_from_whom_gunicorn_believes_them(trusted: str, peer: Any) -> None:
    """A forwarded scheme counts from a trusted peer, and from nobody else, however its address is written."""
    cfg = config(forwarded_allow_ips=trusted)
    for field in ("X-Forwarded-Proto: https", "X-Forwarded-SSL: on", "x-forwarded-protocol: ssl"):
        found = taken(get(field), cfg=cfg, peer=peer)
        assert found is None or found == gunicorns(get(field), cfg=cfg, peer=peer)


def test_script_name_of_the_process_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SCRIPT_NAME is set, gunicorn takes it off the paths of all requests; both ways must agree on it."""
    monkeypatch.setenv("SCRIPT_NAME", "/p")
    data = get(line="GET /p/x HTTP/1.1")
    found = taken(data, script_name="/p")
    assert found is None or found == gunicorns(data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pre_request", lambda worker, req: None),
        ("post_request", lambda worker, req, environ, resp: None),
        ("certfile", "/x"),
        ("keyfile", "/x"),
        ("proxy_protocol", "v1"),
        ("proxy_protocol", "auto"),
        ("protocol", "uwsgi"),
    ],
    ids=["pre_request", "post_request", "certfile", "keyfile", "proxy v1", "proxy auto", "uwsgi"],
)
def test_settings_that_switch_it_off(name: str, value: object) -> None:
    """Hooks see every request, and what isn't plain HTTP is gunicorn's."""
    assert ordinary(get()) is not None
    assert ordinary(get(), cfg=config(**{name: value})) is None


@pytest.mark.parametrize(
    ("listener", "peer"), [("/run/socket", PEER), (LISTENER, ""), (LISTENER, b""), ("/run/socket", "")]
)
def test_unix_sockets_have_none(listener: Any, peer: Any) -> None:
    """A peer without an address is gunicorn's."""
    assert FastPath(config()).environ_of(Wire().connection, listener, peer) is None


def test_head_may_be_as_long_as_the_limits() -> None:
    """Up to the limit of all fields a head is taken as a whole, its line up to its own; one byte more is gunicorn's."""
    cfg = config(limit_request_field_size=200)
    head = get("X: " + "a" * (200 - len(get("X: "))))
    assert len(head) == 200
    assert ordinary(head, cfg=cfg) is not None
    assert ordinary(head.replace(b"X: ", b"X: a"), cfg=cfg) is None
    cfg = config(limit_request_line=200)
    line = f"GET /{'a' * (200 - len('GET / HTTP/1.1'))} HTTP/1.1"
    assert len(line) == 200
    assert ordinary(get(line=line), cfg=cfg) is not None
    assert ordinary(get(line=line.replace("/a", "/aa")), cfg=cfg) is None


def test_no_more_fields_than_the_limit_are_taken() -> None:
    """One field more than the limit is gunicorn's to judge."""
    fields = [f"X{n}: 1" for n in range(6)]
    assert ordinary(get(*fields[:4]), cfg=config(limit_request_fields=5)) is not None
    assert ordinary(get(*fields[:5]), cfg=config(limit_request_fields=5)) is None


def test_requests_of_a_connection_share_nothing() -> None:
    """What one request brought, the next one on the connection doesn't have."""
    path, wire = FastPath(config()), Wire().connection
    base = path.environ_of(wire, LISTENER, PEER)
    assert base is not None
    before = dict(base)
    first = path.parse(wire, base, get("X: 1", "Content-Type: a/b"))
    second = path.parse(wire, base, get())
    assert first is not None
    assert second is not None
    assert (base, {"HTTP_X", "CONTENT_TYPE"} & second.environ.keys()) == (before, set())
    assert first.environ["HTTP_X"] == "1"


def test_names_that_clients_choose_are_not_kept_forever() -> None:
    """The memory for names ends; names beyond it mean the same as those in it."""
    path, wire = FastPath(config()), Wire().connection
    base = path.environ_of(wire, LISTENER, PEER)
    assert base is not None
    for number in range(3000):
        request = path.parse(wire, base, get(f"X-{number}: v"))
        assert request is not None
        assert request.environ[f"HTTP_X_{number}"] == "v"
        assert path.parse(wire, base, get(f"Y-{number}: 1", f"y-{number}: 2")) is None
    assert len(path._keys) <= 1000
    assert path.parse(wire, base, get("Expect: x")) is None


# The body.


def body(declared: int, data: bytes, *more: bytes) -> tuple[DeclaredBody, Wire]:
    """A body that begins with `data`, after three bytes of head."""
    wire = Wire(*more)
    return DeclaredBody(wire.connection, b"..." + data, 3, declared), wire


def test_body_that_came_with_the_head_asks_for_nothing() -> None:
    """What is there is not waited for, and what follows is left for the next request."""
    read, wire = body(5, b"helloGET")
    assert (read.read(), read.rest, read.finished(), wire.asked) == (b"hello", b"GET", True, [])
    assert (read.read(), read.read(10), read.read(0)) == (b"", b"", b"")


@given(
    st.binary(max_size=40),
    st.binary(max_size=10),
    st.lists(st.integers(0, 50), max_size=6).map(sorted),
    st.lists(st.one_of(st.none(), st.integers(-1, 50)), max_size=6),
)
def test_body_is_the_same_in_any_pieces(data: bytes, after: bytes, cuts: list[int], sizes: list[int | None]) -> None:
    """However it arrives and is read: the declared bytes, each read as long as asked, and the rest untouched."""
    everything = data + after
    edges = [0, *(min(cut, len(everything)) for cut in cuts), len(everything)]
    first, *more = [everything[a:b] for a, b in pairwise(edges)]
    read, wire = body(len(data), first, *(piece for piece in more if piece))
    at = 0
    for size in [*sizes, None]:
        expected = data[at:] if size is None or size < 0 else data[at : at + size]
        assert read.read(size) == expected
        at += len(expected)
        assert read.finished() == (at == len(data))
    assert read.rest + wire.left() == after


def test_body_that_ends_early_is_short_and_never_finished() -> None:
    """A client that leaves in mid-body: the application sees that it is short, and nothing is taken for a request."""
    read, _ = body(9, b"he", b"llo")
    assert (read.read(), read.read(), read.finished(), read.rest) == (b"hello", b"", False, b"")


def test_body_is_read_in_bounded_steps() -> None:
    """A declared length is only a claim: what is set aside to receive it doesn't grow with it."""
    read, wire = body(10**15 - 1, b"", b"hello")
    assert read.read() == b"hello"
    assert max(wire.asked) <= 1 << 20


# The answer.

_Pieces = list[bytes]


def request(method: str = "GET", keep: bool = True, **environ: object) -> Request:
    """An ordinary request without a body."""
    found = ordinary(get(*(() if keep else ("Connection: close",)), line=f"{method} /p HTTP/1.1"))
    assert found is not None
    found.environ.update(environ)
    return found


def answer(to: Request | None = None, stops: bool = False, **settings: object) -> tuple[ResponseWriter, Wire]:
    """An answer, and where it is written."""
    wire = Wire()
    path = FastPath(config(**settings)) if settings else PATH
    return ResponseWriter(wire.connection, to or request(), lambda: stops, path), wire


def sending(status: str, headers: list[tuple[str, str]], pieces: _Pieces) -> Callable[[Any, Any], _Pieces]:
    """An application that answers this."""

    def application(environ: Any, start: Any) -> _Pieces:
        start(status, headers)
        return pieces

    return application


def gunicorns_answer(method: str, keep: bool, application: Callable[[Any, Any], _Pieces]) -> bytes:
    """What gunicorn's response writes for it."""
    cfg, wire = PLAIN, Wire(get(*(() if keep else ("Connection: close",)), line=f"{method} /p HTTP/1.1"))
    parsed = next(http.get_parser(cfg, wire, PEER))
    response = wsgi.Response(parsed, wire, cfg)
    for piece in application({}, response.start_response):
        response.write(piece)
    response.close()
    return b"".join(wire.sent)


def in_order(data: bytes) -> tuple[list[bytes], bytes]:
    """The lines of a head in order, without the date; and what follows it."""
    head, _, rest = data.partition(b"\r\n\r\n")
    return sorted(line for line in head.split(b"\r\n") if not line.startswith(b"Date: ")), rest


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    "status", ["200 OK", "200 ", "204 No Content", "304 Not Modified", "404 Not Found", "503 Caf\xe9 closed"]
)
@pytest.mark.parametrize("pieces", [[], [b""], [b"hello"], [b"he", b"", b"llo"], [b"", b"hello"]], ids=repr)
def test_answer_is_gunicorns(method: str, status: str, pieces: _Pieces) -> None:
    """Byte for byte what gunicorn's response writes, but for the order of fields: framing, cuts, no body where none."""
    for keep, length in product((True, False), (None, 0, 3, 5, 9)):
        fields = [("X-A", "caf\xe9"), ("Set-Cookie", "a"), ("Set-Cookie", "b")]
        if length is not None and not status.startswith("204"):  # test_no_content_has_no_length
            fields.append(("Content-Length", str(length)))
        application = sending(status, fields, pieces)
        written, wire = answer(request(method, keep))
        written.send(application)
        assert in_order(b"".join(wire.sent)) == in_order(gunicorns_answer(method, keep, application))
        assert written.keep is keep


def test_no_content_has_no_length() -> None:
    """An answer that cannot have a body has no Content-Length (RFC 9110 section 8.6), as gunicorn sees to."""
    application = sending("204 No Content", [("Content-Length", "0")], [])
    written, wire = answer()
    written.send(application)
    assert in_order(b"".join(wire.sent)) == in_order(gunicorns_answer("GET", True, application))


@pytest.mark.parametrize(
    "field",
    [
        ("Connection", "close"),
        ("Transfer-Encoding", "chunked"),
        ("Keep-Alive", "timeout=9"),
        ("Upgrade", "x"),
        ("TE", "x"),
    ],
    ids=lambda field: field[0],
)
def test_fields_of_the_connection_are_not_the_applications(field: tuple[str, str]) -> None:
    """The server frames the answer: what the application says of that is left out, or it would stand there twice."""
    application = sending("200 OK", [field, ("Content-Length", "2")], [b"ab"])
    written, wire = answer()
    written.send(application)
    assert in_order(b"".join(wire.sent)) == in_order(gunicorns_answer("GET", True, application))


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        ("200 OK", [("X", "a\r\nY: b")]),
        ("200 OK", [("X", "a\nb")]),
        ("200 OK", [("X", "a\rb")]),
        ("200 OK", [("X\r\nY", "a")]),
        ("200 OK\r\nX: y", []),
        ("200 OK\n", []),
        ("200 OK", [("X", "a\r"), ("Y", "b\n")]),
        ("200 OK", [("X", "a\x00b")]),
        ("200 OK", [("X", "a\x7fb")]),
        ("200 OK", [("X", "\u20ac")]),
        ("200 OK", [("X Y", "a")]),
        ("200 OK", [("X: y", "a")]),
        ("200 OK", [("", "a")]),
        ("200 OK", [("\xe4", "a")]),
        ("200 OK", [("X", 1)]),
        ("OK", []),
        ("200 O\x00K", []),
        ("", []),
        (200, []),
        ("200 OK", [("Content-Length", "many")]),
    ],
    ids=repr,
)
def test_what_gunicorn_refuses_of_an_application_is_refused(status: Any, fields: Any) -> None:
    """A head that gunicorn would not send is not sent, and none of it, so that the worker can still answer 500."""
    application = sending(status, fields, [b"ab"])
    with pytest.raises(_REFUSALS):
        gunicorns_answer("GET", True, application)
    written, wire = answer()
    with pytest.raises(_REFUSALS):
        written.send(application)
    assert (wire.sent, written.headers_sent) == ([], False)


def test_head_and_body_go_in_one_call() -> None:
    """An answer in one piece is one packet; with chunks, the pieces go as they come."""
    written, wire = answer()
    written.send(sending("200 OK", [("Content-Length", "5")], [b"hello"]))
    assert len(wire.sent) == 1
    assert wire.sent[0].endswith(b"\r\n\r\nhello")
    written, wire = answer()
    written.send(sending("200 OK", [], [b"one", b"", b"two" * 6]))
    assert [wire.sent[0].partition(b"\r\n\r\n")[2], *wire.sent[1:]] == [
        b"3\r\none\r\n",
        b"12\r\n" + b"two" * 6 + b"\r\n",
        b"0\r\n\r\n",
    ]


def test_head_waits_for_the_first_piece() -> None:
    """Until the application has something to send, it can still fail and be answered 500."""
    written, wire = answer()

    def application(environ: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", [])
        assert not wire.sent
        yield b"a"
        assert wire.sent

    written.send(application)
    assert written.headers_sent


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_application_answered_is_closed(fails: bool) -> None:
    """Once, and also if it fails: whoever holds something for the answer gives it back then."""
    closed = []

    class Pieces:
        def __iter__(self) -> Iterator[bytes]:
            yield b"a"
            if fails:
                raise RuntimeError

        def close(self) -> None:
            closed.append(True)

    written, wire = answer()

    def application(environ: Any, start: Any) -> Pieces:
        start("200 OK", [])
        return Pieces()

    if fails:
        with pytest.raises(RuntimeError):
            written.send(application)
    else:
        written.send(application)
    assert closed == [True]
    assert wire.sent[-1].endswith(b"0\r\n\r\n") is not fails


@pytest.mark.parametrize(
    ("keeps", "stops", "keepalive", "unread", "kept"),
    [
        (True, False, 5, False, True),
        (False, False, 5, False, False),
        (True, True, 5, False, False),
        (True, False, 0, False, False),
        (True, False, 5, True, False),
    ],
    ids=["kept", "the client closes", "the worker stops", "no keep-alive", "unread"],
)
def test_who_closes(keeps: bool, stops: bool, keepalive: int, unread: bool, kept: bool) -> None:
    """A connection is kept if the client, the worker, the settings and the body all allow it; the head says which."""
    to = request(keep=keeps)
    if unread:
        found = ordinary(post(*(() if keeps else ("Connection: close",))))
        assert found is not None
        to = found
    written, wire = answer(to, stops, keepalive=keepalive)
    written.send(sending("200 OK", [("Content-Length", "0")], []))
    assert written.keep is kept
    assert (b"\r\nConnection: keep-alive\r\n" in wire.sent[0]) is kept
    assert (b"\r\nConnection: close\r\n" in wire.sent[0]) is not kept


def test_application_may_change_its_mind_until_the_head_is_out() -> None:
    """start_response with exc_info replaces status and fields before the head is sent, and raises after (PEP 3333)."""
    error = RuntimeError("what went wrong")

    def application(environ: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", [("X", "1")])
        try:
            raise error
        except RuntimeError:
            start("503 Service Unavailable", [("Y", "2"), ("Content-Length", "2")], sys.exc_info())
        yield b"ab"
        try:
            raise error
        except RuntimeError:
            start("500 Internal Server Error", [], sys.exc_info())

    written, wire = answer()
    with pytest.raises(RuntimeError, match="what went wrong"):
        written.send(application)
    (sent,) = wire.sent
    assert sent.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nX: " not in sent
    assert b"\r\nY: 2\r\n" in sent


def test_application_may_begin_once() -> None:
    """A second start_response without exc_info is a mistake (PEP 3333), and gunicorn calls it one."""
    written, _ = answer()
    written.start("200 OK", [])
    with pytest.raises(AssertionError):
        written.start("404 Not Found", [])


def test_date_is_made_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The date is right to the second, and is not written anew for every answer."""
    made = []

    def formatdate(when: float, usegmt: bool) -> str:
        made.append(when)
        return f"<{when}>"

    now = [1000.1]
    monkeypatch.setattr("app.server.fast_path.formatdate", formatdate)
    monkeypatch.setattr("app.server.fast_path.time.time", lambda: now[0])
    path = FastPath(config())
    seen = []
    for now[0] in (1000.1, 1000.9, 1001.0, 1001.2, 999.5):  # and a clock that is set back
        seen.append(dict(path.fixed_fields())["Date"])
    assert seen == ["<1000>", "<1000>", "<1001>", "<1001>", "<999>"]
    assert made == [1000, 1001, 999]
