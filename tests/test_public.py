"""The shape of the package: its public list, its two faces, and who imports whom."""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import inspect
import pickle
import re
import types
import typing
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from support import run_child

import phi4_http
from phi4_http import errors
from phi4_http.cli.exits import CODES, exit_code
from phi4_http.errors import LmsError, Phi4Error, TapeMismatch
from phi4_http.events import Outcome, Reply

PACKAGE = Path(phi4_http.__file__).parent
MODULES = sorted(file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py"))

# fmt: off
PUBLIC = [
    "AnsweringModel", "Api", "Arrived", "AskParameters", "AsyncBatch", "AsyncChat", "AsyncLMStudio",
    "AsyncLease", "AsyncModelManager", "AsyncPhi4", "AsyncReplyStream", "AuthError", "Batch", "BatchAnswer",
    "BatchProgress", "BatchQuestion", "CannotContinue", "Chat", "ChatChoice", "ChatCompletion", "ChatMessage",
    "Completion", "ContextOverflow", "ContextTooShort", "Count", "Counted", "Counter", "DoesNotFit", "Download",
    "Embeddings", "EmptyReply", "Estimate", "Event", "Finding", "Finished", "Forced", "Held", "Instance",
    "InvalidRequest", "JsonReply", "LMStudio", "Lease", "LmsError", "LmsFailed", "LmsNotFound", "LmsTimeout",
    "LoadConfig", "LoadEvent", "LoadFailed", "Loaded", "Loading", "Machine", "Manager", "ModelBusy",
    "ModelInfo", "ModelLoading", "ModelManager", "ModelNotFound", "NoJson", "NotLMStudio", "Outcome",
    "Parameters", "Phi4", "Phi4Error", "Probe", "Reply", "ReplyDecoder", "ReplyStream", "Rescue", "Revised",
    "Runtime", "SYSTEM_PROMPT", "ServerError", "ServerStats", "ServerStatus", "ServerUnreachable",
    "SilentOverflow", "Solution", "SolutionTruncated", "Stats", "StreamCut", "Tape", "TapeError",
    "TapeMismatch", "TextChoice", "TextEvent", "ThinkSplitter", "Thinking", "Thought", "ThoughtUnclosed",
    "Timeouts", "ToolCall", "ToolResults", "UnsupportedSetting", "Usage", "Validator", "Waiting", "Way",
]
# fmt: on
each_name = pytest.mark.parametrize("name", PUBLIC)


# --- the public list --------------------------------------------------------------------------------------------------


def test_the_public_names_are_these() -> None:
    """A name that comes or goes is a decision, so it is written down here too."""
    assert sorted(phi4_http.__all__) == sorted(PUBLIC)


def test_a_star_brings_the_public_names_and_nothing_else() -> None:
    """`from phi4_http import *` finds every one of them."""
    found: dict[str, Any] = {}
    exec("from phi4_http import *", found)
    assert sorted(set(found) - {"__builtins__"}) == sorted(PUBLIC)


@each_name
def test_a_public_name_is_found_and_listed(name: str) -> None:
    """By attribute and by `dir`, and it is the very same object each time."""
    assert getattr(phi4_http, name) is getattr(phi4_http, name)
    assert name in dir(phi4_http)


def test_another_name_is_an_attribute_error() -> None:
    """With the package and the name in it, as Python's own."""
    with pytest.raises(AttributeError, match=r"module 'phi4_http' has no attribute 'nope'"):
        phi4_http.nope  # type: ignore[attr-defined]  # noqa: B018  # that it raises is the claim


def test_a_type_checker_sees_the_same_names() -> None:
    """The imports under TYPE_CHECKING are those of the table, each from the module that the table names."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imports = [
        (node.module, alias.name, alias.asname)
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(imports) == sorted((phi4_http._HOME[name], name, name) for name in PUBLIC)


def test_dir_lists_the_public_names_and_dunders_only() -> None:
    """No module that happens to be imported, and nothing of the table."""
    importlib.import_module("phi4_http.wire.refusals")
    assert {name for name in dir(phi4_http) if not name.startswith("__")} == set(PUBLIC)
    assert {"__all__", "__doc__", "__version__"} <= set(dir(phi4_http))


def members(of: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(of).items():
        if not name.startswith("_") and isinstance(value, (types.FunctionType, property, classmethod, staticmethod)):
            yield f"{of.__name__}.{name}", value


@each_name
def test_a_public_name_is_documented(name: str) -> None:
    """Every class and its public methods have a docstring of their own; a constant or alias has a text below it."""
    value = getattr(phi4_http, name)
    if not isinstance(value, type):
        home = (PACKAGE / f"{phi4_http._HOME[name].replace('.', '/')}.py").read_text(encoding="utf-8")
        assert re.search(rf'^{name}\b[^"]*=.*?\n"""', home, re.MULTILINE | re.DOTALL), f"no text below {name}"
        return
    assert value.__doc__, name
    if dataclasses.is_dataclass(value):
        assert not value.__doc__.startswith(f"{name}("), f"{name} has only the docstring that dataclass made"
    if not getattr(value, "_is_protocol", False):  # what its members mean is said where they are made
        assert not [full for full, member in members(value) if not inspect.getdoc(member)]


def test_the_package_is_typed_and_has_its_version() -> None:
    """`py.typed` is there; `__version__` is that of the distribution, where it is installed."""
    assert (PACKAGE / "py.typed").is_file()
    assert re.fullmatch(r"\d+\.\d+\.\d+", phi4_http.__version__)
    try:
        installed = version("phi4_http")
    except importlib.metadata.PackageNotFoundError:
        return
    assert installed == phi4_http.__version__


def definitions(of: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.AST]]:
    """The public classes and functions of a module, and the public methods of those classes; not those of `...`."""
    for node in of.body:
        if isinstance(node, ast.FunctionDef) and ast.unparse(node.body[0]) == "...":
            continue  # a member of a Protocol is a line that says what there must be
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{name}", inner) for name, inner in definitions(node))


