"""The protocols there are. Registering one is adding its adapter to the tuple."""

from app.protocols import ProtocolAdapter, openai, v2

PROTOCOLS: tuple[ProtocolAdapter, ...] = (openai.ADAPTER, v2.ADAPTER)

_SIMULATED = "simulated"


def adapter_of(protocol: str) -> ProtocolAdapter:
    """Returns the adapter of the protocol that a route declares. A simulated model's route declares none."""
    return next(adapter for adapter in PROTOCOLS if adapter.name == protocol)


def speaks(protocol: str, adapter: ProtocolAdapter) -> bool:
    """Whether a model whose route declares `protocol` takes calls of this adapter; a simulated model takes all."""
    return protocol in (adapter.name, _SIMULATED)


def served_elsewhere(model: str, protocol: str) -> str:
    """Returns the message for a request that came by another protocol than the model's."""
    adapter = adapter_of(protocol)
    return f"{model} is served under {adapter.root}, by {adapter.title}"
