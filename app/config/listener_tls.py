"""The TLS of `BIND`, made of the files that the settings name."""

from app.config.settings import Settings
from app.errors import SettingsError
from app.net.tls_files import BrokenTlsFiles, TlsContext, TlsFiles, server_context


def listener_tls(settings: Settings) -> TlsContext | None:
    """Returns the TLS of `BIND`, or None without. Raises SettingsError."""
    if settings.tls_cert_file is None:
        return None
    files = TlsFiles(settings.tls_cert_file, settings.tls_key_file or "", settings.tls_client_ca_file or "")
    try:
        return TlsContext(files, server_context)
    except BrokenTlsFiles as error:
        raise SettingsError(f"TLS_CERT_FILE={settings.tls_cert_file!r}: {error}") from None
