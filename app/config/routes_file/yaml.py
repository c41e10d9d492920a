"""A YAML or JSON text as plain values, and the line of each."""

import re
from collections.abc import Callable
from typing import Any

import yaml

from app.config.routes_file.source import TOO_DEEP, Path, Source, check_depth, check_key, syntax_error

MOST_VALUES = 100_000
"""Limits the values of a file, because aliases can expand a small YAML file to any number of them."""


class _Loader(yaml.SafeLoader):
    """Reads numbers and words as YAML 1.2 does: no date, no `yes` for true, no 010 for 8, no 1:30 for 90."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 -- PyYAML's own


_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, Callable[[str], Any]] = {
    f"{_TAG}str": str,
    f"{_TAG}int": int,
    f"{_TAG}float": float,
    f"{_TAG}bool": {"true": True, "false": False}.__getitem__,
    f"{_TAG}null": lambda _: None,
}
for _tag, _form, _first in (
    ("int", r"[-+]?(?:0|[1-9][0-9]*)\Z", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z", "-+.0123456789"),
    ("bool", r"(?:true|false)\Z", "tf"),
    ("null", r"(?:null|~|)\Z", ["n", "~", ""]),
):
    _Loader.add_implicit_resolver(_TAG + _tag, re.compile(_form), list(_first))


def read_yaml(text: str, name: str) -> tuple[Any, dict[Path, int]]:
    """The values of a YAML text, and the line of each by its path. Raises RoutesError."""
    lines: dict[Path, int] = {(): 1}
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _plain(Source(name, lines), node, ()), lines
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise syntax_error(name, line, "a character that is not printable") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = re.sub(r" '[\w!].+'", "", error.problem or "no YAML")  # a word of the file, such as an alias or a tag
        raise syntax_error(name, mark.line + 1 if mark else 1, problem) from None
    except RecursionError:
        raise syntax_error(name, 1, TOO_DEEP) from None
    except (ValueError, ArithmeticError, LookupError):  # PyYAML raises these for escapes and directives out of range
        raise syntax_error(name, 1, "an escape or a directive that is not valid") from None


def _plain(source: Source, node: yaml.Node, path: Path) -> Any:
    """The node as a plain value. Adds the line of each member to `source`."""
    source.lines.setdefault(path, node.start_mark.line + 1)
    check_depth(source, path)
    if len(source.lines) > MOST_VALUES:
        raise source.error(path, f"is one value too many: at most {MOST_VALUES} are read")
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        return [_plain(source, item, (*path, index)) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
        table: dict[str, Any] = {}
        for key_node, value in node.value:
            key: Any = key_node.value if key_node.tag == f"{_TAG}str" else None
            line = key_node.start_mark.line + 1
            check_key(source, path, key, line)
            source.lines[*path, key] = line
            if key in table:
                raise source.error((*path, key), "is there twice: it must be there once")
            table[key] = _plain(source, value, (*path, key))
        return table
    try:
        if isinstance(node, yaml.ScalarNode):
            return _SCALARS[node.tag](node.value)
    except (ValueError, LookupError):
        pass  # an unknown tag, a text that does not fit its tag, or a number with thousands of digits
    raise source.error(path, "must be a list, a table, text, a number, true or false, without a tag")
