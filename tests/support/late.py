"""Modules that take long to import, for the few tests that use them.

Every process of pytest imports all files of tests, in which one such import would cost it a second or more.
"""

from importlib import import_module
from typing import Any


class Late:
    """Stands for a module, which the first use of one of its names imports."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_") or attribute == "pytestmark":  # pytest asks for some of whatever it finds
            raise AttributeError(attribute)
        return getattr(import_module(self._name), attribute)
