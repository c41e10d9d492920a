"""TLS contexts made of files, and made again when the files change.

A certificate is renewed while the router runs, by a program that replaces its files: one after the other, or all at
once by a symlink, as Kubernetes mounts a Secret. Rules:
- **A changed file** is noticed by its inode, size and times, those of the target where it is a symlink.
- **Broken files change nothing.** The context made last stays in use, and the files are read again when they change.
- **Halves are no error.** If the files changed while they were read, for instance the key after the certificate, what
  was read is dropped without a word, and the next look reads them again.
- Connections keep the context that they began with.
"""

import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from app.net.certificate_validity import Validity, validity_of

_REASON_OF_MISMATCH = "KEY_VALUES_MISMATCH"


class TlsFiles(NamedTuple):
    """PEM files; "" where there is none."""

    certificate: str = ""
    """A certificate, and after it those that lead to its authority."""
    key: str = ""
    """Its key. "": the key is in `certificate`."""
    authorities: str = ""
    """The certificates of the authorities that the other side's certificate is checked against."""

    def given(self) -> list[str]:
        """Returns the files that there are."""
        return [file for file in self if file]


class BrokenTlsFiles(Exception):
    """No context can be made of these files. The message names the file and never quotes what is in it."""


class TlsContext:
    """The context of these files. `current` is the one to use for the next connection."""

    def __init__(self, files: TlsFiles, make: Callable[[TlsFiles], ssl.SSLContext]) -> None:
        """Raises BrokenTlsFiles. `make` returns a context; it may raise what `ssl` raises, or OSError."""
        self.files = files
        self._make = make
        self._seen = _states(files)
        self.current = _made(files, make)
        self.validity = _validity(files)
        """When its certificate is valid; None if it has none."""
        self.is_stale = False
        """Whether the files, as they were read last, can't be used: `current` is made of older ones."""

    def renew(self) -> bool:
        """Make it again if a file has changed. Returns whether it did. Raises BrokenTlsFiles, once for each change."""
        seen = _states(self.files)
        if seen == self._seen:
            return False
        try:
            made = _made(self.files, self._make)
        except BrokenTlsFiles:
            if seen == _states(self.files):
                self._seen = seen
                self.is_stale = True
                raise
            return False
        # Noted before the files were read: a change since then is seen by the next look.
        self._seen, self.current, self.validity = seen, made, _validity(self.files)
        self.is_stale = False
        return True


def validities(contexts: Iterable[TlsContext]) -> dict[str, Validity]:
    """Returns when the certificates are valid that these contexts show to the other side, by their files."""
    return {context.files.certificate: context.validity for context in contexts if context.validity is not None}


def stale_files(contexts: Iterable[TlsContext]) -> dict[str, bool]:
    """Returns whether older files are in use than those on disk, by the certificate, or else by the authorities."""
    found: dict[str, bool] = {}
    for context in contexts:
        name = context.files.certificate or context.files.authorities
        found[name] = context.is_stale or found.get(name, False)
    return found


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Returns the context of a listener. With `authorities`, every client must show a certificate of one of them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, files)
    if files.authorities:
        context.load_verify_locations(files.authorities)
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session is not checked again: its certificate may have expired since. Of TLS 1.2 this leaves those
        # that are resumed by their id, which tls_handshake.py looks at.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Returns the context of connections to a server, whose certificate is verified.

    `authorities` are the only ones then; without, they are the system's, or those of SSL_CERT_FILE.
    """
    context = ssl.create_default_context(cafile=files.authorities or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # set by Python before 3.11.4; a response may be cut short
    if files.certificate:
        load_certificate(context, files)
    return context


def load_certificate(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Load certificate and key into a context. Raises OSError, of which ssl.SSLError is a subclass, or ValueError."""
    context.load_cert_chain(files.certificate, files.key or None, password=_refuse_password)


def _refuse_password() -> str:
    raise ValueError("the key is encrypted; nobody is there to be asked for its password")  # OpenSSL would ask


def _made(files: TlsFiles, make: Callable[[TlsFiles], ssl.SSLContext]) -> ssl.SSLContext:
    for file in files.given():  # `ssl` does not say which of them is missing
        try:
            with Path(file).open("rb"):
                pass
        except OSError as error:
            raise BrokenTlsFiles(f"{file}: can't be read: {error.strerror}") from None
    try:
        return make(files)
    except (OSError, ValueError) as error:
        raise BrokenTlsFiles(f"{', '.join(files.given())}: {_reason(error)}") from None


def _validity(files: TlsFiles) -> Validity | None:
    return validity_of(Path(files.certificate)) if files.certificate else None


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == _REASON_OF_MISMATCH:
            return "the key is not that of the certificate"
        return f"not the PEM files that are needed ({error.reason or error.strerror or 'unreadable'})"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _states(files: TlsFiles) -> list[object]:
    """Returns what changes whenever a file is written or replaced."""
    return [_state(Path(file)) for file in files.given()]


def _state(file: Path) -> object:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size
