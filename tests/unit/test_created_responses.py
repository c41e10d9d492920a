"""The table of who created which response: the newest are known, whatever their ids are, and nothing false is."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.routing import created_responses
from app.routing.created_responses import MAX_RESPONSES, CreatedResponses
from app.shared_memory.table import SharedTable, name_hash
from tests.support.forks import Parent

SIZE = 5


def small(table: SharedTable) -> CreatedResponses:
    """A view of the table that uses the first few entries only."""
    responses = CreatedResponses(table)
    responses._size = SIZE
    return responses


@pytest.fixture
def parent() -> Iterator[Parent]:
    """A process with a table of its own."""
    parent = Parent(limit=1)
    yield parent
    parent.close()


def test_creator_is_found_by_id(parent: Parent) -> None:
    """By the hashes of model and URL; an id that nobody has created has no creator."""
    responses = CreatedResponses(parent.table)
    responses.note("resp_1", "m", "http://a", "")
    responses.note("resp_2", "m", "", "t")
    assert responses.find("resp_1") == (name_hash("m"), name_hash("http://a"), name_hash(""))
    assert responses.find("resp_2") == (name_hash("m"), name_hash(""), name_hash("t"))
    assert responses.find("resp_3") is None


def test_one_id_many_times_is_one_entry_of_a_chain(parent: Parent) -> None:
    """A model server that gives all responses one id makes no lookup slow: the newest counts, chains stay short."""
    responses = CreatedResponses(parent.table)
    for number in range(1000):
        responses.note("resp", "m", f"http://{number}", "")
    assert responses.find("resp") == (name_hash("m"), name_hash("http://999"), name_hash(""))
    chain = name_hash("resp") % MAX_RESPONSES
    assert responses._next[responses._chains[chain] - 1] == 0


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=60))
def test_the_newest_are_known_and_the_oldest_replaced(made: list[tuple[int, int]]) -> None:
    """Over any sequence the table says what a list of the last entries says, chains and all."""
    parent = Parent(limit=1)
    try:
        responses = small(parent.table)
        for number, (response, endpoint) in enumerate(made):
            responses.note(f"r{response}", "m", f"http://{endpoint}", "")
            newest = made[max(0, number + 1 - SIZE) : number + 1]
            known = dict(newest)
            for one in range(13):
                found = responses.find(f"r{one}")
                wanted = (name_hash("m"), name_hash(f"http://{known[one]}"), name_hash("")) if one in known else None
                assert found == wanted
    finally:
        parent.close()


def test_layout_is_what_the_table_uses() -> None:
    """Every array has an entry for each response that is known."""
    assert set(created_responses.LAYOUT.arrays.values()) == {MAX_RESPONSES}
