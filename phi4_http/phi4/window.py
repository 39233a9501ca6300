"""Which part of a history fits in the context, with the fewest counts.

The system prompt and the newest message always go out; of the turns between, the longest suffix that fits. A turn is
a user's message with all that followed it, so the window never opens on an answer and never splits a tool exchange.

Bounds come first and cost nothing: where they say that everything fits, nothing is asked. Else the start of the window
is found by binary search over exact counts, each of which moves the bounds of its neighbours: adding turns can't add
more tokens than they have bytes. At most ⌈log2(turns)⌉ + 1 counts, the newest turn counted among the turns.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ContextOverflow
from ..flow import Flow
from .conversation import Known
from .counting import FRAME_TOKENS, TEMPLATE_TOKENS, Count, Counter, Message, bound, is_count, least

log = logging.getLogger("phi4_http")

LARGEST_RESERVE = 16_384
"""Tokens kept free for the reply by default: thoughts of 4,000 to 20,000 tokens are usual with this model."""


@dataclass(frozen=True, slots=True)
class Reserve:
    """Tokens kept free for the reply: `wanted` beside a history, at least `least` beside the newest message alone."""

    wanted: int
    least: int


def reserve(limit: int, wanted: int | None = None, max_tokens: int | None = None) -> Reserve:
    """The caller's reserve, or the default: half the context, 16,384 tokens at most, and no more than `max_tokens`.

    The default gives way to the newest message, which can't be dropped, down to an eighth of the context; a caller's
    own reserve does not.
    """
    if wanted is not None:
        return Reserve(wanted, wanted)
    most = max_tokens if max_tokens is not None and max_tokens > 0 else LARGEST_RESERVE
    return Reserve(min(most, LARGEST_RESERVE, limit // 2), min(most, LARGEST_RESERVE, limit // 8))


@dataclass(frozen=True, slots=True)
class Window:
    """What goes out, what does not, and what finding out cost."""

    messages: tuple[Message, ...]
    dropped: tuple[Message, ...] = ()
    tokens: int | None = None
    """The exact count of `messages`, where it was asked for."""
    requests: int = 0
    """Requests of one token that were sent to count."""


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
    known: Known | None = None,
    beside: int = 0,
) -> Flow[Window]:
    """The window onto these messages: a system message first (if any), a history, the newest message last.

    `limit` is the loaded context length in tokens; `beside` is what the prompt holds at most besides messages, such as
    tools. Raises ContextOverflow where system prompt and newest message alone do not fit.
    """
    head = tuple(messages[:1]) if messages[0]["role"] == "system" else ()
    *history, newest = messages[len(head) :]
    past = turns(history)
    opening = 1 if past and past[0][0]["role"] != "user" else 0

    def window(start: int) -> tuple[Message, ...]:
        return (*head, *(message for turn in past[start:] for message in turn), newest)

    around = FRAME_TOKENS + TEMPLATE_TOKENS + beside
    bounds = _Bounds([bound(turn) for turn in past], [least(turn) for turn in past], bound([*head, newest]) + around)
    if known is not None and known.messages[: len(head)] == head and _is_credible(known):
        start, rest = _rest_beside([*past, [newest]], known.messages[len(head) :])
        bounds.learn_part(start, rest + beside, known.tokens)  # what is beside now may not have been there then
    last = len(past)
    low, high = min(opening, last), last + 1  # the answer is in low..high; last + 1: not even the newest alone

    def free(start: int) -> int:
        return limit - (room.least if start == last else room.wanted)

    exact: dict[int, int] = {}
    requests = 0
    while True:
        high = next((start for start in range(low, high) if bounds.at_most[start] <= free(start)), high)
        low = next((start for start in range(low, high) if bounds.at_least[start] <= free(start)), high)
        if low >= high:
            break
        middle = (low + high) // 2
        count: Count = yield from counter.count(window(middle))
        requests += count.requests
        if count.too_long and not bounds.believes(middle, count.tokens):
            bounds.learn_least(middle, limit + 1)
            continue
        if count.tokens is None or not bounds.believes(middle, count.tokens):
            log.warning("the prompt can't be counted: the window is as long as the bound allows")
            high = min(high, last)
            break
        exact[middle] = count.tokens
        bounds.learn(middle, count.tokens)
    if high > last:
        needed = exact.get(last, bounds.at_least[last])
        raise ContextOverflow(needed + room.least, limit, message="the system prompt and the newest message alone")
    dropped = tuple(message for turn in past[:high] for message in turn)
    return Window(window(high), dropped, exact.get(high), requests)


class _Bounds:
    """Between how many tokens each window's count must be, by where the window starts."""

    def __init__(self, sizes: Sequence[int], spoken: Sequence[int], base: int) -> None:
        self._sizes = sizes
        self.at_most = [base + sum(sizes[start:]) for start in range(len(sizes) + 1)]
        self.at_least = [1 + sum(spoken[start:]) for start in range(len(sizes) + 1)]

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

    def learn_part(self, start: int, rest: int, tokens: int) -> None:
        """An exact count of an earlier request, all of which is in the window from `start`, with `rest` more bytes."""
        for longer in range(start, -1, -1):
            self.at_most[longer] = min(self.at_most[longer], tokens + rest)
            rest += self._sizes[longer - 1] if longer else 0

    def believes(self, start: int, tokens: Any) -> bool:
        """Whether an exact count agrees with all that is known: a longer prompt can't have fewer tokens."""
        return is_count(tokens) and self.at_least[start] <= tokens <= self.at_most[start]


def _is_credible(known: Known) -> bool:
    """Whether an earlier count can be one. One that is too high does no harm."""
    return is_count(known.tokens) and known.tokens >= least(known.messages)


def _rest_beside(turns: Sequence[Sequence[Message]], part: Sequence[Message]) -> tuple[int, int]:
    """The last turn that a window may start with and hold all of `part`, and the bound of the rest of that window.

    Where `part` isn't there, no window holds it: a start before the first.
    """
    for start in range(len(turns) - 1, -1, -1):
        if part and turns[start][0] == part[0]:
            messages = [message for turn in turns[start:] for message in turn]
            if messages[: len(part)] == list(part):
                return start, bound(messages[len(part) :])
    return -1, 0
