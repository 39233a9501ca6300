"""The streams of replies: context managers that are iterators. They drive what is in `reply.stream`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..errors import Phi4Error
from ..events import Event, Reply
from ..flow import Events, Step
from ..reply.stream import Replying

if TYPE_CHECKING:
    from typing_extensions import Self

    from .aio import AsyncLMStudio
    from .blocking import LMStudio


E = TypeVar("E")


class Leavable(Protocol):
    """What may be left before its events are over."""

    @property
    def left(self) -> bool:
        """Whether it was."""
        ...


def iterate(perform: Callable[[Step], Any], flow: Events[E], whole: Leavable | None = None) -> Iterator[E]:
    """The events of a flow, whose steps are done on the way."""
    try:
        step = next(flow)
        while True:
            if type(step) is list:
                for event in step:
                    if whole is not None and whole.left:
                        return
                    yield event
                step = next(flow)
                continue
            try:
                result = perform(step)  # type: ignore[arg-type]  # what is no list is a step
            except Phi4Error as fault:
                step = flow.throw(fault)
            else:
                step = flow.send(result)
    except StopIteration:
        return
    finally:
        flow.close()


async def aiterate(
    perform: Callable[[Step], Awaitable[Any]], flow: Events[E], whole: Leavable | None = None
) -> AsyncGenerator[E, None]:
    """As `iterate`, with steps that are awaited."""
    try:
        step = next(flow)
        while True:
            if type(step) is list:
                for event in step:
                    if whole is not None and whole.left:
                        return
                    yield event
                step = next(flow)
                continue
            try:
                result = await perform(step)  # type: ignore[arg-type]  # what is no list is a step
            except Phi4Error as fault:
                step = flow.throw(fault)
            else:
                step = flow.send(result)
    except StopIteration:
        return
    finally:
        flow.close()


class _Reply:
    """What can be asked of a stream, whoever drives it."""

    def __init__(self, replying: Replying) -> None:
        self._replying = replying

    def __repr__(self) -> str:
        came = self._replying.partial() if self.started else None
        return f"<{type(self).__name__}: {came.outcome if came else 'not entered'}>"

    @property
    def started(self) -> bool:
        """Whether the request has gone out."""
        return self._replying.started

    @property
    def result(self) -> Reply:
        """The reply, once it has ended or the block was left. Raises InvalidRequest before that."""
        return self._replying.result

    def partial(self) -> Reply:
        """What has arrived by now, as a reply. Raises InvalidRequest before the request has gone out."""
        return self._replying.partial()


class ReplyStream(_Reply):
    """A reply while it comes: a context manager that iterates over its events.

        with phi.stream("…") as reply:
            for event in reply:
                ...
        reply.result

    The request goes out when the block is entered; leaving it closes the connection, which stops the model. Entering
    and iterating raise `ContextOverflow`, `ServerError`, `EmptyReply`, `StreamCut`, `NotLMStudio` and
    `ServerUnreachable`, each with what had arrived in `partial`.
    """

    def __init__(self, client: LMStudio, replying: Replying) -> None:
        super().__init__(replying)
        self._client = client
        self._events: Iterator[Event] | None = None

    def __enter__(self) -> Self:
        self._client._run(self._replying.enter())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client._run(self._replying.leave())

    def __iter__(self) -> Iterator[Event]:
        if self._events is None or self._replying.over:
            self._replying.check_readable()
            self._events = iterate(self._client._perform, self._replying.events(), self._replying)
        return self._events

    def read(self) -> Reply:
        """Read to the end and return the reply. Raises what iterating raises."""
        if not self._replying.over:
            for _ in self:
                pass
        return self.result


class AsyncReplyStream(_Reply):
    """As `ReplyStream`: `async with phi.stream("…") as reply`, `async for event in reply`."""

    def __init__(self, client: AsyncLMStudio, replying: Replying) -> None:
        super().__init__(replying)
        self._client = client
        self._events: AsyncGenerator[Event, None] | None = None

    async def __aenter__(self) -> Self:
        await self._client._run(self._replying.enter())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client._run(self._replying.leave())
        if self._events is not None:
            with contextlib.suppress(RuntimeError):  # another task is reading them, and ends now
                await self._events.aclose()

    def __aiter__(self) -> AsyncIterator[Event]:
        if self._events is None or self._replying.over:
            self._replying.check_readable()
            self._events = aiterate(self._client._perform, self._replying.events(), self._replying)
        return self._events

    async def read(self) -> Reply:
        """Read to the end and return the reply. Raises what iterating raises."""
        if not self._replying.over:
            async for _ in self:
                pass
        return self.result
