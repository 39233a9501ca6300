"""The asynchronous client, asyncio's: tables that bind flows, and what does their steps. `blocking` is its twin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
from httpx_sse import ServerSentEvent

from .. import api
from ..errors import InvalidRequest
from ..flow import Answer, Close, Flow, Http, Lms, Open, Read, ReadAll, Sleep, Step, arun
from ..phi4 import asking
from .base import Asking, Connected, Talking
from .binding import Module, awaited, making
from .http import request_options, translated
from .incoming import Incoming, Unpacking
from .stream import AsyncReplyStream

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..lmstudio import inventory, lifecycle
    from ..lmstudio.lms import server as lms_server
else:
    inventory, lifecycle = Module("lmstudio.inventory"), Module("lmstudio.lifecycle")
    lms_server = Module("lmstudio.lms.server")

T = TypeVar("T")


class _Block:
    """A block that closes what it is entered with."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what was opened here."""
        raise NotImplementedError


class AsyncLMStudio(_Block, Connected[httpx.AsyncClient, httpx.AsyncBaseTransport]):
    """As `LMStudio`, awaited: use it with `async with`, or await `aclose`.

    It may be shared by the tasks of one event loop, which must be asyncio's.
    """

    _client_type = httpx.AsyncClient
    _transport_type = httpx.AsyncHTTPTransport

    models: Final = awaited(api.models)
    model: Final = awaited(api.model)
    chat_completion: Final = awaited(api.chat_completion)
    completion: Final = awaited(api.completion)
    embeddings: Final = awaited(api.embeddings)
    stream_chat_completion: Final = making(api.stream_chat_completion, AsyncReplyStream)
    stream_completion: Final = making(api.stream_completion, AsyncReplyStream)
    load: Final = awaited(lifecycle.load)
    unload: Final = awaited(lifecycle.unload)
    unload_all: Final = awaited(lifecycle.unload_all)
    estimate: Final = awaited(lifecycle.estimate)
    loaded: Final = awaited(inventory.loaded)
    downloaded: Final = awaited(inventory.downloaded)
    server_start: Final = awaited(lms_server.server_start)
    server_stop: Final = awaited(lms_server.server_stop)
    server_status: Final = awaited(lms_server.server_status)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._owned:
            await self._http.aclose()

    async def _run(self, flow: Flow[T]) -> T:
        """Drive a flow to its value. What it has opened is closed if it fails."""
        _check_loop()
        opened: list[_Channel] = []

        async def perform(step: Step) -> Any:
            result = await self._perform(step)
            if isinstance(result, _Channel):
                opened.append(result)
            return result

        try:
            return await arun(flow, perform)
        except BaseException:
            for channel in opened:
                await channel.aclose()
            raise

    async def _perform(self, step: Step) -> Any:
        """Do one step of a flow."""
        if isinstance(step, Read):
            channel: Any = step.channel
            return await (channel.read() if step.seconds is None else channel.read_within(step.seconds))
        if isinstance(step, Http):
            return await (await self._open(Open(step))).read_all(lenient=False)
        if isinstance(step, Open):
            return await self._open(step)
        if isinstance(step, Lms):
            from ..lmstudio.lms.command import arun_lms

            return await arun_lms(step, self._lms)
        if isinstance(step, Sleep):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, ReadAll | Close):
            channel = step.channel
            return await (channel.aclose() if isinstance(step, Close) else channel.read_all(lenient=True))
        raise TypeError(f"{step!r} is not a step")

    async def _open(self, step: Open) -> _Channel:
        """Send a request; its answer, as soon as the head is there, or the time is over."""
        if isinstance(step.opening, _Channel):
            channel = step.opening
        else:
            with translated(self.url):
                sent = self._http.build_request(**request_options(self._endpoint, step.request))
            channel = _Channel(self._endpoint.url, step.request, self.timeouts)
            channel.send = lambda: self._http.send(sent, stream=True)
        if step.seconds is None:
            await channel.open()
        else:
            await channel.open_within(step.seconds)
        return channel


