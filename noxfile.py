"""`nox` runs what CI runs: lint, types, tests of the built wheel. `nox -l` lists everything."""

from __future__ import annotations

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
    """Strict types, tests included."""
    session.install(".", "nox", *group("types"))
    session.run("mypy")


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
def benchmark(session: nox.Session) -> None:
    """What a streamed event costs, against a bare loop of httpx, httpx-sse and `json.loads`."""
    session.install(".")
    session.run("python", "tests/benchmarks/stream.py", *session.posargs)
    session.run("python", "tests/benchmarks/imports.py")
