"""Which headers pass, to the model server and back, and what the router adds."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http_fields import Headers
from app.upstream.credential_names import is_credential
from app.upstream.headers import new_traceparent, retry_after_s, to_client, to_upstream

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

HOP_BY_HOP = [
    "Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
]
CREDENTIALS = [
    *("Api-Key", "Authorization", "Cookie", "X-Api-Key", "Apikey", "X-Token", "Token", "X-Vault-Token", "X-Password"),
    *("X-Jwt-Assertion", "X-Goog-Iap-Jwt-Assertion", "X-Jwt", "X-Amz-Security-Token", "X-Credentials", "X-Secret"),
    *("X-Client-Secret", "X-Secret-Id", "Private-Token", "X-CSRFToken", "X-Auth", "X-Auth-Key", "X-Key", "Key"),
    *("Ocp-Apim-Subscription-Key", "X-Functions-Key", "DD-Application-Key", "X-Amzn-Oidc-Accesstoken", "X-Api-Keys"),
    *("X-Amzn-Oidc-Data", "X-Access-Tokens", "X-Original-Authorization", "X-Session-Cookie", "DPoP", "X-GitHub-OTP"),
    *("ApiKeys", "Tokens", "X-Token-Value", "X-Cookie-Value", "X-Creds", "X-Userpwd", "X-Pass", "X-Passcode", "X-Pin"),
    *("X-Auth-Basic", "X-Totp", "X-Otp", "X-Saml-Response", "X-Forwarded-Client-Cert", "X-Signature", "X-Session-Id"),
    *("PHPSESSID", "JSESSIONID", "Sessid", "X-Sid", "Connect.sid", "X-Http-Session-Ids", "ASP.NET-SessionId"),
    *("X-Goog-Iam-Authorization-Token", "X-Goog-Iam-Authority-Selector", "X-Hub-Signature-256", "Client-Cert-Chain"),
    *("X-Api-Key-V2", "X-Api-Key2", "X-Api-Key-2", "X-Token-v1.2", "Cookie2", "X-Tokenv2", "X-Passwords", "X-OAuth2"),
    *("X-Whatever-Key", "X-Device-Tokens", "X-Refreshtoken", "X-Secret-Cache-Key", "X-Encryption-Key", "X-MFA-Code"),
    *("X-Amz-Credential", "X-Amz-Signature", "X-Ms-Token-Aad-Access-Token", "X-Basic-Auth", "X-User-Pass", "X-Bearer"),
]
REPLACED = ["Content-Length", "Expect", "Host", "HTTP2-Settings"]
PASSED = [
    *("Accept", "Accept-Encoding", "User-Agent", "OpenAI-Organization", "X-Session", "Forwarded", "Cache-Control"),
    *("Idempotency-Key", "X-Cache-Key", "X-Routing-Key", "Max-Tokens", "X-Max-Tokens", "X-Token-Count", "X-User-Id"),
    *("X-Session-Affinity", "X-Author", "X-Tokenizer", "X-Monkey", "Baggage", "B3", "X-Correlation-Id", "Digest"),
    *("X-Partition-Key", "X-Sort-Key", "X-Public-Key", "X-Primary-Key", "X-Foreign-Key", "Sec-WebSocket-Key"),
    *("X-Idempotency-Key-V2", "X-Ratelimit-Remaining-Tokens", "X-Max-New-Tokens", "X-Maxtokens", "X-Token-Limit"),
    *("X-Bypass", "X-Pass-Through", "X-Pinned", "X-Auth-Request-User", "X-Amzn-Oidc-Identity", "X-Amz-Content-Sha256"),
    *("X-Country-Code", "X-Status", "X-Concert", "X-Desktop", "X-Conversation-Id", "X-Key-Prefix", "Content-Digest"),
]
NOT_PASSED_BACK = ["Content-Length", "Date", "Server", "X-Request-Id"]
PASSED_BACK = [
    "Content-Type",
    "Content-Encoding",
    "Set-Cookie",
    "Retry-After",
    "Cache-Control",
    "X-Model",
    "WWW-Authenticate",
]


def sent(credentials: bool = False, *, peer: str = "192.0.2.1", **headers: str) -> Headers:
    """What goes to the model server of a request with these headers."""
    return to_upstream(environ_of(headers, peer), "id-1", credentials=credentials)


def traced(sample_ratio: float, **headers: str) -> Headers:
    """The same where this share of the requests is sampled."""
    return to_upstream(environ_of(headers), "id-1", credentials=False, trace_sample_ratio=sample_ratio)


def environ_of(headers: dict[str, str], peer: str = "192.0.2.1") -> dict[str, str]:
    """The WSGI environment of a request with these headers."""
    environ = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    return environ | {"REQUEST_METHOD": "POST", "wsgi.url_scheme": "http", "REMOTE_ADDR": peer}


def only(headers: Headers, name: str) -> str | None:
    """The value of a header that may be there once at most."""
    values = [value for each, value in headers if each == name]
    assert len(values) <= 1
    return values[0] if values else None


def variable(name: str) -> str:
    """A header as a keyword of `sent`."""
    return name.replace("-", "_")


def test_request_without_headers_gets_ours_and_no_others() -> None:
    """What the router adds, in lower case; nothing else comes up by itself."""
    assert dict(sent()) == {
        "x-request-id": "id-1",
        "via": "1.1 inference-router",
        "x-forwarded-proto": "http",
        "x-forwarded-for": "192.0.2.1",
    }


@pytest.mark.parametrize("name", PASSED)
def test_header_passes_to_the_server(name: str) -> None:
    """End-to-end headers pass as they are, once."""
    assert only(sent(False, **{variable(name): "Some, Value"}), name.lower()) == "Some, Value"


@pytest.mark.parametrize("name", HOP_BY_HOP + REPLACED)
@pytest.mark.parametrize("credentials", [False, True])
def test_header_ends_at_the_router(name: str, credentials: bool) -> None:
    """What speaks of the client's connection, or is made anew for the server's, never passes."""
    assert only(sent(credentials, **{variable(name): "x"}), name.lower()) is None


@pytest.mark.parametrize("name", CREDENTIALS)
def test_credentials_pass_only_if_the_route_says_so(name: str) -> None:
    """A client's secrets are for the router, unless its model's route lets them pass."""
    assert only(sent(False, **{variable(name): "secret"}), name.lower()) is None
    assert only(sent(True, **{variable(name): "secret"}), name.lower()) == "secret"


def test_name_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judgement is kept by name: an ordinary request costs none."""
    judged: list[str] = []

    def judge(name: str) -> bool:
        judged.append(name)
        return False

    monkeypatch.setattr("app.upstream.headers.is_credential", judge)
    for _ in range(3):
        assert only(sent(x_never_seen_before="1"), "x-never-seen-before") == "1"
    assert judged.count("x-never-seen-before") == 1


