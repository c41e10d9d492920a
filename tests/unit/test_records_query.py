"""The query of GET /admin/requests."""

import re

import falcon
import pytest

from app.api.admin.records_query import Wanted, wanted_by

UNDERSTOOD = {
    "": Wanted(),
    "slow=2.5": Wanted(slow_s=2.5),
    "slow=0": Wanted(),
    "slow=1e3": Wanted(slow_s=1000),
    "rejected=true": Wanted(rejected=True),
    "rejected=false": Wanted(rejected=False),
    "limit=1000&slow=1&rejected=true": Wanted(1.0, True, 1000),
}
REFUSED = (
    *(f"slow={value}" for value in ("", "x", "-1", "nan", "inf", "1e400", "1_0", "%D9%A1", "1%0A", "0x1")),
    *(f"rejected={value}" for value in ("", "1", "TRUE", "perhaps", "true%00")),
    *(f"limit={value}" for value in ("", "0", "-1", "1001", "1e2", "01", "9" * 5000)),
    "limit=5&limit=6",
    "reject=true",
    "rejected=true&id=x",
    "rejected",
)


@pytest.mark.parametrize("query", UNDERSTOOD)
def test_query_is_understood(query: str) -> None:
    """Each parameter alone and all together."""
    assert wanted_by(query) == UNDERSTOOD[query]


@pytest.mark.parametrize("query", REFUSED, ids=range(len(REFUSED)))
def test_query_that_is_not_understood_is_refused(query: str) -> None:
    """A wrong value, a parameter that there is not, and one that is there twice: the error says what is right."""
    with pytest.raises(falcon.HTTPBadRequest) as refused:
        wanted_by(query)
    detail = refused.value.description or ""
    assert re.search("it must be a|it must be true or false|twice|there is no parameter .* limit is a whole", detail)
    assert len(detail) < 400


def test_records_of_requests_that_were_not_rejected_can_be_listed() -> None:
    """`rejected=false` is no question for all."""
    slow, rejected, others = Wanted(slow_s=2.0), Wanted(rejected=True), Wanted(rejected=False)
    assert [wanted.takes(1.0, rejected=True) for wanted in (slow, rejected, others, Wanted())] == [0, 1, 0, 1]
    assert [wanted.takes(2.0, rejected=False) for wanted in (slow, rejected, others, Wanted())] == [1, 0, 1, 1]
