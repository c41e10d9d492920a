"""The settings of TLS on `BIND` (docs/tls.md)."""

from typing import Annotated

import msgspec

from app.config.setting import setting
from app.errors import SettingsError


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The files of the listener's TLS. None by default."""

    tls_cert_file: Annotated[
        str | None,
        setting(
            "the absolute path of a PEM file",
            "Certificate of `BIND`, and after it those that lead to its authority. When set, `BIND` takes TLS only; "
            "`ADMIN_BIND` stays without.",
        ),
    ] = None
    tls_key_file: Annotated[
        str | None,
        setting(
            "the absolute path of a PEM file, not encrypted",
            "Its key. Unset: it is in `TLS_CERT_FILE`.",
        ),
    ] = None
    tls_client_ca_file: Annotated[
        str | None,
        setting(
            "the absolute path of a PEM file",
            "Authorities of the clients' certificates. When set, every client of `BIND` must show one (mutual TLS).",
        ),
    ] = None


def check_tls(settings: TlsSettings) -> None:
    """Raises SettingsError for a file that is of no use without a certificate."""
    for variable, file in (
        ("TLS_KEY_FILE", settings.tls_key_file),
        ("TLS_CLIENT_CA_FILE", settings.tls_client_ca_file),
    ):
        if file is not None and settings.tls_cert_file is None:
            raise SettingsError(f"{variable}={file!r}: must be set only together with TLS_CERT_FILE")
