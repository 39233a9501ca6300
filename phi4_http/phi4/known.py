"""What earlier prompts tell of the tokens of a history.

Counts are remembered by a digest of the prompt's messages (`learn`), so they serve every history that holds the same
messages, whoever hands it in. Two counts of prompts that began at one place tell exactly what the messages between them
take; that is how a window can move without asking (`Remembered`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..server import Histories, Written
from .counting import FRAME_TOKENS, TEMPLATE_TOKENS, Message, bound, is_count, least

log: logging.Logger = logging.getLogger("phi4_http")

UNKNOWN = 1 << 60
"""Tokens that nothing has."""


TURN_TOKENS = 8
"""An answer's tokens in a prompt that are not in the server's count of what it wrote: its turn's own."""

UNCUT, APPORTIONED = 20, 2
"""What an answer may have more in a prompt than was counted when it was written: a twentieth, since a text is not
always cut as it was written; a half where a thought was counted with it, which may be of another density (prose beside
formulas). Either may be wrong, so the reply's reserve has to cover it, and the next prompt's count sets it right."""


def digests(messages: Sequence[Message], *, beside: int = 0) -> list[bytes]:
    """A digest of the messages up to each one, that one included; linear in their size.

    `beside` tells apart what the server counted with something else beside the messages, such as tools.
    """
    return running_digests([canonical(message) for message in messages], beside)


def running_digests(encoded: Sequence[bytes], beside: int = 0) -> list[bytes]:
    """The same for messages that are encoded already."""
    running = hashlib.sha256(b"%d" % beside)
    found = []
    for message in encoded:
        running.update(message)
        found.append(running.copy().digest())
    return found


def canonical(message: Message) -> bytes:
    """The same bytes for the same message, in whatever order its fields come."""
    return json.dumps(dict(message), sort_keys=True, separators=(",", ":"), default=repr).encode() + b"\n"


def learn(
    histories: Histories,
    sent: Sequence[Message],
    tokens: Any,
    *,
    beside: int = 0,
    answer: Message | None = None,
    answer_tokens: Any = None,
    thought: str = "",
) -> None:
    """Remember what the server counted of a request: `tokens` of the messages `sent`, and `beside` as given to `fit`.

    `answer` is the message that the reply left in the history, as it will be sent; `answer_tokens` the tokens that the
    server says it wrote for it and for the `thought` before it. What can't be a count is not remembered.
    """
    most = bound(sent) + FRAME_TOKENS + TEMPLATE_TOKENS + 2 * len(sent) + beside
    if histories.doubted or not is_count(tokens) or not max(1, least(sent)) <= tokens <= most:
        return
    keys = digests([*sent, *([answer] if answer is not None else [])], beside=beside)
    before = max(map(histories.least, keys[: len(sent)]))
    if tokens < before:
        log.warning("the server counted %d tokens of a prompt that has %d or more: not believed", tokens, before)
        histories.doubted = True
        return
    rest = 0
    for key, message in zip(reversed(keys[: len(sent)]), reversed(sent), strict=True):
        histories.note_least(key, tokens - rest)
        rest += bound([message])
    histories.note_count(keys[len(sent) - 1], tokens)
    if answer is not None and is_count(answer_tokens) and answer_tokens > 0:
        histories.note_answer(
            keys[-1], _written(bound([answer]), answer_tokens, len(thought.encode("utf-8", "replace")))
        )


