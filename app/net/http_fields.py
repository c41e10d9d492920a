"""Header fields: their type, and the patterns of their grammar (RFC 9110 sections 5.1, 5.5 and 5.6.2)."""

from typing import TypeAlias

Headers: TypeAlias = list[tuple[str, str]]
"""Names and values of fields, in order."""

FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
"""A field name (token). The quantifier is possessive: no input takes longer than one pass."""
FIELD_VALUE = r"[^\x00-\x08\x0a-\x1f\x7f]*+"
"""A field value with the white space around it: any text without control characters other than tab."""
FIELDS = rf"(?>(?:\r\n{FIELD_NAME}:{FIELD_VALUE})*)"
"""Any number of fields, each after a line end."""
