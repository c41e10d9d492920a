"""A router whose clients speak TLS."""

import socket
import ssl
from contextlib import ExitStack
from pathlib import Path

import requests

from tests.support.certificates import LOOPBACK, Made, certificate, key_of, mount_secret, pem_of
from tests.support.clients import of_every_worker
from tests.support.router import Router


class TlsRouter(Router):
    """A router that is asked over TLS only. Its certificate is mounted as a Secret of Kubernetes is."""

    def __init__(
        self,
        folder: Path,
        app: str | None = None,
        *,
        options: tuple[str, ...] | None = None,
        mutual: bool = False,
        **settings: object,
    ) -> None:
        """`options` are gunicorn's, in place of the router's own settings. `mutual`: clients need a certificate."""
        self.authority = certificate("authority", [])
        self.secret = folder / "secret"
        self.ca_file = folder / "authority.crt"
        self.ca_file.write_bytes(pem_of(self.authority))
        self.mount(self.new_certificate())
        certificate_file, key_file = self.secret / "tls.crt", self.secret / "tls.key"
        if options is None:
            settings |= {"TLS_CERT_FILE": certificate_file, "TLS_KEY_FILE": key_file}
            if mutual:
                settings["TLS_CLIENT_CA_FILE"] = self.secret / "ca.crt"
        else:
            options = (*options, "--certfile", str(certificate_file), "--keyfile", str(key_file))
        super().__init__(folder, app, options or (), None, **settings)
        self.url = f"https://127.0.0.1:{self.port}"
        self.client_files = self.client("probe") if mutual else None

    def new_certificate(self) -> Made:
        """Another certificate of the router."""
        return certificate("router", LOOPBACK, self.authority)

    def mount(self, made: Made, **others: bytes) -> None:
        """Have the router use this certificate; `others` replace a file by the name before its dot."""
        files = {"tls": pem_of(made), "key": key_of(made), "ca": pem_of(self.authority), **others}
        mount_secret(self.secret, {"tls.crt": files["tls"], "tls.key": files["key"], "ca.crt": files["ca"]})

    def client(self, name: str, made: Made | None = None) -> tuple[str, str]:
        """The files of a client's certificate; without `made`, it has a common name and nothing else."""
        made = made or certificate(name, [], self.authority, leaf=True)
        files = self.log_path.parent / f"{name}.crt", self.log_path.parent / f"{name}.key"
        files[0].write_bytes(pem_of(made))
        files[1].write_bytes(key_of(made))
        return str(files[0]), str(files[1])

    def context(self) -> ssl.SSLContext:
        """A client's context, which trusts the router's authority and nothing else."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    def served(self, client: tuple[str, str] | None = None) -> set[bytes]:
        """The certificates that new connections get of every worker, in PEM; those of this client, if it is given."""
        context = self.context()
        if client or self.client_files:
            context.load_cert_chain(*(client or self.client_files or ()))

        def begin(opened: ExitStack) -> tuple[socket.socket, bytes]:
            plain = opened.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=20))
            wrapped = opened.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
            return wrapped, ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(binary_form=True) or b"").encode()

        return set(of_every_worker(self, begin))

    def ready(self) -> bool:
        """See Router."""
        try:
            with self.session() as session:
                return session.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def session(self) -> requests.Session:
        """A client that trusts the router's authority and nothing else, on a connection a request."""
        session = requests.Session()
        session.trust_env = False
        session.verify = str(self.ca_file)
        session.cert = self.client_files
        session.headers["Connection"] = "close"
        return session
