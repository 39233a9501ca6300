"""The blocking client: tables that bind flows, and what does their steps. `aio` has the same names, awaited."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
from httpx_sse import ServerSentEvent

from .. import api
from ..flow import Answer, Close, Flow, Http, Lms, Open, Read, ReadAll, Sleep, Step, run
from ..phi4 import asking
from .base import Asking, Connected, Talking
from .binding import Module, blocking, making
from .http import Incoming, request_options, translate, translated
from .stream import ReplyStream

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
    unload: Final = blocking(lifecycle.unload)
    unload_all: Final = blocking(lifecycle.unload_all)
    estimate: Final = blocking(lifecycle.estimate)
    loaded: Final = blocking(inventory.loaded)
    downloaded: Final = blocking(inventory.downloaded)
    server_start: Final = blocking(lms_server.server_start)
    server_stop: Final = blocking(lms_server.server_stop)
    server_status: Final = blocking(lms_server.server_status)

    def close(self) -> None:
        """Close every connection."""
        if self._owned:
            self._http.close()

    def _run(self, flow: Flow[T]) -> T:
        """Drive a flow to its value. What it has opened is closed if it fails."""
        opened: list[_Channel] = []

        def perform(step: Step) -> Any:
            result = self._perform(step)
            if isinstance(result, _Channel):
                opened.append(result)
            return result

        try:
            return run(flow, perform)
        except BaseException:
            for channel in opened:
                channel.close()
            raise

    def _perform(self, step: Step) -> Any:
        """Do one step of a flow."""
        if isinstance(step, Read):
            channel: Any = step.channel
            return channel.read()
        if isinstance(step, Http):
            return self._open(step).read_all()
        if isinstance(step, Open):
            return self._open(step.request)
        if isinstance(step, Lms):
            from ..lmstudio.lms.command import run_lms

            return run_lms(step, self._lms)
        if isinstance(step, Sleep):
            return time.sleep(step.seconds)
        if isinstance(step, ReadAll | Close):
            channel = step.channel
            return channel.close() if isinstance(step, Close) else channel.read_all()
        raise TypeError(f"{step!r} is not a step")

    def _open(self, step: Http) -> _Channel:
        """Send a request; its answer, as soon as the head is there."""
        with translated(self.url):
            sent = self._http.build_request(**request_options(self._endpoint, step))
            return _Channel(self._http.send(sent, stream=True), self.timeouts)


class _Channel(Incoming):
    """A response that is read bit by bit."""

    _pieces: Iterator[bytes] | None = None

    def read(self) -> list[ServerSentEvent] | None:
        """The events of one read of the socket; None at the end."""
        if self._pieces is None:
            self._pieces = self.response.iter_raw() if self.begin() else self.response.iter_bytes()
        try:
            for data in self._pieces:
                if events := self.came(data):
                    return events
        except httpx.HTTPError as error:
            self.fault = translate(error, self.url, streaming=True)
        return self.ended()

    def read_all(self) -> Answer:
        """The whole body, whatever it is."""
        try:
            with translated(self.url):
                return Answer(self.url, self.status, self.headers, self.response.read())
        finally:
            self.response.close()

    def close(self) -> None:
        """Close the connection, which stops the model."""
        self.response.close()


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
    first closing tag count instead of the last. `system="omit"` leaves the system message out, for a template that
    puts in the model's prompt itself; `"auto"` finds out with `probe`. `reserve` is tokens kept free for the reply,
    beside a history; `counter` counts tokens in the server's stead; `context_length` is tokens, for a server that does
    not tell them. `window` says how a history that no longer fits is shortened: seldom and by much (`"steady"`, which
    keeps the server's prompt cache), or as little as can be (`"longest"`). Further parameters are those of every
    request (see `AskParameters` and `Rescue`). Raises InvalidRequest for what can't be.
    """

    _client_type = LMStudio

    stream: Final = making(asking.stream, ReplyStream)
    ask: Final = blocking(asking.ask)
    ask_json: Final = blocking(asking.ask_json)
    chat: Final = making(asking.chat, Chat)
    probe: Final = blocking(asking.probe)
    context_length: Final = blocking(asking.context_length)
    count: Final = blocking(asking.count)

    def close(self) -> None:
        """Close the client, if it was made here."""
        if self._owned:
            self._client.close()
