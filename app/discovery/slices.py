"""EndpointSlices (discovery.k8s.io/v1), as the API reference has them: which of their endpoints get requests.

A Service has any number of slices, each of one address family and with its own ports. An endpoint may stand in more
than one slice while the control plane moves it, so a set is their union.
"""

from collections.abc import Iterable

import msgspec

from app.config.addresses import check_host
from app.discovery.findings import url_of, usable_address


class Conditions(msgspec.Struct):
    """None stands for "unknown": ready is then taken as true, and terminating as false."""

    ready: bool | None = None
    terminating: bool | None = None


class Reference(msgspec.Struct):
    """The object that an endpoint is, a pod."""

    uid: str = ""


class SliceEndpoint(msgspec.Struct, rename="camel"):
    """One endpoint. Its addresses are of one pod and may be used alike, so the first is taken."""

    addresses: list[str] | None = None
    conditions: Conditions | None = None
    target_ref: Reference | None = None

    def gets_requests(self) -> bool:
        """Whether it is ready and does not terminate.

        A Service with publishNotReadyAddresses says that all are ready, also while they terminate.
        """
        conditions = self.conditions or Conditions()
        return conditions.ready is not False and not conditions.terminating


class SlicePort(msgspec.Struct):
    """One port of all endpoints of a slice."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class Metadata(msgspec.Struct, rename="camel"):
    """What is used of an object's metadata, and of a list's."""

    name: str = ""
    resource_version: str = ""
    continue_: str | None = msgspec.field(name="continue", default=None)


class Slice(msgspec.Struct, rename="camel"):
    """An EndpointSlice, or the object of a bookmark, which has only a resource version."""

    kind: str = ""
    metadata: Metadata = msgspec.field(default_factory=Metadata)
    address_type: str = ""
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None


class SliceList(msgspec.Struct):
    """An EndpointSliceList."""

    kind: str
    metadata: Metadata
    items: list[Slice] | None = None


def urls_in(slices: Iterable[Slice], port: str) -> set[str]:
    """Returns the URLs of the endpoints that get requests, at the port of this name or number.

    A pod that has an address of either family is one model server, and not two: it is taken by its IPv4 address.
    """
    by_pod: dict[str, str] = {}
    urls: set[str] = set()
    for each in sorted(slices, key=lambda one: one.address_type):  # FQDN, IPv4, IPv6
        numbers = _ports(each, port)
        for endpoint in each.endpoints or ():
            host = _host(each, endpoint)
            if host is None or not endpoint.gets_requests():
                continue
            uid = endpoint.target_ref.uid if endpoint.target_ref else ""
            if numbers and uid and by_pod.setdefault(uid, each.address_type) != each.address_type:
                continue
            urls.update(url_of(host, number) for number in numbers)
    return urls


def _ports(each: Slice, port: str) -> set[int]:
    """Returns the numbers of a port in a slice; none if it has no such port."""
    if port.isdecimal():
        number = int(port)
        # A slice without ports, and a port without a number, stand for all ports.
        there = not each.ports or any(one.port in (None, number) and _is_tcp(one) for one in each.ports)
        return {number} if there else set()
    return {one.port for one in each.ports or () if one.name == port and one.port and _is_tcp(one)}


def _is_tcp(port: SlicePort) -> bool:
    return port.protocol in (None, "", "TCP")


def _host(each: Slice, endpoint: SliceEndpoint) -> str | None:
    """Returns the first address of an endpoint, or None if it is not usable."""
    first = endpoint.addresses[0] if endpoint.addresses else ""
    if each.address_type != "FQDN":
        return usable_address(first)
    try:
        check_host(first)
    except ValueError:
        return None
    return first
