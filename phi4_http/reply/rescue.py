"""When to end a thought that does not end by itself: a budget, and a loop that is noticed cheaply."""

from __future__ import annotations

import re
from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

from ..errors import InvalidRequest

CHARACTERS_A_TOKEN = 8
"""A piece of a stream is a token, nearly always; a server that sends several at once sends more characters than this
for each."""

_SENTENCE_END = re.compile(r"[.!?\n]+")
_SHORTEST = 20  # characters: "Wait." and "Let me check." come back in sound thoughts too
_REMEMBERED = 64  # sentences


@dataclass(frozen=True, slots=True)
class Rescue:
    """What is done about a thought that does not end: by closing it, and letting the model go on to its answer.

    `thinking_budget` is tokens of thought, None for no limit. `on_unclosed` is for a model that stopped inside its
    thought, by itself or at the length limit; `on_loop` for one that says the same sentence `loop_repeats` times
    within 64 sentences. `notice` is put before the closing tag, as the thought's last words.
    Raises InvalidRequest for a setting that can't be.
    """

    thinking_budget: int | None = None
    on_unclosed: Literal["return", "answer"] = "return"
    on_loop: Literal["ignore", "answer"] = "ignore"
    loop_repeats: int = 6
    notice: str = ""

    def __post_init__(self) -> None:
        for name, least in (("thinking_budget", 1), ("loop_repeats", 2)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InvalidRequest(f"{name} is {value!r}: it takes a whole number from {least} up")
        for name, allowed in (("on_unclosed", ("return", "answer")), ("on_loop", ("ignore", "answer"))):
            if getattr(self, name) not in allowed:
                raise InvalidRequest(f"{name} is {getattr(self, name)!r}: it can be {' or '.join(map(repr, allowed))}")

    @property
    def watches(self) -> bool:
        """Whether the thought must be followed while it comes: to end it, or to have its tokens counted."""
        return self.thinking_budget is not None or "answer" in (self.on_loop, self.on_unclosed)


class ThoughtWatch:
    """Follows a thought; says when it is to be ended, and why."""

    def __init__(self, rescue: Rescue) -> None:
        self._budget = rescue.thinking_budget
        self._loop = LoopDetector(rescue.loop_repeats) if rescue.on_loop == "answer" else None
        self.tokens = 0

    def note(self, text: str) -> Literal["budget", "loop"] | None:
        """One more piece of the thought."""
        self.tokens += max(1, len(text) // CHARACTERS_A_TOKEN)
        if self._budget is not None and self.tokens >= self._budget:
            return "budget"
        if self._loop is not None and self._loop.feed(text):
            return "loop"
        return None


class LoopDetector:
    """Notices that the same sentence comes over and over: counts the last 64, spelling and white space folded."""

    def __init__(self, repeats: int) -> None:
        self._repeats = repeats
        self._parts: list[str] = []
        self._recent: deque[str] = deque()
        self._counts: Counter[str] = Counter()

    def feed(self, text: str) -> bool:
        """Whether the text so far has looped."""
        *ended, rest = _SENTENCE_END.split(text)
        looped = False
        for end in ended:
            self._parts.append(end)
            looped = self._sentence(" ".join("".join(self._parts).lower().split())) or looped
            self._parts.clear()
        self._parts.append(rest)
        return looped

    def _sentence(self, sentence: str) -> bool:
        if len(sentence) < _SHORTEST:
            return False
        self._recent.append(sentence)
        self._counts[sentence] += 1
        if len(self._recent) > _REMEMBERED:
            oldest = self._recent.popleft()
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        return self._counts[sentence] >= self._repeats
