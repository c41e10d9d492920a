"""Errors as clients see them: status, code, headers, and a problem document that tells no secrets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import falcon
import gevent
import pytest
from falcon import testing
from msgspec import UNSET, Raw, UnsetType
from structlog.testing import capture_logs

from app import errors
from app.protocols import problem
from app.protocols.calls import Inference
from tests.support.forks import acquire
from tests.support.local_router import LocalRouter
from tests.support.registry import OneModel, TestModel, application_over

PROBLEM = "application/problem+json"

# What a request may run into, and how it is answered: status, code, Retry-After.
ERRORS: list[tuple[errors.RouterError, int, str, str | None]] = [
    (errors.InvalidRequest("why"), 400, "invalid_request", None),
    (errors.BodyStalled("why"), 408, "request_timeout", None),
    (errors.BodyTooLarge("why"), 413, "body_too_large", None),
    (errors.UnsupportedBody("why"), 415, "unsupported_media_type", None),
    (errors.LimitReached("why", 1), 429, "limit_reached", "1"),
    (errors.QueueFull("why", 60), 429, "queue_full", "60"),
    (errors.QueueTimeout("why", 7), 429, "queue_timeout", "7"),
    (errors.Draining("why"), 503, "draining", None),
    (errors.CutOff("why"), 503, "cut_off", None),
    (errors.ModelNotFound("why"), 404, "model_not_found", None),
    (errors.ResponseNotFound("why"), 404, "response_not_found", None),
    (errors.ProtocolMismatch("why"), 400, "protocol_mismatch", None),
    (errors.ModelLimitReached("why", 2), 429, "model_limit_reached", "2"),
    (errors.TenantLimitReached("why", 3), 429, "tenant_limit_reached", "3"),
    (errors.Unauthorized("why", "missing"), 401, "unauthorized", None),
    (errors.ModelNotAllowed("why"), 403, "model_not_allowed", None),
    (errors.AuthenticationUnavailable("why", 10), 503, "authentication_unavailable", "10"),
    (errors.ModelUnusable("why"), 503, "model_unusable", None),
    (errors.NoEndpoint("why"), 503, "no_endpoint", None),
    (errors.NoEndpoint("why", 9), 503, "no_endpoint", "9"),
    (errors.UpstreamUnreachable("why"), 502, "upstream_unreachable", None),
    (errors.UpstreamBroken("why"), 502, "upstream_broken", None),
    (errors.UpstreamTimeout("why"), 504, "upstream_timeout", None),
    (errors.UpstreamErrorResponse("why", 422), 422, "upstream_error_response", None),
    (errors.UpstreamErrorResponse("why", 429, "3"), 429, "upstream_error_response", "3"),
]
# These stop a start or belong to a group; no request meets them.
NO_ANSWERS = {
    errors.SettingsError,
    errors.RoutesError,
    errors.KeysError,
    errors.UpstreamError,
    errors.NoFreeSlot,
    errors.SharedStateMismatch,
    errors.Rejected,
    errors.ResponseStalled,
    errors.MalformedRequest,  # answered before there is a request; see tests/e2e/test_endpoints.py
}


class Server(TestModel):
    """The application over a model that raises, or is unusable, as it is told."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.name = "failing"
        self.raises: BaseException | None = None
        self.why_unusable: str | None = None
        self._local = LocalRouter(folder, **{"MAX_CONCURRENCY": "1", **environ}).start_worker()
        self.limiter = self._local.router.limiter
        self._app = application_over(self._local.router, OneModel(self))

    def close(self) -> None:
        """Close the router."""
        self._local.close()

    def infer(self, request: Inference) -> Raw | UnsetType:
        """A `Model`."""
        if self.raises is not None:
            raise self.raises
        return UNSET

    def unusable(self, version: str = "") -> str | None:
        """A `Model`."""
        return self.why_unusable

    def drain(self) -> None:
        """As the arbiter would; this process claimed the slot, so it is the one."""
        self._local.router.drain.begin()

    def ask(
        self, method: str, path: str, body: bytes = b'{"prompt":"hello"}', request_id: str = "id", port: int = 80
    ) -> testing.Result:
        """A request, as a WSGI server hands it over."""
        headers = {"X-Request-Id": request_id}
        return testing.simulate_request(self._app, method, path, body=body, headers=headers, port=port)

    def ask_with_length(self, length: str) -> tuple[str, dict[str, str], bytes]:
        """POST /infer with this Content-Length, which no client library would send."""
        environ = testing.create_environ("/infer", method="POST")
        environ["CONTENT_LENGTH"] = length
        start = testing.StartResponseMock()
        body = b"".join(self._app(environ, start))
        return str(start.status), start.headers_dict, body


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The application, in order."""
    server = Server(tmp_path)
    yield server
    server.close()


def assert_problem(answer: testing.Result, status: int, code: str, **more: Any) -> str:
    """The answer is this problem, and its members agree with its status line; answers the detail."""
    assert answer.status == f"{status} {problem.phrase(status)}"
    assert answer.headers["content-type"] == PROBLEM
    members = answer.json
    detail: str = members.pop("detail")
    assert members == {"type": "about:blank", "title": problem.phrase(status), "status": status, "code": code, **more}
    assert detail
    return detail


@pytest.mark.parametrize(("error", "status", "code", "retry_after"), ERRORS, ids=lambda part: type(part).__name__)
def test_error_becomes_its_problem(
    error: errors.RouterError, status: int, code: str, retry_after: str | None, server: Server
) -> None:
    """Every refusal has a status, a stable code, the reason, and Retry-After where trying again makes sense."""
    server.raises = error
    answer = server.ask("POST", "/infer")
    assert assert_problem(answer, status, code) == "why"
    assert answer.headers.get("retry-after") == retry_after
    assert "x-request-id" in answer.headers


def test_greenlet_that_is_stopped_still_answers(server: Server) -> None:
    """A drain that no longer waits throws a GreenletExit, which is no error of the model: the client is told why."""
    server.raises = gevent.GreenletExit()
    assert "the router stops" in assert_problem(server.ask("POST", "/infer"), 503, "cut_off")


def test_every_error_has_its_answer_here() -> None:
    """An error that is added is added to this table, or to those that no request meets."""

    def below(kind: type[errors.RouterError]) -> set[type[errors.RouterError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    in_table = {type(error) for error, *_ in ERRORS}
    assert in_table | NO_ANSWERS | {errors.RouterError} == below(errors.RouterError)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("SECRET"),
        KeyError("SECRET"),
        OSError(5, "SECRET"),
        errors.RouterError(),
        falcon.HTTPInternalServerError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_failure_is_a_500(error: Exception, server: Server) -> None:
    """Whatever a model fails with is a 500 without its message, and costs no permit."""
    server.raises = error
    with capture_logs():
        answer = server.ask("POST", "/infer")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == PROBLEM
    assert "SECRET" not in answer.text
    assert server.limiter.snapshot() == (0, 0)


def test_unexpected_error_is_found_by_its_request_id(server: Server) -> None:
    """The answer names the request id, and the log has the error under it."""
    server.raises = RuntimeError("SECRET")
    with capture_logs() as logged:
        answer = server.ask("POST", "/infer", request_id="find-me")
    assert "find-me" in assert_problem(answer, 500, "internal_error")
    (entry,) = logged
    assert (entry["log_level"], entry["request_id"], entry["path"]) == ("error", "find-me", "/infer")
    assert entry["exc_info"] is server.raises


@pytest.mark.parametrize("error", [errors.ClientGone(), SystemExit()], ids=repr)
def test_stop_is_no_error(error: BaseException, server: Server) -> None:
    """What ends the greenlet or the process goes through: nobody waits for an answer."""
    server.raises = error
    with pytest.raises(type(error)):
        server.ask("POST", "/infer")
    assert server.limiter.snapshot() == (0, 0)


@pytest.mark.parametrize("path", ["/", "/infer/", "/Infer", "/infer/x", "/metrics/", "/healthz/", "/nope"])
def test_unknown_path_is_a_404(path: str, server: Server) -> None:
    """Only the four paths are served, each under one name."""
    assert path in assert_problem(server.ask("GET", path), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/infer", {"POST"}),
        ("/healthz", {"GET", "HEAD"}),
        ("/readyz", {"GET", "HEAD"}),
        ("/metrics", {"GET", "HEAD"}),
    ],
)
def test_wrong_method_is_a_405_with_allow(path: str, allowed: set[str], server: Server) -> None:
    """A method that a path doesn't take is answered with those that it does."""
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - allowed:
        answer = server.ask(method, path)
        assert_problem(answer, 405, "method_not_allowed")
        assert set(answer.headers["allow"].split(", ")) == {*allowed, "OPTIONS"}
    for method in allowed:
        assert server.ask(method, path).status_code == 200


