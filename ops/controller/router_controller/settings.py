"""Settings are environment variables, read once, at the start. A blank one counts as unset."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Times are in seconds."""

    router_image: str = "router:0.1.0"
    prometheus_url: str = "http://prometheus-operated.monitoring:9090"
    watch_namespace: str | None = None
    pod_name: str = ""
    pod_namespace: str = "default"
    bind: str = "0.0.0.0:8080"
    log_level: str = "info"
    log_format: str = "json"
    lease_duration_s: float = 15.0
    watch_timeout_s: float = 240.0
    watch_read_timeout_s: float = 120.0
    watch_silent_s: float = 300.0

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port of /healthz and /metrics."""
        host, _, port = self.bind.rpartition(":")
        return host.strip("[]"), int(port)


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Returns the settings. Raises ValueError with the name of the variable that is invalid."""
    given = {name: environ.get(name.upper(), "").strip() for name in Settings.__dataclass_fields__}
    values: dict[str, object] = {name: text for name, text in given.items() if text}
    for name in values:
        if name.endswith("_s"):
            values[name] = _seconds(name.upper(), given[name])
    values.setdefault("pod_name", socket.gethostname())
    settings = Settings(**values)  # type: ignore[arg-type]  # seconds are floats, all else is text
    try:
        valid = 0 <= settings.address[1] < 65536
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"BIND={settings.bind!r}: host:port or [ipv6]:port")
    if settings.log_format not in {"json", "console"}:
        raise ValueError(f"LOG_FORMAT={settings.log_format!r}: json or console")
    if settings.log_level not in {"debug", "info", "warning", "error", "critical"}:
        raise ValueError(f"LOG_LEVEL={settings.log_level!r}: debug, info, warning, error or critical")
    return settings


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise ValueError(f"{name}={text!r}: seconds, 0.1 to 3600")
    return seconds
