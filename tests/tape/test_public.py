"""The public names of the tape."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from phi4_http import tape


@pytest.mark.parametrize("name", tape.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Each name of the list is found when it is asked for, under its own name, and is documented."""
    value = getattr(tape, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(tape)


def test_type_checkers_see_the_same_names() -> None:
    """The names that type checkers see are those that are found at run time."""
    seen = re.findall(r"^    from \.(\.?\w+) import (\w+) as \2$", inspect.getsource(tape), re.MULTILINE)
    assert sorted(seen) == sorted((home, name) for name, home in tape._HOME.items())
    assert sorted(tape._HOME) == tape.__all__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """An unknown name is an AttributeError, as everywhere."""
    with pytest.raises(AttributeError, match="has no attribute 'Cassette'"):
        tape.Cassette  # type: ignore[attr-defined]  # noqa: B018  # that it raises is the claim


FOLDER = Path(tape.__file__).parent
ORDER = re.findall(r"^    (\w+)(?:   *\S.*)?$", (tape.__doc__ or "").partition("no httpx.")[2], re.MULTILINE)
PURE = {"exchange", "playback", "readable", "scrub", "matching", "show", "mode"}


def imports(module: str) -> list[ast.ImportFrom | ast.Import]:
    """The imports of a module of the tape, those inside functions too."""
    tree = ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_the_map_names_every_module() -> None:
    """The list in the package's documentation is the list of its modules."""
    assert sorted(ORDER) == sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__")


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_one_way(module: str) -> None:
    """A module imports only those above it in the list."""
    used = {node.module for node in imports(module) if isinstance(node, ast.ImportFrom) and node.level == 1}
    assert used <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", sorted(PURE))
def test_the_pure_modules_do_no_io(module: str) -> None:
    """Values and decisions import nothing that reads a clock, a socket or a network."""
    names = {alias.name for node in imports(module) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in imports(module) if isinstance(node, ast.ImportFrom) and not node.level}
    assert not names & {
        "time",
        "datetime",
        "socket",
        "subprocess",
        "http",
        "http.server",
        "httpx",
        "asyncio",
        "selectors",
    }
