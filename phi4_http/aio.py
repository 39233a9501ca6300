"""The async face: `AsyncLMStudio`, `AsyncPhi4` and the stream of a reply, for asyncio.

The same names in the same order as in `client`, awaited; a test holds the two against each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import httpx

from . import endpoints
from .answers import ChatCompletion, Completion, Embeddings
from .connection import (
    DEFAULT_URL,
    Timeouts,
    client_options,
    content_type,
    endpoint,
    event_source,
    is_stream,
    proxied,
    request_options,
    translated,
    transport_options,
)
from .endpoints import PhiSettings
from .errors import Phi4Error
from .events import Event, Reply
from .flow import Answer, Flow, Http, Sleep, Step, arun, ready
from .models import ModelInfo
from .parameters import check
from .reply import ReplyProgress

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .parameters import Parameters

T = TypeVar("T")


class AsyncLMStudio:
    """One server. Use it as a context manager, or await `aclose`; it may be shared by the tasks of one event loop.

    `token` is the API token; without it, `LM_API_TOKEN` and then `LMSTUDIO_API_TOKEN` are read. `http_client` is an
    httpx client of your own, which stays yours to close; `transport` replaces the network.
    Raises InvalidRequest for an address or a token that can't be.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        token: str | None = None,
        *,
        timeouts: Timeouts | None = None,
        http_client: httpx.AsyncClient | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._endpoint = endpoint(base_url, token, timeouts or Timeouts())
        self._owned = http_client is None
        if http_client is None:
            if transport is None and not proxied(self.url):
                transport = httpx.AsyncHTTPTransport(**transport_options(self.url))
            http_client = httpx.AsyncClient(transport=transport, **client_options(self.url))
        self._http = http_client

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        """The server's address, with no path of an API."""
        return self._endpoint.url

    @property
    def timeouts(self) -> Timeouts:
        """The time limits of its requests, in seconds."""
        return self._endpoint.timeouts

    async def aclose(self) -> None:
        """Close every connection."""
        if self._owned:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # The API, by name

    async def models(self, api: endpoints.Api | None = None) -> tuple[ModelInfo, ...]:
        """The models that the server lists, with their state where it tells it.

        `api` is `"v0"` (native), `"v1"` (names only), or None: native where it is there.
        """
        return await self.run(endpoints.models(api))

    async def model(self, id: str) -> ModelInfo:
        """One model by its id. Raises ModelNotFound, with what is there."""
        return await self.run(endpoints.model(id))

    async def chat(
        self, model: str, messages: endpoints.Messages, *, api: endpoints.Api = "v1", **parameters: Unpack[Parameters]
    ) -> ChatCompletion:
        """A chat completion in one piece. With `api="v0"` it carries the server's stats, model_info and runtime."""
        return await self.run(endpoints.chat(model, messages, api, parameters))

    async def complete(
        self, model: str, prompt: str, *, api: endpoints.Api = "v1", **parameters: Unpack[Parameters]
    ) -> Completion:
        """The continuation of a raw prompt in one piece: no chat template is applied."""
        return await self.run(endpoints.complete(model, prompt, api, parameters))

    async def embed(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        api: endpoints.Api = "v1",
        extra: Mapping[str, Any] | None = None,
    ) -> Embeddings:
        """Vectors for one text or several."""
        return await self.run(endpoints.embed(model, texts, api, extra or {}))

    def stream_chat(
        self,
        model: str,
        messages: endpoints.Messages,
        *,
        api: endpoints.Api = "v1",
        opener: Literal["auto", "assumed"] = "auto",
        closer: Literal["last", "first"] = "last",
        **parameters: Unpack[Parameters],
    ) -> AsyncReplyStream:
        """A chat completion as it comes, thought and solution told apart."""
        body = ready(endpoints.chat_body(model, messages, parameters))
        return AsyncReplyStream(self, endpoints.path(api, "chat/completions"), body, opener=opener, closer=closer)

    def stream_complete(
        self,
        model: str,
        prompt: str,
        *,
        api: endpoints.Api = "v1",
        opener: Literal["auto", "assumed"] = "auto",
        closer: Literal["last", "first"] = "last",
        **parameters: Unpack[Parameters],
    ) -> AsyncReplyStream:
        """The continuation of a raw prompt as it comes. `opener="assumed"` where the prompt ends inside a thought."""
        body = ready(endpoints.completion_body(model, prompt, parameters))
        return AsyncReplyStream(self, endpoints.path(api, "completions"), body, opener=opener, closer=closer)

    # Flows

    async def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its value."""
        return await arun(flow, self.perform)

    async def perform(self, step: Step) -> Any:
        """Do one step of a flow."""
        if isinstance(step, Http):
            return await self._answer(step)
        if isinstance(step, Sleep):
            return await asyncio.sleep(step.seconds)
        raise TypeError(f"{step!r} is not a step")

    async def _answer(self, step: Http) -> Answer:
        response = await self.open(step)
        try:
            with translated(self.url):
                body = await response.aread()
        finally:
            await response.aclose()
        return Answer(str(response.request.url), response.status_code, response.headers, body)

    async def open(self, step: Http) -> httpx.Response:
        """Send a request and return its response as soon as the headers are there; closing it is the caller's."""
        request = self._http.build_request(**request_options(self._endpoint, step))
        with translated(self.url):
            return await self._http.send(request, stream=True)