@pytest.mark.parametrize("name", ["x", "x-", "-", "1", "v1-2", "value", "x-value", "basic-basic"])
def test_name_without_a_word_is_no_credential(name: str) -> None:
    """Numbers, versions and words that say only how something is carried."""
    assert not is_credential(name)


@pytest.mark.parametrize("name", ["1" * 60_000 + "x", "-v1" * 20_000, "s" * 60_000, "x" * 60_000, "-value" * 10_000])
def test_long_name_is_judged_in_linear_time(name: str) -> None:
    """Clients choose the names. Quadratic time would be seconds."""
    began = time.process_time()
    assert not is_credential(name)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("connection", ["X-Mine, x-other", "close,\tX-OTHER ,x-mine", "x-mine,,x-other,"])
def test_headers_that_connection_names_end_here_both_ways(connection: str) -> None:
    """Whatever Connection names speaks of that connection alone, in any case and with any blanks."""
    headers = sent(connection=connection, x_mine="1", x_other="2", x_third="3")
    assert {"x-mine", "x-other", "connection", "close"}.isdisjoint(dict(headers))
    assert only(headers, "x-third") == "3"
    back = to_client([("x-mine", "1"), ("connection", connection), ("x-other", "2"), ("x-third", "3")])
    assert back == [("x-third", "3"), ("via", "1.1 inference-router")]
    halves = [("connection", half) for half in connection.split(",")]
    assert to_client([*halves, ("x-mine", "1"), ("x-other", "2")]) == [("via", "1.1 inference-router")]


