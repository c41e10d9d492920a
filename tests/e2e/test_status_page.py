"""The status page in a headless Chromium, fed by a real router."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.chromium import AXE, PROGRAM, launch, violations
from tests.support.clients import Crowd, chat
from tests.support.credentials import digest_of
from tests.support.gate import Gate
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.upstream import Hold, Upstream

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PROGRAM, reason="needs Chromium: `make chromium` installs it")]

ADMIN_URL = f"http://127.0.0.1:{free_port()}"
RATES = {"requests_per_s": None, "failures_per_s": None}
MODEL: dict[str, Any] = {"in_flight": 0, "limit": 1, "queued": 0, "rejections_per_s": None, "times_s": {}, **RATES}
ENDPOINT: dict[str, Any] = {"state": "healthy", "why": None, "until_s": None, "in_flight": 0, **RATES}
EMPTY: dict[str, Any] = {
    "endpoints": [],
    "models": [],
    "in_flight": 0,
    "limit": 1,
    "queued": 0,
    "queue_size": 0,
    "workers": 1,
    "rejections_per_s": None,
    "times_s": {},
    "version": "1",
    "form": "pure",
    "routes": {"generation": 1},
    "draining": False,
    **RATES,
}
"""An event that tells of nothing."""
PHONE = {"viewport": {"width": 360, "height": 740}}


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with sync_api.sync_playwright() as playwright, launch(playwright) as started:
        yield started


@pytest.fixture
def complaints() -> list[str]:
    """What the consoles of the pages said that is no mere information."""
    return []


@pytest.fixture
def new_context(browser: "Browser", complaints: list[str]) -> Iterator[Callable[..., "BrowserContext"]]:
    """Makes browser profiles, which share nothing."""
    made = []

    def make(**options: Any) -> "BrowserContext":
        context = browser.new_context(**options)
        made.append(context)
        context.set_default_timeout(10_000)
        context.on("console", lambda message: _note(message, complaints))
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        return context

    yield make
    for context in made:
        context.close()


def _note(message: Any, complaints: list[str]) -> None:
    if message.type in ("error", "warning"):
        complaints.append(message.text)


@pytest.fixture
def admin() -> str:
    """The address of the admin listener."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def open_page(new_context: Callable[..., "BrowserContext"], admin: str) -> Callable[..., "Page"]:
    """Opens the status page in a profile of its own, and waits until it is live."""

    def open_it(url: str = f"http://{admin}", **options: Any) -> "Page":
        page = new_context(**options).new_page()
        page.goto(url)
        page.wait_for_selector("#link.live")
        return page

    return open_it


def text(page: "Page", selector: str) -> str:
    """What an element says, to everybody or to screen readers only."""
    return page.text_content(selector) or ""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """A router for all tests that do nothing to it, with its admin listener at ADMIN_URL."""
    with Router(tmp_path_factory.mktemp("plain"), ADMIN_BIND=ADMIN_URL.removeprefix("http://")) as router:
        yield router


def shows(page: "Page", **texts: str) -> None:
    """Wait until the elements with these ids have these texts."""
    for name, text in texts.items():
        page.wait_for_function("([id, text]) => document.getElementById(id).textContent === text", arg=[name, text])


def test_numbers_follow_a_load(
    gate: Gate,
    start_gated: Callable[..., Router],
    open_page: Callable[..., "Page"],
    admin: str,
    complaints: list[str],
) -> None:
    """In flight, queue, requests and rejections are those of the router; what is not known yet is a dash, and not 0."""
    router = start_gated(ADMIN_BIND=admin, MAX_CONCURRENCY=2, QUEUE_SIZE=1, QUEUE_TIMEOUT_MS=60_000)
    page = open_page()
    shows(page, inflight="0", limit="2", queued="0", rejected="0")
    assert "\N{EN DASH}" in text(page, "#times")
    crowd = Crowd(lambda number: router.infer().status_code).send(3)
    shows(page, inflight="2", queued="1")
    assert page.title().startswith("2/2 ")
    assert router.infer().status_code == 429
    page.wait_for_selector("#card-rejected.hot")
    assert "rejected" in text(page, "#say")
    gate.open()
    crowd.join()
    shows(page, inflight="0", queued="0")
    page.wait_for_function("() => /\\d ms|\\d s/.test(document.getElementById('times').textContent)")
    assert not complaints


