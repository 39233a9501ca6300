"""`nox` runs what CI runs: lint, types, tests of the built wheel. `nox -l` lists everything."""

from __future__ import annotations

import pathlib
import shutil

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = False

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)


def group(name: str) -> list[str]:
    """The packages of one dependency group."""
    return list(nox.project.dependency_groups(PROJECT, name))


def run_tests(session: nox.Session, *requirements: str) -> None:
    """Test the wheel as it is installed, not the sources beside it."""
    session.install(".", *requirements, *group("test"))
    session.run("pytest", *(session.posargs or ["-n", "auto"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types: by mypy, tests included; by pyright, what is shipped, of which every public name has a type."""
    session.install(".", "nox", *group("types"))
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "phi4_http")


@nox.session
def tests(session: nox.Session) -> None:
    """The tests, on the Python that runs nox."""
    run_tests(session)


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """The tests, on every supported Python that is installed."""
    run_tests(session)


@nox.session
def oldest(session: nox.Session) -> None:
    """The tests, with the oldest runtime dependencies that are allowed."""
    run_tests(session, *(requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]))


@nox.session
def coverage(session: nox.Session) -> None:
    """Lines and branches that the tests run, in child processes too; fails where it is less than `fail_under` says."""
    session.install(".", *group("coverage"))
    session.run("coverage", "erase")
    # The plugin is imported before a plugin of pytest could begin to count, so that counting begins before pytest.
    session.run("coverage", "run", "-m", "pytest", *(session.posargs or ["-n", "auto"]))
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def fuzz(session: nox.Session) -> None:
    """The properties, with twenty times as many examples (an hour; or of some tests: `nox -s fuzz -- tests/reply`)."""
    session.install(".", *group("test"))
    session.run("pytest", "-n", "auto", "-m", "hypothesis", *session.posargs, env={"HYPOTHESIS_PROFILE": "fuzz"})


@nox.session
def mutation(session: nox.Session) -> None:
    """Small faults planted in the logic, one at a time: which do the tests miss? (hours; `mutmut show NAME` shows one)

    Of some modules only: `nox -s mutation -- 'phi4_http.wire.refusals*'`.
    """
    session.install(*PROJECT["project"]["dependencies"], *group("mutation"))  # the package itself is the mutated copy
    session.run("mutmut", "run", *session.posargs)
    session.run("mutmut", "results")


@nox.session
def benchmark(session: nox.Session) -> None:
    """What an event, a start, an import, a replay, a long chat and a loaded model cost, each against the least that it
    could be.

    With a model (`nox -s benchmark -- MODEL.gguf`) a long chat with a real llama-server too, of which `LLAMA_SERVER`
    names the binary where it is not on the path.
    """
    session.install(".", *group("test"))
    for name in ("stream", "start", "imports", "replay", "turns", "warm", "proxying"):
        session.run("python", f"tests/benchmarks/{name}.py")
    for model in session.posargs:
        session.run("python", "tests/benchmarks/window.py", model)


CLIENTS = {
    "openai": "openai",
    "litellm": "litellm",
    "pydantic_ai": "pydantic-ai-slim[openai]",
    "langchain": "langchain-openai",
    "llm": "llm",
    "node": "",
}
"""Each client of the proxy, and the package that has it; Node's comes by npm."""


@nox.session
@nox.parametrize("client", list(CLIENTS))
def clients(session: nox.Session, client: str) -> None:
    """Real clients read every shipped chat through the proxy, each in an environment of its own; a table says how."""
    results = str(pathlib.Path(session.cache_dir) / "clients")
    session.install(".", *([CLIENTS[client]] if CLIENTS[client] else []))
    env = {"PYTHONPATH": "tests"}
    if client == "node":
        if shutil.which("npm") is None:
            session.skip("there is no Node here")
        session.run("npm", "install", "--prefix", session.create_tmp(), "openai", external=True)
        env["NODE_PATH"] = str(pathlib.Path(session.create_tmp()) / "node_modules")
    session.run("python", "tests/clients/check.py", client, results, env=env)
    session.run("python", "tests/clients/check.py", "--table", results, env=env)


# What pip is to compile of llama.cpp: its server too, without the page for browsers that it would fetch, and no faster
# than a tiny model needs.
LLAMA_CPP = (
    "-DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_TOOLS_INSTALL=ON -DLLAVA_BUILD=OFF "
    "-DLLAMA_USE_PREBUILT_UI=OFF -DGGML_NATIVE=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1"
)


@nox.session
def llama_cpp(session: nox.Session) -> None:
    """Real llama.cpp servers, compiled by pip (half an hour on two cores), with a tiny model that the tests write."""
    session.install(".", *group("test"))
    session.install(
        "--no-binary",
        "llama-cpp-python",
        "llama-cpp-python[server]>=0.3.36",
        "gguf>=0.17",
        env={"CMAKE_ARGS": LLAMA_CPP},
    )
    session.run("pytest", "tests/llama", *session.posargs, env={"PHI4_HTTP_LLAMA_CPP": "1"})
