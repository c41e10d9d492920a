"""What is counted and shown of TLS: handshakes that failed, files that were read again, and when certificates end."""

from app.observability.metric_families import Family, counts_of

HANDSHAKE_FAILURES = ("plain_http", "certificate", "timeout", "protocol")
RELOADS = ("ok", "refused")

FAILED_HANDSHAKES = Family(
    "counter",
    "router_tls_handshake_failures_total",
    "Connections of clients that did not become TLS: something other than TLS was sent, the client's certificate was "
    "not accepted, time ran out, or the two sides found no common protocol.",
    ("reason",),
)
RELOADED_FILES = Family(
    "counter",
    "router_tls_reloads_total",
    "Changed TLS files, by what became of them: loaded (ok), or refused, so that the old ones stay.",
    ("result",),
)
TLS_FILES_STALE = Family(
    "gauge",
    "router_tls_files_stale",
    "Whether TLS files were refused when they were last read: older ones are in use. They are named by their "
    "certificate, or else by their authorities.",
    ("file",),
)
CERTIFICATE_NOT_BEFORE = Family(
    "gauge",
    "router_tls_certificate_not_before_timestamp_seconds",
    "From when the certificates of a file that is loaded are valid, in seconds since 1970.",
    ("file",),
)
CERTIFICATE_NOT_AFTER = Family(
    "gauge",
    "router_tls_certificate_not_after_timestamp_seconds",
    "When the first certificate of a file that is loaded expires, in seconds since 1970.",
    ("file",),
)


class TlsMetrics:
    """The counters of TLS."""

    def __init__(self) -> None:
        self._handshakes = counts_of(FAILED_HANDSHAKES, HANDSHAKE_FAILURES)
        self._reloads = counts_of(RELOADED_FILES, RELOADS)

    def count_handshake(self, reason: str) -> None:
        """Count a handshake that failed."""
        self._handshakes[reason].inc()

    def count_reload(self, result: str) -> None:
        """Count files that changed."""
        self._reloads[result].inc()