@pytest.mark.alone
def test_ejected_endpoint_shows_within_two_seconds(
    serve: Callable[..., Upstream],
    routes: Callable[..., str],
    start: Callable[..., Router],
    open_page: Callable[..., "Page"],
    admin: str,
    complaints: list[str],
) -> None:
    """Its state changes at once, with the reason; it moves to the top, and a screen reader is told."""
    good, bad = serve(), serve(lambda seen, reply: reply.send(500))
    model = {
        "name": "m",
        "health_check": {"interval_s": 0},
        "ejection": {"consecutive_failures": 1, "base_s": 60, "max_s": 60},
        "versions": [{"endpoints": [good.url, bad.url]}],
    }
    router = start(ADMIN_BIND=admin, ROUTES_FILE=routes(model))
    page = open_page()
    row = page.locator("#endpoints tbody tr").first
    assert "Healthy" in row.inner_text()
    while not bad.seen:
        chat(router)
    began = time.monotonic()
    page.wait_for_selector("#endpoints .state.ejected", timeout=2000)
    assert time.monotonic() - began < 2
    assert bad.url in row.inner_text()
    assert "failed too often" in row.inner_text()
    assert f"{bad.url} is ejected" in text(page, "#say")
    assert "1 of 2 in use" in text(page, "#endpoints caption")
    assert not complaints


def test_lost_connection_is_shown_and_retried(
    tmp_path: Path, start: Callable[..., Router], open_page: Callable[..., "Page"], admin: str
) -> None:
    """When the router is gone the page says so, and goes on by itself when it is back."""
    router = start(ADMIN_BIND=admin)
    page = open_page()
    page.clock.install()  # it runs on; the page need not wait as long as it would
    router.stop()
    page.clock.fast_forward(3_000)
    page.wait_for_selector("#link.lost")
    assert "lost" in text(page, "#say")
    assert not AXE.exists() or violations(page) == []
    with Router(tmp_path, ADMIN_BIND=admin, MAX_CONCURRENCY=77):
        page.wait_for_selector("#link.live", timeout=30_000)
        shows(page, limit="77")
        assert "back" in text(page, "#say")


@pytest.mark.alone
def test_reload_of_the_workers_is_no_lost_connection(plain: Router, open_page: Callable[..., "Page"]) -> None:
    """Workers that make way end the stream; the page goes on with their successors, and nothing is said."""
    page = open_page(ADMIN_URL)
    before = set(plain.workers())
    plain.signal(signal.SIGHUP)
    until(lambda: not before & set(plain.workers()), "the workers have made way")
    page.wait_for_function("() => performance.now() - shownAt < 500")
    assert text(page, "#say") == ""


@pytest.mark.alone
def test_tabs_of_one_browser_share_a_stream(
    plain: Router, new_context: Callable[..., "BrowserContext"], complaints: list[str]
) -> None:
    """Eight tabs are live, though a browser has six connections to a server. When the reader goes, another reads."""
    context = new_context()
    pages = [context.new_page() for _ in range(8)]
    for page in pages:
        page.goto(ADMIN_URL)
        page.wait_for_selector("#link.live")
    reads = "reading !== null"
    until(lambda: sum(page.evaluate(reads) for page in pages) == 1, "one tab reads")
    next(page for page in pages if page.evaluate(reads)).close()
    pages = [page for page in pages if not page.is_closed()]
    until(lambda: sum(page.evaluate(reads) for page in pages) == 1, "another tab reads")
    for page in pages:
        page.evaluate("heardAt = shownAt = -Infinity")
    for page in pages:
        page.wait_for_function("() => performance.now() - shownAt < 2000")
    assert not complaints


