"""The grammar of HTTP fields (RFC 9110 sections 5.5 and 5.6.2), and their form in this program.

The patterns are text; `.encode()` makes the pattern for bytes. All quantifiers are possessive: no input makes the
matcher backtrack.
"""

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
