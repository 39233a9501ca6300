"""A response that is read bit by bit, by each client; what they share of it is `incoming`."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import httpx
from httpx_sse import ServerSentEvent

from ..flow import Answer
from .aside import Aside
from .http import translated
from .incoming import Incoming, Unpacking

if TYPE_CHECKING:
    import asyncio


class BlockingChannel(Incoming):
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
        self.end_job()
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


class AsyncChannel(Incoming):
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
        import asyncio  # the blocking client does without

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
            import asyncio

            running.cancel()
            await asyncio.wait([running])
        if running is not None and running.done() and not running.cancelled():
            running.exception()  # nobody waits for it
        if self.opened:
            await self.response.aclose()
        self.end_job()
