"""Settings without effect."""

from collections.abc import Collection, Iterator

from app.config.route_schema import Routes
from app.config.settings import Settings


def unused_in_settings(
    settings: Settings, given: Collection[str], routes: Routes, *, traced: bool
) -> Iterator[tuple[str, str]]:
    """Yields the variables that are set and have no effect, and why."""
    protocols = {model.protocol for model in routes.models}
    is_checked = any(model.protocol != "simulated" and model.health_check.interval_s for model in routes.models)
    no_tokens = settings.jwt_issuer is None and "JWT_ISSUER is not set: no token is accepted"
    not_simulated = "simulated" not in protocols and "no model is simulated"
    by_file = settings.routes_file is not None
    not_served = not settings.backends and "BACKENDS is not set: the model is simulated"
    for variable, reason in (
        ("MODEL_REF", by_file and "ROUTES_FILE has the names of the models"),
        ("BACKEND_PROTOCOL", "ROUTES_FILE has the protocol of each model" if by_file else not_served),
        ("INITIAL_HEALTH", not is_checked and "no model has endpoints whose health is checked"),
        ("QUEUE_TIMEOUT_MS", not settings.queue_size and "QUEUE_SIZE is 0: no request waits"),
        ("SIMULATED_LATENCY_MS", not_simulated),
        ("SIMULATED_TOKEN_MS", not_simulated),
        ("JWT_LEEWAY_S", no_tokens),
        ("JWT_TENANT_CLAIM", no_tokens),
        ("TRACE_SAMPLE_RATIO", traced and "OpenTelemetry is on: OTEL_TRACES_SAMPLER decides"),
    ):
        if reason and variable in given:
            yield variable, reason
