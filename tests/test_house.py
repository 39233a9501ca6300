"""The house: which room may import which, who may touch the network, and how large a room may grow."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import phi4_http

PACKAGE = Path(phi4_http.__file__).parent
FILES = sorted(file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py"))

FLOORS: tuple[frozenset[str], ...] = tuple(
    frozenset(floor.split())
    for floor in (
        "arrived lazy stated",
        "errors",
        "flow events limits loopback running saved",
        "wire",
        "reply",
        "server",
        "api",
        "lmstudio phi4",
        "doctor batch",
        "client",
        "settings",
        "tape proxy",
        "cli",
    )
)
"""The rooms, the lowest first. A room imports from itself and from lower floors, never from beside or above."""

ROOMS = {room for floor in FLOORS for room in floor}

PURE = (
    "stated.py",
    "errors.py",
    "events.py",
    "flow.py",
    "limits.py",
    "running.py",
    "wire/",
    "reply/",
    "server.py",
    "api.py",
    "lmstudio/",
    "phi4/",
)
"""Logic: values, decisions and flows, which ask for input and output and do none."""

IMPURE = {"lmstudio/lms/command.py", "lmstudio/lock.py", "lmstudio/lease.py", "lmstudio/memory.py"}
"""What of these rooms does: the runner of `lms`, locks and leases, and what the threads of a process share."""

HARMLESS = {
    *("__future__", "abc", "collections", "dataclasses", "difflib", "enum", "functools", "hashlib", "inspect", "io"),
    *(
        "itertools",
        "json",
        "logging",
        "math",
        "re",
        "time",
        "types",
        "typing",
        "typing_extensions",
        "urllib.parse",
        "contextlib",
    ),
    *("weakref", "ipaddress"),
}
"""What of the standard library can neither read nor send. `io` is for `StringIO`, `time` for its clock."""

LINES = 400
"""A file that is longer has two jobs."""


def room(file: str) -> str:
    """The room of a file: its folder, or the module itself where it lies at the top."""
    return file.partition("/")[0].removesuffix(".py")


def floor(of: str) -> int:
    """On which floor a room is."""
    return next(number for number, rooms in enumerate(FLOORS) if of in rooms)


@functools.cache
def imports(text: str, file: str = "x.py") -> tuple[str, ...]:
    """Every import of a file, in functions and for type checkers too. One of ours is the path below the package."""
    return tuple(_imports(text, file))


def _imports(text: str, file: str) -> Iterator[str]:
    package = ["phi4_http", *file.split("/")[:-1]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            path = ".".join(part for part in base if part)
            yield from ((path,) if node.module else (f"{path}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "lazily"):
            yield from _named(node, package)


def _named(call: ast.Call, package: list[str]) -> Iterator[str]:
    """The module that a call imports by its name, where the name is written there."""
    given = [str(argument.value) for argument in call.args if isinstance(argument, ast.Constant)]
    for name in given[:1]:
        dots = len(name) - len(name.lstrip("."))
        base = package[: len(package) - dots + 1] if dots else ["phi4_http"]
        yield ".".join([*base, name.lstrip(".")])


def own(text: str, file: str) -> set[str]:
    """The rooms that a file imports, its own left out."""
    paths = [found.split(".") for found in imports(text, file) if found.startswith("phi4_http.")]
    return {path[1] for path in paths if path[1] in ROOMS} - {room(file)}


def read(file: str) -> str:
    """The text of a file of the package."""
    return (PACKAGE / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES)
def test_no_file_is_too_long(file: str) -> None:
    """One job a file."""
    assert len(read(file).splitlines()) <= LINES


def test_every_file_lies_in_a_room_of_the_map() -> None:
    """A new room is a decision, so it is written down above."""
    assert {room(file) for file in FILES} - {"__init__", "__main__"} <= ROOMS


@pytest.mark.parametrize("file", [file for file in FILES if room(file) in ROOMS])
def test_imports_run_downward(file: str) -> None:
    """No file imports from above or from beside, wherever the import stands."""
    here = floor(room(file))
    assert {other for other in own(read(file), file) if floor(other) >= here} == set()


def test_the_check_of_directions_can_fail() -> None:
    """An import in a function, for a type checker, by its name or of a module is seen."""
    text = (
        "if TYPE_CHECKING:\n    from ..cli import x\n"
        "def f():\n    from ..tape.format import y\n    import_module('..client.aio', __package__)\n"
        "from .. import api, server\nlazily('lmstudio.lifecycle', 'load')\nimport httpx\n"
    )
    assert own(text, "reply/x.py") == {"cli", "tape", "client", "api", "server", "lmstudio"}
    assert "httpx" in set(imports(text, "reply/x.py"))


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith(PURE) and file not in IMPURE])
def test_logic_imports_no_input_or_output(file: str) -> None:
    """A pure module or a flow imports nothing that could read a file, open a socket or start a process."""
    foreign = {found for found in imports(read(file), file) if not found.startswith("phi4_http")}
    assert {found for found in foreign if found not in HARMLESS and found.split(".")[0] not in HARMLESS} == set()


def test_only_these_rooms_import_httpx() -> None:
    """The clients, and the tapes that are transports of httpx."""
    users = {room(file) for file in FILES if any(found.startswith("httpx") for found in imports(read(file), file))}
    assert users <= {"client", "tape", "proxy"}


def test_nothing_that_httpx_brings_is_imported() -> None:
    """The runtime dependencies are httpx, httpx-sse and the standard library."""
    brought = {"httpcore", "h11", "anyio", "certifi", "idna", "sniffio", "h2", "socksio"}
    assert {file for file in FILES if brought & {found.split(".")[0] for found in imports(read(file), file)}} == set()


def test_nothing_imports_the_command_line() -> None:
    """It stands at the top."""
    assert {
        file for file in FILES if "cli" in own(read(file), file) or "phi4_http.cli" in imports(read(file), file)
    } == {"__main__.py"}
