"""A protocol is one adapter and one entry in PROTOCOLS: a third one, made up here, is served by the real application.

Its requests name the model in a header, its body is the prompt, and its errors are plain text.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from falcon import testing
from msgspec import Raw

from app.config import route_schema as routes
from app.errors import ModelNotFound
from app.observability.endpoint_gauges import EndpointState
from app.observability.model_gauges import ModelState
from app.protocols import adapters
from app.protocols.calls import Call, Reply
from app.protocols.infer import output_of, parse_inference, upstream_call
from app.protocols.interfaces import ClientRequest, Operation, ParsedCall, ProtocolAdapter
from app.protocols.json_body import decode
from app.routing import health_checks
from app.routing.registered_model import RegisteredModel
from app.routing.registry import ModelRegistry
from app.simulated.model import SimulatedModel
from tests.support.client_request import client_request
from tests.support.local_router import LocalRouter
from tests.support.registry import TestModel, application_over


def _parse(request: ClientRequest) -> ParsedCall:
    path = f"/toy/{request.params['what']}"
    return ParsedCall(TOY, request.operation.method, path, request.body, request.header("Toy-Model"), tuple)


_decode_toy = msgspec.json.Decoder(dict[str, Raw]).decode

TOY = ProtocolAdapter(
    name="toy",
    root="/toy",
    title="the protocol of these tests",
    operations=(
        Operation("POST", ("/toy/{what}",), "/toy/{what}", _parse),
        Operation("DELETE", ("/toy/{what}",), "/toy/{what} delete", _parse, has_body=False),
    ),
    encode=lambda call, model, version: (f"{call.path}?model={model}&version={version}", (call.body,)),
    prompt_member="verse",
    infer_call=lambda model, prompt: (f"/toy/{model}", (b"[", prompt, b"]")),
    output=lambda response: decode(_decode_toy, response)["toy"],
    health_path="/toy/health",
    error_body=lambda status, code, detail, _more={}: ("text/toy", f"{status} {code}: {detail}".encode()),
)


class Recorder(TestModel):
    """A model that keeps the calls it gets and sends their bodies back."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[Call] = []

    def relay(self, call: Call) -> Reply:
        """See Model."""
        self.calls.append(call)
        return Reply(
            203, [("content-type", "text/toy"), ("x-toy", "passed on")], len(call.body), (call.body,), lambda: None
        )


class Registry(ModelRegistry):
    """A model of every protocol; the toy one also has an alias."""

    def __init__(self) -> None:
        self.recorders = {name: Recorder(name) for name in ("openai", "v2", "toy")}
        self._connections = {}
        models = [
            RegisteredModel(model, routes.Model(name=name, protocol=name, versions=()))
            for name, model in self.recorders.items()
        ]
        simulated = SimulatedModel("simulated", 0, 0)
        models.append(RegisteredModel(simulated, routes.Model(name="simulated", protocol="simulated", versions=())))
        self._models = {model.route.name: model for model in models}
        self._models["alias"] = self._models["toy"]

    def find(self, name: str | None) -> RegisteredModel:
        """See ModelRegistry."""
        try:
            return self._models[name or "toy"]
        except KeyError:
            raise ModelNotFound(f"there is no model {name!r}") from None

    def names(self) -> list[str]:
        """See ModelRegistry."""
        return list(self._models)

    def found(self) -> dict[str, tuple[str, ...]]:
        """See ModelRegistry."""
        return {}

    def waiting(self) -> Iterable[tuple[str, int]]:
        """See ModelRegistry."""
        return ()

    def renewed(self, model: RegisteredModel) -> RegisteredModel:
        """See ModelRegistry."""
        return model

    def fallbacks(self, route: routes.Model) -> list[RegisteredModel]:
        """See ModelRegistry."""
        return []

    def listed_paths(self) -> frozenset[str]:
        """See ModelRegistry."""
        return frozenset()

    def unusable(self) -> str | None:
        """See ModelRegistry."""
        return None

    def model_states(self, cap: int) -> Iterable[ModelState]:
        """See ModelRegistry."""
        return ()

    def endpoint_states(self) -> Iterable[EndpointState]:
        """See ModelRegistry."""
        return ()


