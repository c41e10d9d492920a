"""What a parser sees of a client's request, without the request."""

from collections.abc import Mapping

from app.protocols import openai
from app.protocols.interfaces import ClientRequest


def client_request(body: bytes, params: Mapping[str, str] | None = None, **headers: str) -> ClientRequest:
    """A request at OpenAI's first path: its body, the fields of the path, and its headers, underscores for hyphens."""
    named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return ClientRequest(openai.ADAPTER.operations[0], params or {}, "", lambda name: named.get(name.lower()), body)
