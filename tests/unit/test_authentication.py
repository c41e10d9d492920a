"""Who a request comes from, and what that means for the paths, the models and the places of tenants."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from falcon import testing

from app.api.exchange import ENVIRON_KEY, Exchange
from app.auth.authenticator import CERTIFICATE_NAME, TrustedHeader, credential_in
from app.auth.basic_password import password_in
from app.auth.caller import Caller, Identity
from app.config import route_schema
from app.errors import LimitReached, ModelLimitReached, TenantLimitReached, Unauthorized
from tests.support.credentials import bearer, digest_of, key, write_keys
from tests.support.forks import acquire
from tests.support.local_router import LocalRouter

SECRET = "ir-a-secret-of-t"
CHAT = json.dumps({"model": "simulated", "messages": [{"role": "user", "content": "x"}]})

Build = Callable[..., LocalRouter]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Builds a router in this process; closed at the end of the test."""
    with ExitStack() as stack:
        yield lambda **environ: stack.enter_context(LocalRouter(tmp_path, SIMULATED_LATENCY_MS="0", **environ))


@pytest.mark.parametrize(
    ("environ", "secret"),
    [
        ({}, None),
        ({"HTTP_AUTHORIZATION": "Bearer a"}, b"a"),
        ({"HTTP_AUTHORIZATION": " bEARER  a "}, b"a"),
        ({"HTTP_AUTHORIZATION": "Bearer"}, b""),
        ({"HTTP_AUTHORIZATION": "Basic YTpi"}, None),
        ({"HTTP_AUTHORIZATION": "Basic YTpi", "HTTP_X_API_KEY": "k"}, b"k"),
        ({"HTTP_AUTHORIZATION": "Bearer a", "HTTP_X_API_KEY": "k"}, b"a"),
        ({"HTTP_AUTHORIZATION": "Bearer a,Bearer b"}, b"a,Bearer b"),
        ({"HTTP_X_API_KEY": ""}, b""),
        ({"HTTP_X_API_KEY": "\u0100"}, b"?"),
    ],
)
def test_credential_of_a_request(environ: dict[str, str], secret: bytes | None) -> None:
    """A bearer token, or else an API key; the name of the scheme in any case (RFC 9110 section 11.1)."""
    assert credential_in(environ) == secret


@pytest.mark.parametrize(
    ("field", "password"),
    [
        ("", None),
        ("Bearer a", None),
        ("basic YTpiOmM=", b"b:c"),
        ("Basic YQ==", b""),
        ("Basic !", b""),
        ("Basic é", b""),
    ],
)
def test_password_of_a_browser(field: str, password: bytes | None) -> None:
    """What follows the first colon (RFC 7617 section 2); what can't be read is a wrong password."""
    assert password_in(field) == password


@pytest.mark.parametrize(
    ("peer", "trusted"), [("10.1.2.3", True), ("11.0.0.1", False), ("fd00::1", True), ("::1", False), ("", False)]
)
def test_gateway_is_known_by_its_address(peer: str, trusted: bool) -> None:
    """Anyone else's header is taken out of the request."""
    header = TrustedHeader("X-Tenant", ["10.0.0.0/8", "fd00::/8"])
    for _ in range(2):
        environ = {"HTTP_X_TENANT": " t ", "REMOTE_ADDR": peer}
        assert header.tenant(environ) == ("t" if trusted else None)
        assert ("HTTP_X_TENANT" in environ) == trusted
    assert header.tenant({"REMOTE_ADDR": peer}) is None
    for wrong in ("", "a,b", "a\x7f", "x" * 201):
        environ = {"HTTP_X_TENANT": wrong, "REMOTE_ADDR": "10.0.0.1"}
        with pytest.raises(Unauthorized):
            header.tenant(environ)


