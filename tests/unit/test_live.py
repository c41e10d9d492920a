"""The live events of one worker: made once for all watchers, and not at all without one."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gevent
import pytest
from falcon import testing

from app.api.admin import live
from app.api.admin.live import LiveFeed
from app.api.admin.live_facts import LiveFacts
from app.api.admin.records_query import Wanted
from app.observability.metrics import Metrics, SharedState
from tests.support.local_router import LocalRouter

STATE = SharedState(1, 2, 3, 4, 0, 0, ())


class Feed:
    """A feed, and how many events it has made."""

    def __init__(self, metrics: Metrics) -> None:
        self.made = 0
        self.live = LiveFeed(metrics, self._read, lambda _: {}, tuple)

    def _read(self) -> SharedState:
        self.made += 1
        return STATE

    def watch(self) -> Iterator[bytes]:
        """Begins to watch; the head is taken."""
        events = self.live.events()
        assert next(events).startswith(b"retry:")
        return events


@pytest.fixture
def feed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    """A feed with an event every few milliseconds."""
    monkeypatch.setattr(live, "INTERVAL_S", 0.005)
    with LocalRouter(tmp_path) as local:
        yield Feed(local.router.metrics)


def until_stopped(feed: Feed) -> None:
    """Wait until no greenlet makes events."""
    with gevent.Timeout(5):
        while feed.live._produces:
            gevent.sleep(0.001)


def test_watchers_share_each_event(feed: Feed) -> None:
    """An event is made once, however many watch: each gets the very same bytes."""
    watchers = [feed.watch() for _ in range(10)]
    for _ in range(3):
        assert len({id(next(events)) for events in watchers}) == 1
    assert feed.made == 3
    for events in watchers:
        events.close()  # type: ignore[attr-defined]  # they are generators


def test_nothing_is_read_while_nobody_watches(feed: Feed) -> None:
    """The first watcher starts the reading of metrics, the last one ends it, and the next one starts it again."""
    gevent.sleep(0.02)
    assert feed.made == 0
    for _ in range(2):
        events = feed.watch()
        next(events)
        events.close()  # type: ignore[attr-defined]  # as above
        until_stopped(feed)
        made = feed.made
        gevent.sleep(0.02)
        assert feed.made == made


def test_watcher_that_hangs_skips_events(feed: Feed) -> None:
    """Nothing is kept for a watcher that does not read: its next event is the newest one, with all endpoints."""
    hung, reads = feed.watch(), feed.watch()
    first = next(hung)
    seen = [next(reads) for _ in range(6)]
    assert seen[0] is first
    late, newest = (json.loads(event.removeprefix(b"data: ")) for event in (next(hung), seen[-1]))
    assert (late.pop("endpoints_complete"), newest.pop("endpoints_complete")) == (True, False)
    assert late == newest


def test_events_end_when_the_worker_stops(feed: Feed) -> None:
    """A worker that is about to end ends the responses of those who watch, so none delays it."""
    stops = False
    feed.live.attach(lambda: stops)
    events = feed.watch()
    next(events)
    stops = True
    with gevent.Timeout(5):
        assert len(list(events)) <= 1
    assert not feed.live._produces


def test_failed_reading_ends_the_events(
    feed: Feed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error while an event is made ends the responses, so that watchers ask again; the log has the reason."""
    events = feed.watch()
    next(events)
    monkeypatch.setattr(feed.live, "_read_state", lambda: 1 / 0)
    with gevent.Timeout(5):
        assert len(list(events)) <= 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.undo()
    assert next(feed.watch())


def test_members_of_an_event_are_documented(tmp_path: Path) -> None:
    """docs/status-page.md names every member of an event, and no other."""
    with LocalRouter(tmp_path) as local:
        events = local.router.live.events()
        next(events)
        event = json.loads(next(events).removeprefix(b"data: "))
        events.close()  # type: ignore[attr-defined]  # as above
    section = (Path(__file__).parents[2] / "docs" / "status-page.md").read_text().partition("| Member | Is |")[2]
    named = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    assert sorted(event) == sorted(re.findall(r"`(\w+)`", " ".join(named)))


def test_page_that_is_closed_is_logged_as_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stream has no other end than its reader's: its line has the status 200, and none is written for errors."""
    for wanted, expected in (("all", [("/admin/live", 200)]), ("errors", [])):
        with LocalRouter(tmp_path / wanted, ADMIN_BIND="127.0.0.1:1", ACCESS_LOG=wanted) as local:
            body = local.application(
                testing.create_environ("/admin/live", port=1, host="127.0.0.1"), testing.StartResponseMock()
            )
            assert b"retry" in next(iter(body))
            body.close()  # type: ignore[attr-defined]  # the outermost layer's has it
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if "router.access" in line]
        assert [(line["path"], line["status"]) for line in lines] == expected


def test_first_rejection_is_looked_for_at_once() -> None:
    """Its explanation is in the next event, however lately the page was opened; without one no record is read."""
    looked = []

    def newest(wanted: Wanted) -> list[dict[str, Any]]:
        looked.append(wanted)
        return []

    facts = LiveFacts(Mock(records=Mock(newest=newest)), Mock())
    facts._latest_rejections(0)
    assert not looked
    facts._latest_rejections(1)
    assert len(looked) == 1
