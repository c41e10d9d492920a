"""A keys file becomes records, or one line that says where the mistake is and repeats nothing of the text."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.config.keys_file import expires_at, parse_keys
from app.config.keys_schema import MAX_TENANTS, Key, Keys, Tenant
from app.errors import KeysError
from tests.support.credentials import digest_of

DIGEST = digest_of("a key")
GOOD = f"""
[[tenants]]
name = "team-a"
max_concurrency = 3

[[keys]]
id = "new"
sha256 = "{DIGEST.upper()}"
tenant = "team-a"
models = ["m"]
expires = 2030-01-31T00:00:00Z
"""
# What is changed in the good file, line, and what the message says of it.
MISTAKES = [
    ("", None, 1, "must hold keys or tenants"),
    (GOOD, "keys = []", 1, "must hold keys or tenants"),
    (f'"{DIGEST.upper()}"', '"sk-secret-of-mine"', 8, "keys[0].sha256 must be the SHA-256 of the key"),
    (DIGEST.upper(), digest_of(""), 8, "keys[0].sha256 is the digest of an empty text"),
    (DIGEST.upper(), digest_of("\n"), 8, "keys[0].sha256 is the digest of an empty text"),
    ('tenant = "team-a"', 'tenant = "team-b"', 9, "keys[0].tenant must be one of the tenants"),
    ('tenant = "team-a"\n', "", 6, "keys[0] must have tenant"),
    ("2030-01-31T00:00:00Z", "2030-01-31T00:00:00", 11, "keys[0].expires must be a time with its zone"),
    ("2030-01-31T00:00:00Z", "2030-01-31", 11, "keys[0].expires must be a time with its zone"),
    ("2030-01-31T00:00:00Z", '"2030-02-31T00:00:00Z"', 11, "keys[0].expires must be a time that exists"),
    ('["m"]', "[]", 10, "keys[0].models must have at least 1 item"),
    ('["m"]', '"m"', 10, "keys[0].models must be a list, not text"),
    ("max_concurrency = 3", "max_concurrency = 0", 4, "tenants[0].max_concurrency must be a whole number, 1 to"),
    ("max_concurrency = 3", 'secret-of-mine = "x"', 4, "an unknown member: it may have name, max_concurrency, models"),
    ('id = "new"', "id = 'secret-of-mine", 11, "syntax"),
]


def refusal(text: str, name: str = "keys.toml") -> str:
    """The one line that says why this file is refused."""
    with pytest.raises(KeysError) as caught:
        parse_keys(text, name)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert message.startswith(f"{name}:")
    return message


def test_good_file_in_every_format() -> None:
    """TOML with a time without quotes, and JSON and YAML with text, say the same; the digest may have capitals."""
    key = Key(id="new", sha256=DIGEST, tenant="team-a", models=("m",), expires="2030-01-31T00:00:00+00:00")
    keys = Keys(keys=(key,), tenants=(Tenant(name="team-a", max_concurrency=3),))
    assert parse_keys(GOOD, "keys.toml") == keys
    members = {"id": "new", "sha256": DIGEST, "tenant": "team-a", "models": ["m"], "expires": key.expires}
    text = json.dumps({"tenants": [{"name": "team-a", "max_concurrency": 3}], "keys": [members]}, indent="\t")
    assert parse_keys(text, "keys.json") == keys
    assert parse_keys(text.replace("\t", " "), "keys.yaml") == keys
    assert expires_at(key) == 1_896_048_000
    assert expires_at(Key(id="i", sha256=DIGEST, tenant="t")) == float("inf")


@pytest.mark.parametrize(("part", "other", "line", "problem"), MISTAKES)
def test_mistake_is_named_with_its_line(part: str, other: str | None, line: int, problem: str) -> None:
    """Every mistake is one line with the file, the line and what would be right; nothing of the text is in it."""
    message = refusal("" if other is None else GOOD.replace(part, other, 1))
    assert message.startswith(f"keys.toml:{line}: ")
    assert problem in message
    assert "secret" not in message


@pytest.mark.parametrize("member", ["id", "sha256"])
def test_nothing_is_there_twice(member: str) -> None:
    """Two keys of one id could not be told apart in the log, and two of one digest not at all."""
    first = {"id": "a", "sha256": digest_of("a"), "tenant": "t"}
    second = {"id": "b", "sha256": digest_of("b").upper(), "tenant": "t", member: first[member]}
    assert f"keys[1].{member} is the same as keys[0].{member}" in refusal(
        json.dumps({"keys": [first, second]}), "k.json"
    )


@pytest.mark.slow
def test_number_of_tenants_is_bounded() -> None:
    """Each tenant is counted apart in shared memory and has series of its own, whether listed or named by keys."""
    names = [f"t{number}" for number in range(MAX_TENANTS + 1)]
    keys = [{"id": name, "sha256": digest_of(name), "tenant": name} for name in names]
    tenants = [{"name": name} for name in names]
    for data in ({"keys": keys}, {"tenants": tenants}):
        assert "has too many tenants" in refusal(json.dumps(data), "k.json")
    parse_keys(json.dumps({"keys": keys[1:], "tenants": tenants[1:]}), "k.json")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(DIGEST),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["keys", "tenants", "id", "sha256", "tenant", "models", "expires", "name", "max_concurrency"]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@given(st.text(max_size=60) | _VALUES.map(json.dumps), st.sampled_from(["k.toml", "k.yaml", "k.json"]))
@example("keys: [{sk-secret-of-mine: 1}]", "k.yaml")
@example("keys: *secretofmine", "k.yaml")
@example("[sk-secret-of-mine]\n[sk-secret-of-mine]", "k.toml")
@example("[" * 5000, "k.json")
@example('{"keys": ' + "[" * 200 + "]" * 200 + "}", "k.json")
def test_any_text_is_read_or_refused_in_one_line(text: str, name: str) -> None:
    """Whatever the file holds: keys, or one error of one line that shows no key of the text."""
    try:
        parse_keys(text, name)
    except KeysError as error:
        message = str(error)
    else:
        message = ""
    assert len(message.splitlines()) <= 1
    assert "secret" not in message
