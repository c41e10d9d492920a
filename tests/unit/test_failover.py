"""Fallback models: what a routes file may say of them, and what a request holds on its way from one to another."""

from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest

from app.api import failover
from app.api.exchange import Exchange
from app.config.fallback_reasons import DEFAULT_REASONS, REASONS
from app.config.route_schema import Model, Timeouts, Version
from app.config.routes_file import parse_routes
from app.errors import ClientGone, ModelLimitReached, NoEndpoint, QueueTimeout, RouterError
from app.protocols.calls import Reply
from app.routing.registered_model import RegisteredModel
from tests.support.local_router import LocalRouter
from tests.support.registry import TestModel

FILE = """
models:
  - name: a
    aliases: [x]
    endpoints: [http://a]
    {}
  - name: b
    endpoints: [http://b]
    {}
  - name: c
    endpoints: [http://c]
    {}
  - name: v
    protocol: v2
    endpoints: [http://v]
"""


def written(a: str, b: str = "aliases: []", c: str = "aliases: [y]") -> str:
    """A routes file in which the models have these members too."""
    return FILE.replace("aliases: [x]", "max_concurrency: 9").format(a, b, c)


@pytest.mark.parametrize(
    ("members", "line", "says"),
    [
        (("fallback: [a]",), 6, "models[0].fallback[0] leads back to this model: fallbacks must not form a loop"),
        (("fallback: [b]", "fallback: [a]"), 6, "models[0].fallback[0] leads back to this model"),
        (("fallback: [c, b]", "fallback: [c]", "fallback: [a]"), 6, "models[0].fallback[0] leads back"),
        (("aliases: []", "fallback: [c]", "fallback: [b]"), 9, "models[1].fallback[0] leads back"),
        (("fallback: [b, nobody]",), 6, "models[0].fallback[1] must be the name of one of the models, and no alias"),
        (("fallback: [y]",), 6, "models[0].fallback[0] must be the name of one of the models, and no alias"),
        (("fallback: [b, b]",), 6, "models[0].fallback[1] is there twice: it must be there once"),
        (("fallback: [v]",), 6, "models[0].fallback[0] is a model of v2: it must be one of openai"),
        (("fallback: b",), 6, "models[0].fallback must be a list, not text"),
        (("fallback_on: [no_endpoint]",), 6, "models[0].fallback_on must be there only together with fallback"),
        (("fallback: [b]\n    fallback_on: [always]",), 7, "models[0].fallback_on[0] must be no_endpoint, "),
    ],
)
def test_wrong_fallbacks_are_refused_with_their_line(members: tuple[str, ...], line: int, says: str) -> None:
    """Loops over any number of models, unknown names, other protocols: one line that says where and why."""
    with pytest.raises(RouterError, match=r"^routes\.yaml:") as refused:
        parse_routes(written(*members), "routes.yaml")
    assert str(refused.value).startswith(f"routes.yaml:{line}: {says}")


def test_fallbacks_that_meet_again_are_no_loop() -> None:
    """Two models may share a fallback, and one may be reached in two ways."""
    routes = parse_routes(written("fallback: [b, c]", "fallback: [c]"), "routes.yaml")
    assert [model.fallback for model in routes.models] == [("b", "c"), ("c",), (), ()]
    assert routes.models[0].fallback_on == DEFAULT_REASONS
    assert set(REASONS) - set(DEFAULT_REASONS) == {"queue_timeout", "model_limit_reached"}


