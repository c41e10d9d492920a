"""Lookups in the DNS: what is found, how long it holds, and which responses say that there is nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from dns import flags, message, rcode

from app.config.discovered import Source
from app.discovery import dns_lookup
from app.discovery.dns_lookup import Records, look_up
from app.discovery.dns_source import CEILING_S, FLOOR_S, refresh_after_s
from app.discovery.findings import DiscoveryFailed
from tests.support.scripted_dns import Script, ScriptedDns, by_kind, failure, records, silence

SOURCE = Source("dns", "m.test", "8000")
SRV = Source("dns", "_http._tcp.m.test", "")
LAST = ("http://10.0.0.9:8000", "http://[fd00::9]:8000")
SOA = "test. 60 SOA ns.test. root.test. 1 2 3 4 60"


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedDns]:
    """The name server of resolv.conf; silent until a test says otherwise."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\nsearch a.test b.test\noptions timeout:5 ndots:1\n")
    with ScriptedDns(silence) as server:
        monkeypatch.setattr(dns_lookup, "RESOLV_CONF", tmp_path / "resolv.conf")
        monkeypatch.setattr(dns_lookup, "PORT", server.port)
        monkeypatch.setattr(dns_lookup, "_LIFETIME_S", 20.0)
        yield server


def found(*urls: str, ttl_s: float) -> Records:
    """A lookup of which nothing failed."""
    return Records(frozenset(urls), ttl_s)


def test_both_families_and_the_shortest_ttl(names: ScriptedDns) -> None:
    """Each A and AAAA record is an endpoint; the TTL is the least on the way, aliases included."""
    names.script = records(
        "m.test. 9 CNAME n.test.", "n.test. 60 A 10.0.0.1", "n.test. 60 A 10.0.0.2", "n.test. 30 AAAA fd00:0::1"
    )
    urls = ("http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::1]:8000")
    assert look_up(SOURCE, ()) == found(*urls, ttl_s=9)


@pytest.mark.parametrize(
    "script",
    [
        failure(rcode.NXDOMAIN),
        records(code=rcode.NXDOMAIN, authority=(SOA,)),
        records(authority=(SOA,)),
        records(),
        by_kind(A=failure(rcode.NXDOMAIN), AAAA=failure(rcode.SERVFAIL)),
    ],
    ids=["NXDOMAIN", "NXDOMAIN-SOA", "NODATA", "NODATA-without-SOA", "NXDOMAIN-holds-for-every-kind"],
)
def test_responses_that_empty_a_set(names: ScriptedDns, script: Script) -> None:
    """The name server says that there is nothing."""
    names.script = script
    assert look_up(SOURCE, LAST).urls == frozenset()


def _answers_another_question(question: message.Message, tcp: bool) -> bytes:
    other = message.make_query("other.test", question.question[0].rdtype)
    other.id = question.id
    return message.make_response(other).to_wire()


def _truncated(question: message.Message, tcp: bool) -> bytes | None:
    if tcp:
        return None
    reply = message.make_response(question)
    reply.flags |= flags.TC
    return reply.to_wire()


