"""The protocols there are. Registering one is adding its adapter to `PROTOCOLS`."""

from app.protocols import openai, v2
from app.protocols.interfaces import ProtocolAdapter

PROTOCOLS: tuple[ProtocolAdapter, ...] = (openai.ADAPTER, v2.ADAPTER)

SIMULATED = "simulated"
"""What the route of a simulated model declares in the place of a protocol."""
NAMES = tuple(adapter.name for adapter in PROTOCOLS)
"""What a route or BACKEND_PROTOCOL may declare."""


def adapter_of(protocol: str) -> ProtocolAdapter:
    """Returns the adapter of the protocol that a route declares. Raises KeyError for a simulated model's."""
    for adapter in PROTOCOLS:
        if adapter.name == protocol:
            return adapter
    raise KeyError(protocol)


def speaks(protocol: str, adapter: ProtocolAdapter) -> bool:
    """Whether a model whose route declares `protocol` takes calls of this adapter; a simulated model takes all."""
    return protocol in (adapter.name, SIMULATED)


def served_elsewhere(model: str, protocol: str) -> str:
    """Returns the message for a request that came by another protocol than the model's."""
    adapter = adapter_of(protocol)
    return f"{model} is served under {adapter.root}, by {adapter.title}"