@pytest.mark.parametrize(
    ("tenants_models", "keys_models", "usable"),
    [
        (None, None, "ab"),
        (["a"], None, "a"),
        (None, ["b-alias"], "b"),
        (["b"], ["b-alias", "c"], "b"),
        (["a"], ["b"], ""),
    ],
)
def test_models_are_those_of_the_key_and_of_its_tenant(
    tmp_path: Path, tenants_models: list[str] | None, keys_models: list[str] | None, usable: str
) -> None:
    """Both must allow a model, each by its name or an alias."""
    members: dict[str, object] = {"models": keys_models} if keys_models else {}
    tenant: dict[str, object] = {"name": "t", **({"models": tenants_models} if tenants_models else {})}
    file = write_keys(tmp_path / "keys.json", key(SECRET, "t", **members), tenants=(tenant,))
    with LocalRouter(tmp_path, KEYS_FILE=file) as local:
        authenticator = local.router.auth.authenticator
        assert authenticator is not None
        caller = authenticator.authenticate({"HTTP_X_API_KEY": SECRET})
        routes = [
            route_schema.Model(name=name, aliases=(f"{name}-alias",), versions=(route_schema.Version(),))
            for name in "ab"
        ]
    assert "".join(route.name for route in routes if caller.may_use(route)) == usable


def test_header_and_certificate_have_the_models_of_their_tenant(build: Build, tmp_path: Path) -> None:
    """They name a tenant and nothing else; a key that is given must be valid nevertheless."""
    tenant: dict[str, object] = {"name": "t", "models": ["other"]}
    file = write_keys(tmp_path / "keys.json", key(SECRET, "u"), tenants=(tenant, {"name": "u"}))
    local = build(KEYS_FILE=file, TENANT_HEADER="X-Tenant", TRUSTED_PROXIES="127.0.0.1")
    assert [local.ask("POST", "/v1/chat/completions", CHAT, {"X-Tenant": name}).status for name in "tu"] == [403, 200]
    authenticator = local.router.auth.authenticator
    assert authenticator is not None
    caller = authenticator.authenticate({CERTIFICATE_NAME: "t"})
    assert (caller.tenant, caller.models, caller.credential) == ("t", (frozenset({"other"}),), "certificate")
    assert authenticator.authenticate({CERTIFICATE_NAME: "t", "HTTP_X_API_KEY": SECRET}).tenant == "u"
    with pytest.raises(Unauthorized):
        authenticator.authenticate({CERTIFICATE_NAME: "t", "HTTP_X_API_KEY": "wrong"})


def test_tenants_that_are_not_listed_have_the_models_of_other(build: Build, tmp_path: Path) -> None:
    """As they have its limit: whom a gateway, an issuer or an authority of certificates names may be anybody."""
    other: dict[str, object] = {"name": "other", "models": ["small"]}
    file = write_keys(tmp_path / "keys.json", tenants=({"name": "t"}, other))
    local = build(KEYS_FILE=file, TENANT_HEADER="X-Tenant", TRUSTED_PROXIES="127.0.0.1")
    asked = [local.ask("POST", "/v1/chat/completions", CHAT, {"X-Tenant": name}).status for name in ("t", "x", "other")]
    assert asked == [200, 403, 403]


