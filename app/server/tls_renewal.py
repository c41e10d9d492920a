"""Reads the TLS files again that have changed: of the listeners and of the endpoints. Every worker does so by itself.

The arbiter does it too (routing/inherited.py). So a worker that is forked while files are broken begins with those that
were there last, as the other workers have them.
"""

from collections.abc import Iterable

import structlog

from app.net.tls_files import BrokenTlsFiles, TlsContext
from app.observability.tls_metrics import TlsMetrics

_log = structlog.get_logger("router.tls")


def renew(contexts: Iterable[TlsContext], metrics: TlsMetrics | None) -> None:
    """Make those contexts again whose files have changed.

    All workers find the same. `metrics` is given to the one of them that counts and logs it.
    """
    for context in contexts:
        files = context.files.given()
        try:
            if context.renew() and metrics is not None:
                metrics.count_reload("ok")
                _log.info("TLS files loaded again", files=files)
        except BrokenTlsFiles as error:
            if metrics is not None:
                metrics.count_reload("refused")
                _log.error("TLS files refused; the old ones stay in use", reason=str(error))
