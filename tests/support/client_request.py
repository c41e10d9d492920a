"""What a parser sees of a client's request, without the request."""

from app.protocols import openai
from app.protocols.interfaces import ClientRequest


def client_request(body: bytes, **headers: str) -> ClientRequest:
    """A request with this body and these headers, underscores for hyphens, at the first of OpenAI's paths."""
    named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return ClientRequest(openai.ADAPTER.operations[0], {}, "", lambda name: named.get(name.lower()), body)