def test_hidden_tab_reads_nothing_until_it_is_seen_again(plain: Router, open_page: Callable[..., "Page"]) -> None:
    """A tab that was hidden for a minute closes its stream, so the router makes no events for it."""
    page = open_page(ADMIN_URL)
    page.clock.install()
    hide = "hidden => {{ Object.defineProperty(document, 'hidden', {{value: hidden, configurable: true}}); {} }}"
    change = hide.format("document.dispatchEvent(new Event('visibilitychange'))")
    page.evaluate(change, True)
    page.clock.run_for(59_000)
    assert page.evaluate("reading !== null")
    page.clock.run_for(2_000)
    assert page.evaluate("reading === null")
    assert text(page, "#link") == "Paused"
    page.evaluate(change, False)
    page.clock.resume()
    page.wait_for_selector("#link.live")


@pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: `make chromium` fetches it from npm")
def test_accessibility(
    serve: Callable[..., Upstream],
    routes: Callable[..., str],
    start: Callable[..., Router],
    open_page: Callable[..., "Page"],
    admin: str,
) -> None:
    """axe-core finds nothing wrong: in light, dark and on a phone, with notices and rejections."""
    up, down = serve(), serve()
    down.well = False
    check = {"interval_s": 0.2, "unhealthy_after": 1, "panic_threshold": 0}
    models = [
        {"name": name, "health_check": check, "versions": [{"endpoints": [server.url]}]}
        for name, server in (("a-model-with-a-rather-long-name/instruct", up), ("another", down))
    ]
    router = start(ADMIN_BIND=admin, MAX_CONCURRENCY=1, ROUTES_FILE=routes(*models))
    page = open_page(color_scheme="light")
    up.answer = hold = Hold()
    crowd = Crowd(lambda number: chat(router, str(models[0]["name"])).status_code).send(2)
    page.wait_for_selector("#rejections code")
    hold.release()
    assert sorted(crowd.join().answers.values()) == [200, 429]
    page.wait_for_selector("#endpoints .state.unhealthy")
    page.wait_for_selector("#notices:not([hidden])")
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    assert violations(page) == []
    page.set_viewport_size({"width": 360, "height": 740})
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def feed(page: "Page", *more: dict[str, Any], **figures: Any) -> None:
    """Open the page, fed by the test: an event with these figures, and one for each of `more`."""
    events = "".join(f"data: {json.dumps({**EMPTY, **each})}\n\n" for each in (figures, *more))
    page.route("**/admin/live", lambda route: route.fulfill(content_type="text/event-stream", body=events))
    page.goto(ADMIN_URL)
    page.wait_for_selector("#link.live")


def test_endpoints_that_an_event_leaves_out_are_as_before(
    plain: Router, new_context: Callable[..., "BrowserContext"], complaints: list[str]
) -> None:
    """They stay in the table and are counted; a time that runs goes on. An event with all has those that are left."""
    a, b, c = ({**ENDPOINT, "url": f"http://{name}", "models": ["m"], "last_error": None} for name in "abc")
    out = {**b, "state": "ejected", "why": "it failed too often", "until_s": 30.0}
    out["last_error"] = {"text": "refused", "age_s": 10.0}
    first = {"time": "2026-01-01T00:00:00.000+00:00", "endpoints": [a, out, c], "endpoints_complete": True}
    later = {"time": "2026-01-01T00:00:05.000+00:00", "endpoints_complete": False}
    page = new_context().new_page()
    feed(page, {**later, "endpoints": [{**c, "in_flight": 7}]}, **first)
    table = page.locator("#endpoints")
    page.wait_for_function("document.querySelector('#endpoints').innerText.includes('for 25 s more')")
    text = table.inner_text()
    assert "15 s ago: refused" in text
    assert "2 of 3 in use" in text
    rows = [row.split("\t") for row in table.locator("tbody tr").all_inner_texts()]
    assert [row[0].partition("\n")[0] for row in rows] == ["http://b", "http://a", "http://c"]
    assert rows[2][2] == "7"
    page.unroute("**/admin/live")
    feed(page, {**later, "endpoints": [a], "endpoints_complete": True}, **first)
    page.wait_for_function("document.querySelector('#endpoints').innerText.includes('1 of 1 in use')")
    assert not complaints