@pytest.mark.parametrize("file", [file for file in MODULES if not file.startswith("tape/")])
def test_a_module_and_everything_public_in_it_is_documented(file: str) -> None:
    """The module, its classes, functions and methods each have a docstring."""
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    bare = [name for name, node in definitions(tree) if not ast.get_docstring(node)]  # type: ignore[arg-type]
    assert (ast.get_docstring(tree) is not None or file == "__main__.py", bare) == (True, [])


# --- what an import costs ---------------------------------------------------------------------------------------------


def loaded(code: str) -> set[str]:
    """What this code adds to `sys.modules` of a new interpreter (in which coverage may have begun to count)."""
    ran = run_child(
        "-c", f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)", python=True
    )
    assert ran.code == 0, ran.err
    return set(ran.out.split("\n")[-2].split())


HEAVY = {"httpx", "httpx_sse", "httpcore", "anyio", "h11", "asyncio", "ssl"}


@pytest.mark.parametrize(
    "code",
    [
        "import phi4_http",
        "from phi4_http import ThinkSplitter, ReplyDecoder, SYSTEM_PROMPT, Reply, ContextOverflow, ModelInfo",
        "import phi4_http.cli",
    ],
)
def test_a_part_that_needs_no_httpx_does_not_import_it(code: str) -> None:
    """The package itself, its pure names, and the parser of the command line come without it."""
    assert not loaded(code) & HEAVY


@pytest.mark.parametrize("module", ["reply.decoder", "reply.stream", "wire.bodies", "wire.refusals", "wire.parts"])
def test_reading_a_stream_makes_no_values_of_whole_answers(module: str) -> None:
    """The small readers that they share come without the classes of answers and lists, and without difflib."""
    assert not loaded(f"import phi4_http.{module}") & {"phi4_http.wire.answers", "phi4_http.wire.listings", "difflib"}


ASKED = """
import httpx
from phi4_http import LMStudio, Phi4
event = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\\n\\n'
stream = {"content-type": "text/event-stream"}
answer = lambda request: httpx.Response(200, headers=stream, content=event + b"data: [DONE]\\n\\n")
with LMStudio(transport=httpx.MockTransport(answer)) as studio:
    assert Phi4(studio, model="m", system="send").ask("x").solution == "hi"
"""


def test_a_question_imports_neither_layer_1_nor_the_tape() -> None:
    """Nor what only the asynchronous client needs, nor the values of whole answers."""
    brought = {name for name in loaded(ASKED) if name.startswith(("phi4_http.lmstudio", "phi4_http.tape"))}
    assert brought | ({"asyncio", "phi4_http.wire.answers"} & loaded(ASKED)) == set()


def test_asking_on_the_command_line_imports_them_neither(unused_port: int) -> None:
    """With a model that is named, but for the lease on it; the server that isn't there is told."""
    line = ["ask", "x", "-m", "m", "--url", f"http://127.0.0.1:{unused_port}"]
    brought = loaded(f"from phi4_http.cli import main\nassert main({line!r}) == 3")
    lease = {"phi4_http.lmstudio", "phi4_http.lmstudio.lease", "phi4_http.lmstudio.lock"}
    assert {name for name in brought if name.startswith(("phi4_http.lmstudio", "phi4_http.tape"))} <= lease
    assert "asyncio" not in brought


def test_an_error_is_made_without_dataclasses() -> None:
    """Importing the errors costs little more than their text does."""
    assert not loaded("import phi4_http.errors") & {"dataclasses", "inspect", "typing_extensions"}


