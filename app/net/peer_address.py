"""The address of a client as it is shown and compared."""

from ipaddress import IPv6Address


def unmapped(address: str) -> str:
    """Returns the IPv4 address for one that is mapped into IPv6 (RFC 4291 section 2.5.5.2), any other unchanged.

    A socket that listens on `::` gives `::ffff:192.0.2.1` for a client that connects by IPv4.
    """
    if ":" not in address:
        return address
    try:
        mapped = IPv6Address(address.partition("%")[0]).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else str(mapped)
