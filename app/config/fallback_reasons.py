"""Why another model serves a request: the codes of the router's own errors, and the statuses of a model server."""

from typing import Literal, get_args

FallbackReason = Literal[
    "no_endpoint",
    "upstream_unreachable",
    "upstream_broken",
    "upstream_timeout",
    "status_429",
    "status_5xx",
    "queue_timeout",
    "model_limit_reached",
]
REASONS: tuple[FallbackReason, ...] = get_args(FallbackReason)
DEFAULT_REASONS = REASONS[:6]
"""All but those where the router itself has no room."""
