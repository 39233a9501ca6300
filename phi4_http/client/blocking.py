"""The blocking face: `LMStudio`, `Phi4` and the stream of a reply. `aio` has the same names, awaited.

Nothing is decided here: flows say what to ask, decoders what it means; this module sends and receives.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import httpx

from .. import api as endpoints
from ..errors import NoJson, Phi4Error
from ..events import Event, Reply
from ..flow import Answer, Flow, Http, Lms, Sleep, Step, run
from ..lmstudio import inventory, lifecycle
from ..lmstudio.config import LoadConfig, Way
from ..lmstudio.inventory import Site
from ..lmstudio.lifecycle import LOAD_SECONDS
from ..lmstudio.lms import server as lms_server
from ..lmstudio.lms.command import run_lms
from ..lmstudio.lms.server import ServerStatus
from ..lmstudio.lms.text import Estimate
from ..phi4 import structured
from ..phi4.conversation import Conversation
from ..phi4.counting import Counter, Message
from ..phi4.probing import Probe
from ..phi4.request import Counted, Prepared, Settings, System, plain, told_apart
from ..phi4.structured import JsonReply
from ..reply.decoder import ReplyDecoder
from ..reply.rescue import Rescue
from ..wire.answers import ChatCompletion, Completion, Embeddings
from ..wire.listings import Instance, ModelInfo
from .http import (
    DEFAULT_URL,
    Timeouts,
    client_options,
    content_type,
    endpoint,
    event_source,
    is_loopback,
    is_stream,
    proxied,
    request_options,
    translated,
    transport_options,
    usable_settings,
)
from .stream import ReplyProgress, Turn

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..wire.parameters import AskParameters, Parameters

T = TypeVar("T")


class LMStudio:
    """One server. Use it as a context manager, or call `close`; it may be shared by threads.

    `token` is the API token; without it, `LM_API_TOKEN` and then `LMSTUDIO_API_TOKEN` are read. `http_client` is an
    httpx client of your own, which stays yours to close; `transport` replaces the network; `lms` is where
    LM Studio's command is, if it is not where it usually is.
    Raises InvalidRequest for an address or a token that can't be.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        token: str | None = None,
        *,
        timeouts: Timeouts | None = None,
        http_client: httpx.Client | None = None,
        transport: httpx.BaseTransport | None = None,
        lms: str | os.PathLike[str] | None = None,
    ) -> None:
        self._lms = lms
        self._endpoint = endpoint(base_url, token, timeouts or Timeouts())
        self._owned = http_client is None
        if http_client is None:
            if transport is None and not proxied(self.url):
                transport = httpx.HTTPTransport(**transport_options(self.url))
            with usable_settings():
                http_client = httpx.Client(transport=transport, **client_options(self.url))
        self._http = http_client

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        """The server's address, with no path of an API."""
        return self._endpoint.url

    @property
    def site(self) -> Site:
        """Which LM Studio this is, for flows that load and unload."""
        return Site(self.url, is_loopback(self.url))

    @property
    def timeouts(self) -> Timeouts:
        """The time limits of its requests, in seconds."""
        return self._endpoint.timeouts

    def close(self) -> None:
        """Close every connection."""
        if self._owned:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The API, by name

    def models(self, api: endpoints.Api | None = None) -> tuple[ModelInfo, ...]:
        """The models that the server lists, with their state where it tells it.

        `api` is `"v0"` (native), `"v1"` (names only), or None: native where it is there.
        """
        return self.run(endpoints.models(api))

    def model(self, id: str) -> ModelInfo:
        """One model by its id. Raises ModelNotFound, with what is there."""
        return self.run(endpoints.model(id))

    def chat(
        self, model: str, messages: endpoints.Messages, *, api: endpoints.Api = "v1", **parameters: Unpack[Parameters]
    ) -> ChatCompletion:
        """A chat completion in one piece. With `api="v0"` it carries the server's stats, model_info and runtime."""
        return self.run(endpoints.chat(model, messages, api, parameters))

    def complete(
        self, model: str, prompt: str, *, api: endpoints.Api = "v1", **parameters: Unpack[Parameters]
    ) -> Completion:
        """The continuation of a raw prompt in one piece: no chat template is applied."""
        return self.run(endpoints.complete(model, prompt, api, parameters))

    def embed(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        api: endpoints.Api = "v1",
        extra: Mapping[str, Any] | None = None,
    ) -> Embeddings:
        """Vectors for one text or several."""
        return self.run(endpoints.embed(model, texts, api, extra or {}))

    def stream_chat(
        self,
        model: str,
        messages: endpoints.Messages,
        *,
        api: endpoints.Api = "v1",
        opener: Literal["auto", "assumed"] = "auto",
        closer: Literal["last", "first"] = "last",
        **parameters: Unpack[Parameters],
    ) -> ReplyStream:
        """A chat completion as it comes, thought and solution told apart."""
        body = plain(endpoints.chat_body(model, messages, parameters))
        return ReplyStream(self, endpoints.path(api, "chat/completions"), body, opener=opener, closer=closer)

    def stream_complete(
        self,
        model: str,
        prompt: str,
        *,
        api: endpoints.Api = "v1",
        opener: Literal["auto", "assumed"] = "auto",
        closer: Literal["last", "first"] = "last",
        **parameters: Unpack[Parameters],
    ) -> ReplyStream:
        """The continuation of a raw prompt as it comes. `opener="assumed"` where the prompt ends inside a thought."""
        body = plain(endpoints.completion_body(model, prompt, parameters))
        return ReplyStream(self, endpoints.path(api, "completions"), body, opener=opener, closer=closer)

    # Models in memory, and the server itself

    def load(
        self,
        key: str,
        config: LoadConfig | None = None,
        *,
        ways: Sequence[Way] | None = None,
        timeout: float = LOAD_SECONDS,
        allow_shorter: bool = False,
        on_progress: Callable[[float], None] | None = None,
    ) -> Instance:
        """Have a model loaded as `config` says, and return the instance as it is really loaded.

        A loaded instance that has what is asked for is returned as it is; no second copy is made. `ways` is the order
        of `"lms"`, `"rest"` and `"jit"`; `timeout` is in seconds; `on_progress` hears the share loaded, 0 to 1, where
        the way tells it. With `allow_shorter`, a context that LM Studio cut is a warning. Raises InvalidRequest,
        UnsupportedSetting, ModelNotFound, ContextTooShort, DoesNotFit, LoadFailed, LmsError, and what a server raises.
        """
        return self.run(
            lifecycle.load(
                self.site,
                key,
                config or LoadConfig(),
                ways=ways,
                timeout=timeout,
                allow_shorter=allow_shorter,
                on_progress=on_progress,
            )
        )

    def unload(self, identifier: str, *, ways: Sequence[Way] | None = None) -> Instance:
        """Unload one instance, and return what it was. Raises ModelNotFound where none has that identifier."""
        return self.run(lifecycle.unload(self.site, identifier, ways=ways))

    def unload_all(self, *, ways: Sequence[Way] | None = None) -> tuple[Instance, ...]:
        """Unload every instance on that machine, and return what was unloaded."""
        return self.run(lifecycle.unload_all(self.site, ways=ways))

    def loaded(self, *, ways: Sequence[Way] | None = None) -> tuple[Instance, ...]:
        """The loaded instances. `lms` tells which are busy."""
        return self.run(inventory.loaded(self.site, ways))

    def downloaded(self, *, ways: Sequence[Way] | None = None) -> tuple[ModelInfo, ...]:
        """The models on disk, with what is known of each."""
        return self.run(inventory.downloaded(self.site, ways))

    def estimate(self, key: str, config: LoadConfig | None = None) -> Estimate:
        """What loading would take, in bytes, and whether it fits, as LM Studio guesses it. Only `lms` tells."""
        return self.run(lifecycle.estimate(self.site, key, config or LoadConfig()))

    def server_start(self, port: int | None = None, *, wait: float = 30.0) -> ServerStatus:
        """Start the server on `port`, by default the one of this client, and wait up to `wait` seconds for it."""
        return self.run(lms_server.server_start(self.site, port, wait=wait))

    def server_stop(self) -> ServerStatus:
        """Stop the server. One that does not run is no error."""
        return self.run(lms_server.server_stop(self.site))

    def server_status(self) -> ServerStatus:
        """Whether the server runs: at this client's address, or else on the port that `lms` knows."""
        return self.run(lms_server.server_status(self.site))

    # Flows

    def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its value."""
        return run(flow, self.perform)

    def perform(self, step: Step) -> Any:
        """Do one step of a flow."""
        if isinstance(step, Http):
            return self._answer(step)
        if isinstance(step, Lms):
            return run_lms(step, self._lms)
        if isinstance(step, Sleep):
            return time.sleep(step.seconds)
        raise TypeError(f"{step!r} is not a step")

    def _answer(self, step: Http) -> Answer:
        response = self.open(step)
        try:
            with translated(self.url):
                body = response.read()
        finally:
            response.close()
        return Answer(str(response.request.url), response.status_code, response.headers, body)

    def open(self, step: Http) -> httpx.Response:
        """Send a request and return its response as soon as the headers are there; closing it is the caller's."""
        request = self._http.build_request(**request_options(self._endpoint, step))
        with translated(self.url):
            return self._http.send(request, stream=True)


