"""The blocking client: tables that bind flows, and what does their steps. `aio` has the same names, awaited."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
from httpx_sse import ServerSentEvent

from .. import api
from ..flow import Answer, Close, Flow, Http, Lms, Open, Read, ReadAll, Sleep, Step, run
from ..phi4 import asking
from .aside import Aside
from .base import Asking, Connected, Talking
from .binding import Module, blocking, making
from .http import request_options, translated
from .incoming import Incoming, Unpacking
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
        if self._fresh is not None:
            self._fresh.close()

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
            return channel.read() if step.seconds is None else channel.read_within(step.seconds)
        if isinstance(step, Http):
            return self._open(Open(step)).read_all(lenient=False)
        if isinstance(step, Open):
            return self._open(step)
        if isinstance(step, Lms):
            from ..lmstudio.lms.command import run_lms

            return run_lms(step, self._lms)
        if isinstance(step, Sleep):
            return time.sleep(step.seconds)
        if isinstance(step, ReadAll | Close):
            channel = step.channel
            return channel.close() if isinstance(step, Close) else channel.read_all(lenient=True)
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

    def _open(self, step: Open) -> _Channel:
        """Send a request; its answer, as soon as the head is there, or the time is over."""
        if isinstance(step.opening, _Channel):
            channel = step.opening
        else:
            http = self._http if step.seconds is None else self._making_new()
            with translated(self.url):
                sent = http.build_request(**request_options(self._endpoint, step.request))
            channel = _Channel(self._endpoint.url, step.request, self.timeouts)
            channel.send = lambda: http.send(sent, stream=True)
            if step.seconds is not None:
                sent.extensions["trace"] = channel.trace
        if step.seconds is None:
            channel.open()
        else:
            channel.open_within(step.seconds)
        return channel


class _Channel(Incoming):
    """A response that is read bit by bit.

    What is waited for with a limit runs in a thread, one call at a time: nothing else can end a wait for a socket and
    go on with it later.
    """

    send: Callable[[], httpx.Response]
    _pieces: Iterator[bytes] | None = None
    _aside: Aside | None = None
    _reading = False

    def open(self) -> None:
        """Send the request and wait for the head of the answer."""
        with translated(self.base, self.limit):
            self.came_head(self.send())

    def read(self) -> list[ServerSentEvent] | None:
        """The events of one read of the socket; None at the end."""
        if self._aside is not None:  # what runs there must end first
            found: list[ServerSentEvent] | None = self._aside.result(None, self._read)
            return found
        return self._read()

    def open_within(self, seconds: float) -> None:
        """As `open`, for so many seconds at most; asked again, it goes on."""
        self._aside = self._aside or Aside()
        self._aside.result(seconds, self.open)

    def read_within(self, seconds: float) -> list[ServerSentEvent] | None:
        """As `read`, for so many seconds at most: then there is nothing yet. Asked again, it goes on."""
        self._aside = self._aside or Aside()
        found: list[ServerSentEvent] | None = self._aside.result(seconds, self._read, [])
        return found

    def _read(self) -> list[ServerSentEvent] | None:
        if self._pieces is None:
            self.begin()
            self._pieces = self._bytes()
        self._reading = True
        try:
            for data in self._pieces:
                if events := self.came(data):
                    return events
        except (httpx.HTTPError, httpx.StreamError) as error:
            self.broke(error)
        finally:
            self._reading = False
        return self.ended()

    def _bytes(self) -> Iterator[bytes]:
        unpacking = self.unpacking()
        if self.response.is_stream_consumed:  # some transports have read it already
            return self.response.iter_bytes()
        if unpacking is None:
            return self.response.iter_raw()
        return self._unpacked(unpacking)

    def _unpacked(self, unpacking: Unpacking) -> Iterator[bytes]:
        for data in self.response.iter_raw():
            yield from unpacking.feed(data)
        unpacking.close()

    def read_all(self, *, lenient: bool) -> Answer:
        """The whole body, whatever it is; with `lenient`, as much of it as comes."""
        try:
            for data in self._bytes():
                if not self.take(data):
                    break
        except (httpx.HTTPError, httpx.StreamError) as error:
            self.broken_whole(error, lenient=lenient)
        finally:
            self.close()
        return self.answer()

    def close(self) -> None:
        """Close the connection, which stops the model. A read that goes on in another thread ends."""
        if self._aside is not None and not self._aside.over():
            self._given_up = True
            self._late = self._aside.abandon(self._shut, self._close) or []
        else:
            if self._reading:
                self._shut()
            self._close()

    def left(self) -> list[ServerSentEvent]:
        """The event that has come without its end, if any; once."""
        late, self._late = self._late, []
        return late or super().left()

    _late: list[ServerSentEvent] = []  # noqa: RUF012  # never changed in place
    """What the read gave that was ended by closing."""

    def _close(self) -> None:
        if self.opened:
            self.response.close()

    def _shut(self) -> None:
        """End the connection under whoever reads it: closing alone wakes no one."""
        stream = self.response.extensions.get("network_stream") if self.opened else self.stream
        connection = stream.get_extra_info("socket") if stream is not None else None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    stream: Any = None
    """The connection, as soon as it stands."""
    _given_up = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Called by httpcore with what it does: here, with the connection that it has made."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self.stream = info["return_value"]
            if self._given_up:
                self._shut()


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