def test_phone_and_keyboard(plain: Router, new_context: Callable[..., "BrowserContext"], complaints: list[str]) -> None:
    """At 360 pixels nothing is wider than the screen; all that can be used is reached by the keyboard, and shows it."""
    page = new_context(**PHONE).new_page()
    name = "a-model-with-a-rather-long-name/instruct"
    urls = [f"http://a-rather-long-name-of-a-host-{n}.some-namespace.svc.cluster.local:8000" for n in range(12)]
    feed(page, pod=name * 2, endpoints=[{**ENDPOINT, "url": url, "models": [name]} for url in urls])
    assert not complaints
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "find"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.type("host-7.")
    assert page.locator("#endpoints tbody tr").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "metrics"


@pytest.mark.parametrize(
    ("states", "says", "used"),
    [
        (("healthy", "ejected"), "", "1 of 2"),
        (("unknown", "backing_off"), "", "1 of 2"),
        (("ejected", "draining"), "No endpoint of m is in use.", "0 of 2"),
        (
            ("backing_off", "backing_off"),
            "No endpoint of m is ready for more, so those that back off get its requests.",
            "2 of 2",
        ),
        (
            ("backing_off", "unhealthy"),
            "No endpoint of m is ready for more, so those that back off get its requests.",
            "1 of 2",
        ),
    ],
)
def test_notice_says_whether_any_endpoint_is_in_use(
    states: tuple[str, ...], says: str, used: str, plain: Router, new_context: Callable[..., "BrowserContext"]
) -> None:
    """Endpoints that back off get requests where no other one is available: it is not that none is in use."""
    page = new_context().new_page()
    endpoints = [{**ENDPOINT, "url": f"http://{at}", "models": ["m"], "state": each} for at, each in enumerate(states)]
    feed(page, endpoints=endpoints, models=[{**MODEL, "name": "m"}])
    assert text(page, "#notices") == says
    assert f"{used} in use" in text(page, "#endpoints caption")


def test_texts_are_shown_as_texts(
    plain: Router, new_context: Callable[..., "BrowserContext"], complaints: list[str]
) -> None:
    """Whatever a name, a reason or an error says, it is shown as it is, and never becomes a part of the page."""
    page = new_context().new_page()
    evil = '<img src=x onerror="document.title=1"><script>alert(1)</script>'
    record = {"request_id": evil, "time": evil, "model": evil, "explanation": evil}
    endpoint = {**ENDPOINT, "url": evil, "models": [evil], "state": evil, "why": evil}
    feed(page, pod=evil, version=evil, endpoints=[endpoint], models=[{**MODEL, "name": evil}], rejections=[record])
    for part in ("#name", "#facts", "#endpoints", "#models", "#rejections"):
        assert evil in text(page, part)
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    assert not complaints


def test_page_that_is_not_allowed_any_more_says_so(plain: Router, new_context: Callable[..., "BrowserContext"]) -> None:
    """When its key is not accepted any more, the page says what to do, and does not go on asking."""
    page, asked = new_context().new_page(), []

    def refuse(route: Any) -> None:
        asked.append(route.request.url)
        route.fulfill(status=401)

    page.route("**/admin/live", refuse)
    page.goto(ADMIN_URL)
    page.wait_for_selector("#link.refused")
    assert "Reload" in text(page, "#say")
    page.wait_for_timeout(1200)  # longer than two attempts are apart at first
    assert len(asked) == 1


def test_browser_asks_for_the_key_of_the_page(
    start: Callable[..., Router], open_page: Callable[..., "Page"], admin: str, complaints: list[str]
) -> None:
    """A browser is asked for a password in a way that it understands, and sends it with the live events too."""
    start(ADMIN_BIND=admin, ADMIN_KEY_SHA256=digest_of("operator"), WEB_CONCURRENCY=1)
    page = open_page(http_credentials={"username": "anyone", "password": "operator"})
    assert page.title().startswith("0/")
    assert not complaints
