"""The query of GET /admin/requests: which records are listed.

A query that is not understood is refused. Taken for another one, it would get a list that looks right.
"""

import re
from typing import NamedTuple
from urllib.parse import parse_qsl

import falcon

_MOST = 1000
_USUAL = 100
_QUOTED_CHARS = 100


class Wanted(NamedTuple):
    """Which records are listed."""

    slow_s: float = 0.0
    """Those of requests that took at least so long."""
    rejected: bool | None = None
    """True: those that were rejected; False: the others; None: both."""
    most: int = _USUAL
    """How many, the newest."""

    def takes(self, total_s: float, *, rejected: bool) -> bool:
        """Whether the record of a request that took so long is one of them."""
        return total_s >= self.slow_s and self.rejected in (None, rejected)


class _Parameter(NamedTuple):
    pattern: str
    about: str


_PARAMETERS = {
    "slow": _Parameter(r"[0-9]{1,9}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?", "a number of seconds, such as 2.5"),
    "rejected": _Parameter("true|false", "true or false"),
    "limit": _Parameter("[1-9][0-9]{0,2}|1000", f"a whole number, 1 to {_MOST}"),
}


def wanted_by(query: str) -> Wanted:
    """Returns what the query asks for. Raises HTTPBadRequest, which says what is right."""
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        parameter = _PARAMETERS.get(name)
        if parameter is None:
            known = "; ".join(f"{each} is {one.about}" for each, one in _PARAMETERS.items())
            raise falcon.HTTPBadRequest(description=f"there is no parameter {name[:_QUOTED_CHARS]!r}; {known}")
        if name in given:
            raise falcon.HTTPBadRequest(description=f"{name} is there twice")
        if not re.fullmatch(parameter.pattern, value):
            raise falcon.HTTPBadRequest(description=f"{name}={value[:_QUOTED_CHARS]!r}: it must be {parameter.about}")
        given[name] = value
    rejected = given.get("rejected")
    return Wanted(
        float(given.get("slow", 0.0)),
        None if rejected is None else rejected == "true",
        int(given.get("limit", _USUAL)),
    )
