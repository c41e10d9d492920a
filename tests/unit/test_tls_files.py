"""TLS contexts made of files: when they are made again, and what is said of files that can't be used."""

import datetime as dt
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.config.routes_source import RoutesSource
from app.config.settings import load_settings
from app.errors import RoutesError
from app.net.certificate_validity import Validity, validity_of
from app.net.tls_files import (
    BrokenTlsFiles,
    TlsContext,
    TlsFiles,
    client_context,
    server_context,
    stale_files,
    validities,
)
from app.server.tls_handshake import certificate_name
from tests.support.certificates import LOOPBACK, Made, certificate, key_of, mount_secret, pem_of, write_pair

MADE = certificate("router", LOOPBACK)


def in_secret(folder: Path) -> TlsFiles:
    """The files of a Secret that is mounted there."""
    return TlsFiles(str(folder / "tls.crt"), str(folder / "tls.key"))


def secret(made: Any = MADE) -> dict[str, bytes]:
    """What such a Secret holds."""
    return {"tls.crt": pem_of(made), "tls.key": key_of(made)}


def test_context_is_made_again_when_a_file_changes(tmp_path: Path) -> None:
    """By a symlink, by a rename or in place: the next look finds it, and the one after that finds nothing new."""
    mount_secret(tmp_path, secret())
    context = TlsContext(in_secret(tmp_path), server_context)
    first = context.current
    assert not context.renew()
    assert context.current is first
    mount_secret(tmp_path, secret(certificate("other", LOOPBACK)))
    assert context.renew()
    assert not context.renew()
    other = certificate("third", LOOPBACK)
    (tmp_path / "tls.crt").write_bytes(pem_of(other) + key_of(other))
    (tmp_path / "new").write_bytes(key_of(other))
    (tmp_path / "new").rename(tmp_path / "tls.key")
    assert context.renew()
    assert context.current is not first


def test_validity_is_that_of_the_certificate_in_use(tmp_path: Path) -> None:
    """It changes with the certificate, and not by a file that is refused."""
    certificate_file, key_file = write_pair(tmp_path, "tls", MADE)
    context = TlsContext(TlsFiles(str(certificate_file), str(key_file)), server_context)
    longer = certificate("longer", LOOPBACK, until=dt.datetime(2049, 12, 31, 23, 59, 59, tzinfo=dt.UTC))
    for made in (MADE, longer):
        write_pair(tmp_path, "tls", made)
        context.renew()
        assert validities([context]) == {str(certificate_file): times(made)}
    certificate_file.write_bytes(pem_of(MADE))
    with pytest.raises(BrokenTlsFiles):
        context.renew()
    assert context.validity == times(longer)
    assert validities([TlsContext(TlsFiles(authorities=str(certificate_file)), client_context)]) == {}


def times(made: Made) -> tuple[float, float]:
    """When a certificate is valid, as another library says."""
    return made[0].not_valid_before_utc.timestamp(), made[0].not_valid_after_utc.timestamp()


def test_chain_is_valid_as_long_as_each_of_its_certificates(tmp_path: Path) -> None:
    """The one that leads to the authority may expire first; a year from 2050 on has four digits (RFC 5280)."""
    late = certificate("late", [], until=dt.datetime(2050, 1, 1, tzinfo=dt.UTC))
    last = certificate("last", LOOPBACK, late, until=dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC))
    file = tmp_path / "chain.pem"
    for chain, ends in (((last,), last), ((last, late), late), ((late, MADE, last), MADE)):
        file.write_bytes(b"a comment\n" + b"".join(map(pem_of, chain)) + key_of(last))
        validity = validity_of(file)
        assert validity is not None
        assert validity.not_after == times(ends)[1]
        assert validity.not_before == max(times(one)[0] for one in chain)


@given(st.integers(0, 2000), st.binary(max_size=3), st.integers(0, 3))
@example(0, b"", 4000)
def test_any_file_has_a_validity_or_none(
    tmp_path_factory: pytest.TempPathFactory, at: int, by: bytes, cut: int
) -> None:
    """Whatever is in it, nothing is raised: it is for a metric only."""
    der = ssl.PEM_cert_to_DER_cert(pem_of(MADE).decode())
    file = tmp_path_factory.getbasetemp() / "any.pem"
    file.write_text(ssl.DER_cert_to_PEM_cert(der[:at] + by + der[at + cut :]))
    assert isinstance(validity_of(file), Validity | None)
    assert validity_of(file.with_name("absent")) is None


def test_certificate_whose_key_is_yet_to_come_is_refused_until_it_comes(tmp_path: Path) -> None:
    """Files that are written one after the other: the old pair stays in use until the new one is whole."""
    certificate_file, key_file = write_pair(tmp_path, "tls", MADE)
    context = TlsContext(TlsFiles(str(certificate_file), str(key_file)), server_context)
    before, other = context.current, certificate("other", LOOPBACK)
    certificate_file.write_bytes(pem_of(other))
    with pytest.raises(BrokenTlsFiles, match="the key is not that of the certificate"):
        context.renew()
    assert not context.renew(), "it is said once"
    assert context.current is before
    assert stale_files([context]) == {str(certificate_file): True}
    key_file.write_bytes(key_of(other))
    assert context.renew()
    assert stale_files([context]) == {str(certificate_file): False}


