"""One lookup in the DNS: the addresses (A, AAAA) of a name, or those of its services (SRV, RFC 2782), with their TTL.

The system's resolver tells no TTL, so dnspython asks the name servers of resolv.conf: over UDP, and over TCP what is
truncated. Its sockets are gevent's, so nothing else waits for it.

What says that there is none: the name does not exist (NXDOMAIN), or has no such record (NODATA, RFC 2308 section 2.2),
or its SRV target is ".". What says nothing: SERVFAIL, REFUSED, no response, one that is malformed, or a referral to
other name servers, which looks like NODATA but comes from a server that does not know.

If one family of addresses can't be looked up, its last ones stay beside the other's current ones: some name servers
never respond to AAAA.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from dns import rdatatype
from dns.exception import DNSException
from dns.name import root
from dns.resolver import NXDOMAIN, Answer, Resolver

from app.config.discovered import Source
from app.discovery.findings import DiscoveryFailed, url_of, usable_address

RESOLV_CONF = Path("/etc/resolv.conf")
PORT = 53
_LIFETIME_S = 6.0
"""For one question, with all its name servers, retries and search domains."""
_PAYLOAD_BYTES = 1232
"""EDNS: the longest response over UDP. It fits into one packet nearly everywhere (DNS flag day 2020)."""
_MOST_TARGETS = 128
_FAMILIES = {"A": 4, "AAAA": 6}


class Records(NamedTuple):
    """What a lookup found."""

    urls: frozenset[str] = frozenset()
    ttl_s: float = 0.0
    failure: DiscoveryFailed | None = None
    """Why some of the URLs are only the last ones."""


def look_up(source: Source, last: Sequence[str]) -> Records:
    """Returns the URLs that a name has now. `last` are those that it had. Raises DiscoveryFailed."""
    resolver = _resolver()
    if source.name.startswith("_"):
        return _services(resolver, source.name)
    return _addresses(resolver, source.name, int(source.port), last)


def _addresses(resolver: Resolver, name: str, port: int, last: Sequence[str]) -> Records:
    urls: set[str] = set()
    ttls: list[float] = []
    failure = None
    for kind, family in _FAMILIES.items():
        try:
            answer = _ask(resolver, name, kind)
        except DiscoveryFailed as error:
            failure = error
            urls.update(url for url in last if _family(url) == family)
            continue
        if answer is None:
            return Records()  # NXDOMAIN holds for every kind of record
        ttls.append(_ttl_s(answer))
        urls.update(_urls((record.address for record in answer.rrset or ()), port))
    if failure is not None and not (ttls and urls):
        raise failure
    return Records(frozenset(urls), min(ttls), failure)


def _services(resolver: Resolver, name: str) -> Records:
    """Returns the targets with the lowest priority: the others are only for when none of those can be reached."""
    answer = _ask(resolver, name, "SRV")
    if answer is None or answer.rrset is None:
        return Records()
    records = [record for record in answer.rrset if record.target != root and record.port]
    first = min((record.priority for record in records), default=0)
    urls: set[str] = set()
    ttls = [_ttl_s(answer)]
    for record in [record for record in records if record.priority == first][:_MOST_TARGETS]:
        there = [
            one.address
            for rrset in answer.response.additional
            if rrset.name == record.target and rdatatype.to_text(rrset.rdtype) in _FAMILIES
            for one in rrset
        ]
        for kind in () if there else _FAMILIES:
            found = _ask(resolver, record.target.to_text(), kind)
            if found is not None:
                ttls.append(_ttl_s(found))
                there += [one.address for one in found.rrset or ()]
        urls.update(_urls(there, record.port))
    return Records(frozenset(urls), min(ttls))


def _ask(resolver: Resolver, name: str, kind: str) -> Answer | None:
    """Returns the response to one question, None if the name does not exist. Raises DiscoveryFailed."""
    try:
        answer = resolver.resolve(name, kind, raise_on_no_answer=False, search=not name.endswith("."))
    except NXDOMAIN:
        return None
    except (DNSException, OSError, ValueError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise DiscoveryFailed(f"the lookup of {name} ({kind}) failed: {words[:300]}") from error
    if answer.rrset is None:
        kinds = {rrset.rdtype for rrset in answer.response.authority}
        if rdatatype.NS in kinds and rdatatype.SOA not in kinds:
            raise DiscoveryFailed(f"the lookup of {name} ({kind}) was only referred to other name servers")
    return answer


def _resolver() -> Resolver:
    """Returns a resolver with the current resolv.conf. Raises DiscoveryFailed."""
    try:
        resolver = Resolver(filename=str(RESOLV_CONF))
    except (DNSException, OSError, ValueError) as error:
        raise DiscoveryFailed(f"{RESOLV_CONF}: {error}") from error
    resolver.port = PORT
    resolver.lifetime = _LIFETIME_S
    resolver.use_edns(0, 0, _PAYLOAD_BYTES)
    return resolver


def _ttl_s(answer: Answer) -> float:
    """Returns the shortest TTL on the way from the name to its records, aliases included."""
    return float(answer.chaining_result.minimum_ttl)


def _urls(addresses: Iterable[str], port: int) -> set[str]:
    return {url_of(usable, port) for address in addresses if (usable := usable_address(address)) is not None}


def _family(url: str) -> int:
    return 6 if ":" in (urlsplit(url).hostname or "") else 4