class Server:
    """The real application, where the toy protocol is registered."""

    def __init__(self, folder: Path) -> None:
        self._local = LocalRouter(folder, MAX_CONCURRENCY="1").start_worker()
        self.limiter = self._local.router.limiter
        self.registry = Registry()
        self._app = application_over(self._local.router, self.registry)

    def close(self) -> None:
        """Close the router."""
        self._local.close()

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> testing.Result:
        """A request, as a WSGI server hands it over."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return testing.simulate_request(self._app, method, path, body=body, headers=named)

    def calls(self, model: str = "toy") -> list[tuple[str, str, bytes]]:
        """Method, path and body of what reached the model."""
        return [(call.method, call.path, call.body) for call in self.registry.recorders[model].calls]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The application with three protocols."""
    monkeypatch.setattr(adapters, "PROTOCOLS", (*adapters.PROTOCOLS, TOY))
    server = Server(tmp_path)
    yield server
    server.close()


def toy_error(response: testing.Result) -> tuple[int, str]:
    """Status and code of an error in the toy protocol's form."""
    assert response.headers["content-type"] == "text/toy"
    status, code = response.text.partition(":")[0].split(" ")
    assert int(status) == response.status_code
    return response.status_code, code


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_operations_are_served(server: Server, method: str) -> None:
    """Every operation reaches the model, is counted under its label, and its response passes back with its headers."""
    body = b"a prompt" if method == "POST" else b""
    response = server.request(method, "/toy/sing", body, Toy_Model="alias", X_Model_Version="7")
    assert (response.status_code, response.content, response.headers["x-toy"]) == (203, body, "passed on")
    assert server.calls() == [(method, "/toy/sing", body)]
    (call,) = server.registry.recorders["toy"].calls
    assert (call.model, call.version, call.adapter) == ("alias", "7", TOY)
    route = "/toy/{what}" if method == "POST" else "/toy/{what} delete"
    counted = f'router_requests_total{{code="203",model="toy",route="{route}"}} 1.0'
    assert counted in server.request("GET", "/metrics").text
    assert server.limiter.snapshot() == (0, 0)


