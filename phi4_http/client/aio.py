"""The asynchronous client, asyncio's: tables that bind flows, and what does their steps. `blocking` is its twin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
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
from .http import Incoming, request_options, translate, translated
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
            return await channel.read()
        if isinstance(step, Http):
            return await (await self._open(step)).read_all()
        if isinstance(step, Open):
            return await self._open(step.request)
        if isinstance(step, Lms):
            from ..lmstudio.lms.command import arun_lms

            return await arun_lms(step, self._lms)
        if isinstance(step, Sleep):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, ReadAll | Close):
            channel = step.channel
            return await (channel.aclose() if isinstance(step, Close) else channel.read_all())
        raise TypeError(f"{step!r} is not a step")

    async def _open(self, step: Http) -> _Channel:
        """Send a request; its answer, as soon as the head is there."""
        with translated(self.url):
            sent = self._http.build_request(**request_options(self._endpoint, step))
            return _Channel(await self._http.send(sent, stream=True), self.timeouts)


class _Channel(Incoming):
    """A response that is read bit by bit."""

    _pieces: AsyncIterator[bytes] | None = None

    async def read(self) -> list[ServerSentEvent] | None:
        """The events of one read of the socket; None at the end."""
        if self._pieces is None:
            self._pieces = self.response.aiter_raw() if self.begin() else self.response.aiter_bytes()
        try:
            async for data in self._pieces:
                if events := self.came(data):
                    return events
        except httpx.HTTPError as error:
            self.fault = translate(error, self.url, streaming=True)
        return self.ended()

    async def read_all(self) -> Answer:
        """The whole body, whatever it is."""
        try:
            with translated(self.url):
                return Answer(self.url, self.status, self.headers, await self.response.aread())
        finally:
            await self.response.aclose()

    async def aclose(self) -> None:
        """Close the connection, which stops the model."""
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