@pytest.mark.slow  # some wait until no response has come
@pytest.mark.parametrize(
    "script",
    [
        failure(rcode.SERVFAIL),
        failure(rcode.REFUSED),
        failure(rcode.FORMERR),
        failure(rcode.NOTIMP),
        silence,
        records(authority=("test. 60 NS ns.elsewhere.",)),
        lambda question, tcp: b"\0\1garbage",
        lambda question, tcp: records("m.test. 1 A 10.0.0.1")(question, tcp)[:-3],  # type: ignore[index]
        lambda question, tcp: b"\xff\xff" + records("m.test. 1 A 10.0.0.1")(question, tcp)[2:],  # type: ignore[index]
        _answers_another_question,
        _truncated,
        records("m.test. 60 CNAME n.test.", "n.test. 60 CNAME m.test."),
        by_kind(A=records(authority=(SOA,)), AAAA=failure(rcode.SERVFAIL)),
    ],
    ids=[
        *("SERVFAIL", "REFUSED", "FORMERR", "NOTIMP", "silence", "referral", "garbage", "cut-short", "another-id"),
        *("another-question", "truncated-and-no-TCP", "loop-of-aliases", "half-of-nothing"),
    ],
)
def test_responses_that_change_nothing(names: ScriptedDns, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing trustworthy came: it raises, so whoever asked keeps what there was."""
    monkeypatch.setattr(dns_lookup, "_LIFETIME_S", 0.1)
    names.script = script
    with pytest.raises(DiscoveryFailed):
        look_up(SOURCE, ("http://10.0.0.9:8000",))


def test_family_that_fails_keeps_its_last_addresses(names: ScriptedDns) -> None:
    """A server that refuses AAAA, as some do, does not hold up what it says of A."""
    names.script = by_kind(A=records("m.test. 5 A 10.0.0.1"), AAAA=failure(rcode.SERVFAIL))
    result = look_up(SOURCE, LAST)
    assert result.urls == {"http://10.0.0.1:8000", "http://[fd00::9]:8000"}
    assert result.failure is not None


def test_long_responses_come_over_tcp(names: ScriptedDns) -> None:
    """What does not fit into a packet is asked for again over TCP."""
    many = [f"m.test. 5 A 10.0.0.{n}" for n in range(1, 151)]

    def script(question: message.Message, tcp: bool) -> bytes | None:
        return records(*many)(question, tcp) if tcp else _truncated(question, tcp)

    names.script = script
    assert len(look_up(SOURCE, ()).urls) == 150
    assert names.over_tcp == 2


def test_search_domains_are_tried(names: ScriptedDns) -> None:
    """A name with fewer dots than `ndots` is looked for below the search domains first, in their order."""
    asked = []

    def script(question: message.Message, tcp: bool) -> bytes | None:
        asked.append(question.question[0].name.to_text())
        name = "m.b.test."
        return (records(f"{name} 5 A 10.0.0.1") if asked[-1] == name else failure(rcode.NXDOMAIN))(question, tcp)

    names.script = script
    assert look_up(Source("dns", "m", "80"), ()).urls == {"http://10.0.0.1:80"}
    assert asked[:2] == ["m.a.test.", "m.b.test."]


def test_services_hold_the_ports(names: ScriptedDns) -> None:
    """SRV: targets of the lowest priority, by the addresses that came along, or by a lookup of their own."""
    names.script = records(
        "_http._tcp.m.test. 20 SRV 1 1 8001 a.test.",
        "_http._tcp.m.test. 20 SRV 1 1 8002 b.test.",
        "_http._tcp.m.test. 20 SRV 2 1 8003 c.test.",
        "b.test. 7 AAAA fd00::2",
        "b.test. 7 A 10.0.0.2",
        extra=("a.test. 20 A 10.0.0.1",),
    )
    urls = ("http://10.0.0.1:8001", "http://10.0.0.2:8002", "http://[fd00::2]:8002")
    assert look_up(SRV, ()) == found(*urls, ttl_s=7)


def test_service_that_is_decidedly_not_there(names: ScriptedDns) -> None:
    """The target "." empties the set (RFC 2782), and a target that can't be looked up changes nothing."""
    names.script = records("_http._tcp.m.test. 20 SRV 0 0 0 .")
    assert look_up(SRV, LAST).urls == frozenset()
    names.script = by_kind(
        SRV=records("_http._tcp.m.test. 20 SRV 0 0 80 a.test."), A=failure(rcode.SERVFAIL), AAAA=records()
    )
    with pytest.raises(DiscoveryFailed):
        look_up(SRV, LAST)


def test_addresses_where_no_server_can_be_are_left_out(names: ScriptedDns) -> None:
    """A hostile or mistaken record does not become an endpoint."""
    names.script = records(
        *(f"m.test. 5 A {address}" for address in ("0.0.0.0", "224.0.0.1", "255.255.255.255", "10.0.0.1")),
        *(f"m.test. 5 AAAA {address}" for address in ("::", "ff02::1", "fe80::1")),
    )
    assert look_up(SOURCE, ()).urls == {"http://10.0.0.1:8000"}


def test_missing_resolv_conf_is_a_failure(names: ScriptedDns, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no answer, and no crash."""
    monkeypatch.setattr(dns_lookup, "RESOLV_CONF", Path("/nonexistent"))
    with pytest.raises(DiscoveryFailed, match="/nonexistent"):
        look_up(SOURCE, LAST)


@pytest.mark.parametrize(("ttl_s", "least", "most"), [(0, 1, 1), (5, 4.5, 5), (3600, 27, 30)])
def test_ttl_is_kept_within_its_bounds(ttl_s: float, least: float, most: float) -> None:
    """Neither without a pause, nor once an hour."""
    assert (FLOOR_S, CEILING_S) == (1, 30)
    assert all(least <= refresh_after_s(ttl_s) <= most for _ in range(100))