def test_simulated_model_speaks_every_protocol(server: Server) -> None:
    """A simulated model takes the call, in which its own name was put; no mismatch."""
    response = server.request("POST", "/toy/sing", b"x", Toy_Model="simulated")
    assert response.status_code == 404
    assert response.json["error"]["message"] == "nothing is served at '/toy/sing'"


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("GET", "/toy/sing/loud", {}, 404, "not_found"),
        ("FOO", "/toy/sing/loud", {}, 404, "not_found"),
        ("GET", "/toy/sing", {}, 405, "method_not_allowed"),
        ("FOO", "/toy/sing", {}, 405, "method_not_allowed"),
        ("POST", "/toy/sing", {"Toy_Model": "nobody"}, 404, "model_not_found"),
        ("POST", "/toy/sing", {"Toy_Model": "v2"}, 400, "protocol_mismatch"),
        ("POST", "/toy/sing", {"Content_Type": "multipart/mixed"}, 415, "unsupported_media_type"),
    ],
)
def test_errors_have_the_form_of_the_protocol(
    server: Server, method: str, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    """On its routes, and where nothing is served below its root."""
    response = server.request(method, path, b"x", **headers)
    assert toy_error(response) == (status, code)
    if status == 405:
        assert set(response.headers["allow"].split(", ")) == {"POST", "DELETE", "OPTIONS"}


def test_other_errors_keep_their_form(server: Server) -> None:
    """A third protocol changes nothing for the others: each root has its form, and outside of them it is a problem."""
    assert server.request("GET", "/v1/nothing").json["error"]["code"] == "not_found"
    in_v2 = server.request("GET", "/v2/nothing").json
    assert (in_v2["code"], in_v2["error"]) == ("not_found", in_v2["detail"])
    for path in ("/toys", "/toy", "/v1", "/v22/x", "/"):
        response = server.request("GET", path)
        assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")
        assert "error" not in response.json


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("FOO", "/infer", {"POST", "OPTIONS"}),
        ("FOO", "/v2", {"GET", "HEAD", "OPTIONS"}),
        ("CONNECT", "/v1/models", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_method_that_nobody_knows_is_not_allowed(server: Server, method: str, path: str, allowed: set[str]) -> None:
    """405 with Allow, in the route's form, as for any method that the path does not take."""
    response = server.request(method, path)
    assert (response.status_code, set(response.headers["allow"].split(", "))) == (405, allowed)
    assert method in response.text
    assert ("error" in response.json) == (path != "/infer")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v2/models/toy/infer", "/v1/models/toy"])
def test_other_protocols_reject_its_models(server: Server, path: str) -> None:
    """The message says where the model is served instead."""
    method = "GET" if path.startswith("/v1/models") else "POST"
    response = server.request(method, path, b'{"model":"toy","inputs":[]}')
    assert response.status_code == (404 if method == "GET" else 400)
    assert "toy is served under /toy, by the protocol of these tests" in response.text
    assert server.calls() == []


def test_infer_speaks_it(server: Server) -> None:
    """`/infer` makes the protocol's call of a prompt, and finds the output in the response."""
    inference = parse_inference(client_request(b'{"key": 1e2, "prompt": "sing"}'))
    call = upstream_call(TOY, "m", inference._replace(headers=lambda: [("x", "y"), ("accept", "text/*")]))
    assert (call.method, call.path, call.adapter) == ("POST", "/toy/m", TOY)
    assert call.body == b'{"verse":["sing"],"key": 1e2}'
    assert call.headers == [("x", "y"), ("content-type", "application/json"), ("accept", "application/json")]
    assert output_of(TOY, Reply(200, [], 11, (), lambda: None), b'{"toy":"la"}') == Raw(b'"la"')


def test_health_path_is_the_protocols(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint whose route names no path is checked at the protocol's."""
    checked = []

    def note(endpoint: routes.Endpoint, path: str, timeout_s: float, resolver: object) -> health_checks.CheckResult:
        checked.append((endpoint.url, path))
        return health_checks.CheckResult()

    monkeypatch.setattr(health_checks, "check_endpoint", note)
    endpoint = routes.Endpoint(url="http://127.0.0.1:1")
    model = routes.Model(name="toy", protocol="toy", versions=(routes.Version(endpoints=(endpoint,)),))
    registry: Any = SimpleNamespace(checks=lambda: [(endpoint, 0, model)], resolver=None, shared_id=lambda url: 0)
    health: Any = SimpleNamespace(is_known=lambda shared_id: False, set_healthy=lambda shared_id, **found: False)
    errors: Any = None
    health_checks.HealthChecks(registry, health, errors).run_due(lambda run, *arguments: run(*arguments))
    assert checked == [("http://127.0.0.1:1", "/toy/health")]


@pytest.mark.parametrize(
    ("protocol", "call", "model", "version", "path", "body"),
    [
        ("openai", Call("POST", "/v1/x?a", [], b'{ "model":"m" }', model="m"), "m", "2", "/v1/x?a", b'{ "model":"m" }'),
        ("openai", Call("POST", "/v1/x", [], b'{ "a":1.50 }'), "m", None, "/v1/x", b'{"model":"m", "a":1.50 }'),
        ("openai", Call("POST", "/v1/x", [], b" {} "), "m", None, "/v1/x", b' {"model":"m"} '),
        ("v2", Call("POST", "/v2/models/m/infer?a", [], b"x", model="m"), "m", None, "/v2/models/m/infer?a", b"x"),
        ("v2", Call("POST", "/v2/models/m/infer?a", [], b"x", model="m"), "n/o", "2",
         "/v2/models/n%2Fo/versions/2/infer?a", b"x"),
        ("v2", Call("GET", "/v2/models/m/versions/3", [], model="m"), "m", "", "/v2/models/m", b""),
        ("v2", Call("GET", "/v2/models/m/versions/3", [], model="m"), "n", None, "/v2/models/n/versions/3", b""),
        ("v2", Call("GET", "/v2/models/versions?/infer", [], model="versions"), "n", None, "/v2/models/n?/infer", b""),
    ],
)  # fmt: skip
def test_another_model_is_put_in(
    protocol: str, call: Call, model: str, version: str | None, path: str, body: bytes
) -> None:
    """Name and version change where the protocol has them; nothing else does, and without a change not a byte."""
    encoded, parts = adapters.adapter_of(protocol).encode(call, model, version)
    assert (encoded, b"".join(parts)) == (path, body)
