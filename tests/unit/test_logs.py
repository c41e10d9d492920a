"""Logging: one event a line, for machines or for people, whoever logs. Each case in a process of its own."""

import json
import logging
import logging.config
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import structlog

from app.config.settings import load_settings
from app.observability import logs

pytestmark = pytest.mark.slow

LEVELS = ["debug", "info", "warning", "error", "critical"]


def lines_of(folder: Path, **environ: str) -> list[str]:
    """What a new process with these settings writes to standard error when everybody has logged."""
    output = folder / "stderr"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(_log_here, environ, str(output)).result(60)
    return output.read_bytes().decode().split("\n")[:-1]


def _log_here(environ: dict[str, str], output: str) -> None:
    os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    logging.config.dictConfig(logs.configure(load_settings(environ, 1)))
    own = structlog.get_logger("router.test")
    for level in LEVELS:
        getattr(own, level)(f"own {level}")
        logging.getLogger("gunicorn.error").log(logging.getLevelName(level.upper()), "gunicorn's %s", level)
        logging.getLogger("third.party").log(logging.getLevelName(level.upper()), "other's %s", level)
    own.critical("members", path="a\nb", nested={"x": [1]}, odd=object, raw=b"\xff", surrogate="\udcff", number=1.5)
    own.critical("two\nlines")
    odd = "odd \x1b[31m\x07\x9b2J\u202e\u2028\x7f\r\nforged"
    own.critical(odd, path=odd, nested={"x": [odd]}, error=OSError(odd))
    logging.getLogger("gunicorn.error").critical("said %s", odd)
    logs.access_logger(load_settings(environ, 1)).info("request", path=odd)
    logs.malformed_requests_logger(load_settings(environ, 1))("192.0.2.7", 400, odd)
    try:
        raise ValueError(odd)
    except ValueError as error:
        own.critical("odd failure", exc_info=error)
    token = "local".upper()  # in no line of source, but in a local variable
    try:
        raise ValueError(token[:0] + "broken")
    except ValueError as error:
        own.critical("own failure", exc_info=error)
        logging.getLogger("gunicorn.error").critical("gunicorn's failure", exc_info=True)


def events_of(folder: Path, **environ: str) -> list[dict[str, Any]]:
    """The same, with every line taken for JSON."""
    return [json.loads(line) for line in lines_of(folder, LOG_FORMAT="json", **environ)]


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The JSON lines at the level of debug."""
    return events_of(tmp_path_factory.mktemp("logs"), LOG_LEVEL="debug")


def test_every_line_is_a_json_object(events: list[dict[str, Any]]) -> None:
    """Whoever logs, a line says what happened, how bad it is, who says so and when, in UTC."""
    for event in events:
        assert {"event", "level", "logger", "timestamp"} <= set(event)
        assert event["level"] in LEVELS
        assert datetime.fromisoformat(event["timestamp"]).utcoffset() == timedelta(0)


def test_everybody_logs_once(events: list[dict[str, Any]]) -> None:
    """The router, gunicorn and libraries log alike, and no line comes twice."""
    said = [(event["logger"], event["event"]) for event in events][: 3 * len(LEVELS)]
    assert said == [
        line
        for level in LEVELS
        for line in (
            ("router.test", f"own {level}"),
            ("gunicorn.error", f"gunicorn's {level}"),
            ("third.party", f"other's {level}"),
        )
    ]


def test_members_stay_members(events: list[dict[str, Any]]) -> None:
    """What belongs to an event stands under its own name; what JSON can't hold is shown, never an error."""
    (event,) = [event for event in events if event["event"] == "members"]
    assert (event["path"], event["nested"], event["number"]) == ("a\nb", {"x": [1]}, 1.5)
    assert isinstance(event["odd"], str)
    assert "xff" in event["raw"]
    assert "surrogate" in event


def test_line_break_breaks_no_line(events: list[dict[str, Any]]) -> None:
    """What a client sends can't forge a line: line breaks are escaped."""
    assert "two\nlines" in [event["event"] for event in events]


