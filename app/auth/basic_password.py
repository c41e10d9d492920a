"""The password of Basic authentication (RFC 7617), with which browsers and Prometheus read the pages of operators."""

import base64
import binascii


def password_in(authorization: str) -> bytes | None:
    """Returns the password, or None if the field is none of this scheme. The name of the user is ignored."""
    scheme, _, text = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(text.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