class Stage:
    """An exchange of a real limiter, and two models with a limit of one request each."""

    def __init__(self, local: LocalRouter) -> None:
        limits = local.router.counters
        self.router = local.router
        self.ids = (500, 501)
        self.counters = limits
        shared = local.router.models.registry._shared.limits
        self.models = [
            RegisteredModel(
                TestModel(),
                Model(
                    name=name,
                    versions=(Version(),),
                    fallback=("b",) if name == "a" else (),
                    fallback_on=REASONS,
                    timeouts=Timeouts(connect_s=5, total_s=60),
                ),
                shared.of(number, 1),
            )
            for name, number in zip("ab", self.ids, strict=True)
        ]
        self.exchange = Exchange({})
        self.exchange.model = "a"
        self.closed = 0
        self.deadlines: list[float] = []

    def places(self) -> tuple[int, ...]:
        """How many requests count for each model."""
        return tuple(self.counters.total(number) for number in self.ids)

    def admit(self, model: RegisteredModel) -> RegisteredModel:
        """Admit as the dispatcher does."""
        self.exchange.admit(self.router.limiter, 1.0, model.limit)
        return model

    def serve(self, *outcomes: int | BaseException) -> Reply:
        """Serve, where the models do this in turn."""
        ahead = list(outcomes)

        def send(model: RegisteredModel, deadline: float) -> Reply:
            assert self.places() == ((1, 0) if model is self.models[0] else (0, 1)), "one place, of the model in use"
            assert self.router.limiter.snapshot() == (1, 0), "one permit"
            self.deadlines.append(deadline)
            outcome = ahead.pop(0)
            if isinstance(outcome, BaseException):
                raise outcome
            return Reply(outcome, [], 0, (), self._close)

        return failover.serve(self.exchange, self.models, self.admit, send)

    def _close(self) -> None:
        self.closed += 1


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A stage; at the end, everything must be back."""
    with LocalRouter(tmp_path, MAX_CONCURRENCY="1") as local:
        made = Stage(local)
        yield made
        made.exchange.release()
        made.exchange.release()
        assert made.places() == (0, 0)
        assert local.router.limiter.snapshot() == (0, 0)


def test_a_response_that_is_not_passed_on_is_closed(stage: Stage) -> None:
    """The connection of the model that failed is given back before the next one works; the deadline is one."""
    assert stage.serve(503, 200).status == 200
    assert stage.closed == 1
    assert stage.deadlines[0] == stage.deadlines[1] < inf
    assert stage.exchange.fallbacks == (("a", "b", "status_5xx"),)
    assert stage.places() == (0, 1)


def test_the_queue_may_time_out_and_another_model_serve(stage: Stage) -> None:
    """After a wait in vain the place moves on, and the permit is taken once; it is no rejection any more."""
    admit, errors = stage.admit, [QueueTimeout("", 1)]

    def admit_late(model: RegisteredModel) -> RegisteredModel:
        if errors:
            assert model.limit is not None
            stage.exchange._place = model.limit.acquire()
            stage.exchange.rejection = "queue_timeout"
            raise errors.pop()
        return admit(model)

    stage.admit = admit_late  # type: ignore[method-assign]
    assert stage.serve(200).status == 200
    assert (stage.exchange.model, stage.exchange.rejection) == ("b", None)


def test_a_fallback_that_is_full_changes_nothing(stage: Stage) -> None:
    """The client gets the first model's error, and the place stays as it was."""
    limit = stage.models[1].limit
    assert limit is not None
    leave = limit.acquire()
    with pytest.raises(ModelLimitReached):
        stage.exchange.change_model("b", limit, None)
    leave()

    def full(model: RegisteredModel, deadline: float) -> Reply:
        nonlocal leave
        leave = limit.acquire()
        raise NoEndpoint("none")

    with pytest.raises(NoEndpoint):
        failover.serve(stage.exchange, stage.models, stage.admit, full)
    assert (stage.exchange.model, stage.exchange.fallbacks, stage.places()) == ("a", (), (1, 1))
    assert stage.exchange.full_fallbacks == 1, "so its record says why nobody took its place"
    leave()


@pytest.mark.parametrize("error", [ClientGone(), ValueError()])
def test_what_is_no_failure_of_a_model_goes_no_further(stage: Stage, error: BaseException) -> None:
    """A client that left, and an error of the router itself, end the request where it is."""
    with pytest.raises(type(error)):
        stage.serve(error)
    assert stage.exchange.fallbacks == ()