def test_files_are_stale_until_they_can_be_used_again(tmp_path: Path) -> None:
    """Also if it takes long, if the old ones come back, and if another context with the same certificate is in order.

    Files without a certificate have the name of their authorities.
    """
    mount_secret(tmp_path, secret())
    authorities = tmp_path / "authorities.crt"
    authorities.write_bytes(pem_of(MADE))
    files = TlsFiles(authorities=str(authorities))
    contexts = [TlsContext(in_secret(tmp_path), server_context), TlsContext(files, client_context)]
    certificate_name = contexts[0].files.certificate
    assert stale_files(contexts) == {certificate_name: False, str(authorities): False}
    authorities.write_bytes(b"")
    with pytest.raises(BrokenTlsFiles):
        contexts[1].renew()
    for _ in range(3):
        contexts[1].renew()
        assert stale_files(contexts) == {certificate_name: False, str(authorities): True}
    authorities.write_bytes(pem_of(MADE))
    contexts[1].renew()
    assert not any(stale_files(contexts).values())
    mount_secret(tmp_path, {**secret(), "tls.key": b""})
    with pytest.raises(BrokenTlsFiles):
        contexts[0].renew()
    contexts.append(TlsContext(TlsFiles(certificate_name, certificate_name), lambda _: client_context(TlsFiles())))
    assert stale_files(contexts)[certificate_name] is True


def test_halves_that_are_read_during_a_change_are_no_error(tmp_path: Path) -> None:
    """A Secret that changes between the reading of the certificate and of its key is read again at the next look."""
    mount_secret(tmp_path, secret())

    def make(files: TlsFiles) -> Any:
        made = changes.pop() if changes else None
        if made:
            mount_secret(tmp_path, secret(made))
            raise OSError("half of each")
        return server_context(files)

    changes: list[Any] = []
    context = TlsContext(in_secret(tmp_path), make)
    before = context.current
    changes.append(certificate("third", LOOPBACK))
    mount_secret(tmp_path, secret(certificate("other", LOOPBACK)))
    assert not context.renew()
    assert context.current is before
    assert context.renew()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tls.key": None}, "tls.key: can't be read: No such file or directory"),
        ({"tls.key": key_of(certificate("other", []))}, "the key is not that of the certificate"),
        ({"tls.key": key_of(MADE, b"secret")}, "the key is encrypted"),
        ({"tls.crt": b"SECRET"}, "not the PEM files that are needed"),
        ({"tls.crt": b""}, "not the PEM files that are needed"),
        ({"ca.crt": b"SECRET"}, "not the PEM files that are needed"),
    ],
    ids=["missing", "another key", "encrypted", "no certificate", "empty", "no authority"],
)
@pytest.mark.parametrize("make", [server_context, client_context])
def test_files_that_cant_be_used_are_named(
    tmp_path: Path, changed: dict[str, bytes | None], said: str, make: Any
) -> None:
    """The message says which files and what is wrong, in one line, and nothing of what is in them."""
    files = {**secret(), "ca.crt": pem_of(certificate("authority", [])), **changed}
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenTlsFiles) as caught:
        TlsContext(TlsFiles(*(str(tmp_path / name) for name in files)), make)
    message = str(caught.value)
    assert said in message
    assert str(tmp_path) in message
    assert "\n" not in message
    assert "SECRET" not in message


def test_key_may_be_in_the_file_of_the_certificate(tmp_path: Path) -> None:
    """One file for both is enough, for listeners and endpoints."""
    both = tmp_path / "both.pem"
    both.write_bytes(pem_of(MADE) + key_of(MADE))
    for make in (server_context, client_context):
        assert not TlsContext(TlsFiles(str(both)), make).renew()


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        (None, ""),
        ({}, ""),
        ({"subject": ((("organizationName", "o"),), (("commonName", "cn"),))}, "cn"),
        ({"subject": ((("commonName", "cn"),),), "subjectAltName": (("IP Address", "10.0.0.1"),)}, "cn"),
        ({"subject": ((("commonName", "cn"),),), "subjectAltName": (("DNS", "a"), ("DNS", "b"))}, "a"),
        ({"subjectAltName": (("DNS", "a"), ("URI", "spiffe://d/x"), ("URI", "spiffe://d/y"))}, "spiffe://d/x"),
        ({"subjectAltName": (("IP Address", "10.0.0.1"), ("email", "a@b"))}, ""),
    ],
)
def test_name_of_a_certificate(seen: Any, name: str) -> None:
    """The first URI, or else the first DNS name, or else the common name; nothing else is a name."""
    assert certificate_name(seen) == name


@pytest.mark.parametrize("said", ["can't be read", "not the PEM files that are needed"])
def test_routes_with_files_that_cant_be_used_are_refused(tmp_path: Path, said: str) -> None:
    """The error names the endpoint and the file; so routes that are current stay."""
    ca_file, routes = tmp_path / "ca.crt", tmp_path / "routes.yaml"
    if "PEM" in said:
        ca_file.write_bytes(b"x")
    endpoint = f"{{url: https://m, ca_file: {ca_file}}}"
    routes.write_text(f"models: [{{name: m, endpoints: [{endpoint}]}}]")
    with pytest.raises(RoutesError, match=f"the TLS of https://m: {ca_file}: {said}"):
        RoutesSource(load_settings({"ROUTES_FILE": str(routes)}, 1), {}).load()


def test_url_has_the_same_tls_in_all_models(tmp_path: Path) -> None:
    """Connections are kept by URL: one that is there twice with different members would have those of either."""
    routes = tmp_path / "routes.yaml"
    one, two = (f"{{name: {name}, endpoints: [{{url: https://h, server_name: {name}}}]}}" for name in ("a", "b"))
    routes.write_text(f"models:\n- {one}\n- {two}\n")
    with pytest.raises(RoutesError, match=r":3: models\[1\].endpoints\[0\].url is the same as models\[0\]"):
        RoutesSource(load_settings({"ROUTES_FILE": str(routes)}, 1), {}).load()
