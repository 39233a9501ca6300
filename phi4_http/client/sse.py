"""From the bytes of a body to server-sent events: httpx-sse, fed all that has come at once.

`feed` and `close`, like the splitter. A body's last event counts also where no blank line ends it (the last thing that
a failing server says is often just that), and a byte-order mark before the first one is none of it (WHATWG, server-sent
events, 9.2.5).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import cast

import httpx
from httpx_sse import EventSource, ServerSentEvent

from ..limits import EVENT_LIMIT

_SHOWN = 400
"""Characters of what came that are kept as long as no event is in it."""


class TooLong(ValueError):
    """An event, or what comes between two, is longer than `EVENT_LIMIT`."""


class EventReader:
    """Takes the bytes of one body, in any pieces; gives the events that are whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._held: list[str] = []  # text after the last blank line
        self._size = 0  # characters of it, and of what came before it with no event in it
        self._after_return = False  # whether a line feed that comes next belongs to a carriage return before it
        self._any = False  # whether there was an event
        self.unread: str = ""
        """The start of the text, as long as no event was in it."""

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that these bytes complete. Raises `TooLong`."""
        text = self._decoder.decode(data)
        if "\r" in text or self._after_return:
            text = self._in_line_feeds(text)
        if text[-2:] == "\n\n" and not self._held and self._any:  # nearly every read ends with an event
            events = _events(text)
            if events:
                self._size = 0
                return events
            return self._none(len(text))
        return self._first(text) if not self._any else self._cut(text)

    def close(self) -> list[ServerSentEvent]:
        """The body has ended, well or badly: the event that was left, if any."""
        rest = "".join(self._held) + self._decoder.decode(b"", final=True)
        self._held.clear()
        events = _events(f"{rest}\n\n") if rest else []
        if any(event.data for event in events):
            self.unread = ""
        return events

    def _first(self, text: str) -> list[ServerSentEvent]:
        """As long as no event has come, what has come is kept: it may be all that there is to tell."""
        self.unread = (self.unread + text[:_SHOWN])[:_SHOWN]
        if not self._held and text[:1] == "\n":
            stripped = text.lstrip("\n")
            self._none(len(text) - len(stripped))
            text = stripped
        events = self._cut(text)
        if any(event.data for event in events):
            self._any, self.unread = True, ""
        return events

    def _none(self, size: int) -> list[ServerSentEvent]:
        """So much has come with no event in it. Raises `TooLong`."""
        self._size += size
        if self._size > EVENT_LIMIT:
            raise TooLong
        return []

    def _in_line_feeds(self, text: str) -> str:
        """The text with each end of a line as one line feed, also where it was cut in half."""
        if self._after_return:
            text, cut = text.removeprefix("\n"), text
            self._after_return = not cut
        if text:
            self._after_return = text.endswith("\r")
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def _cut(self, text: str) -> list[ServerSentEvent]:
        end = text.rfind("\n\n") + 2
        if end < 2:
            end = 1 if text[:1] == "\n" and self._held and self._held[-1][-1:] == "\n" else 0
        events = []
        if end:
            events = _events("".join([*self._held, text[:end]]))
            self._held.clear()
            self._size = 0 if events else self._size + end
        if len(text) > end:
            self._held.append(text[end:])
            self._size += len(text) - end
        if self._size > EVENT_LIMIT:
            raise TooLong
        return events


class _Whole:
    """Text as a response of httpx, as far as httpx-sse looks at one."""

    def __init__(self, text: str) -> None:
        self.headers = {"content-type": "text/event-stream"}
        self._text = text

    def iter_text(self) -> Iterator[str]:
        yield self._text

    def iter_lines(self) -> Iterator[str]:  # httpx-sse 0.4.1 and older
        yield from self._text.split("\n")


def _events(text: str) -> list[ServerSentEvent]:
    return list(EventSource(cast("httpx.Response", _Whole(text))).iter_sse())
