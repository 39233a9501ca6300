"""The blocking client: tables that bind flows, and what does their steps. `aio` has the same names, awaited."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx

from .. import api
from ..flow import Close, Enter, Flow, Http, Leave, Lms, Open, Read, ReadAll, Sleep, Start, Step, run
from ..phi4 import asking
from .base import Asking, Connected, Talking, check_block
from .batched import Batch
from .binding import Module, blocking, iterated, making
from .channel import BlockingChannel
from .http import request_options, translated
from .stream import ReplyStream

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened here."""
        raise NotImplementedError


class LMStudio(_Block, Connected[httpx.Client, httpx.BaseTransport]):
    """One server, and the way to it. Use it as a context manager, or call `close`; it may be shared by threads.

    `base_url` is its address; `token` the API token: without it, `LM_API_TOKEN` and then `LMSTUDIO_API_TOKEN` are read.
    `http_client` is an httpx client of your own, which stays yours to close; or `transport` replaces the network. `lms`
    is where LM Studio's command is, if it is not where it usually is. Raises InvalidRequest for what can't be.
    """

    _client_type = httpx.Client
    _transport_type = httpx.HTTPTransport

    models: Final = blocking(api.models)
    model: Final = blocking(api.model)
    chat_completion: Final = blocking(api.chat_completion)
    completion: Final = blocking(api.completion)
    embeddings: Final = blocking(api.embeddings)
    stream_chat_completion: Final = making(api.stream_chat_completion, ReplyStream)
    stream_completion: Final = making(api.stream_completion, ReplyStream)
    load: Final = blocking(lifecycle.load)
    loading: Final = iterated(lifecycle.loading)
    unload: Final = blocking(unloading.unload)
    unload_all: Final = blocking(unloading.unload_all)
    estimate: Final = blocking(lifecycle.estimate)
    loaded: Final = blocking(inventory.loaded)
    downloaded: Final = blocking(inventory.downloaded)
    downloading: Final = iterated(downloads.downloading)
    download: Final = blocking(downloads.download)
    doctor: Final = iterated(doctors.doctor)
    server_start: Final = blocking(lms_server.server_start)
    server_stop: Final = blocking(lms_server.server_stop)
    server_status: Final = blocking(lms_server.server_status)

    def close(self) -> None:
        """Close every connection."""
        if self._owned:
            self._http.close()
        if self._fresh is not None:
            self._fresh.close()

    def _run(self, flow: Flow[T]) -> T:
        """Drive a flow to its value. What it has opened is closed if it fails."""
        opened: list[Any] = []
        entered: list[Any] = []

        def perform(step: Step) -> Any:
            result = self._perform(step)
            if isinstance(step, Open | Start):
                opened.append(result)
            elif isinstance(step, Enter):
                entered.append(step.context)
            elif isinstance(step, Leave) and step.context in entered:
                entered.remove(step.context)
            return result

        try:
            return run(flow, perform)
        except BaseException:
            for channel in opened:
                channel.close()
            for context in entered:
                self._perform(Leave(context))
            raise

    def _perform(self, step: Step) -> Any:
        """Do one step of a flow."""
        if isinstance(step, Read):
            channel: Any = step.channel
            return channel.read() if step.seconds is None else channel.read_within(step.seconds)
        if isinstance(step, Http):
            return self._open(Open(step)).read_all(lenient=False)
        if isinstance(step, Open):
            return self._open(step)
        if isinstance(step, Lms):
            from ..lmstudio.lms.command import run_lms

            return run_lms(step, self._lms)
        if isinstance(step, Start):
            from ..lmstudio.lms.command import Running

            return Running(step.run, self._lms)
        if isinstance(step, Sleep):
            return time.sleep(step.seconds)
        if isinstance(step, ReadAll | Close):
            channel = step.channel
            return channel.close() if isinstance(step, Close) else channel.read_all(lenient=True)
        if isinstance(step, Enter):
            check_block(step.context, "__enter__")
            return step.context.__enter__()
        if isinstance(step, Leave):
            return step.context.__exit__(None, None, None)
        raise TypeError(f"{step!r} is not a step")

    _fresh: httpx.Client | None = None

    def _making_new(self) -> httpx.Client:
        """A client that makes a new connection for each request. Where a wait for a head may be given up, the
        connection must be known, to be shut under whoever waits for it, and httpx shows new ones alone."""
        if not self._network or self._http.is_closed:
            return self._http
        if self._fresh is None:
            self._fresh = self._made(None, keep=0)
        return self._fresh

    def _open(self, step: Open) -> BlockingChannel:
        """Send a request; its answer, as soon as the head is there, or the time is over."""
        if isinstance(step.opening, BlockingChannel):
            channel = step.opening
        else:
            http = self._http if step.seconds is None else self._making_new()
            with translated(self.url):
                sent = http.build_request(**request_options(self._endpoint, step.request))
            channel = BlockingChannel(self._endpoint.url, step.request, self.timeouts)
            channel.send = lambda: http.send(sent, stream=True)
            channel.begin_job(self._state.work)
            if step.seconds is not None:
                sent.extensions["trace"] = channel.trace
        if step.seconds is None:
            channel.open()
        else:
            channel.open_within(step.seconds)
        return channel


class Chat(Talking[LMStudio]):
    """A conversation with Phi-4-reasoning-plus; `Phi4.chat` makes it.

    `history` is all of it, also what no longer fits: `reply.dropped` says what was not sent.
    """

    stream: Final = making(asking.stream_turn, ReplyStream)
    ask: Final = blocking(asking.ask_turn)
    count: Final = blocking(asking.count_turns)


class Phi4(_Block, Asking[LMStudio]):
    """Phi-4-reasoning-plus: its system prompt and its sampling with every request, its thought apart from its solution.

    `client` is a client, or a server's address: then, and without any, the client is made here and closed with this.
    Without a `model`, the server's own Phi-4-reasoning-plus is found, a loaded one first. `instructions` are appended
    to the system prompt. `opener="assumed"` is for a server that swallows every `<think>`; `closer="first"` lets the
    first closing tag count instead of the last. `system="omit"` leaves the system message out, for a template that puts
    in the model's prompt itself; `"auto"` finds out with `probe`. `reserve` is tokens kept free for the reply, beside a
    history; `counter` counts tokens in the server's stead; `context_length` is tokens, for a server that does not tell
    them. `window` says how a history that no longer fits is shortened: seldom and by much (`"steady"`, which keeps the
    server's prompt cache), or as little as can be (`"longest"`). A `manager`, such as a `ModelManager`, has the model
    loaded as `config` says, and keeps it from being unloaded for as long as a reply runs. Further parameters are those
    of every request (see `AskParameters` and `Rescue`). Raises InvalidRequest for what can't be.
    """

    _client_type = LMStudio

    stream: Final = making(asking.stream, ReplyStream)
    ask: Final = blocking(asking.ask)
    ask_json: Final = blocking(asking.ask_json)
    batch: Final = making(work.batch, Batch)
    chat: Final = making(asking.chat, Chat)
    probe: Final = blocking(asking.probe)
    context_length: Final = blocking(asking.context_length)
    count: Final = blocking(asking.count)

    def close(self) -> None:
        """Close the client, if it was made here."""
        if self._owned:
            self._client.close()
