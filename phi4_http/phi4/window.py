"""Which part of a history fits in the context, with the fewest counts and the fewest moves.

The system prompt and the newest turn always go out; of the turns between, a suffix. A turn is a user's message with all
that followed it, so the window never opens on an answer and never splits a tool exchange, and the newest turn may end
with the results of tools.

A server's prompt cache is a prefix: a window that begins elsewhere is processed anew from the system prompt on. So a
window keeps its start for as long as what follows fits; then it drops turns until a share of the room is free, and
keeps that start in turn (`steady`). `longest` is the longest suffix that fits, whatever that costs. Where a window
began is remembered by a digest of the messages up to there, so that a history that is handed in anew keeps its start.

What is known comes first and costs nothing: bytes bound tokens from above; what the server has counted of earlier
prompts is remembered by their digests, and two counts with one start tell exactly what stands between. Only where that
leaves open whether the start can be kept is it counted, once; and only where the sizes of the turns are not known is a
new start found by binary search over exact counts, ⌈log2(turns)⌉ + 1 of them at most.

Counts may be wrong. Of one that can't be a count nothing is used; a server whose counts fall while a prompt grows
(some count only what was not in their cache) is not believed again; and what was remembered yields to a count that
contradicts it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from ..errors import ContextOverflow
from ..flow import Flow
from ..server import Histories
from .counting import FRAME_TOKENS, TEMPLATE_TOKENS, Count, Counter, Message, bound, is_count, least
from .known import Counted, Remembered, canonical, learn, running_digests

__all__ = ["Policy", "Reserve", "Window", "fit", "learn", "reserve", "turns"]

log: logging.Logger = logging.getLogger("phi4_http")

LARGEST_RESERVE = 16_384
"""Tokens kept free for the reply by default: thoughts of 4,000 to 20,000 tokens are usual with this model."""

KEPT_SHARE = 0.5
"""How much of the room the turns take at most after a move; the room is what the reply's reserve, the system prompt and
the newest turn leave. At a half, three quarters of it are in use on average. More would be in use at three quarters,
and twice as many turns would be processed anew from the system prompt on."""

NEAR_TURNS = 3
"""So many turns more or fewer after a move are not worth a request. Where each turn was counted, the size of what is
dropped is known up to a user's message at either end, which leaves less than three turns open."""

CHAINS = 3
"""Earlier starts of a window whose counts are looked up. The latest two hold the sizes of all that is in the window."""

Policy: TypeAlias = Literal["steady", "longest"]


class Reserve(NamedTuple):
    """Tokens kept free for the reply: `wanted` beside a history, at least `least` beside the newest turn alone."""

    wanted: int
    least: int


