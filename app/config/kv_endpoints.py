"""The KV-cache nodes of the setting KV_ENDPOINTS: their form, and the form in which they are shown."""

import re

from app.config.addresses import check_host_and_port


def kv_endpoint(text: str) -> str:
    """Returns the endpoint as given. Raises ValueError if it is none."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        check_host_and_port(text)
        return text
    if scheme not in ("redis", "rediss"):
        raise ValueError("the scheme must be redis or rediss")
    authority, slash, database = rest.partition("/")
    if slash and not re.fullmatch(r"\d*", database, re.ASCII):
        raise ValueError("a URL may hold user, password, host, port and a database number, nothing else")
    check_host_and_port(authority.rpartition("@")[2])
    return text


def mask_password(endpoint: str) -> str:
    """The endpoint with the password of its URL, if any, replaced by ***."""
    scheme, _, rest = endpoint.partition("://")
    userinfo, at, address = rest.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    return f"{scheme}://{user}:***@{address}" if at and colon else endpoint
