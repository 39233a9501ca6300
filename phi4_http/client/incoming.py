"""The body of an answer: decoded, bounded, as events or as a whole. What both clients share of reading one.

A reply may come without end, so what is bounded is one event, and the silence between two; an answer that comes whole
is bounded itself. A body that is compressed although it was asked for as it is, is unpacked piece by piece: what a few
bytes make is never held at once.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from httpx_sse import ServerSentEvent

from ..errors import NotLMStudio, Phi4Error, ServerUnreachable
from ..flow import Answer, Http
from ..limits import ANSWER_LIMIT, ERROR_LIMIT, EVENT_LIMIT, INFLATION, Timeouts
from ..running import Job, Work
from .http import limit_of, translate
from .sse import EventReader, TooLong

log: logging.Logger = logging.getLogger("phi4_http")

_PIECE = 1 << 16


class Incoming:
    """A `flow.Channel`: a request that goes out, and the answer that comes to it, bit by bit."""

    def __init__(self, url: str, step: Http, timeouts: Timeouts) -> None:
        self.base: str = url
        self.step: Http = step
        self.url: str = url + step.path
        self.opened: bool = False
        self.status: int = 0
        self.headers: Mapping[str, str] = {}
        self.fault: Phi4Error | None = None
        """How the body broke off: raised when what had come before is out."""
        self.limit: str = limit_of(timeouts, step)[1]
        self._all = timeouts.total if step.slow else timeouts.request if step.timeout is None else None
        self._started = time.monotonic()
        self._events: EventReader | None = EventReader()
        self._held: list[bytes] = []
        self._size = 0
        self._cut = False
        self._job: Job | None = None
        self._came = 0

    def begin_job(self, work: Work) -> None:
        """The model that the request names works from now on, until the channel is closed."""
        model = (self.step.body or {}).get("model")
        if isinstance(model, str) and "/models/" not in self.step.path:
            self._job = work.begin(model)

    def end_job(self) -> None:
        """It works no more: the channel is closed."""
        if self._came:
            log.debug("received: %s bytes in %.1f s", f"{self._came:,}", time.monotonic() - self._started)
            self._came = 0
        if self._job is not None:
            self._job.end()

    @property
    def unread(self) -> str:
        """The start of what has come, as long as no event was in it."""
        return self._events.unread if self._events is not None else self._unread

    _unread = ""

    def came_head(self, response: httpx.Response) -> None:
        """The head of the answer is there."""
        self.response = response
        self.status, self.headers = response.status_code, response.headers
        self.opened = True
        kind = self.headers.get("content-type", "-")
        log.debug("received: %s %s after %.1f s", self.status, kind, time.monotonic() - self._started)

    def unpacking(self) -> Unpacking | None:
        """What undoes the body's encoding, if anything is to be undone. Raises NotLMStudio for an unknown one."""
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("", "identity") or self.response.is_stream_consumed:
            return None
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise self._no_answer(f"its answer is encoded as {encoding!r}, though it was asked for as it is")
        return Unpacking(self)

    # A stream

    def begin(self) -> None:
        """The body is to be read as a stream, whose time limits are its reader's."""
        self.response.request.extensions["timeout"]["read"] = None  # httpcore looks when the body begins

    def came(self, data: bytes) -> list[ServerSentEvent]:
        """The events that these bytes complete. Raises NotLMStudio for one that never ends."""
        self._came += len(data)
        if self._events is None:
            return []
        try:
            return self._events.feed(data)
        except TooLong:
            raise self._no_answer(f"one event of its stream is longer than {EVENT_LIMIT:,} characters") from None

    def broke(self, error: httpx.HTTPError | httpx.StreamError) -> None:
        """The body has broken off."""
        if isinstance(error, httpx.StreamError):  # it was closed here
            return
        self.fault = translate(error, self.url, limit=self.limit, streaming=True)

    def ended(self) -> list[ServerSentEvent] | None:
        """The body has ended, well or badly: the event that was left, then None, or the fault."""
        left = self.left()
        if not left and self.fault is not None:
            raise self.fault
        return left or None

    def left(self) -> list[ServerSentEvent]:
        """The event that has come without its end, if any; once."""
        events, self._events = self._events, None
        if events is None:
            return []
        left = events.close()
        self._unread = events.unread
        return left

    # A whole answer

    @property
    def refused(self) -> bool:
        """Whether this is no good answer of an API."""
        kind = self.headers.get("content-type", "").lower()
        return not 200 <= self.status < 300 or "html" in kind

    def take(self, data: bytes) -> bool:
        """Keep more of the body. Whether more is to be read. Raises NotLMStudio for a good answer without end, and
        ServerUnreachable for one that takes too long."""
        limit = ERROR_LIMIT if self.refused else ANSWER_LIMIT
        self._held.append(data)
        self._size += len(data)
        self._came += len(data)
        if self._size > limit:
            if not self.refused:
                raise self._no_answer(f"its answer is longer than {limit:,} bytes")
            self._cut = True
            return False
        if self._all is not None and time.monotonic() - self._started > self._all:
            name = "total" if self.limit == "first_byte" else self.limit
            raise ServerUnreachable(
                self.url,
                f"its answer was not whole within {self._all:g} s ({name}): {self._size:,} bytes came",
                timed_out=True,
                limit=name,
            )
        return True

    def broken_whole(self, error: httpx.HTTPError | httpx.StreamError, *, lenient: bool) -> None:
        """The body has broken off. What came of a refusal is kept; a good answer is not read in part."""
        if (lenient or self.refused) and self._held and not isinstance(error, httpx.TimeoutException):
            self._cut = True
            return
        if isinstance(error, httpx.StreamError):
            raise ServerUnreachable(self.url, f"its answer can't be read ({error})", answered=True) from error
        fault = translate(error, self.url, limit=self.limit)
        if isinstance(fault, ServerUnreachable) and not fault.timed_out:
            fault = ServerUnreachable(self.url, f"the connection broke in its answer ({fault.reason})", answered=True)
        raise fault from error

    def answer(self) -> Answer:
        """The body as it has come."""
        limit = ERROR_LIMIT if self.refused else ANSWER_LIMIT
        return Answer(self.url, self.status, self.headers, b"".join(self._held)[:limit], self._cut)

    def _no_answer(self, problem: str) -> NotLMStudio:
        return NotLMStudio(self.url, problem, status=self.status, content_type=self.headers.get("content-type"))

    def inflated(self, came: int, made: int) -> None:
        """So many bytes have made so many. Raises NotLMStudio where they would never end."""
        if made > EVENT_LIMIT and made > came * INFLATION:
            raise self._no_answer(f"its answer is compressed, and {came:,} bytes make more than {made:,}")


class Unpacking:
    """Undoes gzip and deflate in bounded pieces."""

    def __init__(self, body: Incoming) -> None:
        self._body = body
        self._unpacker: Any = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        self._came = self._made = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What these bytes make, in pieces. Raises httpx.DecodingError, and NotLMStudio where it would never end."""
        first, self._came = not self._came, self._came + len(data)
        while data and not self._unpacker.eof:
            try:
                piece = self._unpacker.decompress(data, _PIECE)
            except zlib.error as error:
                if not first or self._made:
                    raise httpx.DecodingError(str(error)) from error
                first, self._unpacker = False, zlib.decompressobj(wbits=-zlib.MAX_WBITS)  # deflate with no head
                continue
            data = self._unpacker.unconsumed_tail
            self._made += len(piece)
            self._body.inflated(self._came, self._made)
            if piece:
                yield piece

    def close(self) -> None:
        """There is no more. Raises httpx.DecodingError where there should be."""
        if self._came and not self._unpacker.eof:
            raise httpx.DecodingError("its compressed body breaks off")
