"""Batches: iterators over answers as they come. The work is asyncio's; the blocking client does it in a thread, so that
it goes on while an answer is looked at."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import httpx

from ..errors import Phi4Error
from ..flow import Enter, Leave, Step
from .base import check_block

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..batch.answered import BatchAnswer, BatchProgress
    from ..batch.work import Work
    from .aio import AsyncLMStudio
    from .blocking import LMStudio


class _Batch:
    """What can be asked of a batch, whoever does it."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __repr__(self) -> str:
        progress = self.progress
        return f"<{type(self).__name__}: {progress.done} of {progress.total} answered>"

    @property
    def progress(self) -> BatchProgress:
        """How far it is."""
        return self._work.progress


class Batch(_Batch):
    """Many questions while they are answered: iterate for the answers, each as soon as it is there.

        for answer in phi.batch(questions, out="answers.jsonl"):
            print(answer.id, answer.outcome, answer.solution)

    Questions are asked once iterating begins, and until it ends, in a thread. As a context manager, it takes its file
    of answers on entering, and ends the work on leaving, as leaving the loop does: what was not answered is not kept.
    """

    def __init__(self, client: LMStudio, work: Work) -> None:
        super().__init__(work)
        self._clients = [client, *work.clients]
        self._answers: Generator[BatchAnswer, None, None] | None = None

    def __enter__(self) -> Self:
        self._work.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the work."""
        if self._answers is not None:
            self._answers.close()
        self._work.close()

    def __iter__(self) -> Iterator[BatchAnswer]:
        if self._answers is None:
            self._answers = self._iterate()
        return self._answers

    def _iterate(self) -> Generator[BatchAnswer, None, None]:
        import asyncio
        import threading
        from queue import Empty, SimpleQueue

        self._work.open()
        came: SimpleQueue[BatchAnswer | BaseException | None] = SimpleQueue()
        loop = asyncio.new_event_loop()

        async def work() -> None:
            async with contextlib.AsyncExitStack() as opened:
                twins = [await opened.enter_async_context(_twin(client)) for client in self._clients]
                answers = self._work.answers([twin._run for twin in twins])
                async with contextlib.aclosing(answers):
                    async for answer in answers:
                        came.put(answer)

        task = loop.create_task(work())

        def run() -> None:
            try:
                loop.run_until_complete(task)
                came.put(None)
            except BaseException as error:  # whatever it is, it belongs to whoever iterates
                came.put(error)
            finally:
                closing = asyncio.all_tasks(loop)  # of generators that httpx did not read to their end
                if closing:
                    loop.run_until_complete(asyncio.wait(closing))
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()

        thread = threading.Thread(target=run, name="phi4_http batch", daemon=True)
        thread.start()
        try:
            while True:
                try:
                    answer = came.get(timeout=_TURN)
                except Empty:
                    continue
                if answer is None:
                    return
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        finally:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(task.cancel)
            thread.join()
            self._work.close()


_TURN = 0.5
"""Seconds of one wait for an answer: on Windows, Ctrl-C does not get through a longer one before its end."""


class AsyncBatch(_Batch):
    """As `Batch`: `async for answer in phi.batch(…)`, in the event loop's own thread; it begins further questions while
    the next answer is waited for."""

    def __init__(self, client: AsyncLMStudio, work: Work) -> None:
        super().__init__(work)
        self._clients = [client, *work.clients]
        self._answers: AsyncGenerator[BatchAnswer, None] | None = None

    async def __aenter__(self) -> Self:
        self._work.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the work."""
        if self._answers is not None:
            await self._answers.aclose()
        self._work.close()

    def __aiter__(self) -> AsyncIterator[BatchAnswer]:
        if self._answers is None:
            self._answers = self._iterate()
        return self._answers

    async def _iterate(self) -> AsyncGenerator[BatchAnswer, None]:
        self._work.open()
        try:
            answers = self._work.answers([client._run for client in self._clients])
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    yield answer
        finally:
            self._work.close()


def _twin(client: LMStudio) -> AsyncLMStudio:
    """The asynchronous client of the same server. One with a transport of its own is asked through it, in threads, in
    which the blocking manager that holds a question's model works too."""
    import asyncio

    from .aio import AsyncLMStudio

    class Twin(AsyncLMStudio):
        async def _perform(self, step: Step) -> Any:
            if isinstance(step, Enter):
                check_block(step.context, "__enter__")
                entering = asyncio.create_task(asyncio.to_thread(step.context.__enter__))
                try:
                    return await asyncio.shield(entering)
                except asyncio.CancelledError:  # the thread goes on: what it enters is left
                    with contextlib.suppress(Phi4Error):
                        await entering
                        await asyncio.to_thread(step.context.__exit__, None, None, None)
                    raise
            if isinstance(step, Leave):
                return await asyncio.to_thread(step.context.__exit__, None, None, None)
            return await super()._perform(step)

    transport = None if client._network else _InThreads(client._http)
    twin = Twin(client.url, timeouts=client.timeouts, transport=transport, lms=client._lms)
    twin._endpoint = client._endpoint  # with its token
    return twin


class _InThreads(httpx.AsyncBaseTransport):
    """A blocking httpx client as a transport: each call that waits is in a thread."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it, and return as soon as the head of the answer is there."""
        import asyncio

        sent = self._http.build_request(  # with the headers that are the client's own
            request.method,
            request.url,
            headers=request.headers,
            content=await request.aread(),
            extensions=request.extensions,
        )
        response = await asyncio.to_thread(self._http.send, sent, stream=True)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=_Pieces(response), extensions=response.extensions
        )


class _Pieces(httpx.AsyncByteStream):
    """The body of a blocking response, as it came over the wire."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        import asyncio

        pieces: Any = iter(self._response.stream)  # type: ignore[arg-type]  # a blocking client's
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    async def aclose(self) -> None:
        """Close it."""
        import asyncio

        await asyncio.to_thread(self._response.close)
