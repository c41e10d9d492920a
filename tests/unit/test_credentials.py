"""Credentials of model servers as one process has them: when they are read, and what stays when they can't be."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.config import credentials
from app.config.credentials import Credentials, Reference, read_credential
from app.config.routes_source import Document
from app.config.text_file import read_text
from app.errors import RouterError, RoutesError
from app.routing.remote_model import RemoteModel
from app.server.upkeep import Upkeep
from tests.support.routed_router import RoutedRouter
from tests.support.upstream import Upstream

SECRET = "a-credential-of-a-model-server"
QUIET = {"health_check": {"interval_s": 0}, "ejection": {"max_share": 0}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a credential, which is SECRET."""
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    return path


@pytest.mark.parametrize(
    "content",
    [b"", b" \n", "S3CRET caf\u00e9".encode(), b"S3CRET\nb", b"S3CRET\xff", b"S3CRET" * 4000, None],
    ids=lambda one: repr(one)[:12],
)
def test_what_is_no_credential_leaves_the_last_one(file: Path, content: bytes | None) -> None:
    """Empty, not printable, too long, gone: the error names the file and not the content; the next good one counts."""
    reference, kept = Reference(None, str(file)), Credentials({})
    assert kept.renew([reference]) == []
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(RoutesError, match=str(file)) as error:
        read_credential(reference, {})
    assert "S3CRET" not in str(error.value)
    assert kept.renew([reference]) == []
    assert kept.value(reference) == SECRET
    assert kept.error(reference) == str(error.value)
    file.write_text("another")
    assert kept.renew([reference]) == [reference]
    assert (kept.value(reference), kept.error(reference)) == ("another", None)


def test_variable_is_that_of_the_start() -> None:
    """One that is not set is an error; there is nothing to fall back to."""
    kept, there, absent = Credentials({"A": f" {SECRET} "}), Reference("A", None), Reference("B", None)
    assert kept.renew([there, absent]) == []
    assert (kept.value(there), kept.value(absent)) == (SECRET, None)
    assert kept.error(absent) == "the environment variable B: must hold printable ASCII characters"


def test_file_is_read_again_only_when_it_has_changed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when its content has the same length; and what failed is tried every time."""
    reads: list[Path] = []

    def read(path: Path, max_bytes: int, failed: type[RouterError]) -> str:
        reads.append(path)
        return read_text(path, max_bytes, failed)

    monkeypatch.setattr(credentials, "read_text", read)
    reference, kept = Reference(None, str(file)), Credentials({})
    for _ in range(3):
        kept.renew([reference])
    assert len(reads) == 1
    file.write_text(SECRET[::-1] + "\n")
    assert kept.renew([reference]) == [reference]
    file.write_text("")
    for _ in range(3):
        kept.renew([reference])
    assert len(reads) == 5


def test_what_no_route_names_is_forgotten(file: Path) -> None:
    """Nothing is kept of an endpoint that has gone."""
    reference, kept = Reference(None, str(file)), Credentials({})
    kept.renew([reference])
    kept.renew([])
    assert kept.value(reference) is None
    assert SECRET not in repr(vars(kept))


def test_nothing_that_is_kept_shows_the_value(file: Path) -> None:
    """A `repr` in a log or a traceback has no secret."""
    kept = Credentials({})
    kept.renew([Reference(None, str(file))])
    assert SECRET not in f"{kept!r} {kept._known!r}"


class Kept:
    """A router of the model m, whose endpoint has a credential in a file."""

    def __init__(self, folder: Path, file: Path, url: str) -> None:
        self.endpoint = {"url": url, "credential_file": str(file)}
        self.router = RoutedRouter(folder, self.model())
        self.upkeep = Upkeep(self.router.router)

    def model(self, **members: Any) -> dict[str, Any]:
        """The model of a routes file."""
        return {"name": "m", "endpoints": [self.endpoint], **QUIET, **members}

    def head(self) -> str:
        """The head of the endpoint, as a request finds it that has the model since before."""
        model = self.router.registry.find("m").model
        assert isinstance(model, RemoteModel)
        return model._pools[0]._endpoints[0].head


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A model server."""
    with Upstream() as server:
        yield server


@pytest.fixture
def kept(tmp_path: Path, file: Path, upstream: Upstream) -> Iterator[Kept]:
    """It has a worker: this process."""
    made = Kept(tmp_path, file, upstream.url)
    with made.router:
        yield made


def test_document_has_the_reference_and_no_value(kept: Kept, file: Path) -> None:
    """What is in shared memory is what the routes file says."""
    (_, content), peeked = kept.router.router.models.store.read(), kept.router.router.models.store.peek()
    assert content == peeked
    assert SECRET.encode() not in content
    (model,) = msgspec.json.decode(content, type=Document).routes.models
    assert model.versions[0].endpoints[0].credential_file == str(file)


