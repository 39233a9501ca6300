"""The tape as an httpx transport, blocking and async in one, for any httpx client.

What is decided (play or record, which exchange, when each piece is due, how a bad end looks) is decided once, in
methods that neither wait nor do HTTP; the two faces only wait, ask the inner transport and hand pieces on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Generator, Iterator
from typing import TypeAlias

import httpx

from ..client.http import check_loop
from ..errors import TapeMismatch
from .exchange import End, Exchange, RecordedRequest
from .matching import Selection
from .playback import Playback
from .recorder import Recorder, Recording

InnerTransport: TypeAlias = httpx.BaseTransport | httpx.AsyncBaseTransport


class TapeTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Plays what `selection` has, and records through `inner` with `recorder` what it hasn't (both may be None).

    Made by `Tape.replay` and `Tape.record`. Raises `TapeMismatch` for a request that is not on the tape and is not to
    be recorded.
    """

    on_tape = True
    """A client asks nothing beyond what it is asked: what is recorded replays anywhere."""

    def __init__(
        self,
        *,
        selection: Selection | None,
        playback: Playback,
        recorder: Recorder | None = None,
        inner: InnerTransport | None = None,
    ) -> None:
        self._selection = selection
        self._playback = playback
        self._recorder = recorder
        self._inner = inner
        self._mismatches: list[TapeMismatch] = []
        self._kept_before = recorder.kept if recorder else 0

    @property
    def plays(self) -> bool:
        """Whether what is on the tape is played."""
        return self._selection is not None

    @property
    def played(self) -> tuple[Exchange, ...]:
        """The exchanges of the tape that were played."""
        return self._selection.played if self._selection else ()

    @property
    def recorded(self) -> int:
        """How many exchanges were recorded, up to their end."""
        return self._recorder.kept - self._kept_before if self._recorder else 0

    @property
    def unused(self) -> tuple[Exchange, ...]:
        """The exchanges of the tape that were not played."""
        return self._selection.unused if self._selection else ()

    @property
    def mismatches(self) -> tuple[TapeMismatch, ...]:
        """What was asked and not on the tape, whether or not the client showed it to its caller."""
        return tuple(self._mismatches)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Play or record one exchange. Raises `TapeMismatch`, and what the inner transport raises."""
        came = time.monotonic()
        request.read()
        chosen = self._choose(request)
        if isinstance(chosen, Exchange):
            stream = _PlayedStream(chosen, self._playback, request, came)
            for pause in stream.head():
                time.sleep(pause)
            return _played(chosen, stream)
        with _unless_it_fails(chosen):
            inner = self._inner = self._inner or httpx.HTTPTransport(verify=verify_for(request.url))
            if not isinstance(inner, httpx.BaseTransport):
                raise TypeError("a blocking client needs a blocking inner transport")
            response = inner.handle_request(unencoded(request))
            try:
                return _recorded(response, chosen)
            except BaseException:
                response.close()
                raise

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As `handle_request`, awaited. Raises InvalidRequest where no event loop of asyncio runs."""
        check_loop("an asynchronous client on a tape is")
        came = time.monotonic()
        await request.aread()
        chosen = self._choose(request)
        if isinstance(chosen, Exchange):
            stream = _PlayedStream(chosen, self._playback, request, came)
            for pause in stream.head():
                await asyncio.sleep(pause)
            return _played(chosen, stream)
        with _unless_it_fails(chosen):
            inner = self._inner = self._inner or httpx.AsyncHTTPTransport(verify=verify_for(request.url))
            if not isinstance(inner, httpx.AsyncBaseTransport):
                raise TypeError("an async client needs an async inner transport")
            response = await inner.handle_async_request(unencoded(request))
            try:
                return _recorded(response, chosen)
            except BaseException:
                await response.aclose()
                raise

    def close(self) -> None:
        if isinstance(self._inner, httpx.BaseTransport):
            self._inner.close()

    async def aclose(self) -> None:
        if isinstance(self._inner, httpx.AsyncBaseTransport):
            await self._inner.aclose()

    def _choose(self, request: httpx.Request) -> Exchange | Recording:
        path = request.url.raw_path.decode("ascii")
        headers = request.headers.multi_items()
        if self._selection is not None:
            asked = RecordedRequest.from_bytes(request.method, path, request.content)
            try:
                return self._selection.take(asked, headers)
            except TapeMismatch as mismatch:
                if self._recorder is None:
                    self._mismatches.append(mismatch)
                    raise
        assert self._recorder is not None
        return self._recorder.begin(request.method, path, headers, request.content)


