"""Tracing by OpenTelemetry: whether the environment asks for it.

It is opt-in by the standard variables, and everything else of it is in otel.py and otel_export.py. Only those import
OpenTelemetry, which is an extra of the package, and they are imported only if tracing is on. Telemetry must not stop
the service: whatever is wrong with its variables is one line of the log, and the router runs without it.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

from app.observability.metrics import Metrics

if TYPE_CHECKING:
    from app.observability.otel import Tracing

_EXPORTER, _DISABLED = "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_URL = re.compile(r"https?://[^/?#\s]", re.IGNORECASE)

_log = structlog.get_logger("router.tracing")


def _given(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value.strip() for name, value in environ.items() if name.startswith("OTEL_") and value.strip()}


def is_asked_for(environ: Mapping[str, str]) -> bool:
    """Whether these variables ask for tracing."""
    given = _given(environ)
    exporter = given.get(_EXPORTER, "otlp" if any(name in given for name in _ENDPOINTS) else "none")
    return given.get(_DISABLED, "").lower() != "true" and exporter != "none"


def load(environ: Mapping[str, str], metrics: Metrics) -> "Tracing | None":
    """Returns the tracing that these variables ask for. None: none, or none that is possible, which is logged."""
    given = _given(environ)
    if not is_asked_for(environ):
        return None
    exporter = given.get(_EXPORTER, "otlp")
    protocol = next((given[name] for name in _PROTOCOLS if name in given), _PROTOCOL)
    if exporter != "otlp":
        reason = f"{_EXPORTER}={exporter!r}: must be otlp or none"
    elif protocol != _PROTOCOL:
        reason = f"the protocol of OTLP is {protocol!r}: must be {_PROTOCOL}"
    elif wrong := [name for name in _ENDPOINTS if name in given and not _URL.match(given[name])]:
        reason = f"{wrong[0]}: must be a URL that begins with http:// or https://"
    else:
        try:
            from app.observability.otel import Tracing  # noqa: PLC0415  # an extra, which need not be installed

            return Tracing(given, metrics)
        except ImportError as error:
            reason = f"{error}: install the extra `otel` of inference-router"
        except Exception as error:  # noqa: BLE001  # whatever the SDK raises for a variable of its own
            reason = f"{type(error).__name__}: {error}"
    _log.warning("requests are not traced", reason=reason)
    return None