def test_a_client_brings_httpx() -> None:
    """The check above can fail."""
    assert loaded("from phi4_http import LMStudio") >= {"httpx", "httpx_sse"}


@pytest.mark.parametrize("line", [["--help"], ["ask", "--help"], ["split", "--json"], ["--version"]])
def test_help_and_split_run_without_httpx(line: list[str]) -> None:
    """On the command line too: what needs no server loads no client."""
    code = f"""
import atexit, runpy
atexit.register(lambda: print(*sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr))
sys.argv = ["phi4_http", *{line!r}]
runpy.run_module("phi4_http", run_name="__main__")"""
    ran = run_child("-c", f"import sys{code}", python=True, stdin=b"<think>a</think>b")
    assert (ran.code, ran.err.strip()) == (0, "")
    assert ran.out


# --- errors and values ------------------------------------------------------------------------------------------------


def every_error() -> list[type[Phi4Error]]:
    found, waiting = [], [Phi4Error]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return sorted(set(found), key=lambda kind: kind.__name__)


def drawn() -> dict[str, str]:
    """The tree in the docstring of `errors`: each name with that of its parent."""
    parents, above = {}, {-1: ""}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([│├└─ ]*)(\w+)(?: +\(also \w+\))?(?: {2,}.*)?$", line)
        if found:
            depth = len(found[1]) // 4
            parents[found[2]] = above[depth - 1]
            above[depth] = found[2]
    return parents


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    """The docstring of `errors` draws every class of it under its parent."""
    real = {kind.__name__: kind.__mro__[1].__name__ if kind is not Phi4Error else "" for kind in every_error()}
    assert drawn() == real


EXAMPLES: dict[str, Any] = {
    "problem": "a problem",
    "settings": ("gpu",),
    "way": "rest",
    "url": "http://127.0.0.1:1234",
    "reason": "it was so",
    "message": "it broke",
    "model": "phi",
    "text": "it says so",
    "chat_tokens": 290,
    "template_tokens": {"own turn": 288},
    "finish_reason": "length",
    "identifier": "phi",
    "waited": 3.0,
    "tried": ("/usr/bin/lms",),
    "arguments": ("ps", "--json"),
    "exit_code": 1,
    "seconds": 60.0,
    "needed": 9137,
    "limit": 8192,
    "file": "hello.json",
    "method": "POST",
    "path": "/v1/models",
}


def example(kind: type[Phi4Error]) -> Phi4Error:
    reply = Reply(Outcome.CUT, None, False, "so far", "so far")
    wanted = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {name: EXAMPLES[name] for name in wanted if name in EXAMPLES}
    if "partial" in wanted:
        arguments["partial"] = reply
    return kind(**arguments)


@pytest.mark.parametrize("kind", every_error())
def test_an_error_makes_its_sentence_and_travels_between_processes(kind: type[Phi4Error]) -> None:
    """One line, of facts that are attributes; pickled and back, nothing is lost."""
    error = example(kind)
    if kind not in (Phi4Error, LmsError):  # which are never raised themselves
        assert str(error).strip()
        assert "\n" not in str(error) or kind is TapeMismatch
        assert "None" not in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.facts, again.partial) == (str(error), error.facts, error.partial)
    assert "partial" not in error.facts


def values() -> list[type]:
    return [
        value
        for name in PUBLIC
        if isinstance(value := getattr(phi4_http, name), type) and dataclasses.is_dataclass(value)
    ]


@pytest.mark.parametrize("kind", values())
def test_a_public_value_is_frozen(kind: type) -> None:
    """It can't be changed, and has no room for what it does not have."""
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]  # every dataclass has them
    assert "__slots__" in vars(kind)


def test_outcomes_are_texts() -> None:
    """They print as the design's table names them, and compare with those names."""
    assert issubclass(Outcome, enum.Enum)
    assert {str(outcome): outcome for outcome in Outcome} == {outcome.value: outcome for outcome in Outcome}
    assert Outcome.COMPLETE == "complete"  # type: ignore[comparison-overlap]  # it is a text, too


def test_the_type_of_events_names_all_of_them() -> None:
    """`Event` is the union of what a stream yields."""
    assert {kind.__name__ for kind in typing.get_args(phi4_http.Event)} == {
        "Thinking",
        "Thought",
        "Solution",
        "Revised",
        "Waiting",
        "Finished",
    }


@pytest.mark.parametrize("name", sorted(error.__name__ for error in every_error() if error.__name__ in PUBLIC))
def test_every_public_error_has_an_exit_code(name: str) -> None:
    """On the command line none of them is an unexpected one."""
    kind = getattr(errors, name)
    if kind is not Phi4Error:
        assert exit_code(example(kind)) in set(CODES) - {0, 1}
