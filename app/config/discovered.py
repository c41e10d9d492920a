"""Sources of endpoints that the routes only name, and routes with what was found there.

The published document (routes_source.py) has the routes as they were given, and beside them what discovery found, by
the key of its source. So either is replaced without the other: a changed file keeps what was found, and a changed
address needs no file.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from msgspec.structs import replace

from app.config.route_schema import Endpoint, Routes, Version
from app.config.routes_source import Document


class Source(NamedTuple):
    """Where the endpoints of a version are found."""

    kind: Literal["dns", "service"]
    name: str
    """A name in the DNS, or `namespace/name` of a Service."""
    port: str
    """"" with SRV records, which hold it."""

    @property
    def key(self) -> str:
        """Its name in metrics, in logs, and among what was found."""
        return f"{self.kind} {self.name}{':' * bool(self.port)}{self.port}"


def source_of(version: Version) -> Source | None:
    """Returns where a version's endpoints are found, or None if the routes list them."""
    if version.dns is not None:
        name, _, port = version.dns.partition(":")
        return Source("dns", name.lower(), port)
    if version.service is not None:
        return Source("service", version.service, version.port or "")
    return None


def sources_in(routes: Routes) -> dict[str, Source]:
    """Returns all sources of the routes by their keys."""
    found = (source_of(version) for model in routes.models for version in model.versions)
    return {source.key: source for source in found if source is not None}


def with_found(document: Document, found: Mapping[str, tuple[str, ...]]) -> Document:
    """Returns the document with what was found at its sources, those it has; the rest is left out."""
    keys = sources_in(document.routes)
    return replace(document, found={key: found[key] for key in sorted(found) if key in keys})


def expanded(document: Document) -> Document:
    """Returns the document with what was found as endpoints of the versions, each with its credential and its TLS."""
    if not sources_in(document.routes):
        return document
    models = []
    for model in document.routes.models:
        versions = []
        for version in model.versions:
            source = source_of(version)
            endpoints = version.endpoints
            if source is not None:
                endpoints = _endpoints(version, source, document.found.get(source.key, ()))
            versions.append(replace(version, endpoints=endpoints))
        models.append(replace(model, versions=tuple(versions)))
    return replace(document, routes=replace(document.routes, models=tuple(models)))


def _endpoints(version: Version, source: Source, urls: tuple[str, ...]) -> tuple[Endpoint, ...]:
    """Returns endpoints at these URLs, which discovery makes with `http`."""
    tls = version.scheme == "https"
    endpoint = Endpoint(
        url="",
        credential_env=version.credential_env,
        credential_file=version.credential_file,
        ca_file=version.ca_file,
        client_cert_file=version.client_cert_file,
        client_key_file=version.client_key_file,
        server_name=version.server_name or (_server_name(source) if tls else None),
    )
    return tuple(replace(endpoint, url="https" + url.removeprefix("http") if tls else url) for url in urls)


def _server_name(source: Source) -> str:
    """Returns the name in the certificates of what is found there, which has an address as its host.

    That is what a client verifies which connects to the source by its name; of SRV records, the name that the service
    is of (RFC 6125 section 6.2.1).
    """
    if source.kind == "service":
        namespace, _, name = source.name.partition("/")
        return f"{name}.{namespace}.svc"
    labels = source.name.rstrip(".").split(".")
    return ".".join(label for label in labels if not label.startswith("_"))