class _PlayedStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A recorded body, each piece when it is due, and its end."""

    def __init__(self, exchange: Exchange, playback: Playback, request: httpx.Request, came: float) -> None:
        self._exchange = exchange
        self._playback = playback
        self._request = request
        self._came = came
        self._patience: float | None = request.extensions.get("timeout", {}).get("read")
        self._script = self._steps()

    def head(self) -> Iterator[float]:
        """How long to wait for the head, in seconds."""
        return self._wait(self._playback.due(self._exchange.response.seconds))

    def __iter__(self) -> Iterator[bytes]:
        for step in self._script:
            if isinstance(step, bytes):
                yield step
            else:
                time.sleep(step)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for step in self._script:
            # Also between pieces that are due at once, as a socket would: others run, and the task can be cancelled.
            await asyncio.sleep(0 if isinstance(step, bytes) else step)
            if isinstance(step, bytes):
                yield step

    def close(self) -> None:
        self._script.close()

    async def aclose(self) -> None:
        self._script.close()

    def _steps(self) -> Generator[float | bytes, None, None]:
        """What to do: wait so many seconds, or hand on a piece. Raises the error that the end was for the client."""
        with contextlib.closing(self._playback.pieces(self._exchange)) as pieces:
            for due, data in pieces:
                yield from self._wait(due)
                yield data
        end = self._playback.end(self._exchange)
        if end is End.STALLED and self._patience is not None and self._playback.speed is not None:
            yield self._patience
        if end is not End.CLEAN:
            error, message = _FAILURES[end]
            raise error(message, request=self._request)

    def _wait(self, due: float) -> Iterator[float]:
        """Wait until something is due, no longer than the client's time limit for a read."""
        pause = self._came + due - time.monotonic()
        if self._patience is not None and pause > self._patience:
            yield self._patience
            raise httpx.ReadTimeout("The read operation timed out", request=self._request)
        if pause > 0:
            yield pause


class _RecordedStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A real body on its way to the client, each piece noted as it passes."""

    def __init__(self, stream: object, recording: Recording) -> None:
        self._stream = stream
        self._recording = recording

    def __iter__(self) -> Iterator[bytes]:
        assert isinstance(self._stream, httpx.SyncByteStream)
        with _noting_the_end(self._recording):
            for data in self._stream:
                self._recording.piece(data)
                yield data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._stream, httpx.AsyncByteStream)
        with _noting_the_end(self._recording):
            async for data in self._stream:
                self._recording.piece(data)
                yield data

    def close(self) -> None:
        assert isinstance(self._stream, httpx.SyncByteStream)
        self._stream.close()
        self._recording.leave()

    async def aclose(self) -> None:
        assert isinstance(self._stream, httpx.AsyncByteStream)
        await self._stream.aclose()
        self._recording.leave()


_BROKEN = "peer closed connection without sending complete message body (incomplete chunked read)"
_FAILURES: dict[End, tuple[type[httpx.TransportError], str]] = {
    End.CUT: (httpx.RemoteProtocolError, _BROKEN),
    End.CUT_INSIDE_CHUNK: (httpx.RemoteProtocolError, _BROKEN),
    End.RESET: (httpx.ReadError, "[Errno 104] Connection reset by peer"),
    End.STALLED: (httpx.ReadTimeout, "The read operation timed out"),
    End.LEFT: (httpx.RemoteProtocolError, "the recording ends here: its client left before the end"),
}


def end_of(error: httpx.TransportError) -> End:
    """How a body ended, by the error that its reader got. httpx does not tell a cut inside a chunk from one outside."""
    if isinstance(error, httpx.TimeoutException):
        return End.STALLED
    return End.RESET if isinstance(error, httpx.ReadError) else End.CUT


@contextlib.contextmanager
def _unless_it_fails(recording: Recording) -> Generator[None, None, None]:
    """An exchange without an answer is not recorded."""
    try:
        yield
    except BaseException:
        recording.discard()
        raise


@contextlib.contextmanager
def _noting_the_end(recording: Recording) -> Generator[None, None, None]:
    try:
        yield
    except httpx.TransportError as error:
        recording.end(end_of(error))
        raise
    except BaseException:
        recording.leave()
        raise
    recording.end(End.CLEAN)


def unencoded(request: httpx.Request) -> httpx.Request:
    """The same request, asking for a body as it is: a compressed one could not be read, edited or scrubbed."""
    headers = request.headers.copy()
    headers["Accept-Encoding"] = "identity"
    return httpx.Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )


def _played(exchange: Exchange, stream: _PlayedStream) -> httpx.Response:
    response = exchange.response
    return httpx.Response(
        response.status,
        headers=[(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in response.headers],
        stream=stream,
        extensions={"http_version": b"HTTP/1.1"},
    )


def headers_of(response: httpx.Response) -> list[tuple[str, str]]:
    """The headers of an answer as they were sent, in their own case."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw]


def _recorded(response: httpx.Response, recording: Recording) -> httpx.Response:
    recording.head(response.status_code, headers_of(response))
    return httpx.Response(
        response.status_code,
        headers=response.headers,
        stream=_RecordedStream(response.stream, recording),
        extensions=response.extensions,
    )


def verify_for(url: httpx.URL) -> ssl.SSLContext | bool:
    """What to verify with: no certificate store is loaded for an `http://` address, which takes a while."""
    return True if url.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
