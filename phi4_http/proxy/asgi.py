"""The proxy as an ASGI application, for uvicorn, hypercorn or granian: `phi4_http.proxy.asgi:app`.

    request ──gate──> /v1/chat/completions ──repair──> upstream ──events──> answer ──bytes──> client
                 ├──> /v1/models, /healthz
                 └──> anything else passes as it is

Two things run beside each answer: one waits for the client to leave, and ends the request upstream then, however silent
that is; one sends comments where a stream has been silent for long. What is to be done is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple, TypeAlias

import httpx

from .. import __version__
from ..errors import InvalidRequest, Phi4Error, ServerUnreachable
from ..events import Reply
from ..limits import ANSWER_LIMIT
from ..loopback.limits import LARGEST, error_object
from ..loopback.responder import HOP_BY_HOP
from .answer import Answer, answer_to, comment, repairs, usage_of
from .gate import Gate, Headers, target_of, token_of, with_lengths
from .refused import refusal_of
from .repair import Repair, asked
from .upstream import Upstream

log: logging.Logger = logging.getLogger("phi4_http.proxy")

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_CHAT, _MODELS, _HEALTH = "/v1/chat/completions", "/v1/models", "/healthz"
_JSON = [(b"content-type", b"application/json; charset=utf-8")]
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the stream back
]
_HEALTH_SECONDS = 2.0


class Handled(NamedTuple):
    """One request that was answered: never its words, nor a token."""

    method: str
    path: str
    """Without its query."""
    status: int | None
    """None where the client left before there was one."""
    seconds: float
    left: bool
    """Whether the client went before the end."""
    model: str | None = None
    """Of a chat that was repaired; None where the request passed as it was."""
    outcome: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    repairs: tuple[str, ...] = ()
    error: str | None = None
    """The code of the error that was told."""


class Proxy:
    """The application. `report` is called after each request; without it, a line goes to the log `phi4_http.proxy`.

    `make` is called once, in the event loop, for what is behind it.
    """

    def __init__(
        self,
        make: Callable[[], tuple[Upstream, Repair, Gate]],
        *,
        report: Callable[[Handled], None] | None = None,
    ) -> None:
        self._make = make
        self._made: tuple[Upstream, Repair, Gate] | None = None
        self._report = report or _log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the life of a server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    def _parts(self) -> tuple[Upstream, Repair, Gate]:
        if self._made is None:
            self._made = self._make()
        return self._made

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self._parts()
        except InvalidRequest as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def aclose(self) -> None:
        """Close every connection to the server behind it."""
        made, self._made = self._made, None
        if made is not None:
            await made[0].aclose()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until the client leaves."""
        upstream, repair, gate = self._parts()
        exchange = _Exchange(upstream, repair, gate, scope, send)
        gone: asyncio.Future[Any] = asyncio.ensure_future(exchange.read(receive))
        work: asyncio.Future[Any] | None = None
        try:
            body = await gone
            if body is None:
                exchange.left = True
                return
            gone = asyncio.ensure_future(_left(receive))
            work = asyncio.ensure_future(exchange.answer(body))
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            running = [task for task in (gone, work) if task is not None and not task.done()]
            exchange.left = exchange.left or work in running
            for task in running:
                task.cancel()
            try:
                await asyncio.gather(*running, return_exceptions=True)
            finally:  # also where the server is closing
                self._report(exchange.handled())
        if work is not None and not exchange.left:
            work.result()


async def _left(receive: Receive) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _log(handled: Handled) -> None:
    log.info("%s", handled)