def test_connection_can_not_take_away_what_the_router_says() -> None:
    """A client can't hide its address, or untie a request from its id, by naming those headers in Connection."""
    named = "x-forwarded-for, x-forwarded-proto, via, x-request-id, traceparent"
    headers = sent(connection=named, x_forwarded_for="203.0.113.9", traceparent=TRACE)
    assert {name for name, _ in headers} == set(named.split(", "))
    assert only(headers, "x-forwarded-for") == "203.0.113.9, 192.0.2.1"


def test_address_of_the_client_is_appended() -> None:
    """X-Forwarded-For goes on with the router's own peer, and is left out when that has no address."""
    assert (
        only(sent(x_forwarded_for="203.0.113.9, 198.51.100.2"), "x-forwarded-for")
        == "203.0.113.9, 198.51.100.2, 192.0.2.1"
    )
    assert only(sent(peer="2001:db8::1"), "x-forwarded-for") == "2001:db8::1"
    assert only(sent(peer=""), "x-forwarded-for") is None


def test_scheme_is_the_first_proxys() -> None:
    """X-Forwarded-Proto is what the client began with, as a proxy in front says, or else the router's own."""
    assert only(sent(x_forwarded_proto="https"), "x-forwarded-proto") == "https"
    assert only(sent(x_forwarded_proto=""), "x-forwarded-proto") == "http"


def test_via_is_appended_both_ways() -> None:
    """Via names everyone on the way, in order, the router last."""
    assert only(sent(via="1.0 a, 2 b"), "via") == "1.0 a, 2 b, 1.1 inference-router"
    assert to_client([("via", "1.1 a"), ("x", "1"), ("via", "1.1 b")]) == [
        ("x", "1"),
        ("via", "1.1 a, 1.1 b, 1.1 inference-router"),
    ]


def test_request_id_is_the_routers() -> None:
    """The server logs the id that the router logs, whatever the client or the server call it."""
    assert only(sent(x_request_id="other"), "x-request-id") == "id-1"
    assert only(to_client([("x-request-id", "other")]), "x-request-id") is None


VALID_TRACES = [
    TRACE,
    TRACE[:-2] + "00",
    "00-" + "0" * 31 + "1-" + "0" * 15 + "1-ff",
    "01" + TRACE[2:],
    "01" + TRACE[2:] + "-what-the-future-brings",
    "fe" + TRACE[2:] + "-",
]
INVALID_TRACES = [
    "",
    "ff" + TRACE[2:],
    "00-" + "0" * 32 + TRACE[35:],
    TRACE[:36] + "0" * 16 + TRACE[52:],
    TRACE.upper(),
    TRACE + "-more",  # version 00 has no more
    TRACE + "-",
    TRACE + "0",
    TRACE[:-1],
    TRACE[1:],
    "01" + TRACE[2:] + ".more",
    f"{TRACE},{TRACE}",
    f" {TRACE}",
    f"{TRACE}\n",
    TRACE.replace("-", "_"),
    TRACE.replace("4", "\u0664"),
    TRACE.replace("4", "g"),
]


@pytest.mark.parametrize("trace", VALID_TRACES)
def test_valid_trace_goes_on(trace: str) -> None:
    """A trace that the client began goes on, with its state (W3C Trace Context, of later versions too)."""
    headers = sent(traceparent=trace, tracestate="a=1")
    assert only(headers, "traceparent") == trace
    assert only(headers, "tracestate") == "a=1"


@pytest.mark.parametrize("trace", INVALID_TRACES)
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_invalid_trace_is_dropped_with_its_state(trace: str, ratio: float) -> None:
    """What is no trace is dropped, or replaced by a new one, which has no state: the state belongs to the other."""
    headers = traced(ratio, traceparent=trace, tracestate="a=1")
    made = only(headers, "traceparent")
    assert (made is None) == (ratio == 0)
    if made is not None:
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", made)
        assert made[:55] != trace[:55]
    assert only(headers, "tracestate") is None


def test_no_trace_is_invented_unless_a_share_is_sampled() -> None:
    """By default a request without a trace goes on without one: a server with a ratio sampler draws by itself."""
    assert only(sent(), "traceparent") is None


