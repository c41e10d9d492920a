"""URLs of endpoints, as they should be: without the paths that the protocol itself adds.

What other programs call a base URL ends with the root of the protocol (`http://host:8000/v1`), and some users give the
URL of an operation. The router appends the whole path to an endpoint's URL, so such an ending would be there twice:
`/v1/v1/chat/completions`. It is left out, with a line in the log. A path in front of it stays.
"""

import structlog
from msgspec.structs import replace

from app.config.addresses import check_url
from app.config.route_schema import Endpoint, Model, Routes
from app.protocols.adapters import PROTOCOLS

_log = structlog.get_logger("router.routes")

_ENDINGS = {
    adapter.name: (
        *(
            operation.route
            for operation in adapter.operations
            if operation.route.startswith(f"{adapter.root}/") and "{" not in operation.route
        ),
        adapter.health_path,
        adapter.root,
    )
    for adapter in PROTOCOLS
}


def without_roots(routes: Routes) -> Routes:
    """Returns the routes, with the URL of each endpoint free of what the protocol of its model adds."""
    return replace(routes, models=tuple(map(_model, routes.models)))


def _model(model: Model) -> Model:
    endings = _ENDINGS.get(model.protocol, ())
    versions = tuple(
        replace(version, endpoints=tuple(_endpoint(endpoint, endings) for endpoint in version.endpoints))
        for version in model.versions
    )
    return replace(model, versions=versions)


def _endpoint(endpoint: Endpoint, endings: tuple[str, ...]) -> Endpoint:
    given = endpoint.url
    ending = next((ending for ending in endings if given.endswith(ending)), None)
    if ending is None:
        return endpoint
    try:
        check_url(given)
    except ValueError:
        return endpoint  # whoever checks the routes says what is wrong; the URL may hold a password, so it isn't logged
    url = given.removesuffix(ending).rstrip("/")
    _log.warning("the end of an endpoint's URL is left out: requests have it in their path", given=given, endpoint=url)
    return replace(endpoint, url=url)
