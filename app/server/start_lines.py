"""What the start says to people: where the router listens, what it serves, and where its page is."""

from collections.abc import Sequence
from importlib import metadata

from app.compiled import form
from app.config.settings import Settings

_MOST_MODELS = 8
_ANY = {"0.0.0.0": "localhost", "[::]": "localhost"}  # noqa: S104  # nothing is bound to them here


def start_lines(settings: Settings, models: Sequence[str]) -> tuple[str, str, str]:
    """Returns three lines. `models` are the names and aliases that are served."""
    workers, queue = settings.web_concurrency, settings.queue_size
    waiting = f"{queue} may wait" if queue else "none waits"
    shown = ", ".join(models[:_MOST_MODELS])
    more = f" and {len(models) - _MOST_MODELS} more" if len(models) > _MOST_MODELS else ""
    page = "none: set ADMIN_BIND" if settings.admin_bind is None else f"{url_of(settings.admin_bind)}/"
    listening = url_of(settings.bind, tls=settings.tls_cert_file is not None)
    release = f"inference-router {metadata.version('inference-router')}, {form()}"
    return (
        f"listening  {listening} with {workers} worker{'s' * (workers != 1)} ({release})",
        f"serving    {shown}{more}: {settings.max_concurrency} requests at a time, {waiting}",
        f"page       {page}",
    )


def url_of(bind: str, *, tls: bool = False) -> str:
    """Returns the URL at which this machine reaches what listens on host:port."""
    host, _, port = bind.rpartition(":")
    return f"http{'s' * tls}://{_ANY.get(host, host)}:{port}"