class ReplyStream(ReplyProgress):
    """A reply while it comes: a context manager that iterates over its events.

        with phi.stream("…") as reply:
            for event in reply:
                ...
        reply.result

    The request goes out when the block is entered; leaving it closes the connection, which stops the model. Entering
    and iterating raise `ContextOverflow`, `ServerError`, `EmptyReply`, `StreamCut`, `NotLMStudio` and
    `ServerUnreachable`, each with what had arrived in `partial`.
    """

    def __init__(
        self, client: LMStudio, path: str, prepared: Flow[Prepared], turn: Turn | None = None, **reading: Any
    ) -> None:
        super().__init__(client.url + path, reading, turn)
        self._client = client
        self._path = path
        self._preparing = prepared
        self._response: httpx.Response | None = None
        self._events: Iterator[Event] | None = None

    def __enter__(self) -> Self:
        self._begin()
        prepared = self._client.run(self._preparing)
        self._start(prepared)
        self._response = self._open(self._path, prepared.body)
        self._events = self._iterate(prepared)
        self._streaming = True
        return self

    def _open(self, path: str, body: dict[str, Any]) -> httpx.Response:
        response = self._client.open(Http("POST", path, endpoints.streamed(body), slow=True))
        try:
            if not is_stream(response):
                with translated(self._url):
                    content = response.read()
                raise self._refuse(
                    content, status=response.status_code, content_type=content_type(response), model=body["model"]
                )
        except BaseException:
            response.close()
            raise
        return response

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over()
        if self._response is not None:
            self._response.close()

    def __iter__(self) -> Iterator[Event]:
        return self._entered(self._events)

    def read(self) -> Reply:
        """Read to the end and return the reply. Raises what iterating raises."""
        for _ in self:
            pass
        return self.result

    def _iterate(self, prepared: Prepared) -> Iterator[Event]:
        decoder = self._decoder
        assert decoder is not None
        fault: Phi4Error | None = None
        try:
            yield from self._iterate_part(decoder)
            if decoder.wants_answer():
                prompt = self._client.run(prepared.raw_prompt())
                body = prepared.continued(decoder.continued(prompt.text))
                self._response = self._open(endpoints.path("v1", "completions"), body)
                yield from decoder.answer(
                    time.monotonic(),
                    template=prompt.template,
                    prompt_tokens=prompt.tokens,
                    requests=prompt.requests,
                )
                yield from self._iterate_part(decoder)
                if decoder.lacks_count:
                    count = self._client.run(prepared.count())
                    decoder.note_count(count.tokens, count.requests)
        except Phi4Error as error:
            fault = error
        yield from decoder.close(time.monotonic(), fault)
        if decoder.error is not None:
            raise decoder.error

    def _iterate_part(self, decoder: ReplyDecoder) -> Iterator[Event]:
        """The events of one response, up to its end or to where it is to be left."""
        response = self._response
        assert response is not None
        decoder.request_id = response.headers.get("x-request-id")
        try:
            with translated(self._url, streaming=True):
                for sse in event_source(response, self._client.timeouts).iter_sse():
                    yield from decoder.feed(sse.data, sse.event, time.monotonic())
                    if decoder.done:
                        break
        finally:
            response.close()


