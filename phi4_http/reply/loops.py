"""Notices a thought that goes round in circles, cheaply: every character is looked at once, and little is remembered.

Two things are counted. A *sentence* that comes back soon and often is a loop, found early; it must be long enough to
say something. And where for very many *words* nothing new is said, sentences or not, long or short, that is a loop too;
a counter that goes up ("Step 7. So it is. Step 8.") is nothing new, but a number that was worked out is.
"""

from __future__ import annotations

import collections
import re
from collections import deque

_SENTENCE_END = re.compile(r"[.!?\n]+")
_SHORTEST = 20  # characters: "Wait." and "Let me check." come back in sound thoughts too
_LONGEST = 4_000  # characters: what never ends is no sentence
_REMEMBERED = 64  # sentences

# A word is letters or digits. Long ones are cut, for the sake of languages that are written without spaces.
_WORD = re.compile(r"[^\W\d_]{1,8}|\d{1,18}")
_PHRASE = 128  # words: a loop of longer phrases has sentences
_GRAM = 8  # words that come in the same order: fewer are said again by chance, as in a table of yes and no
_FEWEST = 6  # times that a phrase of this length would have been said
_NUMBERS = 8  # that were there last: a counter's own, and others beside it


class LoopDetector:
    """Says when a text has looped: the same sentence `repeats` times within the last 64, spelling and white space
    folded; or nothing new for 128 words times `repeats` (at least 768 words)."""

    def __init__(self, repeats: int) -> None:
        self._repeats = repeats
        self._parts: list[str] = []
        self._length = 0
        self._recent: deque[str] = deque()
        self._counts: collections.Counter[str] = collections.Counter()
        self._words = _NothingNew(_PHRASE * max(repeats, _FEWEST))

    def feed(self, text: str) -> bool:
        """Whether the text so far has looped."""
        *ended, rest = _SENTENCE_END.split(text)
        looped = self._words.feed(text)
        for end in ended:
            self._add(end)
            looped = self._sentence(" ".join("".join(self._parts).lower().split())) or looped
            self._parts.clear()
            self._length = 0
        self._add(rest)
        return looped

    def _add(self, part: str) -> None:
        self._length += len(part)
        if self._length > _LONGEST:
            self._parts.clear()
        else:
            self._parts.append(part)

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


class _NothingNew:
    """Counts the words since the last that, with the seven before it, had not been said within the last 128."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._unfinished = ""  # a word that may go on
        self._gram: deque[str] = deque(maxlen=_GRAM)
        self._said_at: dict[tuple[str, ...], int] = {}
        self._numbers: deque[int] = deque(maxlen=_NUMBERS)
        self._at = 0
        self._new_at = 0

    def feed(self, text: str) -> bool:
        """Whether nothing new has been said for so many words."""
        text = self._unfinished + text
        self._unfinished = ""
        for found in _WORD.finditer(text):
            word = found[0]
            if found.end() == len(text):
                self._unfinished = word
            else:
                self._say(self._counted(word) if word.isdecimal() else word.lower())
        return self._at - self._new_at >= self._most

    def _say(self, word: str) -> None:
        self._at += 1
        self._gram.append(word)
        gram = tuple(self._gram)
        if self._at - self._said_at.get(gram, -_PHRASE) > _PHRASE:
            self._new_at = self._at
        self._said_at[gram] = self._at
        if len(self._said_at) > 2 * _PHRASE:
            self._said_at = {gram: at for gram, at in self._said_at.items() if self._at - at < _PHRASE}

    def _counted(self, digits: str) -> str:
        """A number as it is; all the numbers of a counter alike."""
        number = int(digits)
        counts = number - 1 in self._numbers and number not in self._numbers
        self._numbers.append(number)
        return "+" if counts else digits