class AsyncReplyStream(ReplyProgress):
    """A reply while it comes: a context manager that iterates over its events.

        async with phi.stream("…") as reply:
            async for event in reply:
                ...
        reply.result

    The request goes out when the block is entered; leaving it closes the connection, which stops the model. Entering
    and iterating raise `ContextOverflow`, `ServerError`, `EmptyReply`, `StreamCut`, `NotLMStudio` and
    `ServerUnreachable`, each with what had arrived in `partial`.
    """

    def __init__(self, client: AsyncLMStudio, path: str, body: Flow[dict[str, Any]], **reading: Any) -> None:
        super().__init__(client.url + path, reading)
        self._client = client
        self._path = path
        self._body = body
        self._response: httpx.Response | None = None
        self._events: AsyncGenerator[Event, None] | None = None

    async def __aenter__(self) -> Self:
        self._begin()
        body = endpoints.streamed(await self._client.run(self._body))
        self._start()
        self._response = response = await self._client.open(Http("POST", self._path, body, slow=True))
        try:
            if not is_stream(response):
                with translated(self._url):
                    content = await response.aread()
                raise self._refuse(
                    content, status=response.status_code, content_type=content_type(response), model=body["model"]
                )
        except BaseException:
            await response.aclose()
            raise
        self._events = self._iterate(response)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._decoder is not None:
            self._decoder.cancel(time.monotonic())
        if self._events is not None:
            await self._events.aclose()
        if self._response is not None:
            await self._response.aclose()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._entered(self._events)

    async def read(self) -> Reply:
        """Read to the end and return the reply. Raises what iterating raises."""
        async for _ in self:
            pass
        return self.result

    async def _iterate(self, response: httpx.Response) -> AsyncGenerator[Event, None]:
        decoder = self._decoder
        assert decoder is not None
        decoder.request_id = response.headers.get("x-request-id")
        fault: Phi4Error | None = None
        try:
            with translated(self._url, streaming=True):
                source = event_source(response, self._client.timeouts).aiter_sse()
                async with contextlib.aclosing(source):
                    async for sse in source:
                        for event in decoder.feed(sse.data, sse.event, time.monotonic()):
                            yield event
                        if decoder.done:
                            break
        except Phi4Error as error:
            fault = error
        await response.aclose()
        for event in decoder.close(time.monotonic(), fault):
            yield event
        if decoder.error is not None:
            raise decoder.error


class AsyncPhi4:
    """Phi-4-reasoning-plus: its system prompt and its sampling with every request, its thought apart from its solution.

    Without a `client`, it makes one for the default address, and closes it. Without a `model`, the server's own
    Phi-4-reasoning-plus is found at the first request, a loaded one first. `instructions` are appended to the system
    prompt; further parameters are those of every request (see `Parameters`).
    """

    def __init__(
        self,
        client: AsyncLMStudio | None = None,
        *,
        model: str | None = None,
        instructions: str | None = None,
        opener: Literal["auto", "assumed"] = "auto",
        closer: Literal["last", "first"] = "last",
        **parameters: Unpack[Parameters],
    ) -> None:
        self._settings = PhiSettings(model, instructions, opener, closer, check(parameters))
        self._owned = client is None
        self.client = client or AsyncLMStudio()

    async def aclose(self) -> None:
        """Close the client, if it was made here."""
        if self._owned:
            await self.client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def stream(
        self,
        prompt: str,
        *,
        history: Iterable[Mapping[str, Any]] = (),
        instructions: str | None = None,
        model: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> AsyncReplyStream:
        """Ask, and follow the reply as it comes. `history` is messages with role and content, oldest first.

        Raises InvalidRequest, before anything is sent, for what can't be sent.
        """
        body = self._settings.body(prompt, history, instructions, model, parameters)
        return AsyncReplyStream(self.client, endpoints.path("v1", "chat/completions"), body, **self._settings.reading)

    async def ask(
        self,
        prompt: str,
        *,
        history: Iterable[Mapping[str, Any]] = (),
        instructions: str | None = None,
        model: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> Reply:
        """Ask, and return the whole reply. Raises what a stream raises."""
        async with self.stream(prompt, history=history, instructions=instructions, model=model, **parameters) as reply:
            return await reply.read()
