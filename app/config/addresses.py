"""Checks of host names, ports and URLs. No error repeats the text that was checked: it may contain a password."""

import ipaddress
import re

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_DIGITS = re.compile(r"[0-9.]+")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")


def check_host(host: str) -> None:
    """Raises ValueError unless it is a host name, an IPv4 address, or an IPv6 address in brackets."""
    if not _is_host(host):
        raise ValueError("the host must be a host name, an IPv4 address or an IPv6 address in brackets")


def check_port(port: str) -> None:
    """Raises ValueError unless it is the number of a port."""
    if not (re.fullmatch(r"[1-9]\d{0,4}", port, re.ASCII) and int(port) <= 65535):
        raise ValueError("the port must be a number from 1 to 65535")


def check_host_and_port(text: str) -> None:
    """Raises ValueError unless it is a host, with or without a port."""
    host, colon, port = text.rpartition(":")
    if colon and not text.endswith("]"):
        check_port(port)
        check_host(host)
    else:
        check_host(text)


def check_url(url: str) -> None:
    """Raises ValueError unless it is the URL of a model server: http or https, a host, optionally a port and a path."""
    if "@" in url:  # anywhere, since a password may contain a slash
        raise ValueError("a URL must hold no credentials; a routes file takes credential_env or credential_file")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("http", "https"):
        raise ValueError("a URL must begin with http:// or https://")
    authority, slash, path = rest.partition("/")
    check_host_and_port(authority)
    if not _PATH.fullmatch(slash + path):
        raise ValueError("a URL may have a path, without a slash at its end, and no query or fragment")


def check_origin(text: str) -> str:
    """Returns the origin (RFC 6454 section 6.2) as given. Raises ValueError if browsers send none of this form."""
    scheme, separator, authority = text.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme) or authority != authority.lower():
        raise ValueError("an origin is a scheme, :// and a host, in lower case, perhaps with a port")
    check_host_and_port(authority)
    if authority.endswith(_DEFAULT_PORTS.get(scheme, "/")):
        raise ValueError("browsers leave the default port out of an origin")
    return text


def _is_host(host: str) -> bool:
    try:
        if host.startswith("[") and host.endswith("]"):
            return ipaddress.IPv6Address(host[1:-1]).scope_id is None
        if _DIGITS.fullmatch(host):
            ipaddress.IPv4Address(host)
            return True
    except ValueError:
        return False
    return len(host) <= 253 and _HOST.fullmatch(host) is not None
