"""Commands that ask a running router end with one line of error, whatever it is that they reach."""

import json
import re
import threading
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from app.cli import admin, main
from tests.support.scripted_server import Peer, ScriptedServer, answer_and_close, answer_and_reset

COMMANDS = (("routes",), ("endpoints",), ("endpoints", "--drain", "1"), ("explain", "x"), ("top", "--count", "2"))
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def response(body: bytes, status: bytes = b"200 OK", *, length: int | None = None, more: bytes = b"") -> bytes:
    """A response with this body."""
    size = b"%d" % (len(body) if length is None else length)
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %b\r\n%b\r\n%b" % (
        status,
        size,
        more,
        body,
    )


def ask(*words: str, **environ: str) -> Result:
    """Run a command."""
    return CliRunner(env=environ).invoke(main.cli, words)


def is_one_line(done: Result) -> bool:
    """Whether a command failed as commands do."""
    assert isinstance(done.exception, SystemExit)
    return done.exit_code == 1 and done.stdout == "" and re.fullmatch(r"Error: [^\n]+\n", done.stderr) is not None


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (response(b"<html><h1>It works!</h1></html>"), "no response of a router's admin API"),
        (response(b"[]"), "no response of a router's admin API"),
        (response(b"null"), "no response of a router's admin API"),
        (response(b"{}"), "no response of a router's admin API"),
        (response(b'{"models": [{}], "endpoints": [{}], "generation": 1, "age_s": "x"}'), "no response of a router"),
        (response(b'{"models": "\xff"}'), "no response of a router's admin API"),
        (response(b"", b"204 No Content"), "no response of a router's admin API"),
        (response(b'{"models": [', length=500), "ends early|no response of a router"),
        (response(b'{"title": "Unauthorized"}', b"401 Unauthorized"), "401 Unauthorized; ROUTER_ADMIN_KEY has the key"),
        (response(b"", b"403 Forbidden"), "403 Forbidden"),
        (response(b"<p>\r\n\x1b[2Jno\xff</p>", b"404 Not Found"), r"404 <p>\\u000d\\u000a\\u001b\[2Jno"),
        (response(b'{"det', b"500 Oops", length=500), "500 Oops"),
        (response(b'{"detail": [1]}', b"400 Bad Request"), r"400 \[1\]"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "broke off|no response of a router"),
        (b"\0\xff garbage\r\n\r\n", "no router can be reached"),
        (b"", "no router can be reached"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value[-25:]),
)
def test_response_of_something_else_is_one_line(words: tuple[str, ...], sent: bytes, said: str) -> None:
    """Whether it is a page of another program, a proxy's, half a document, or none of HTTP."""
    with ScriptedServer(answer_and_close(sent)) as server:
        done = ask(*words, "--admin", f"http://127.0.0.1:{server.port}")
    assert is_one_line(done)
    assert re.search(said, done.stderr), done.stderr


def test_connection_that_is_reset_is_one_line() -> None:
    """As one that nobody accepts."""
    with ScriptedServer(answer_and_reset()) as server:
        assert is_one_line(ask("routes", "--admin", f"http://127.0.0.1:{server.port}"))


@pytest.mark.parametrize(
    "events",
    [b"data: [1]\n\n", b'data: {"in_flight": "x", "limit": 1}\n\n', b'data: {"in_flight": 1}\n\n', b"data: {\xff}\n\n"],
)
def test_event_of_something_else_is_one_line(events: bytes) -> None:
    """The events of another program are no figures of a router."""
    chunk = b"%x\r\n%b\r\n" % (len(events), events)
    with ScriptedServer(answer_and_close(STREAM, chunk)) as server:
        done = ask("top", "--admin", f"http://127.0.0.1:{server.port}")
    assert is_one_line(done)
    assert "no response of a router's admin API" in done.stderr


def test_half_an_event_is_none() -> None:
    """A stream that breaks off inside an event is told as such, and not as an event that is no JSON."""
    with ScriptedServer(answer_and_close(STREAM, b"8\r\ndata: {\r\n")) as server:
        done = ask("top", "--admin", f"http://127.0.0.1:{server.port}")
    assert is_one_line(done)
    assert "the router ended the stream" in done.stderr or "broke off" in done.stderr


def trickle(ended: threading.Event) -> Callable[[Peer], None]:
    """A script: a response that never ends and never stalls."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        peer.send_until_hung_up(b" ")
        ended.set()

    return script


@pytest.mark.slow
def test_document_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """However steadily its bytes come: the deadline is for all of it."""
    monkeypatch.setattr(admin, "TIMEOUT_S", 0.3)
    ended = threading.Event()
    with ScriptedServer(trickle(ended)) as server:
        done = ask("routes", "--admin", f"http://127.0.0.1:{server.port}")
        assert ended.wait(20)
    assert is_one_line(done)
    assert re.search("takes too long|too large", done.stderr)


def test_redirect_is_not_followed() -> None:
    """The key goes to the router that was named, and to no address that a response names."""
    with ScriptedServer(answer_and_close(response(b"{}"))) as other:
        to = b"Location: http://127.0.0.1:%d/admin/routes\r\n" % other.port
        with ScriptedServer(answer_and_close(response(b"", b"302 Found", more=to))) as server:
            done = ask("routes", "--admin", f"http://127.0.0.1:{server.port}", ROUTER_ADMIN_KEY="SECRET")
        assert other.connections == 0
    assert is_one_line(done)
    assert "302" in done.stderr


@pytest.mark.parametrize(
    "url",
    ["http://", "http://[", "http://a b", "http://x:99999", "http://x/y?z", "http://x#y", "unix:/x"],
)
def test_url_that_is_none_is_wrong_use(url: str) -> None:
    """Nothing is asked: it is said what is wrong, and whether the option or the variable has it."""
    for words, environ, place in ((["--admin", url], {}, "--admin: "), ([], {"ROUTER_ADMIN_URL": url}, "_URL: ")):
        done = ask("routes", *words, "--json", **environ)
        assert done.exit_code == 2
        assert place in json.loads(done.stdout)["error"]


def test_password_in_a_url_is_refused_and_not_shown() -> None:
    """The key has a variable; a URL is shown in errors and by `ps`."""
    done = ask("routes", "--admin", "http://admin:SECRET@127.0.0.1:9")
    assert done.exit_code == 2
    assert "ROUTER_ADMIN_KEY" in done.stderr
    assert "SECRET" not in done.output


@pytest.mark.parametrize("key", ["a\nb", "é", "a\udcffb"])
def test_key_that_no_header_can_hold_is_wrong_use(key: str) -> None:
    """It is not shown either."""
    done = ask("routes", "--admin", "http://127.0.0.1:9", ROUTER_ADMIN_KEY=key)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "ROUTER_ADMIN_KEY: must be printable ASCII" in done.stderr
    assert key not in done.stderr


@pytest.mark.parametrize("stale", [False, True])
def test_routes_that_are_not_the_newest_are_told_as_such(stale: bool) -> None:
    """Whoever changed the file and looks whether it is served sees that it was refused."""
    routes = {"generation": 1, "source": "ROUTES_FILE r.toml", "age_s": 5, "stale": stale, "models": []}
    with ScriptedServer(answer_and_close(response(json.dumps(routes).encode()))) as server:
        done = ask("routes", "--admin", f"http://127.0.0.1:{server.port}")
    assert (done.exit_code, "the newest file is refused" in done.stdout) == (0, stale)