@pytest.mark.parametrize(("name", "logger"), [("own failure", "router.test"), ("gunicorn's failure", "gunicorn.error")])
def test_exception_is_one_line(name: str, logger: str, events: list[dict[str, Any]]) -> None:
    """An exception is a member of its event, with its traceback, whoever logs it."""
    (event,) = [event for event in events if event["event"] == name]
    assert event["logger"] == logger
    assert event["exception"].startswith("Traceback (most recent call last):\n")
    assert event["exception"].endswith("ValueError: broken")


@pytest.mark.parametrize("level", LEVELS)
def test_lower_levels_are_silent(level: str, tmp_path: Path) -> None:
    """LOG_LEVEL is the least level that is logged, for everybody."""
    shown = {event["level"] for event in events_of(tmp_path, LOG_LEVEL=level) if event["logger"] != "router.access"}
    assert shown == set(LEVELS[LEVELS.index(level) :])


def test_console_lines_are_for_people(tmp_path: Path) -> None:
    """LOG_FORMAT=console is no JSON; level, logger and members are still there, and tracebacks are readable."""
    lines = lines_of(tmp_path, LOG_FORMAT="console")
    assert not any(line.startswith("{") for line in lines)
    text = "\n".join(lines)
    for word in ("own info", "gunicorn's info", "other's info", "router.test", "ValueError", "broken"):
        assert word in text
    assert "own debug" not in text
    (members,) = [line for line in lines if "members" in line]
    assert r"a\nb" in members


def test_console_lines_hold_no_control_characters(tmp_path: Path) -> None:
    """Nothing that was logged, and no exception's text, moves the cursor, rings, turns text or forges a line."""
    text = "\n".join(lines_of(tmp_path, LOG_FORMAT="console"))
    assert re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text) == []
    assert [line for line in text.split("\n") if line.startswith("forged")] == ["forged"]  # within a traceback
    assert text.count(r"[31m") == text.count(r"\u001b[31m") + text.count(r"\x1b[31m") > 6


def test_json_lines_hold_no_control_characters(tmp_path: Path) -> None:
    """Whoever looks at JSON lines in a terminal is not at their mercy either; a parser gets the text as it was."""
    lines = lines_of(tmp_path, LOG_FORMAT="json")
    assert re.findall(r"[\x00-\x1f\x80-\x9f\u2028\u202e]", "".join(lines)) == []
    paths = {event["path"] for event in map(json.loads, lines) if "odd" in event.get("path", "")}
    assert paths == {"odd \x1b[31m\x07\x9b2J\u202e\u2028\x7f\r\nforged"}


@pytest.mark.parametrize("form", ["json", "console"])
def test_local_variables_are_not_logged(form: str, tmp_path: Path) -> None:
    """A traceback shows code, not data: local variables hold prompts and passwords."""
    assert "LOCAL" not in "\n".join(lines_of(tmp_path, LOG_FORMAT=form))


def test_access_log_is_alike_whoever_takes_it(tmp_path: Path) -> None:
    """Requests are logged like other events, whatever LOG_LEVEL is; without a standard error, nowhere."""
    output = tmp_path / "stderr"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(_log_requests_here, str(output)).result(60)
    (line,) = output.read_text().splitlines()
    event = json.loads(line)
    assert (event["event"], event["level"], event["logger"]) == ("request", "info", "router.access")
    assert (event["path"], event["status"]) == ("/caf\xe9\n", 429)
    assert datetime.fromisoformat(event["timestamp"]).utcoffset() == timedelta(0)


def _log_requests_here(output: str) -> None:
    settings = load_settings({"LOG_LEVEL": "critical"}, 1)
    os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    logs.access_logger(settings).info("request", path="/caf\xe9\n", status=429)
    sys.stderr = None
    logs.access_logger(settings).info("request", path="/nowhere", status=200)