class _Exchange:
    """One request and its answer."""

    def __init__(self, upstream: Upstream, repair: Repair, gate: Gate, scope: Scope, send: Send) -> None:
        self._upstream, self._repair, self._gate, self._send = upstream, repair, gate, send
        self._method: str = scope["method"]
        self._headers: Headers = [(name.lower(), value) for name, value in scope["headers"]]
        self._target = target_of(scope)
        self._path = self._target.partition("?")[0]
        self._address = str((scope.get("server") or ("",))[0])
        self._writing = asyncio.Lock()
        self._started = self._last = time.monotonic()
        self._status: int | None = None
        self._model: str | None = None
        self._reply: Reply | None = None
        self._outcome: str | None = None
        self._error: str | None = None
        self._unread = False
        self.left: bool = False

    def handled(self) -> Handled:
        """What became of it."""
        usage = (usage_of(self._reply) if self._reply else None) or {}
        outcome = "cancelled" if self.left and self._model else self._outcome
        return Handled(
            self._method,
            self._path,
            self._status,
            time.monotonic() - self._started,
            self.left,
            self._model,
            outcome,
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
            usage.get("completion_tokens_details", {}).get("reasoning_tokens"),
            tuple(repairs(self._reply)),
            self._error,
        )

    async def read(self, receive: Receive) -> bytes | None:
        """The body; None where the client left in the middle of it. What is too large is left unread."""
        pieces, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > LARGEST:
                self._unread = True
                return b""
            if not message.get("more_body"):
                return b"".join(pieces)

    async def answer(self, body: bytes) -> None:
        """Answer."""
        refused = self._gate.refuses(self._target, self._headers, self._address)
        if refused is None and self._unread:
            refused = 413, f"a request may have {LARGEST:,} bytes of body, not more", "request_too_large"
        if refused is not None:
            status, message, self._error = refused
            await self._whole(status, error_object(message, kind="invalid_request_error", code=self._error))
        elif preflight := self._gate.preflight(self._method, self._headers):
            await self._start(204, preflight, shared=False)
            await self._write(b"", more=False)
        else:
            try:
                await self._route(body)
            except Phi4Error as error:
                refusal = refusal_of(error)
                self._error = refusal.body["error"]["code"]
                await self._whole(refusal.status, json.dumps(refusal.body).encode(), retry=refusal.retry)

    async def _route(self, body: bytes) -> None:
        route = self._method, self._path
        if route == ("POST", _CHAT):
            await self._chat(body)
        elif route == ("GET", _MODELS):
            await self._models()
        elif route == ("GET", _HEALTH):
            await self._health()
        else:
            await self._pass(body)

    # What is repaired

    async def _chat(self, body: bytes) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._headers}
        wanted = asked(body, headers, self._repair)
        if wanted is None:
            return await self._pass(body)
        self._model = wanted.model
        answer = answer_to(wanted, self._repair, id=f"chatcmpl-{uuid.uuid4().hex}", created=int(time.time()))
        error: Phi4Error | None = None
        async with self._kept_alive(answer):
            try:
                token = token_of(self._headers)
                async with self._upstream.holding(token, wanted.model) as model:
                    phi = self._upstream.phi(token)
                    stream = phi.stream(
                        history=wanted.messages, model=model, waiting=wanted.streamed, **wanted.parameters
                    )
                    async with stream as reply:
                        async for event in reply:
                            if data := answer.feed(event):
                                await self._events(data)
                    self._reply = stream.result
            except Phi4Error as fault:
                error = fault
                self._reply = fault.partial if isinstance(fault.partial, Reply) else None
        end = answer.close(error, begun=self._status is not None)
        self._outcome = str(self._reply.outcome) if self._reply else "refused"
        if error is not None:
            self._error = refusal_of(error).body["error"]["code"]
        if self._status is not None or (answer.streamed and end.status == 200):
            await self._events(end.data, more=False)
        else:
            await self._whole(end.status, end.data, retry=end.retry)

    @contextlib.asynccontextmanager
    async def _kept_alive(self, answer: Answer) -> AsyncGenerator[None, None]:
        """Send comments where a stream is silent."""
        every = self._repair.keepalive
        if not answer.streamed or not every:
            yield
            return

        async def tick() -> None:
            while True:
                left = self._last + every - time.monotonic()
                await asyncio.sleep(max(left, 0))
                if left <= 0:
                    await self._events(comment(answer.phase))

        ticking = asyncio.ensure_future(tick())
        try:
            yield
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)

    async def _models(self) -> None:
        response = await self._upstream.send("GET", self._target, self._headers_for_json)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(response.aclose)
            if response.status_code != 200:
                return await self._pass_on(response)
            try:
                body = await _read(response)
            except httpx.HTTPError as error:
                raise ServerUnreachable(self._upstream.url, f"its list of models broke off ({error})") from error
        infos: Any = ()
        with contextlib.suppress(Phi4Error):  # the list stands without
            infos = await self._upstream.phi(token_of(self._headers)).client.models()
        await self._whole(200, with_lengths(body, infos, self._repair, self._upstream.planned_length))

    async def _health(self) -> None:
        told: dict[str, Any] = {"status": "ok", "version": __version__, "upstream": self._upstream.url}
        try:
            response = await self._upstream.send("GET", _MODELS, self._headers_for_json, seconds=_HEALTH_SECONDS)
            await response.aclose()
            told["reachable"] = True
        except ServerUnreachable as error:
            told |= {"reachable": False, "reason": str(error)}
        await self._whole(200, json.dumps(told).encode())

    @property
    def _headers_for_json(self) -> Headers:
        return [*(pair for pair in self._headers if pair[0] == b"authorization"), (b"accept-encoding", b"identity")]

    # What passes

    async def _pass(self, body: bytes) -> None:
        response = await self._upstream.send(self._method, self._target, self._headers, body)
        try:
            await self._pass_on(response)
        finally:
            await response.aclose()

    async def _pass_on(self, response: httpx.Response) -> None:
        """The answer as it comes. Where it breaks off, so does ours: nothing says that it is whole."""
        dropped = HOP_BY_HOP - {"content-length"}
        headers = [(name.lower(), value) for name, value in response.headers.raw]
        kept = [
            (name, value)
            for name, value in headers
            if name.decode("latin-1") not in dropped and not name.startswith(b"access-control-")
        ]
        await self._start(response.status_code, kept)
        try:
            async for data in response.aiter_raw():
                await self._write(data)
        except httpx.HTTPError as error:
            self._error = "upstream_broke_off"
            log.debug("the answer broke off: %r", error)
            return
        await self._write(b"", more=False)

    # What goes out

    async def _start(self, status: int, headers: Headers, *, shared: bool = True) -> None:
        self._status = status
        further = self._gate.shared(self._headers) if shared else []
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *further]})

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _events(self, data: bytes, *, more: bool = True) -> None:
        """More of a stream of events."""
        async with self._writing:
            if self._status is None:
                await self._start(200, _EVENTS)
            await self._write(data, more=more)
            self._last = time.monotonic()

    async def _whole(self, status: int, body: bytes, *, retry: bool = True) -> None:
        headers = [*_JSON, (b"content-length", b"%d" % len(body))]
        if status >= 400 and not retry:
            headers.append((b"x-should-retry", b"false"))  # OpenAI's clients heed it
        await self._start(status, headers)
        await self._write(body, more=False)


async def _read(response: httpx.Response) -> bytes:
    held = bytearray()
    async for data in response.aiter_bytes():
        held += data
        if len(held) > ANSWER_LIMIT:
            raise httpx.DecodingError("it is too long")
    return bytes(held)


def _from_environment() -> tuple[Upstream, Repair, Gate]:
    from .configured import from_environment  # only where nobody has configured it by hand

    return from_environment()


app: Proxy = Proxy(_from_environment)
"""The application as the environment says, read when it starts."""
