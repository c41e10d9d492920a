"""EndpointSlices: which endpoints get requests, by the API reference."""

from typing import Any

import msgspec
import pytest

from app.discovery.slices import Slice, urls_in
from tests.support.kubernetes_api import endpoint


def made(*endpoints: dict[str, Any], kind: str = "IPv4", ports: Any = ...) -> Slice:
    """A slice, decoded from what the API server sends."""
    ports = [{"name": "http", "protocol": "TCP", "port": 8000}] if ports is ... else ports
    raw = {"addressType": kind, "endpoints": list(endpoints) or None, "ports": ports, "metadata": {"name": "s"}}
    return msgspec.json.decode(msgspec.json.encode(raw), type=Slice)


@pytest.mark.parametrize(
    ("conditions", "gets"),
    [
        ({"ready": True}, True),
        ({"ready": None}, True),
        ({}, True),
        ({"ready": False}, False),
        ({"ready": False, "serving": True}, False),
        ({"ready": False, "serving": True, "terminating": True}, False),
        ({"ready": True, "serving": True, "terminating": True}, False),
        ({"ready": True, "serving": True, "terminating": False}, True),
        ({"ready": None, "terminating": None}, True),
    ],
)
def test_ready_and_not_terminating(conditions: dict[str, Any], gets: bool) -> None:
    """`ready` without a value is true, `terminating` without one is false; publishNotReadyAddresses sets both."""
    assert bool(urls_in([made(endpoint("10.0.0.1", **conditions))], "http")) is gets


def test_conditions_may_be_absent() -> None:
    """As they may be by the reference, and so may be the endpoints."""
    assert urls_in([made({"addresses": ["10.0.0.1"]}), made()], "http") == {"http://10.0.0.1:8000"}


@pytest.mark.parametrize(
    ("ports", "port", "numbers"),
    [
        ([{"name": "http", "port": 80}, {"name": "metrics", "port": 90}], "http", {80}),
        ([{"name": "http", "port": 80}, {"name": "metrics", "port": 90}], "90", {90}),
        ([{"name": "http", "port": 80}], "81", set()),
        ([{"name": "", "port": 80}], "80", {80}),
        ([{"port": 80, "protocol": None}], "80", {80}),
        ([{"name": "http", "port": 80, "protocol": "UDP"}], "http", set()),
        ([{"name": "http", "port": None}], "http", set()),
        ([{"name": "http", "port": None}], "80", {80}),
        ([], "80", {80}),
        (None, "80", {80}),
        (None, "http", set()),
    ],
)
def test_port_by_name_or_number(ports: Any, port: str, numbers: set[int]) -> None:
    """A slice without ports stands for all; a name follows the slice's number."""
    urls = urls_in([made(endpoint("10.0.0.1"), ports=ports)], port)
    assert urls == {f"http://10.0.0.1:{number}" for number in numbers}


def test_all_slices_of_both_families_count() -> None:
    """The set is the union; the first address of an endpoint is used; a pod of two families is one endpoint."""
    slices = [
        made(endpoint("fd00::1", uid="one"), endpoint("fd00::2", uid="two"), endpoint("fd00::3"), kind="IPv6"),
        made(endpoint("10.0.0.1", "10.0.0.99", uid="one"), endpoint("10.0.0.4")),
        made(endpoint("10.0.0.4"), endpoint("10.0.0.5", ready=False)),
        made(endpoint("pod.example.test"), kind="FQDN"),
    ]
    hosts = ("[fd00::2]", "[fd00::3]", "10.0.0.1", "10.0.0.4", "pod.example.test")
    assert urls_in(slices, "http") == {f"http://{host}:8000" for host in hosts}


def test_pod_whose_first_family_is_not_ready_is_taken_by_the_other() -> None:
    """Only an endpoint that gets requests hides its twin."""
    slices = [made(endpoint("10.0.0.1", uid="one", ready=False)), made(endpoint("fd00::1", uid="one"), kind="IPv6")]
    assert urls_in(slices, "http") == {"http://[fd00::1]:8000"}
