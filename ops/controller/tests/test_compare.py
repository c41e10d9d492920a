"""When is an object as planned? Equal but for what others add, and with no field of ours that is no longer planned."""

from decimal import Decimal
from typing import Any

import pytest
from defaulting import with_defaults
from field_ownership import apply, fields_v1
from hypothesis import given, settings
from test_plan import planned, specs

from router_controller.compare import as_planned, quantity
from router_controller.kinds import DEPLOYMENT, MANAGER, Object

OWNER = (MANAGER, "Apply", "")


def stored(plural: str, body: Object) -> Object:
    """Returns an object as the API server stores it after an apply."""
    owners: dict[tuple[str, str, str], set[tuple[str, ...]]] = {}
    item = with_defaults(plural, apply({"metadata": {}}, owners, body, OWNER, force=False))
    fields = {"manager": MANAGER, "operation": "Apply", "fieldsV1": fields_v1(owners[OWNER])}
    item["metadata"] |= {"managedFields": [fields]}
    return (
        item
        | {"kind": body["kind"], "apiVersion": body["apiVersion"]}
        | {"metadata": body["metadata"] | item["metadata"]}
    )


@settings(max_examples=25, deadline=None)
@given(specs)
def test_what_was_applied_is_as_planned(spec: dict[str, Any]) -> None:
    """After the API server has filled in its defaults and rewritten quantities too."""
    for kind, item in planned(**spec).items():
        assert as_planned(stored(kind.plural, item), item), kind


@settings(max_examples=25, deadline=None)
@given(specs, specs)
def test_what_differs_is_noticed(one: dict[str, Any], other: dict[str, Any]) -> None:
    """An object of one spec is as planned for another one only if both stand for the same object."""
    first, second = planned(**one), planned(**other)
    for kind in first.keys() & second.keys():
        same = stored(kind.plural, first[kind]) == stored(kind.plural, second[kind])
        assert as_planned(stored(kind.plural, first[kind]), second[kind]) is same, kind


def _container(item: Object) -> Object:
    container: Object = item["spec"]["template"]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize(
    ("change", "planned_still"),
    [
        (lambda item: item["spec"].update(replicas=9), True),
        (lambda item: item["metadata"].update(annotations={"a": "b"}), True),
        (lambda item: _container(item)["env"].append({"name": "FOREIGN", "value": "1"}), True),
        (lambda item: _container(item)["env"].reverse(), True),
        (lambda item: item["spec"]["template"]["spec"]["containers"].append({"name": "sidecar"}), True),
        (lambda item: _container(item).update(image="x"), False),
        (lambda item: _container(item)["env"].pop(), False),
        (lambda item: _container(item)["resources"].pop("limits"), False),
        (lambda item: item["metadata"]["labels"].clear(), False),
        (lambda item: item["metadata"].update(ownerReferences=[]), False),
        (lambda item: item["spec"]["template"]["spec"]["securityContext"].update(runAsNonRoot=False), False),
        (lambda item: _container(item)["securityContext"]["capabilities"]["drop"].append("X"), False),
    ],
    ids=[
        "replicas",
        "annotation",
        "foreign variable",
        "order",
        "sidecar",
        "image",
        "variable gone",
        "limits gone",
        "labels gone",
        "owner gone",
        "security",
        "capability",
    ],
)
def test_drift(change: Any, planned_still: bool) -> None:
    """What others add is theirs; what they change of ours is drift."""
    body = planned()[DEPLOYMENT]
    item = stored("deployments", body)
    change(item)
    assert as_planned(item, body) is planned_still


def test_an_empty_text_is_left_out_of_variables_only() -> None:
    """The API server stores no empty value of a variable. An empty annotation or label is there, or is yet to be."""
    variable = planned(env=[{"name": "EMPTY", "value": ""}])[DEPLOYMENT]
    assert as_planned(stored("deployments", variable), variable)
    for name in ("annotations", "labels"):
        before, after = planned()[DEPLOYMENT], planned(**{name: {"value": ""}})[DEPLOYMENT]
        assert not as_planned(stored("deployments", before), after)
        assert as_planned(stored("deployments", after), after)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("1000m", 1), ("0.5", "0.5"), ("1Gi", 2**30), ("2k", 2000), ("1e3", 1000), ("x", None), (None, None)],
)
def test_quantities_are_compared_as_numbers(text: str | None, number: Any) -> None:
    """The API server stores 1000m as 1."""
    assert quantity(text) == (None if number is None else Decimal(number))