@pytest.mark.parametrize("ratio", [0.25, 1e-9, 1.0])
def test_share_of_the_invented_traces_is_sampled(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRACE_SAMPLE_RATIO: every request gets a trace then, and so many of them say sampled."""
    draws = [number / 1000 for number in range(1000)]
    monkeypatch.setattr("random.random", iter(draws).__next__)
    flags = [(only(traced(ratio), "traceparent") or "")[-3:] for _ in draws]
    assert set(flags) <= {"-00", "-01"}
    assert flags.count("-01") == sum(draw < ratio for draw in draws)
    assert only(traced(ratio, traceparent=TRACE[:-2] + "00"), "traceparent") == TRACE[:-2] + "00"


def test_state_without_a_trace_is_dropped() -> None:
    """State of no trace at all is dropped too."""
    assert only(sent(tracestate="a=1"), "tracestate") is None


def test_new_traces_differ_and_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two requests share a trace, and all zeros, which is invalid, never comes out."""
    assert len({new_traceparent(1.0) for _ in range(1000)}) == 1000
    monkeypatch.setattr("random.getrandbits", lambda _: 0)
    assert only(sent(traceparent=new_traceparent(1.0), tracestate="a=1"), "tracestate") == "a=1"


@pytest.mark.parametrize("given_type", ["application/json", "text/plain; charset=utf-8"])
def test_content_type_passes_if_given(given_type: str) -> None:
    """Content-Type, which WSGI keeps apart, passes as given, and is not made up if it isn't."""
    environ = {"wsgi.url_scheme": "http", "CONTENT_TYPE": given_type, "CONTENT_LENGTH": "5"}
    headers = to_upstream(environ, "id", credentials=False)
    assert only(headers, "content-type") == given_type
    assert only(headers, "content-length") is None
    environ["CONTENT_TYPE"] = ""
    assert only(to_upstream(environ, "id", credentials=False), "content-type") is None
    del environ["CONTENT_TYPE"]
    assert only(to_upstream(environ, "id", credentials=False), "content-type") is None


@pytest.mark.parametrize("name", PASSED_BACK)
def test_header_passes_back(name: str) -> None:
    """End-to-end headers of an answer pass as they are."""
    assert to_client([(name.lower(), "Some, Value")])[:-1] == [(name.lower(), "Some, Value")]


@pytest.mark.parametrize("name", HOP_BY_HOP + NOT_PASSED_BACK)
def test_header_of_the_server_ends_here(name: str) -> None:
    """What speaks of the server's connection, or what the router says itself, does not pass back."""
    assert to_client([(name.lower(), "x")]) == [("via", "1.1 inference-router")]


def test_several_cookies_pass_back_in_order() -> None:
    """Set-Cookie can't be joined: each passes by itself."""
    cookies = [("set-cookie", "a=1"), ("x", "1"), ("set-cookie", "b=2"), ("set-cookie", "a=3")]
    assert to_client(cookies)[:-1] == cookies


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("007", 7),
        ("999999999", 999_999_999),
        ("1000000000", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1_0", None),
        ("", None),
        ("\xb2", None),
        ("\u0663", None),
        ("5\n", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds(value: str, seconds: int | None) -> None:
    """Only a plain number counts; a date would need both clocks to agree."""
    assert retry_after_s([("x", "1"), ("retry-after", value)]) == seconds


def test_retry_after_may_be_missing() -> None:
    """A server that asks for nothing gets nothing."""
    assert retry_after_s([("x-retry-after", "5")]) is None


NAMES = st.sampled_from(HOP_BY_HOP + CREDENTIALS + REPLACED + PASSED).map(str.lower)


@given(st.dictionaries(NAMES, st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)), st.booleans())
def test_no_combination_of_headers_lets_one_slip_through(headers: dict[str, str], credentials: bool) -> None:
    """Whatever else is there, what must not pass does not, and our own headers are there exactly once."""
    out = sent(credentials, **{variable(name): value for name, value in headers.items()})
    names = [name for name, _ in out]
    assert len(names) == len(set(names))
    assert {name.lower() for name in HOP_BY_HOP + REPLACED}.isdisjoint(names)
    assert credentials or {name.lower() for name in CREDENTIALS}.isdisjoint(names)
    assert {"x-request-id", "via", "x-forwarded-for", "x-forwarded-proto"} <= set(names)
