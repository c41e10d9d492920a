"""A stream whose last event is delivered is served, whatever ends the reading of what follows it."""

import contextlib
from pathlib import Path
from typing import Any

import gevent
from falcon import testing

from app.api.exchange import ENVIRON_KEY
from tests.support.clients import CHAT
from tests.support.routed_router import RoutedRouter
from tests.support.transcripts import DONE
from tests.support.upstream import Reply, Seen, Upstream


def never_ends(seen: Seen, reply: Reply) -> None:
    """A model server that sends its last event, and keeps the body open until the router hangs up."""
    reply.begin()
    reply.chunk(DONE)
    reply.wait_hung_up()


def test_drain_that_stops_the_reading_of_the_rest_blames_nobody(tmp_path: Path) -> None:
    """The attempt has the status of its response, as the request has: neither was cut off."""
    with Upstream(never_ends) as upstream:
        model = {"name": "m", "endpoints": [upstream.url], "health_check": {"interval_s": 0}}
        with RoutedRouter(tmp_path, model) as local:
            environ = testing.create_environ(CHAT, method="POST", body='{"model":"m","messages":[],"stream":true}')

            def serve() -> None:
                chunks: Any = local.application(environ, testing.StartResponseMock())
                with contextlib.closing(chunks):
                    list(chunks)

            serving = gevent.spawn(serve)
            with gevent.Timeout(20):
                # Nothing yields between this and the wait for the rest. So there it is stopped, as a drain does it.
                while ENVIRON_KEY not in environ or not environ[ENVIRON_KEY].delivered:
                    gevent.sleep(0.001)
            serving.kill()
            exchange = environ[ENVIRON_KEY]
            assert (exchange.status, exchange.error) == (200, None)
            assert [attempt.code for attempt in exchange.attempts] == ["200"]
            assert local.router.limiter.snapshot() == (0, 0)