def test_head_has_no_body(server: Server) -> None:
    """HEAD answers as GET does, without the body; on /infer it is a 405 and takes no permit."""
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (server.ask("HEAD", path).status_code, server.ask("HEAD", path).content) == (200, b"")
    answer = server.ask("HEAD", "/infer")
    assert (answer.status_code, answer.content) == (405, b"")
    assert server.limiter.snapshot() == (0, 0)


def test_cap_says_when_to_try_again(server: Server) -> None:
    """At the cap a request is refused with 429 and a whole number of seconds from 1 to 60."""
    held = acquire(server.limiter)
    answer = server.ask("POST", "/infer")
    full = {"limit_scope": "router", "limit": 1, "in_flight": 1, "ahead": 0, "expected_wait_ms": None}
    assert "1 permits" in assert_problem(answer, 429, "limit_reached", **full)
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    held.release()
    assert server.ask("POST", "/infer").status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_don_t_look_at_the_load(path: str, server: Server) -> None:
    """At the cap the process is as alive and as ready as ever."""
    held = acquire(server.limiter)
    assert server.ask("GET", path).status_code == 200
    held.release()


def test_drain_refuses_new_work_only(server: Server) -> None:
    """While the server shuts down, /readyz and new work are 503, and the process lives still."""
    server.drain()
    assert_problem(server.ask("GET", "/readyz"), 503, "draining")
    assert_problem(server.ask("POST", "/infer"), 503, "draining")
    assert_problem(server.ask("POST", "/infer", b"not JSON"), 400, "invalid_request")
    assert server.ask("GET", "/healthz").status_code == 200
    assert server.limiter.snapshot() == (0, 0)


