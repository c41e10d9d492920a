"""Where endpoints are, and the pools of connections to them, by URL."""

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from app.config import route_schema
from app.config.routes_source import credential_holders, tls_files_of
from app.net.tls_files import TlsContext
from app.upstream import dialer
from app.upstream.dialer import Address
from app.upstream.pool import Pool
from app.upstream.resolver import Resolver


def address_of(endpoint: route_schema.Endpoint) -> Address:
    """Returns the address of an endpoint, and its TLS."""
    parts = urlsplit(endpoint.url)
    tls, name = parts.scheme == "https", endpoint.server_name or ""
    return Address(parts.hostname or "", parts.port or (443 if tls else 80), tls, tls_files_of(endpoint), name)


def pools_of(
    endpoints: Iterable[route_schema.Endpoint], before: Mapping[str, Pool], resolver: Resolver
) -> dict[str, Pool]:
    """Returns the pools of these endpoints, those from before where they are the same.

    Of the others from before the idle connections are closed: their endpoints have gone, or have other TLS now.
    """
    addresses = {endpoint.url: address_of(endpoint) for endpoint in endpoints}
    pools = {}
    for url, address in addresses.items():
        pool = before.get(url)
        pools[url] = pool if pool is not None and pool.address == address else Pool(address, resolver)
    for url, pool in before.items():
        if pools.get(url) is not pool:
            pool.close()
    dialer.forget_contexts([address.files for address in addresses.values()])
    return pools


def tls_contexts(pools: Iterable[Pool]) -> list[TlsContext]:
    """Returns the contexts of these endpoints' TLS that are made of files."""
    return dialer.contexts([pool.address.files for pool in pools])


def tls_contexts_of(routes: route_schema.Routes) -> list[TlsContext]:
    """Returns the contexts of the TLS that these routes name, without the broken ones. All others are forgotten."""
    files = [tls_files_of(holder) for holder in credential_holders(routes)]
    dialer.forget_contexts(files)
    return dialer.contexts(files)
