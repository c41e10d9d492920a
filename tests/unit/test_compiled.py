"""What is compiled is the same program: the declarations beside a module name what the module has."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

import app
from app.compiled import MODULES, form

ROOT = Path(app.__file__).parent.parent
_CLASS = re.compile(r"cdef class (\w+)(?:\((\w+)\))?:")
_ATTRIBUTE = re.compile(r"    cdef (?:readonly |public )?[\w.]+(?:\*|\[[\w:]*\])? ?(\w+)")
_METHOD = re.compile(r"    c(?:p)?def (?:[\w.]+(?:\[[\w:]*\])? )?(\w+)\(")
_FUNCTION = re.compile(r"cpdef (?:[\w.]+ )?(\w+)\(")


class Declared(NamedTuple):
    """What a .pxd says of a class."""

    attributes: set[str]
    methods: set[str]
    base: str | None


def at(module: str, suffix: str) -> Path:
    """Where the file of a module is."""
    return ROOT.joinpath(*module.split(".")).with_suffix(suffix)


TYPED = [module for module in MODULES if at(module, ".pxd").exists()]


def declared(module: str) -> tuple[dict[str, Declared], set[str]]:
    """Returns the classes and the functions that a .pxd declares."""
    classes: dict[str, Declared] = {}
    functions = set()
    current = None
    for line in at(module, ".pxd").read_text().splitlines():
        if found := _CLASS.match(line):
            current = classes[found[1]] = Declared(set(), set(), found[2])
        elif found := _FUNCTION.match(line):
            functions.add(found[1])
        elif current is not None and (found := _METHOD.match(line)):
            current.methods.add(found[1])
        elif current is not None and (found := _ATTRIBUTE.match(line)):
            current.attributes.add(found[1])
    return classes, functions


def assigned(tree: ast.ClassDef) -> set[str]:
    """Returns the attributes that the methods of a class assign to `self`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def inherited_by(module: str, what: Declared) -> set[str]:
    """Returns the attributes of the base of a declared class, which may stand in another module."""
    if what.base is None:
        return set()
    imported = re.search(rf"from ([\w.]+) cimport .*\b{what.base}\b", at(module, ".pxd").read_text())
    return declared(imported[1] if imported else module)[0][what.base].attributes


def slots(tree: ast.ClassDef) -> set[str] | None:
    """Returns the slots of a class, None if it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__slots__":
            return set(ast.literal_eval(node.value))
    return None


@pytest.mark.parametrize("module", [module for module in TYPED if module != "app.native"])
def test_declarations_name_what_the_module_has(module: str) -> None:
    """No attribute of a declared class is missing on either side, nor is a declared method or function undefined."""
    tree = ast.parse(at(module, ".py").read_text())
    defined = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    classes, functions = declared(module)
    assert classes or functions
    for name, what in classes.items():
        body = defined[name]
        methods = {node.name for node in body.body if isinstance(node, ast.FunctionDef)}
        assert what.methods <= methods, f"{name} lacks a declared method"
        inherited = inherited_by(module, what)
        assert what.attributes - {"__weakref__"} == assigned(body) - inherited, f"attributes of {name}"
        declared_slots = slots(body)
        assert declared_slots is None or declared_slots == what.attributes, f"slots of {name}"
    assert functions <= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_declaration_is_of_a_compiled_module() -> None:
    """A class that is typed elsewhere but not compiled would not be found by the modules that are."""
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.joinpath("app").rglob("*.pxd")} == {
        at(module, ".pxd").relative_to(ROOT).as_posix() for module in TYPED
    }
    assert sorted(MODULES) == list(MODULES)
    assert all(at(module, ".py").exists() for module in MODULES)


def test_form_is_one_of_two() -> None:
    """All modules are compiled or none is; a mixture would be an installation that failed in part."""
    assert form() in ("pure", "compiled")