def test_broken_keys_file_leaves_the_old_keys_and_their_expiry(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is invalid or gone changes nothing, for however long, and is shown until it is valid again.

    A key expires in time all the same.
    """
    file = tmp_path / "keys.json"
    local = build(KEYS_FILE=write_keys(file, key(SECRET, expires="2999-01-01T00:00:00Z")))

    def status() -> int:
        return local.ask("GET", "/v1/models", "", bearer(SECRET)).status

    def stale() -> bool:
        return 'router_auth_keys_stale{source="keys"} 1.0' in local.ask("GET", "/metrics").body

    assert (status(), stale()) == (200, False)
    for spoil in (lambda: file.write_text("{"), file.unlink):
        spoil()
        local.router.auth.refresh()
        assert (status(), stale()) == (200, True)
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: 32_472_144_000.0)  # the moment of its expiry
        assert status() == 401
    write_keys(file, key("ir-another-secret"))
    local.router.auth.refresh()
    assert (status(), stale()) == (401, False)


@pytest.mark.parametrize("path", ["/readyz", "/v2/health/ready"])
def test_probes_name_no_model_to_those_without_a_key(build: Build, tmp_path: Path, path: str) -> None:
    """Only the admin listener says which model is not ready, unless everybody may use the router anyway."""
    file = write_keys(tmp_path / "keys.json", key(SECRET))
    down = {"BACKENDS": "http://127.0.0.1:1", "MODEL_REF": "secret-model", "ADMIN_BIND": "127.0.0.1:81"}
    for authentication, tells in (({"KEYS_FILE": file}, {"80": False, "81": True}), ({}, {"80": True, "81": True})):
        local = build(**down, **authentication)
        for port, told in tells.items():
            answer = testing.simulate_get(local.router.application, path, extras={"SERVER_PORT": port})
            assert (answer.status_code, "secret-model" in answer.text) == (503, told)


@pytest.mark.parametrize("path", ["", "*", "metrics", "admin/config", "?x", "h:80"])
def test_path_without_a_slash_needs_what_others_need(build: Build, tmp_path: Path, path: str) -> None:
    """A target may have an empty path, as `GET http://host` has; Falcon reads `metrics` as if a slash preceded it."""
    admin = {"ADMIN_BIND": "127.0.0.1:80", "ADMIN_KEY_SHA256": digest_of("ir-of-the-operator")}
    page = 200 if path == "" else 404
    operators, key_of_operator = build(**admin), bearer("ir-of-the-operator")
    assert status_of(operators, path) == (401 if path == "" else 404)
    assert status_of(operators, path, key_of_operator) == page
    keyed = build(**admin, KEYS_FILE=write_keys(tmp_path / "keys.json", key(SECRET)))
    assert status_of(keyed, path) == 401
    assert status_of(keyed, path, key_of_operator if path == "" else bearer(SECRET)) == page


def status_of(local: LocalRouter, path: str, headers: dict[str, str] | None = None) -> int:
    """The status of a GET for which the server found this path, which no library would send."""
    start = testing.StartResponseMock()
    environ = testing.create_environ("/", headers=headers) | {"PATH_INFO": path, "RAW_URI": f"http://h{path}"}
    for _ in local.application(environ, start):
        pass
    return int(str(start.status)[:3])


def test_preflight_needs_no_key(build: Build, tmp_path: Path) -> None:
    """Browsers send it without credentials (the Fetch standard); without CORS there is none."""
    file = write_keys(tmp_path / "keys.json", key(SECRET))
    asks = {"Origin": "https://a.test", "Access-Control-Request-Method": "POST"}
    asks |= {"Access-Control-Request-Headers": "authorization"}
    with_cors = build(KEYS_FILE=file, CORS_ORIGINS="https://a.test")
    preflight = with_cors.ask("OPTIONS", "/v1/chat/completions", "", asks)
    assert (preflight.status, preflight.headers["access-control-allow-headers"]) == (200, "authorization")
    assert with_cors.ask("OPTIONS", "/v1/chat/completions").status == 401
    without = LocalRouter(tmp_path / "without", KEYS_FILE=file)
    assert without.ask("OPTIONS", "/v1/chat/completions", "", asks).status == 401
    without.close()
    refused = with_cors.ask("POST", "/v1/chat/completions", CHAT, {"Origin": "https://a.test"})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://a.test")


def test_lists_show_what_the_caller_may_use(build: Build, tmp_path: Path) -> None:
    """Under /v1 and /v2, and the readiness of a model too."""
    file = write_keys(tmp_path / "keys.json", key(SECRET, models=["other"]), key("ir-all"))
    local = build(KEYS_FILE=file)
    for secret, names in ((SECRET, []), ("ir-all", ["simulated"])):
        listed = json.loads(local.ask("GET", "/v1/models", "", bearer(secret)).body)["data"]
        index = json.loads(local.ask("POST", "/v2/repository/index", "", bearer(secret)).body)
        assert ([card["id"] for card in listed], [entry["name"] for entry in index]) == (names, names)
    paths = ["/v1/models/simulated", "/v2/models/simulated/ready", "/v2/models/simulated"]
    assert {local.ask("GET", path, "", bearer(SECRET)).status for path in paths} == {403}
    assert local.ask("POST", "/infer", '{"prompt": "x"}', bearer(SECRET)).status == 403
    assert "simulated" not in local.ask("POST", "/infer", '{"prompt": "x"}', bearer(SECRET)).body
    assert "simulated" not in local.ask("GET", "/v1/models/x", "", bearer(SECRET)).body


def test_operators_key_alone_asks_clients_for_none(build: Build) -> None:
    """Its switch is its own."""
    local = build(ADMIN_KEY_SHA256=digest_of("ir-admin"))
    assert local.ask("POST", "/v1/chat/completions", CHAT).status == 200
    assert [local.ask("GET", path).status for path in ("/metrics", "/v2/models/stats", "/admin", "/admin/x")] == [
        401
    ] * 4
    assert local.ask("GET", "/metrics", "", bearer("ir-admin")).status == 200


def test_no_place_is_left_behind(build: Build, tmp_path: Path) -> None:
    """Tenant, model, cap: whichever refuses, what was taken before comes back with the exchange, once."""
    file = write_keys(tmp_path / "keys.json", key(SECRET), tenants=({"name": "t", "max_concurrency": 2},))
    routes = tmp_path / "routes.json"
    routes.write_text('{"models": [{"name": "m", "protocol": "simulated", "max_concurrency": 2}]}')
    router = build(KEYS_FILE=file, ROUTES_FILE=str(routes), MAX_CONCURRENCY="1").router
    limits, model = router.auth.limits, router.models.registry.find("m")
    assert limits is not None
    assert model.limit is not None

    def exchange() -> Exchange:
        made = Exchange({})
        made.caller = Caller(Identity("t"), limits)
        return made

    inside = exchange()
    inside.admit(router.limiter, 1.0, model.limit, model.traffic)
    inside.caller.enter()  # type: ignore[union-attr]  # once is enough
    assert limits.inflight()["t"] == 1
    by_cap = exchange()
    with pytest.raises(LimitReached):
        by_cap.admit(router.limiter, 1.0, model.limit, model.traffic)
    by_tenant = exchange()
    with pytest.raises(TenantLimitReached):
        by_tenant.admit(router.limiter, 1.0, model.limit, model.traffic)
    assert by_tenant.traffic is None, "a tenant's own limit says nothing of the demand for a model"
    assert (limits.inflight()["t"], by_tenant.rejection) == (2, "tenant_limit_reached")
    by_cap.release()
    by_cap.release()
    leave = model.limit.acquire()
    by_model = exchange()
    with pytest.raises(ModelLimitReached):
        by_model.admit(router.limiter, 1.0, model.limit, model.traffic)
    by_model.release()
    leave()
    inside.withdraw()
    assert (limits.inflight()["t"], router.limiter.snapshot()) == (0, (0, 0))
    inside.admit(router.limiter, 1.0, model.limit, model.traffic)
    assert limits.inflight()["t"] == 1
    inside.release()
    for each in (by_tenant, inside):
        each.release()
    assert (limits.inflight()["t"], router.limiter.snapshot()) == (0, (0, 0))
    acquire(router.limiter).release()


def test_without_authentication_nothing_is_checked(build: Build) -> None:
    """There is no middleware, and no exchange has a caller: it costs nothing."""
    local = build()
    environ = testing.create_environ("/v1/chat/completions", method="POST", body=CHAT)
    list(local.application(environ, testing.StartResponseMock()))
    assert environ[ENVIRON_KEY].caller is None
    assert local.router.auth.authenticator is None
    assert local.router.auth.inflight() == {}
    assert "router_tenant_inflight" not in local.ask("GET", "/metrics").body
