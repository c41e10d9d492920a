"""docs/comparison.md: every cell says where it was read. The README's short table says the same."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/comparison.md").read_text()
README = (ROOT / "README.md").read_text()
_TOPICS = ("Overload", "Serving", "Platform", "Insight", "Cost")
_SOURCED = re.compile(r"\[(?P<words>[^\]]+)\]\[(?P<source>[\w-]+)\]")
_DEFINITION = re.compile(r"^\[([\w-]+)\]: (\S+)$", re.MULTILINE)
_COMMIT = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+/blob/[0-9a-f]{40}/\S+")
_PAGE = re.compile(r"https://(?!github\.com/[^/]+/[^/]+/(?:blob|tree)/)\S+")
_NOT_FOUND = "not found in its documentation"


def section(text: str, heading: str) -> str:
    """The part under a heading of the second level."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The rows of a table, its head first."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def compared() -> dict[str, list[str]]:
    """The cells of every row, by what it compares."""
    return {name.strip("*"): cells for topic in _TOPICS for name, *cells in rows(section(PAGE, topic))[1:]}


@pytest.mark.parametrize("topic", _TOPICS)
def test_every_cell_of_the_comparison_has_a_source(topic: str) -> None:
    """All of its words are a link, and the source of each link is defined."""
    head, *those = rows(section(PAGE, topic))
    assert head == rows(section(PAGE, _TOPICS[0]))[0]
    assert those
    defined = dict(_DEFINITION.findall(PAGE))
    for name, *cells in those:
        assert len(cells) == len(head) - 1, name
        for cell in cells:
            assert _SOURCED.search(cell), f"{name}: {cell!r} has no source"
            assert not re.sub(r"[;, ]", "", _SOURCED.sub("", cell)), f"{name}: {cell!r}"
            assert {found["source"] for found in _SOURCED.finditer(cell)} <= defined.keys(), f"{name}: {cell!r}"


def test_every_source_of_the_comparison_is_used_and_stays_as_it_was() -> None:
    """No definition is left over or doubled, and one on GitHub names a commit, so that it says what was read."""
    defined = _DEFINITION.findall(PAGE)
    used = {found["source"] for found in _SOURCED.finditer(PAGE)}
    assert sorted(name for name, _ in defined) == sorted(used)
    for name, target in defined:
        own = name.startswith("o-")
        assert own == (":" not in target), f"{name}: {target}"
        assert own or _COMMIT.fullmatch(target) or _PAGE.fullmatch(target), f"{name}: {target}"


def test_own_column_is_read_in_own_documents_and_others_in_theirs() -> None:
    """The prefix of a source is that of its column, except for what was measured here and the parts of Envoy's."""
    for name, cells in compared().items():
        for prefix, cell in zip("ovsltke", cells, strict=True):
            sources = {found["source"] for found in _SOURCED.finditer(cell)}
            here = {source for source in sources if source.startswith(("o-cost", "o-streams", "o-measured"))}
            picker = {"l-disaggregation"} if prefix == "e" else set()
            assert all(source.startswith(f"{prefix}-") for source in sources - here - picker), f"{name}: {cell}"


def test_short_table_of_the_readme_is_the_long_one() -> None:
    """Each of its cells says no where the long one does, and ? where nothing was found."""
    long = compared()
    head, *those = rows(section(README, "Compared with others"))
    assert len(those) > 10
    for name, *cells in those:
        assert len(cells) == len(head) - 1
        for short, full in zip(cells, long[name], strict=True):
            words = _SOURCED.sub(lambda found: found["words"], full)
            if short == "?":
                assert words == _NOT_FOUND, name
            elif not short or short.isdecimal():
                assert words.startswith(short or "not measured"), name
            else:
                assert short in {"yes", "partly", "no"}, name
                assert words != _NOT_FOUND, f"{name}: {words}"
                assert (short == "no") == bool(re.match(r"no\b", words)), f"{name}: {short}, {words}"


def test_figures_of_the_comparison_are_those_of_the_measurements() -> None:
    """Each is in the row of that router, or of that measurement, in performance.md."""
    performance = (ROOT / "docs/performance.md").read_text()
    lines = [
        set(cells) for heading in ("In short", "A proxied request") for cells in rows(section(performance, heading))
    ]
    columns = {0: "this router", 1: "vllm-router 0.1.17", 6: "Envoy 1.40.0"}
    for name, cells in compared().items():
        for column, cell in enumerate(cells):
            for figure in re.findall(r"\[([\d.,]+)\]\[o-(?:cost|streams)\]", cell):
                assert any(figure in line and {columns[column], name} & line for line in lines), f"{name}: {figure}"
