"""Operations of several steps, written once for both faces.

A flow is a generator: it yields a step, receives that step's result, and returns its value, the way
`httpx.Auth.auth_flow` does. It does no I/O itself, so a test drives it by hand. `run` and `arun` are the two
drivers; `perform` does one step. An error of a step is thrown into the flow at its `yield`, where the flow may
handle it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from .errors import Phi4Error

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Http:
    """One request, answered whole. `path` starts with `/`; `body` is sent as JSON; `timeout` is in seconds."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    timeout: float | None = None
    """None: the client's own time limit for this kind of request."""
    slow: bool = False
    """The answer may take as long as a prompt takes to process or a model to load."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for an `Http` step, whatever its status. Header names are in lower case."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises ValueError where it is none."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Lms:
    """One run of the `lms` command: arguments without the command's own name, time limit in seconds."""

    arguments: tuple[str, ...]
    timeout: float


@dataclass(frozen=True, slots=True)
class Completed:
    """What one run of a command gave: exit code and both streams, as text."""

    arguments: tuple[str, ...]
    exit_code: int
    stdout: str = field(repr=False)
    stderr: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait that many seconds; the result is None."""

    seconds: float


Step: TypeAlias = Http | Lms | Sleep
Flow: TypeAlias = Generator[Step, Any, T]


def ready(value: T) -> Flow[T]:
    """The flow of no steps."""
    return value
    yield  # makes it a generator


def run(flow: Flow[T], perform: Callable[[Step], Any]) -> T:
    """Drive a flow to its value, one step after the other."""
    try:
        step = next(flow)
        while True:
            try:
                result = perform(step)
            except Phi4Error as error:
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        flow.close()


async def arun(flow: Flow[T], perform: Callable[[Step], Awaitable[Any]]) -> T:
    """As `run`, with steps that are awaited."""
    try:
        step = next(flow)
        while True:
            try:
                result = await perform(step)
            except Phi4Error as error:
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        flow.close()
