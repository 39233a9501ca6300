"""A package whose public names are found when they are first used, so that importing it imports nothing else.

    _HOME = homes({"events": "Reply Usage", "reply.splitter": "ThinkSplitter"})
    __all__ = sorted(_HOME)
    if not TYPE_CHECKING:  # to type checkers, a module with `__getattr__` has every name
        __getattr__, __dir__ = found_late(__name__, _HOME)

Type checkers need the same names in imports under `TYPE_CHECKING`; a test compares the two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def homes(table: Mapping[str, str]) -> dict[str, str]:
    """Each name with the module that it comes from; the table has the names of a module in one text."""
    return {name: module for module, names in table.items() for name in names.split()}


def found_late(package: str, home: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package; modules are named from there, as in `from .module import name`."""

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f".{home[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        dunders = (name for name in vars(sys.modules[package]) if name.startswith("__") and name.endswith("__"))
        return sorted({*home, *dunders})

    return find, names