def reserve(limit: int, wanted: int | None = None, max_tokens: int | None = None) -> Reserve:
    """The caller's reserve, or the default: half the context, 16,384 tokens at most, and no more than `max_tokens`.

    The default gives way to the newest turn, which can't be dropped, down to an eighth of the context; a caller's
    own reserve does not.
    """
    if wanted is not None:
        return Reserve(wanted, wanted)
    most = max_tokens if max_tokens is not None and max_tokens > 0 else LARGEST_RESERVE
    return Reserve(min(most, LARGEST_RESERVE, limit // 2), min(most, LARGEST_RESERVE, limit // 8))


class Window(NamedTuple):
    """What goes out, what does not, and what finding out cost."""

    messages: tuple[Message, ...]
    dropped: tuple[Message, ...] = ()
    tokens: int | None = None
    """The exact count of `messages`, where it is known."""
    requests: int = 0
    """Requests of one token that were sent to count."""
    at_most: int | None = None
    """Tokens that `messages` have at most, by what is known of them."""


def turns(messages: Sequence[Message]) -> list[list[Message]]:
    """Messages as turns. What stands before the first user's message is a turn of its own, and can't open a window."""
    grouped: list[list[Message]] = []
    for message in messages:
        if message["role"] == "user" or not grouped:
            grouped.append([])
        grouped[-1].append(message)
    return grouped


def fit(
    messages: Sequence[Message],
    *,
    limit: int,
    room: Reserve,
    counter: Counter,
    histories: Histories,
    beside: int = 0,
    window: Policy = "steady",
) -> Flow[Window]:
    """The window onto these messages: a system message first (if any), then a history; its last turn is the newest.

    `limit` is the loaded context length in tokens; `beside` is what the prompt holds at most besides messages, such as
    tools. Raises ContextOverflow where system prompt and newest turn alone do not fit.
    """
    search = _Search(messages, limit=limit, room=room, counter=counter, histories=histories, beside=beside)
    start = yield from search.steady() if window == "steady" else search.longest()
    if start > search.last:
        raise search.overflow()
    return search.window(start)


class _Search:
    """Where the window onto these messages begins. A start is the number of a turn; the last one is the newest."""

    def __init__(
        self,
        messages: Sequence[Message],
        *,
        limit: int,
        room: Reserve,
        counter: Counter,
        histories: Histories,
        beside: int,
    ) -> None:
        self.head = tuple(messages[:1]) if messages[0]["role"] == "system" else ()
        self.rest = tuple(messages[len(self.head) :])
        grouped = turns(self.rest) or [[]]
        self.last = len(grouped) - 1
        self.opening = 1 if self.last and grouped[0][0]["role"] != "user" else 0
        self._begins = [0]
        for turn in grouped[:-1]:
            self._begins.append(self._begins[-1] + len(turn))
        self._limit, self._room, self._beside = limit, room, beside
        self._counter, self._histories = counter, histories
        around = bound(self.head) + FRAME_TOKENS + TEMPLATE_TOKENS + beside
        self._bounds = _Bounds([bound(turn) for turn in grouped], [least(turn) for turn in grouped], around)
        self._exact: dict[int, int] = {}
        self._requests = 0
        self._encoded = [canonical(message) for message in messages]
        self.started = self._began()
        self._remembered = Remembered(self._begins, [bound([message]) for message in self.rest], self._chains())
        self._countable = True

    # --- what is there

    def sent(self, start: int) -> tuple[Message, ...]:
        """The messages of the window that begins there."""
        return (*self.head, *self.rest[self._begins[start] :])

    def window(self, start: int) -> Window:
        """What goes out and what does not; where it begins is remembered."""
        if start > self.opening:
            self._histories.note_start(self._whole[len(self.head) + self._begins[start]])
        tokens = self._exact.get(start, self._remembered.exact(start))
        dropped = self.rest[: self._begins[start]]
        return Window(self.sent(start), dropped, tokens, self._requests, self.at_most(start))

    def overflow(self) -> ContextOverflow:
        """The newest turn alone is too long: how many tokens it takes, the reply's reserve not among them."""
        exact = self._exact.get(self.last)
        needed = exact if exact is not None else self.at_least(self.last)
        takes = f"{needed:,} tokens" if exact is not None else f"at least {needed:,} tokens"
        message = (
            f"the system prompt and the newest message alone take {takes}, and {self._room.least:,} of {self._limit:,} "
            "are kept for the reply"
        )
        return ContextOverflow(needed, self._limit, message=message, at_least=exact is None, reserve=self._room.least)

    def _began(self) -> list[int]:
        """The starts that windows onto this history had, the latest first."""
        self._whole = list(running_digests(self._encoded))
        places = ((start, len(self.head) + self._begins[start]) for start in range(self.last, self.opening, -1))
        return [start for start, at in places if at < len(self._whole) and self._histories.began(self._whole[at])]

    # --- what is known

    def at_most(self, start: int) -> int:
        """Tokens of the window that begins there."""
        return min(self._bounds.at_most[start], self._remembered.at_most[start])

    def at_least(self, start: int) -> int:
        """Tokens of the window that begins there."""
        return max(self._bounds.at_least[start], min(self._remembered.at_least[start], self._bounds.at_most[start]))

    def free(self, start: int) -> int:
        """Tokens that a prompt may have, so that the reply has its reserve."""
        return self._limit - (self._room.least if start == self.last else self._room.wanted)

    def share(self, start: int) -> int:
        """Tokens that a prompt may have after a move."""
        if start == self.last:
            return self.free(start)
        free, always = self.free(start), self.at_least(self.last)
        return int(always + KEPT_SHARE * (free - always)) if always < free else free

    # --- what is decided

    def longest(self) -> Flow[int]:
        """The longest window that fits; a start after the last one where none does."""
        return (yield from self._first(self.opening, self.free))

    def steady(self) -> Flow[int]:
        """The start as it was, for as long as that fits; else one that leaves room for some time."""
        kept = self.started[0] if self.started else self.opening
        if self.at_most(kept) > self.free(kept) >= self.at_least(kept):
            yield from self._count(kept)
        if self.at_most(kept) <= self.free(kept):
            return kept
        self._remembered.compare(kept, self.at_least(kept), self.at_most(kept))
        return (yield from self._first(min(kept + 1, self.last), self.share, near=NEAR_TURNS))

    def _first(self, low: int, allowed: Callable[[int], int], near: int = 0) -> Flow[int]:
        """The first start from `low` on whose window has no more tokens than it may, or one so near behind it."""
        while True:
            # From the beginning each time: a count may show that what was remembered is wrong.
            here = range(low, self.last + 1)
            high = next((start for start in here if self.at_most(start) <= allowed(start)), self.last + 1)
            first = next((start for start in here if self.at_least(start) <= allowed(start)), high)
            if first >= high or (high - first <= near and high < self.last):
                return high
            if not self._countable or not (yield from self._count((first + high) // 2)):
                return min(high, self.last)

    def _count(self, start: int) -> Flow[bool]:
        """Count a window, as exactly as it can be; False where it can't."""
        count: Count = yield from self._counter.count(self.sent(start))
        self._requests += count.requests
        believed = self._bounds.believes(start, count.tokens)
        if count.tokens is not None and believed:
            self._exact[start] = count.tokens
            self._bounds.learn(start, count.tokens)
            if not self._remembered.allows(start, count.tokens):
                log.debug("what was counted before does not agree with %d tokens: forgotten", count.tokens)
                self._remembered.forget()
            self._histories.note_count(self.chain(start)[-1], count.tokens)
            return True
        if count.too_long:
            self._bounds.learn_least(start, self._limit + 1)
            return True
        log.warning("the prompt can't be counted: the window is as long as the bound allows")
        self._countable = False
        return False

    def _chains(self) -> list[Counted]:
        """What the server counted of windows onto this history that began where one began, or at its first turn."""
        starts = dict.fromkeys([*self.started[:CHAINS], self.opening])
        return [chain for start in starts if (chain := self._counted(start)) is not None]

    def _counted(self, start: int) -> Counted | None:
        keys, begin = self.chain(start), self._begins[start]
        counts = [
            (begin + number, tokens) for number, tokens in enumerate(map(self._histories.count, keys), 1) if tokens
        ]
        if not counts:
            return None
        place, tokens = counts[-1]
        written = self._histories.answer(keys[place - begin]) if place - begin < len(keys) else None
        if written is None or written.slack > self._room.wanted:
            return Counted(begin, tuple(counts), counts[-1])
        more = min(written.tokens + written.slack, bound([self.rest[place]]))
        return Counted(begin, tuple(counts), (place + 1, tokens + more))

    def chain(self, start: int) -> list[bytes]:
        """The digest of the window that begins there, up to each message of it; the system message's own left out."""
        head = len(self.head)
        encoded = [*self._encoded[:head], *self._encoded[head + self._begins[start] :]]
        return list(running_digests(encoded, self._beside))[head:]


class _Bounds:
    """Between how many tokens each window's count must be, by where it starts: bytes, and the counts of this search."""

    def __init__(self, sizes: Sequence[int], spoken: Sequence[int], around: int) -> None:
        self._sizes = sizes[:-1]
        self.at_most = [around + sum(sizes[start:]) for start in range(len(sizes))]
        self.at_least = [1 + sum(spoken[start:-1]) for start in range(len(sizes))]

    def learn(self, start: int, tokens: int) -> None:
        """An exact count: a longer window has no more tokens than it has more bytes, a shorter one no fewer."""
        grown = 0
        for longer in range(start, -1, -1):
            self.at_most[longer] = min(self.at_most[longer], tokens + grown)
            self.at_least[longer] = max(self.at_least[longer], tokens)
            grown += self._sizes[longer - 1] if longer else 0
        shrunk = 0
        for shorter in range(start, len(self._sizes) + 1):
            self.at_most[shorter] = min(self.at_most[shorter], tokens)
            self.at_least[shorter] = max(self.at_least[shorter], tokens - shrunk)
            shrunk += self._sizes[shorter] if shorter < len(self._sizes) else 0

    def learn_least(self, start: int, tokens: int) -> None:
        """A window has that many tokens or more, and so has every longer one."""
        for longer in range(start + 1):
            self.at_least[longer] = max(self.at_least[longer], tokens)

    def believes(self, start: int, tokens: Any) -> bool:
        """Whether an exact count agrees with all that is known: a longer prompt can't have fewer tokens."""
        return is_count(tokens) and self.at_least[start] <= tokens <= self.at_most[start]