class Phi4:
    """Phi-4-reasoning-plus: its system prompt and its sampling with every request, its thought apart from its solution.

    Without a `client`, it makes one for the default address, and closes it. Without a `model`, the server's own
    Phi-4-reasoning-plus is found with each request, a loaded one first. `instructions` are appended to the system
    prompt. `system="omit"` leaves the system message out, for a template that puts in the model's prompt itself;
    `"auto"` finds out with `probe`. `reserve` is tokens kept free for the reply, beside a history; `counter` counts
    tokens in the server's stead. Further parameters are those of every request (see `Parameters` and `Rescue`).
    """

    def __init__(
        self,
        client: LMStudio | None = None,
        *,
        model: str | None = None,
        instructions: str | None = None,
        opener: Literal["auto", "assumed"] = "auto",
        closer: Literal["last", "first"] = "last",
        system: System = "send",
        reserve: int | None = None,
        counter: Callable[[Sequence[Message]], int] | Counter | None = None,
        rescue: Rescue | None = None,
        **parameters: Unpack[AskParameters],
    ) -> None:
        self._settings = Settings(
            model,
            instructions,
            opener,
            closer,
            system,
            reserve,
            counter,
            *told_apart(rescue or Rescue(), parameters),
        )
        self._owned = client is None
        self.client = client or LMStudio()

    def close(self) -> None:
        """Close the client, if it was made here."""
        if self._owned:
            self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stream(
        self,
        prompt: str,
        *,
        history: Iterable[Mapping[str, Any]] = (),
        instructions: str | None = None,
        model: str | None = None,
        **parameters: Unpack[AskParameters],
    ) -> ReplyStream:
        """Ask, and follow the reply as it comes. `history` is messages with role and content, oldest first.

        Raises InvalidRequest, before anything is sent, for what can't be sent.
        """
        return self._stream(prompt, Conversation(history), instructions, model, parameters)

    def ask(
        self,
        prompt: str,
        *,
        history: Iterable[Mapping[str, Any]] = (),
        instructions: str | None = None,
        model: str | None = None,
        **parameters: Unpack[AskParameters],
    ) -> Reply:
        """Ask, and return the whole reply. Raises what a stream raises."""
        with self.stream(prompt, history=history, instructions=instructions, model=model, **parameters) as reply:
            return reply.read()

    def ask_json(
        self,
        prompt: str,
        schema: Mapping[str, Any],
        *,
        repair: bool = False,
        history: Iterable[Mapping[str, Any]] = (),
        instructions: str | None = None,
        model: str | None = None,
        **parameters: Unpack[AskParameters],
    ) -> JsonReply:
        """Ask for JSON that fits a schema, and take it out of the solution: the model still thinks first.

        `repair` asks once more, with what was wrong, before giving up. Raises NoJson, with the text.
        """
        chat = Chat(self, Conversation(history), instructions, model)
        asked = structured.request(prompt, schema)
        reply = chat.ask(asked, **parameters)
        try:
            return structured.read(reply, schema)
        except NoJson as error:
            if not repair:
                raise
            again = structured.repair(asked, error)
        return structured.read(chat.ask(again, **parameters), schema, repaired=True)

    def chat(
        self,
        history: Iterable[Mapping[str, Any]] = (),
        *,
        instructions: str | None = None,
        model: str | None = None,
    ) -> Chat:
        """A conversation: each turn sees what of the earlier ones fits in the context."""
        return Chat(self, Conversation(history), instructions, model)

    def probe(self, model: str | None = None) -> Probe:
        """What the server does with the system message: four requests of one token, once for each model."""
        return self.client.run(self._settings.probe(model))

    def context_length(self, model: str | None = None) -> int | None:
        """Tokens that the model is loaded with; None where the server does not tell."""
        return self.client.run(self._settings.context_length(model))

    def count(
        self,
        prompt: str | None = None,
        *,
        history: Iterable[Mapping[str, Any]] = (),
        instructions: str | None = None,
        model: str | None = None,
    ) -> Counted:
        """The exact tokens of a prompt, or of a history, as they would be sent, and how many requests that took."""
        return self.client.run(self._settings.count(prompt, Conversation(history), instructions, model))

    def _stream(
        self,
        prompt: str,
        conversation: Conversation,
        instructions: str | None,
        model: str | None,
        parameters: Mapping[str, Any],
    ) -> ReplyStream:
        prepared = self._settings.prepare(
            prompt, conversation=conversation, instructions=instructions, model=model, parameters=parameters
        )
        reading = self._settings.reading(conversation)
        path = endpoints.path("v1", "chat/completions")
        return ReplyStream(self.client, path, prepared, Turn(conversation, prompt), **reading)