def _written(size: int, tokens: int, thought: int) -> Written:
    """What of these tokens belongs to an answer of that size in bytes, beside a thought's: by their bytes."""
    if not thought:
        return Written(tokens, TURN_TOKENS + tokens // UNCUT)
    part = -(-tokens * size // (size + thought))
    return Written(part, TURN_TOKENS + part // APPORTIONED)


class Counted(NamedTuple):
    """One chain: what the server counted of prompts that began at one place, by the message that each ended with."""

    begin: int
    counts: tuple[tuple[int, int], ...]
    """The number of messages of the history that were in the prompt or before it, and the prompt's tokens."""
    most: tuple[int, int]
    """The same for a prompt whose tokens are only known not to be more."""


class Remembered:
    """What earlier prompts tell of these windows. Places are numbers of messages, the system message left out."""

    def __init__(self, begins: Sequence[int], sizes: Sequence[int], chains: Sequence[Counted]) -> None:
        self._begins = begins
        self._bytes = list(itertools.accumulate(sizes, initial=0))
        self._chains = [Counted(chain.begin, self._agreeing(chain.counts), chain.most) for chain in chains]
        self.at_most: list[int] = [UNKNOWN] * len(begins)
        self.at_least: list[int] = [0] * len(begins)
        for chain in self._chains:
            self._hold(chain)

    def _agreeing(self, counts: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """The counts that agree with the last one: what stands between has tokens, and no more than bytes."""
        kept = list(counts[-1:])
        for place, tokens in reversed(counts[:-1]):
            if 0 <= kept[0][1] - tokens <= self._bytes[kept[0][0]] - self._bytes[place]:
                kept.insert(0, (place, tokens))
        return tuple(kept)

    def _hold(self, chain: Counted) -> None:
        (_, fewest), (most_at, most) = chain.counts[-1], chain.most
        since = self._bytes[-1] - self._bytes[most_at]
        for start, begin in enumerate(self._begins):
            more = self._bytes[chain.begin] - self._bytes[begin]
            self.at_most[start] = min(self.at_most[start], most + since + max(0, more))
            self.at_least[start] = max(self.at_least[start], fewest + min(0, more))

    def exact(self, start: int) -> int | None:
        """The tokens of this very window, counted before."""
        for chain in self._chains:
            place, tokens = chain.counts[-1]
            if chain.begin == self._begins[start] and place == len(self._bytes) - 1:
                return tokens
        return None

    def allows(self, start: int, tokens: int) -> bool:
        """Whether a count agrees with what is remembered."""
        return self.at_least[start] <= tokens <= self.at_most[start]

    def forget(self) -> None:
        """What is remembered is wrong."""
        self._chains = []
        self.at_most = [UNKNOWN] * len(self._begins)
        self.at_least = [0] * len(self._begins)

    def compare(self, kept: int, fewest: int, most: int) -> None:
        """The window from `kept` on has between `fewest` and `most` tokens: less what is known of the turns that a
        shorter one leaves out."""
        lowest, highest = self._distances(self._begins[kept])
        for start in range(kept + 1, len(self._begins)):
            self.at_most[start] = min(self.at_most[start], max(1, most - lowest[self._begins[start]]))
            self.at_least[start] = max(self.at_least[start], fewest - highest[self._begins[start]])

    def _distances(self, source: int) -> tuple[list[int], list[int]]:
        """The fewest and the most tokens between one place and each other (negative before it): a message has none at
        least and a token a byte at most, and two counts of one chain tell what is between them.

        These are shortest paths; two ways there and back find them where what is known lies side by side.
        """
        ends: dict[int, list[tuple[int, int]]] = {}
        starts: dict[int, list[tuple[int, int]]] = {}
        for chain in self._chains:
            for (first, fewer), (second, more) in itertools.pairwise(chain.counts):
                ends.setdefault(second, []).append((first, more - fewer))
                starts.setdefault(first, []).append((second, more - fewer))
        places = len(self._bytes)
        low, high = [-UNKNOWN] * places, [UNKNOWN] * places
        low[source] = high[source] = 0
        for _ in range(2):
            for at in range(1, places):
                size = self._bytes[at] - self._bytes[at - 1]
                known = ends.get(at, ())
                low[at] = max(low[at], low[at - 1], *(low[first] + tokens for first, tokens in known))
                high[at] = min(high[at], high[at - 1] + size, *(high[first] + tokens for first, tokens in known))
            for at in range(places - 2, -1, -1):
                size = self._bytes[at + 1] - self._bytes[at]
                known = starts.get(at, ())
                low[at] = max(low[at], low[at + 1] - size, *(low[second] - tokens for second, tokens in known))
                high[at] = min(high[at], high[at + 1], *(high[second] - tokens for second, tokens in known))
        return low, high
