"""Operations of several steps, written once for both clients.

A flow is a generator: it yields a step, receives that step's result, and returns its value, the way
`httpx.Auth.auth_flow` does. It does no I/O itself, so a test drives it by hand. `run` and `arun` are the two drivers;
`perform` does one step. An error of a step is thrown into the flow at its `yield`, where the flow may handle it.

What comes whole is one step (`Http`, `Lms`); what comes bit by bit is opened, read and closed (`Open`, `Read`,
`Close`). A flow's first parameter is the state of the class that it is bound to. Steps are named tuples: a frozen
dataclass takes a millisecond to make when it is imported, and there are many.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from .errors import Phi4Error

T = TypeVar("T")
E = TypeVar("E")


class Http(NamedTuple):
    """One request, answered whole. `path` starts with `/`; `body` is sent as JSON; `timeout` is in seconds."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    timeout: float | None = None
    """None: the client's own time limit for this kind of request."""
    slow: bool = False
    """The answer may take as long as a prompt takes to process or a model to load."""
    limit: str = "timeout"
    """What that time limit is called where it is told."""


class Answer(NamedTuple):
    """What came back for an `Http` step, whatever its status. Header names are in lower case."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: bool = False
    """Whether more was to come: the connection broke, or it is a refusal longer than anybody reads."""

    def json(self) -> Any:
        """The body as JSON. Raises ValueError where it is none."""
        return json.loads(self.body)


class Lms(NamedTuple):
    """One run of the `lms` command: arguments without the command's own name, time limit in seconds."""

    arguments: tuple[str, ...]
    timeout: float
    on_output: Callable[[str], object] | None = None
    """Called with what comes on stdout, while it comes; by the async client in the event loop's thread."""


class Completed(NamedTuple):
    """What one run of a command gave: exit code and both streams, as text."""

    arguments: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str


class Sleep(NamedTuple):
    """Wait that many seconds; the result is None."""

    seconds: float


class Channel(Protocol):
    """What an `Open` step gives: the head of an answer whose body comes bit by bit. Header names are in lower case."""

    @property
    def opened(self) -> bool:
        """Whether the head of the answer has come; else status and headers say nothing yet."""
        ...

    @property
    def unread(self) -> str:
        """The start of what has come, as long as no event was in it."""
        ...

    @property
    def url(self) -> str:
        """The address that was asked."""
        ...

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the answer."""
        ...

    def left(self) -> Sequence[Line]:
        """Of a channel that was closed before its end: the event that had come without its end, if any."""
        ...


class Line(Protocol):
    """One server-sent event, as httpx-sse has it."""

    @property
    def event(self) -> str:
        """Its name."""
        ...

    @property
    def data(self) -> str:
        """Its text."""
        ...


class Open(NamedTuple):
    """Send a request; the result is a `Channel`, as soon as the head of the answer is there.

    With `seconds`, the channel comes after that time at the latest, and may not be `opened` yet: handed in as
    `opening`, it is waited for again.
    """

    request: Http
    seconds: float | None = None
    opening: Channel | None = None


class Read(NamedTuple):
    """What has come on a channel since the last time: the result is a list of `Line`s, None at the end.

    With `seconds`, the list is empty where nothing has come in that time; the read goes on for the next step.
    """

    channel: Channel
    seconds: float | None = None


class ReadAll(NamedTuple):
    """The rest of a channel's body, as an `Answer`: for one that turned out to be no stream.

    Of one that broke off, what came; of a refusal, no more than a stated limit.
    """

    channel: Channel


class Close(NamedTuple):
    """Close a channel, which stops the model; the result is None. One that is closed already is no error."""

    channel: Channel


Step: TypeAlias = Http | Lms | Sleep | Open | Read | ReadAll | Close
Flow: TypeAlias = Generator[Step, Any, T]
Events: TypeAlias = Generator[Step | list[E], Any, None]
"""A flow that yields lists of events between its steps: what an iterator of a client drives."""


def ready(value: T) -> Flow[T]:
    """The flow of no steps."""
    return value
    yield  # makes it a generator


def last(events: Events[E]) -> Flow[E]:
    """The last event of a flow that has one, or raises."""
    step = next(events)
    found: Any = None
    while True:
        try:
            if isinstance(step, list):
                found = step[-1] if step else found
                step = next(events)
                continue
            try:
                result = yield step
            except Phi4Error as error:
                step = events.throw(error)
            else:
                step = events.send(result)
        except StopIteration:
            return found  # type: ignore[no-any-return]  # there is one, or it has raised


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
