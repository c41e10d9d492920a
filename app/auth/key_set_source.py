"""Where the issuer's public keys come from: a file, or a URL. All processes share what was read or fetched last.

The file is read at the start, and again when it changes. The URL is fetched by the leader every 5 minutes. After a
failure, and by any worker for a token with an unknown `kid`, it is fetched once in 10 seconds at most, over all workers
together. However many tokens with invented ids come, the issuer gets no more requests than that. While the issuer is
down, the keys that were fetched last are used.

**One process fetches.** A fetch is claimed under the lock, by storing the time at which it begins. A process that dies
meanwhile leaves a claim that counts as over when its time is: the next one is due 10 seconds after it began.
"""

import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

import gevent
import structlog

from app.auth.key_set import KeySet, public_keys
from app.auth.layouts import KEY_SET, MAX_KEY_SET_BYTES
from app.config.text_file import state_of
from app.errors import KeysError
from app.observability.auth_metrics import AuthMetrics
from app.shared_memory.shared_document import SharedDocument
from app.shared_memory.table import SharedTable

REFRESH_S = 300
RETRY_S = 10
_TIMEOUT_S = 5
_POLL_S = 0.02

_log = structlog.get_logger("router.keys")


class KeySetSource:
    """Publishes the key set, and returns the one that is current."""

    def __init__(self, source: str | None, table: SharedTable, metrics: AuthMetrics) -> None:
        """`source` is JWT_JWKS; None: there are no public keys."""
        self._document = SharedDocument(table, KEY_SET)
        self._file = Path(source) if source is not None and source.startswith("/") else None
        self._url = source if self._file is None else None
        self._lock = table.lock
        self._begun_ms = table.cell("jwks_begun_ms")
        self._ended_ms = table.cell("jwks_ended_ms")
        self._failed = table.cell("jwks_failed")
        self._metrics = metrics
        self._seen: object = None
        self._cursor = 0
        self._keys = KeySet()

    @property
    def cursor(self) -> int:
        """Changes with the keys."""
        return self._document.cursor[0]

    @property
    def is_stale(self) -> bool:
        """Whether the set could not be had when it was last read or fetched: an older one is in use, or none."""
        return bool(self._failed[0])

    def current(self) -> KeySet:
        """Returns the keys that are current; none before the first were fetched."""
        if self._document.cursor[0] != self._cursor:
            self._cursor, content = self._document.read()
            self._keys = KeySet(content)
        return self._keys

    def load(self) -> None:
        """Read the file, at the start. Raises KeysError. A URL is fetched by the workers: the router starts without."""
        if self._file is not None:
            self._seen = state_of(self._file)
            self._publish(_read(self._file))

    def refresh_if_due(self) -> None:
        """Read the file again if it has changed, or begin to fetch the URL if it is due. The leader calls this."""
        if self._file is not None:
            if state_of(self._file) != self._seen:
                self._refresh()
        elif self._url is not None and self._claim(RETRY_S if self._failed[0] or not self._cursor_set() else REFRESH_S):
            gevent.spawn(self._refresh)

    def refresh_for_token(self) -> None:
        """Fetch the URL for a token whose key is not there, unless it was fetched lately; wait if it is just fetched.

        The file needs no such thing: it is looked at every second.
        """
        if self._url is None:
            return
        if self._claim(RETRY_S):
            self._refresh()
            return
        while self._is_fetched():
            gevent.sleep(_POLL_S)

    def _cursor_set(self) -> bool:
        return bool(self._document.cursor[0])

    def _is_fetched(self) -> bool:
        begun_ms = self._begun_ms[0]
        return self._ended_ms[0] < begun_ms and _now_ms() - begun_ms < (_TIMEOUT_S + 1) * 1000

    def _claim(self, after_s: float) -> bool:
        now = _now_ms()
        with self._lock:
            begun_ms = self._begun_ms[0]
            if begun_ms and now - begun_ms < after_s * 1000:
                return False
            self._begun_ms[0] = now
        return True

    def _refresh(self) -> None:
        try:
            if self._file is not None:
                self._seen = state_of(self._file)
                changed = self._publish(_read(self._file))
            else:
                changed = self._publish(_fetch(self._url or ""))
        except KeysError as error:
            self._failed[0] = 1
            self._metrics.jwks_refreshes["failed"].inc()
            _log.error("key set refused; the old one stays", reason=str(error))
        else:
            if changed or self._failed[0] or self._url is not None:
                self._metrics.jwks_refreshes["ok"].inc()
            self._failed[0] = 0
            if changed:
                _log.info("key set published", generation=self._document.generation)
        finally:
            self._ended_ms[0] = _now_ms()

    def _publish(self, content: bytes) -> bool:
        return self._document.publish(_public_keys(content))


def check_key_set(file: Path) -> None:
    """Raises KeysError for a file with which the router would not start."""
    _public_keys(_read(file))


def _public_keys(content: bytes) -> bytes:
    return public_keys(content, "JWT_JWKS")


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000  # of the same clock in all processes


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_KEY_SET_BYTES + 1)
    except OSError as error:
        raise KeysError(f"JWT_JWKS: can't be read: {error.strerror}") from None
    return _bounded(content)


def _fetch(url: str) -> bytes:
    """Returns what is served at the URL, which no redirect leaves. Raises KeysError, which does not repeat the URL."""
    opener = urllib.request.OpenerDirector()  # without the handlers of files, FTP, proxies and redirects
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310  # settings allow http(s)
    late = gevent.Timeout(_TIMEOUT_S)  # in all, however steadily it trickles
    try:
        with late, opener.open(request, timeout=_TIMEOUT_S) as response:
            return _bounded(response.read(MAX_KEY_SET_BYTES + 1))
    except gevent.Timeout as timeout:
        if timeout is not late:
            raise
        raise KeysError(f"JWT_JWKS: no whole response within {_TIMEOUT_S} s") from None
    except urllib.error.HTTPError as error:
        error.close()  # it is the response
        raise KeysError(f"JWT_JWKS: the response has status {error.code}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise KeysError(f"JWT_JWKS: can't be fetched: {type(reason).__name__}") from None


def _bounded(content: bytes) -> bytes:
    if len(content) > MAX_KEY_SET_BYTES:
        raise KeysError(f"JWT_JWKS: must have at most {MAX_KEY_SET_BYTES} bytes")
    return content