def test_request_that_waits_is_sent_with_the_new_credential(kept: Kept, file: Path) -> None:
    """The head of an endpoint is replaced where it is: a request that has chosen its model gets it too."""
    model = kept.router.registry.find("m").model
    assert isinstance(model, RemoteModel)
    endpoint = model._pools[0]._endpoints[0]
    assert f"authorization: Bearer {SECRET}\r\n" in endpoint.head
    file.write_text("rotated")
    kept.upkeep.run()
    assert "authorization: Bearer rotated\r\n" in endpoint.head
    file.write_text("again")
    kept.router.publish(kept.model(aliases=["n"]))
    assert "authorization: Bearer again\r\n" in kept.head(), "new routes begin with what the file has"


def test_worker_begins_with_what_its_arbiter_has_read(kept: Kept, file: Path) -> None:
    """The arbiter reads for routes that it has not published, before models are built of them."""
    later = file.with_name("later")
    later.write_text("of-new-routes")
    kept.endpoint = {**kept.endpoint, "credential_file": str(later)}
    kept.router.publish(kept.model())
    kept.upkeep.in_arbiter()
    later.unlink()
    assert "authorization: Bearer of-new-routes\r\n" in kept.head()


@pytest.mark.slow
def test_no_request_reads_a_file(kept: Kept, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it look whether one has changed."""
    body = '{"model": "m"}'
    assert kept.router.ask("POST", "/v1/chat/completions", body).status == 200
    looked: list[Path] = []
    monkeypatch.setattr(credentials, "state_of", looked.append)
    monkeypatch.setattr(credentials, "read_text", lambda path, *_: looked.append(path))
    for _ in range(20):
        assert kept.router.ask("POST", "/v1/chat/completions", body).status == 200
    assert {seen.headers["authorization"] for seen in upstream.seen} == {f"Bearer {SECRET}"}
    assert not looked
    kept.upkeep.run()
    assert looked, "this test looks at the right place"


@pytest.mark.parametrize("content", ["", "caf\u00e9", None])
def test_routes_with_a_credential_that_can_not_be_read_are_refused(kept: Kept, file: Path, content: str | None) -> None:
    """The others stay, and so does the credential that was there."""
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    kept.router.publish(kept.model(aliases=["n"]))
    assert kept.router.registry.names() == ["m"]
    assert kept.router.router.models.store.stale[0] == 1
    assert f"authorization: Bearer {SECRET}\r\n" in kept.head()


def test_other_endpoints_serve_where_one_lacks_its_credential(kept: Kept, file: Path, upstream: Upstream) -> None:
    """A worker that could never read it leaves that endpoint out, and uses it once it can be read."""
    later = file.with_name("later")
    later.write_text("of-new-routes")
    lacking = {"url": f"{upstream.url}/lacking", "credential_file": str(later)}
    kept.router.publish(
        kept.model(endpoints=[kept.endpoint, lacking]), {**kept.model(endpoints=[lacking]), "name": "n"}
    )
    later.unlink()  # before models are built of these routes
    statuses = [kept.router.ask("POST", "/v1/chat/completions", f'{{"model": "{name}"}}').status for name in "mmmn"]
    assert statuses == [200, 200, 200, 503]
    assert {seen.headers["authorization"] for seen in upstream.seen} == {f"Bearer {SECRET}"}
    later.write_text("of-new-routes")
    kept.upkeep.run()
    assert kept.router.ask("POST", "/v1/chat/completions", '{"model": "n"}').status == 200
    assert upstream.seen[-1].headers["authorization"] == "Bearer of-new-routes"


def test_no_request_waits_for_the_credential_of_an_endpoint_that_was_found(tmp_path: Path, file: Path) -> None:
    """Such an endpoint is there: 503 at once, although requests may wait for the first one. /readyz says why."""
    model = {"name": "m", "dns": "m.test:80", "no_endpoint_wait_s": 60, **QUIET}
    with RoutedRouter(tmp_path, model, QUEUE_SIZE="5") as router:
        router.publish({**model, "credential_file": str(file)})
        file.unlink()
        router.found("dns m.test:80", "http://10.0.0.1:80")
        answer = router.ask("POST", "/v1/chat/completions", '{"model": "m"}')
        assert (answer.status, "could not read the credential" in answer.body) == (503, True)
        ready = router.ask("GET", "/readyz")
        assert (ready.status, "could not read the credential" in ready.body) == (503, True)
