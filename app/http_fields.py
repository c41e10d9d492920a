"""The grammar of HTTP fields (RFC 9110 sections 5.5 and 5.6.2), and their form in this program.

The patterns are text; `.encode()` makes the pattern for bytes. All quantifiers are possessive: no input makes the
matcher backtrack.
"""

import re
from functools import lru_cache
from ipaddress import IPv6Address

Headers = list[tuple[str, str]]
"""Fields in order: name and value."""

FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
"""A token (section 5.6.2)."""
FIELD_VALUE = r"[^\x00-\x08\x0a-\x1f\x7f]*+"
"""The text of a field with the white space around it (section 5.5): visible characters, obs-text, blanks and tabs."""
FIELD = f"{FIELD_NAME}:{FIELD_VALUE}"
"""One field line without its end."""
FIELDS = rf"(?>(?:\r\n{FIELD})*)"
"""Any number of field lines, each after a line end."""


_HOST = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]"
    r"|\[v[0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+\]"
    r"|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*+)"
    r"(?::[0-9]*+)?"
)


@lru_cache(maxsize=64)  # clients send the same few again and again
def is_host(value: str) -> bool:
    """Whether this is `uri-host [":" port]`, the value of Host (RFC 9110 section 7.2). The host may be empty."""
    found = _HOST.fullmatch(value)
    if found is None or found["v6"] is None:
        return found is not None
    try:
        return IPv6Address(found["v6"]).scope_id is None
    except ValueError:
        return False
