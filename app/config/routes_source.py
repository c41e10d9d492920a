"""The source of the routes: ROUTES_FILE, or BACKENDS, or the simulated model.

Credentials are read here to see that they can be, and not kept (credentials.py).
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import structs

from app.config.base_urls import without_roots
from app.config.credentials import read_credential, reference_of
from app.config.keys_schema import Keys
from app.config.route_schema import Endpoint, Model, Routes, Version
from app.config.routes_file import parse_routes
from app.config.routes_file.source import Source
from app.config.settings import Settings
from app.config.text_file import read_text, state_of
from app.config.unused import Unused, unused_of
from app.errors import RoutesError
from app.net.tls_files import BrokenTlsFiles, TlsContext, TlsFiles, client_context

_MAX_FILE_BYTES = 256 << 10


DOCUMENT_FORMAT = "routes without credentials"
"""What two programs that share the table must agree on beside its layout. Older programs read and wrote credentials."""


class Document(msgspec.Struct, frozen=True):
    """What is published: the routes, and what discovery found.

    It has no secret: of a credential it has the variable or the file, as the routes have it.
    """

    routes: Routes
    found: dict[str, tuple[str, ...]] = {}
    """The URLs that each source has, by its key (discovered.py). One that was never trustworthy is absent."""


class RoutesSource:
    """Loads the routes. `credential_env` is looked up in `environ`."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._environ = environ
        self._file = Path(settings.routes_file) if settings.routes_file else None
        self._seen: dict[Path, object] = {}
        self._read: tuple[Routes, Source | None] = Routes(models=()), None
        """What the last valid source said, and where its members are."""
        self.loads = 0
        """How often it was loaded."""

    def load(self) -> Document:
        """The routes as they are now. Raises RoutesError with a message of one line."""
        if self._file is None:
            self._keep(self._from_settings(), None)
            return Document(self._read[0])
        # States are noted before the files are read: a change in between causes one read too many, never one too few.
        # Those of the other files are noted too, for an invalid file does not say which ones belong to it.
        self._seen = {file: state_of(file) for file in (*self._seen, self._file)}
        sources: list[Source] = []
        routes = parse_routes(read_file(self._file), str(self._file), sources=sources)
        holders = credential_holders(routes)
        secrets = {Path(holder.credential_file) for holder in holders if holder.credential_file is not None}
        needed = {self._file: self._seen[self._file], **{file: state_of(file) for file in secrets}}
        tls = {Path(file) for holder in holders for file in tls_files_of(holder).given()}
        self._seen = {**{file: state_of(file) for file in tls}, **needed}
        for holder in holders:
            check_tls_files(holder)
            self.check_credential(holder)
        self._seen = needed  # from now on each process looks at the files of TLS by itself (tls_renewal.py)
        self._keep(routes, sources[0])
        return Document(routes)

    def unused(self, keys: tuple[Keys, Source] | None, *, traced: bool) -> list[Unused]:
        """Returns what has no effect of the settings, of the routes, and of these keys (unused/)."""
        given = {name for name, value in self._environ.items() if value.strip()}
        return unused_of(self._settings, given, self._read, keys, traced=traced)

    def _keep(self, routes: Routes, source: Source | None) -> None:
        self._read = routes, source
        self.loads += 1

    def changed(self) -> bool:
        """Whether the file, or one with a credential, was written or replaced since the last `load`.

        After a `load` that failed, so may one with a certificate or a key have been, which is perhaps what it lacked.
        A replaced symlink of a folder above it counts too: Kubernetes updates a ConfigMap in that way.
        """
        return any(state_of(file) != seen for file, seen in self._seen.items())

    def check_credential(self, holder: Endpoint | Version) -> None:
        """Raises RoutesError, whose message does not contain it, if the credential of an endpoint can't be read."""
        reference = reference_of(holder)
        if reference is not None:
            try:
                read_credential(reference, self._environ)
            except RoutesError as error:
                raise RoutesError(f"the credential of {name_of(holder)}: {error}") from None

    def _from_settings(self) -> Routes:
        settings = self._settings
        endpoints = tuple(Endpoint(url=url) for url in settings.backends)
        protocol = settings.backend_protocol if endpoints else "simulated"
        model = Model(name=settings.model_ref, protocol=protocol, versions=(Version(endpoints=endpoints),))
        routes = without_roots(Routes(models=(model,)))
        # A server that is given twice is one endpoint: as two, it would be ejected without another one being left.
        once = tuple({endpoint.url: endpoint for endpoint in endpoints_of(routes)}.values())
        return Routes(models=(structs.replace(model, versions=(Version(endpoints=once),)),))


def tls_files_of(holder: Endpoint | Version) -> TlsFiles:
    """The files of the TLS of an endpoint, or of those that a version finds."""
    return TlsFiles(holder.client_cert_file or "", holder.client_key_file or "", holder.ca_file or "")


def check_tls_files(holder: Endpoint | Version) -> None:
    """Raises RoutesError if the files can't be used. Each worker reads them by itself."""
    files = tls_files_of(holder)
    if files.given():
        try:
            TlsContext(files, client_context)
        except BrokenTlsFiles as error:
            raise RoutesError(f"the TLS of {name_of(holder)}: {error}") from None


def name_of(holder: Endpoint | Version) -> str:
    """Returns what a message calls an endpoint, or those that a version finds."""
    return holder.url if isinstance(holder, Endpoint) else str(holder.dns or holder.service)


def endpoints_of(routes: Routes) -> list[Endpoint]:
    """The endpoints of all models and versions, in order."""
    return [endpoint for model in routes.models for version in model.versions for endpoint in version.endpoints]


def credential_holders(routes: Routes) -> list[Endpoint | Version]:
    """Whatever may have a credential and TLS, in order: each endpoint, or a version that discovers its own."""
    return [
        holder
        for model in routes.models
        for version in model.versions
        for holder in ((version,) if version.dns or version.service else version.endpoints)
    ]


def names_in(routes: Routes) -> list[str]:
    """The names under which requests are counted: the URL of every endpoint, one name for every model, and another one
    for every model whose requests may wait for an endpoint."""
    return [
        *(endpoint.url for endpoint in endpoints_of(routes)),
        *(counted_as(model) for model in routes.models),
        *(waiting_as(model) for model in routes.models if model.no_endpoint_wait_s),
    ]


def counted_as(model: Model) -> str:
    """The name under which a model's requests are counted."""
    return f"model {model.name}"  # a URL contains no blank, so the two never coincide


def waiting_as(model: Model) -> str:
    """The name under which the requests are counted that wait for the first endpoint of a model."""
    return f"waiting {model.name}"


def read_file(file: Path, max_bytes: int = _MAX_FILE_BYTES) -> str:
    """Returns the text of a file. Raises RoutesError."""
    return read_text(file, max_bytes, RoutesError)