class Chat:
    """A conversation with Phi-4-reasoning-plus. What a turn leaves in the history is told in `conversation`.

    `history` is all of it, also what no longer fits: `reply.dropped` says what was not sent.
    """

    def __init__(
        self, phi: Phi4, conversation: Conversation, instructions: str | None = None, model: str | None = None
    ) -> None:
        self._phi = phi
        self._conversation = conversation
        self._instructions = instructions
        self._model = model

    @property
    def history(self) -> tuple[Mapping[str, Any], ...]:
        """Messages with role and content, oldest first."""
        return tuple(self._conversation.history)

    def clear(self) -> None:
        """Forget the history."""
        self._conversation.clear()

    def stream(self, prompt: str, **parameters: Unpack[AskParameters]) -> ReplyStream:
        """The next turn, as it comes. It is in the history once the block is left."""
        return self._phi._stream(prompt, self._conversation, self._instructions, self._model, parameters)

    def ask(self, prompt: str, **parameters: Unpack[AskParameters]) -> Reply:
        """The next turn, whole."""
        with self.stream(prompt, **parameters) as reply:
            return reply.read()

    def count(self) -> Counted:
        """The exact tokens of the history, and how many requests that took. Raises InvalidRequest where it is empty."""
        return self._phi.count(history=self.history, instructions=self._instructions, model=self._model)
