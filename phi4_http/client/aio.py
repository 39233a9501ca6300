"""The asynchronous client, asyncio's: tables that bind flows, and what does their steps. `blocking` is its twin."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx

from .. import api
from ..flow import Close, Enter, Flow, Http, Leave, Lms, Open, Read, ReadAll, Sleep, Start, Step, arun
from ..phi4 import asking
from .base import Asking, Connected, Talking, check_block
from .batched import AsyncBatch
from .binding import Module, aiterated, awaited, making
from .channel import AsyncChannel
from .http import check_loop, request_options, translated
from .stream import AsyncReplyStream

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..batch import work
    from ..doctor import looks as doctors
    from ..lmstudio import download as downloads
    from ..lmstudio import inventory, lifecycle
    from ..lmstudio import unload as unloading
    from ..lmstudio.lms import server as lms_server
else:
    inventory, lifecycle = Module("lmstudio.inventory"), Module("lmstudio.lifecycle")
    lms_server, downloads = Module("lmstudio.lms.server"), Module("lmstudio.download")
    doctors, unloading = Module("doctor.looks"), Module("lmstudio.unload")
    work = Module("batch.work")

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
    loading: Final = aiterated(lifecycle.loading)
    unload: Final = awaited(unloading.unload)
    unload_all: Final = awaited(unloading.unload_all)
    estimate: Final = awaited(lifecycle.estimate)
    loaded: Final = awaited(inventory.loaded)
    downloaded: Final = awaited(inventory.downloaded)
    downloading: Final = aiterated(downloads.downloading)
    download: Final = awaited(downloads.download)
    doctor: Final = aiterated(doctors.doctor)
    server_start: Final = awaited(lms_server.server_start)
    server_stop: Final = awaited(lms_server.server_stop)
    server_status: Final = awaited(lms_server.server_status)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._owned:
            await self._http.aclose()

    async def _run(self, flow: Flow[T]) -> T:
        """Drive a flow to its value. What it has opened is closed if it fails."""
        check_loop("the asynchronous client is")
        opened: list[Any] = []
        entered: list[Any] = []

        async def perform(step: Step) -> Any:
            result = await self._perform(step)
            if isinstance(step, Open | Start):
                opened.append(result)
            elif isinstance(step, Enter):
                entered.append(step.context)
            elif isinstance(step, Leave) and step.context in entered:
                entered.remove(step.context)
            return result

        try:
            return await arun(flow, perform)
        except BaseException:
            for channel in opened:
                await channel.aclose()
            for context in entered:
                await self._perform(Leave(context))
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
        if isinstance(step, Start):
            from ..lmstudio.lms.command import AsyncRunning

            return AsyncRunning(step.run, self._lms)
        if isinstance(step, Sleep):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, ReadAll | Close):
            channel = step.channel
            return await (channel.aclose() if isinstance(step, Close) else channel.read_all(lenient=True))
        if isinstance(step, Enter):
            check_block(step.context, "__aenter__")
            return await step.context.__aenter__()
        if isinstance(step, Leave):
            return await step.context.__aexit__(None, None, None)
        raise TypeError(f"{step!r} is not a step")

    async def _open(self, step: Open) -> AsyncChannel:
        """Send a request; its answer, as soon as the head is there, or the time is over."""
        if isinstance(step.opening, AsyncChannel):
            channel = step.opening
        else:
            with translated(self.url):
                sent = self._http.build_request(**request_options(self._endpoint, step.request))
            channel = AsyncChannel(self._endpoint.url, step.request, self.timeouts)
            channel.send = lambda: self._http.send(sent, stream=True)
            channel.begin_job(self._state.work)
        try:
            await (channel.open() if step.seconds is None else channel.open_within(step.seconds))
        except BaseException:  # nobody has the channel yet: what opens it must not go on
            await channel.aclose()
            raise
        return channel


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
    batch: Final = making(work.batch, AsyncBatch)
    chat: Final = making(asking.chat, AsyncChat)
    probe: Final = awaited(asking.probe)
    context_length: Final = awaited(asking.context_length)
    count: Final = awaited(asking.count)

    async def aclose(self) -> None:
        """Close the client, if it was made here."""
        if self._owned:
            await self._client.aclose()
