"""Where the routes come from: ROUTES_FILE, or BACKENDS, or the simulated model; and the credentials they name."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from app.config.route_schema import Endpoint, Model, Routes, Version
from app.config.routes_file import parse_routes
from app.config.settings import Settings
from app.errors import RoutesError

_MAX_FILE_BYTES = 256 << 10
_MAX_CREDENTIAL_BYTES = 16 << 10


class Document(msgspec.Struct, frozen=True):
    """What is published: the routes, and the credential of each of their endpoints, in order.

    Credentials are read by the publisher only, so that no worker depends on a file that may be gone by then. They are
    in memory that only the server's processes have.
    """

    routes: Routes
    credentials: tuple[str | None, ...] = ()


class RoutesSource:
    """Reads the routes. `environ` is where `credential_env` is looked up."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._environ = environ
        self._file = Path(settings.routes_file) if settings.routes_file else None
        self._seen: dict[Path, object] = {}

    def load(self) -> Document:
        """The routes as they are now. Raises RoutesError, with one line that says what to mend."""
        if self._file is None:
            routes = self._from_settings()
            return Document(routes, (None,) * len(endpoints_of(routes)))
        # The state of a file is noted before it is read: if it changes in between, it is read once too often.
        self._seen = {**self._seen, self._file: _state(self._file)}
        routes = parse_routes(_read(self._file), str(self._file))
        endpoints = endpoints_of(routes)
        secrets = {Path(endpoint.credential_file) for endpoint in endpoints if endpoint.credential_file is not None}
        self._seen = {self._file: self._seen[self._file], **{file: _state(file) for file in secrets}}
        return Document(routes, tuple(self._credential(endpoint) for endpoint in endpoints))

    def changed(self) -> bool:
        """Whether the file, or one with credentials, was written or replaced since the last `load`.

        Replaced also by the symlink of a folder above it, which is how Kubernetes updates a ConfigMap.
        """
        return any(_state(file) != seen for file, seen in self._seen.items())

    def _credential(self, endpoint: Endpoint) -> str | None:
        """The secret to send to an endpoint. Raises RoutesError, without the secret."""
        if endpoint.credential_env is not None:
            secret = self._environ.get(endpoint.credential_env, "").strip()
            source = f"the environment variable {endpoint.credential_env}"
        elif endpoint.credential_file is not None:
            secret = _read(Path(endpoint.credential_file), _MAX_CREDENTIAL_BYTES).strip()
            source = endpoint.credential_file
        else:
            return None
        if not secret or not secret.isascii() or not secret.isprintable():
            raise RoutesError(f"{source}, the credential of {endpoint.url}: must hold printable ASCII characters")
        return secret

    def _from_settings(self) -> Routes:
        settings = self._settings
        endpoints = tuple(Endpoint(url=url) for url in settings.backends)
        protocol = settings.backend_protocol if endpoints else "simulated"
        model = Model(name=settings.model_ref, protocol=protocol, versions=(Version(endpoints=endpoints),))
        return Routes(models=(model,))


def endpoints_of(routes: Routes) -> list[Endpoint]:
    """All endpoints, of all models and versions."""
    return [endpoint for model in routes.models for version in model.versions for endpoint in version.endpoints]


def names_in(routes: Routes) -> list[str]:
    """What requests are counted under: the URL of every endpoint, and every model."""
    return [*(endpoint.url for endpoint in endpoints_of(routes)), *(counted_as(model) for model in routes.models)]


def counted_as(model: Model) -> str:
    """What a model's requests are counted under."""
    return f"model {model.name}"  # a URL has no blank


def _state(file: Path) -> object:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def _read(file: Path, most: int = _MAX_FILE_BYTES) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(most + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RoutesError(f"{file}: can't be read: {reason}") from None
    if len(content) > most:
        raise RoutesError(f"{file}: must have at most {most} bytes")
    return text