class _Channel(Incoming):
    """A response that is read bit by bit.

    What is waited for with a limit runs in a task of its own, one at a time, which the limit does not cancel.
    """

    send: Callable[[], Coroutine[Any, Any, httpx.Response]]
    _pieces: AsyncIterator[bytes] | None = None
    _running: asyncio.Task[Any] | None = None

    async def open(self) -> None:
        """Send the request and wait for the head of the answer."""
        with translated(self.base, self.limit):
            self.came_head(await self.send())

    async def read(self) -> list[ServerSentEvent] | None:
        """The events of one read of the socket; None at the end."""
        if self._running is not None:  # what runs must end first
            found: list[ServerSentEvent] | None = await self._within(None, self._read)
            return found
        return await self._read()

    async def open_within(self, seconds: float) -> None:
        """As `open`, for so many seconds at most; asked again, it goes on."""
        await self._within(seconds, self.open)

    async def read_within(self, seconds: float) -> list[ServerSentEvent] | None:
        """As `read`, for so many seconds at most: then there is nothing yet. Asked again, it goes on."""
        found: list[ServerSentEvent] | None = await self._within(seconds, self._read, [])
        return found

    async def _within(
        self, seconds: float | None, call: Callable[[], Coroutine[Any, Any, Any]], otherwise: Any = None
    ) -> Any:
        if self._running is None:
            self._running = asyncio.ensure_future(call())
        done, _ = await asyncio.wait([self._running], timeout=seconds)
        if not done:
            return otherwise
        ended, self._running = self._running, None
        if ended is None or ended.cancelled():  # closed, while we waited
            return None
        return ended.result()

    async def _read(self) -> list[ServerSentEvent] | None:
        if self._pieces is None:
            self.begin()
            self._pieces = self._bytes()
        try:
            async for data in self._pieces:
                if events := self.came(data):
                    return events
        except (httpx.HTTPError, httpx.StreamError) as error:
            self.broke(error)
        return self.ended()

    def _bytes(self) -> AsyncIterator[bytes]:
        unpacking = self.unpacking()
        if self.response.is_stream_consumed:  # some transports have read it already
            return self.response.aiter_bytes()
        if unpacking is None:
            return self.response.aiter_raw()
        return self._unpacked(unpacking)

    async def _unpacked(self, unpacking: Unpacking) -> AsyncIterator[bytes]:
        async for data in self.response.aiter_raw():
            for piece in unpacking.feed(data):
                yield piece
        unpacking.close()

    async def read_all(self, *, lenient: bool) -> Answer:
        """The whole body, whatever it is; with `lenient`, as much of it as comes."""
        try:
            async for data in self._bytes():
                if not self.take(data):
                    break
        except (httpx.HTTPError, httpx.StreamError) as error:
            self.broken_whole(error, lenient=lenient)
        finally:
            await self.aclose()
        return self.answer()

    async def aclose(self) -> None:
        """Close the connection, which stops the model. A read that goes on in another task ends."""
        running, self._running = self._running, None
        if running is not None and not running.done():
            running.cancel()
            await asyncio.wait([running])
        if running is not None and running.done() and not running.cancelled():
            running.exception()  # nobody waits for it
        if self.opened:
            await self.response.aclose()


class AsyncChat(Talking[AsyncLMStudio]):
    """As `Chat`, awaited."""

    stream: Final = making(asking.stream_turn, AsyncReplyStream)
    ask: Final = awaited(asking.ask_turn)
    count: Final = awaited(asking.count_turns)


class AsyncPhi4(_Block, Asking[AsyncLMStudio]):
    """As `Phi4`, awaited."""

    _client_type = AsyncLMStudio

    stream: Final = making(asking.stream, AsyncReplyStream)
    ask: Final = awaited(asking.ask)
    ask_json: Final = awaited(asking.ask_json)
    chat: Final = making(asking.chat, AsyncChat)
    probe: Final = awaited(asking.probe)
    context_length: Final = awaited(asking.context_length)
    count: Final = awaited(asking.count)

    async def aclose(self) -> None:
        """Close the client, if it was made here."""
        if self._owned:
            await self._client.aclose()


def _check_loop() -> None:
    """Raises InvalidRequest where no event loop of asyncio runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise InvalidRequest(
            "the asynchronous client is asyncio's, and no event loop of asyncio runs here: under trio, use the "
            "blocking client in a thread"
        ) from None
