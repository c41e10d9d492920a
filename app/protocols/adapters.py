"""The protocols there are. Registering one is adding its adapter to `PROTOCOLS`."""

from collections.abc import Callable, Sequence

from app.protocols import openai, problem, v2
from app.protocols.interfaces import ErrorBody, ProtocolAdapter

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


def error_forms(adapters: Sequence[ProtocolAdapter]) -> Callable[[str], ErrorBody]:
    """Returns the function that gives a path the form of its errors: that of the longest root above it.

    Roots are those of the protocols, and the paths of operations with a form of their own. It is for paths at which
    nothing is served: the errors of an operation have the operation's form.
    """
    roots = {f"{adapter.root}/": adapter.error_body for adapter in adapters}
    for operation in (operation for adapter in adapters for operation in adapter.operations):
        if operation.error_body is not None:
            roots.update((f"{template}/", operation.error_body) for template in operation.templates)
    longest_first = sorted(roots, key=len, reverse=True)

    def form(path: str) -> ErrorBody:
        return next((roots[root] for root in longest_first if path.startswith(root)), problem.error_body)

    return form
