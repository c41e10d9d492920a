"""What the values of a routes file's members may be: types with the rule that an error message states."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta

from app.config.fallback_reasons import REASONS, FallbackReason
from app.protocols.adapters import NAMES, SIMULATED
from app.protocols.interfaces import VERSION_NAME

Policy = Literal["least_inflight", "least_load", "p2c", "round_robin", "session", "prefix", "prefix_hash"]
POLICIES = get_args(Policy)
Scheme = Literal["http", "https"]
SCHEMES = get_args(Scheme)

NAME_RULE = (
    "1 to 200 printable ASCII characters, such as m, org/m or /models/m: no blank at either end, no slash at the end, "
    "and no segment between slashes that is . or .. or empty"
)
NAME_PATTERN = r"^(?!/?+(?:.*/)?\.{0,2}(?:/|\Z))[\x21-\x7e]([\x20-\x7e]{0,198}[\x21-\x7e])?\Z"
"""A name may become a part of a path, in which intermediaries take `a/../b` for `b`, and `a//b` for `a/b`.

It may begin with a slash all the same: vLLM's default name is the path of the model's files.
"""
OTHERS_NAME_RULE = "1 to 200 printable ASCII characters, no blank at either end, and not . or .."
_OTHERS_NAME_PATTERN = r"^(?!\.{1,2}\Z)[\x21-\x7e]([\x20-\x7e]{0,198}[\x21-\x7e])?\Z"
"""What a model server calls a model. vLLM's default is the path of its files, such as `/models/llama`."""
WORD_RULE = "1 to 63 letters, digits, dots, hyphens and underscores, the first a letter or a digit"
LISTED_PATH_RULE = (
    "a path such as /v1/custom, of up to 200 characters: segments of letters, digits, dots, hyphens and underscores, "
    "none of them only one or two dots"
)
_LISTED_PATH_PATTERN = r"^(?=.{2,200}\Z)(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)+\Z"
"""All of these characters are unreserved, so the path has one spelling (api/exact_paths.py)."""
HEADER_RULE = "1 to 64 letters, digits and hyphens"


def allows(rule: str, **bounds: Any) -> Meta:
    """Returns what msgspec checks of a value, and the rule in words."""
    return Meta(extra={"allowed": rule}, **bounds)


def within(least: int, most: int) -> Meta:
    """Returns the rule for a number in this range."""
    return allows(f"{least} to {most}", ge=least, le=most)


def above_zero(most: int) -> Meta:
    """Returns the rule for a positive number up to `most`."""
    return allows(f"above 0, up to {most}", gt=0, le=most)


def listed(choices: Sequence[str]) -> str:
    """Returns these choices in words."""
    *most, last = choices
    return f"{', '.join(most)} or {last}"


def means(about: str) -> Meta:
    """Returns what a member means, for the documents."""
    return Meta(description=about)


Name = Annotated[str, allows(NAME_RULE, pattern=NAME_PATTERN)]
OthersName = Annotated[str, allows(OTHERS_NAME_RULE, pattern=_OTHERS_NAME_PATTERN)]
Protocol = Annotated[str, allows(listed((*NAMES, SIMULATED)), pattern=rf"^({'|'.join((*NAMES, SIMULATED))})\Z")]
Word = Annotated[str, allows(WORD_RULE, pattern=rf"^{VERSION_NAME}\Z")]
HeaderName = Annotated[str, allows(HEADER_RULE, pattern=r"^[A-Za-z0-9-]{1,64}\Z")]
Path = Annotated[str, allows("a path that begins with /, without blanks", pattern=r"^/[\x21-\x7e]*\Z")]
ListedPath = Annotated[str, allows(LISTED_PATH_RULE, pattern=_LISTED_PATH_PATTERN)]
Variable = Annotated[
    str, allows("the name of a variable: letters, digits and underscores", pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z")
]
Url = Annotated[str, allows("an http:// or https:// URL")]
File = Annotated[str, allows("an absolute path")]
HostName = Annotated[
    str, allows("the name of a host, or its IP address", pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?\Z")
]
Flag = Annotated[bool, allows("true or false")]
Seconds = Annotated[float, above_zero(86_400)]
Share = Annotated[float, within(0, 1)]
Count = Annotated[int, within(1, 1_000_000)]
CountOrZero = Annotated[int, within(0, 1_000_000)]
PortNumber = Annotated[int, within(1, 65_535)]
Checks = Annotated[int, within(1, 100)]
ServerError = Annotated[int, within(500, 599)]
Reason = Annotated[FallbackReason, allows(listed(REASONS))]
DnsName = Annotated[
    str,
    allows("name:port, or _service._protocol.name", pattern=r"^(?=[^:]*[A-Za-z])[A-Za-z0-9_.-]{1,253}(:[0-9]+)?\Z"),
]
_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
ServiceName = Annotated[str, allows("namespace/name", pattern=rf"^{_LABEL}/{_LABEL}\Z")]
Port = Annotated[str, allows("the number or the name of a port", pattern=rf"^{_LABEL}\Z")]
ErrorText = Annotated[str, allows("text of 1 to 200 characters", min_length=1, max_length=200)]
