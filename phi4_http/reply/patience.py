"""How long a reply is waited for: its time limits, read off one clock. No I/O, and the clock is the caller's.

    entered ──first_byte──> it says something ──idle──> the next event ──idle──> … finish reason ──grace──> the end
    └───────────────────────────────────total─────────────────────────────────────────────────────────┘

A reply of two parts has a `first_byte` for each, since each has a prompt that must be processed.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ServerUnreachable
from ..limits import GRACE, Timeouts


class Limit(NamedTuple):
    """A time limit: its name as a field of `Timeouts`, its seconds, and when it ends the wait."""

    name: str
    seconds: float
    ends: float


class Patience:
    """The time limits of one reply that was asked for at `started`. Every `now` is seconds on the same clock."""

    def __init__(self, timeouts: Timeouts, started: float) -> None:
        self._timeouts = timeouts
        self.started = self._part = self._last = started
        self._begun = False
        self._finished: float | None = None

    @property
    def limited(self) -> bool:
        """Whether there is any limit but the grace."""
        waits = self._timeouts
        return not (waits.first_byte is None and waits.idle is None and waits.total is None)

    def begin_part(self, now: float) -> None:
        """A request goes out."""
        self._part = self._last = now
        self._begun, self._finished = False, None

    def note(self, now: float, *, events: bool, begun: bool, finished: bool) -> None:
        """What was read by now: whether events came, and whether the part has said something, and its finish reason."""
        if events or (begun and not self._begun):
            self._last = now
        self._begun = self._begun or begun
        if finished and self._finished is None:
            self._finished = now

    def limit(self) -> Limit | None:
        """The limit that ends the wait first."""
        waits = self._timeouts
        if self._finished is not None:
            return Limit("", GRACE, self._finished + GRACE)
        name, since = ("idle", self._last) if self._begun else ("first_byte", self._part)
        limits = [(name, getattr(waits, name), since), ("total", waits.total, self.started)]
        ends = [Limit(name, seconds, since + seconds) for name, seconds, since in limits if seconds is not None]
        return min(ends, key=lambda limit: limit.ends) if ends else None

    def seconds(self, now: float, most: float | None = None) -> float | None:
        """How long to wait at most, `most` itself included; None is without end."""
        limit = self.limit()
        if limit is None:
            return most
        left = max(limit.ends - now, 0.0)
        return left if most is None else min(left, most)

    def over(self, now: float) -> Limit | None:
        """The limit that has ended the wait, if one has."""
        limit = self.limit()
        return limit if limit is not None and now >= limit.ends else None


def out_of_time(
    limit: Limit, url: str, *, opened: bool, events: int, unread: str, characters: int
) -> ServerUnreachable:
    """The error for a limit that has ended the wait, with what had come."""
    within = f"within the time limit of {limit.seconds:g} s ({limit.name})"
    if characters and limit.name == "total":
        said = f"it was not over {within}: {characters:,} characters had come"
    elif characters:
        said = f"nothing more came {within}, after {characters:,} characters"
    elif events:
        said = f"no text came {within}, only {events:,} {'event' if events == 1 else 'events'} with none in them"
    elif unread:
        said = f"no event came {within}, only {' '.join(unread.split())[:60]!r}"
    else:
        said = f"nothing came {within}{', but for the head of an answer' if opened else ''}"
    return ServerUnreachable(url, said, timed_out=True, limit=limit.name)