def test_unusable_model_is_not_ready(server: Server) -> None:
    """/readyz says why the model can't be used; /healthz doesn't care."""
    server.why_unusable = "no node answers"
    assert assert_problem(server.ask("GET", "/readyz"), 503, "model_unusable") == "no node answers"
    assert server.ask("GET", "/healthz").status_code == 200


@pytest.mark.parametrize(("port", "served"), [(8080, False), (9090, True)])
def test_admin_listener_keeps_the_metrics_to_itself(port: int, served: bool, tmp_path: Path) -> None:
    """With ADMIN_BIND, /metrics is found there and nowhere else; probes are found on both."""
    server = Server(tmp_path, ADMIN_BIND="127.0.0.1:9090")
    for path in ("/healthz", "/readyz"):
        assert server.ask("GET", path, port=port).status_code == 200
    answer = server.ask("GET", "/metrics", port=port)
    if served:
        assert "router_max_concurrency 1.0" in answer.text
    else:
        assert "ADMIN_BIND" in assert_problem(answer, 404, "not_found")
    server.close()


@pytest.mark.parametrize("length", ["abc", "-1"])
def test_content_length_that_is_no_number_is_a_bad_request(length: str, server: Server) -> None:
    """Also where the server in front lets it through."""
    status, headers, body = server.ask_with_length(length)
    assert (status, headers["content-type"], body[:1]) == ("400 Bad Request", PROBLEM, b"{")
