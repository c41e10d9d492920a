"""Whether an error response says that the request is at fault, and not the model server.

Some model servers respond with 500, or even 503, to a request that none could serve, such as a prompt that is too long.
The status does not tell that, so the text of the body is searched for what the model's route lists. Nothing is parsed:
the text may be JSON, HTML or anything else.
"""

import re
from collections.abc import Iterable

from app.http_fields import Headers
from app.protocols.content_coding import decompressed

MOST_BYTES = 1 << 16
"""No more of a body is searched. The limit holds before and after it is decompressed."""

_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


def is_clients_fault(headers: Headers, body: bytes, texts: Iterable[str]) -> bool:
    """Whether one of these texts is in the body of an error response, or in its beginning. Case is ignored."""
    plain = decompressed(headers, body[:MOST_BYTES], MOST_BYTES)
    if not plain:
        return False
    text = plain.decode(errors="replace").casefold()
    # A text is listed as people read it or as it is sent: some servers escape an apostrophe.
    unescaped = _ESCAPE.sub(lambda found: chr(int(found[1], 16)).casefold(), text)
    return any(each in text or each in unescaped for each in map(str.casefold, texts))
