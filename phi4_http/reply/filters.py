"""What must not reach the reader of a reply: a marker that LM Studio leaks, and a block that repeats the thought."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BLANK = re.compile(r"\s*")


class MarkerFilter:
    """Takes LM Studio's synthetic end marker out of a text, however it is cut."""

    _HEAD = "__LM_STUDIO_INTERNAL_LSEP_SYNTHETIC_REASONING_END_"
    _WHOLE = re.compile(_HEAD + "[0-9a-fA-F]{1,64}__")
    _TAIL = re.compile(_HEAD + "(?:[0-9a-fA-F]{1,64}_?)?")
    _LONGEST = len(_HEAD) + 64 + 2

    def __init__(self) -> None:
        self.holds: str = ""
        """What may still become a marker."""

    def feed(self, text: str) -> str:
        """Return what is certain of the text: not the start of a marker at its end, which is held."""
        text = self.holds + text
        if "_" not in text:
            return text
        *done, text = self._WHOLE.split(text)
        # Only what stands after the last marker can be the start of another: markers are never joined across one.
        start = text.find("_", max(0, len(text) - self._LONGEST))
        while start >= 0 and not self._may_begin(text[start:]):
            start = text.find("_", start + 1)
        text, self.holds = (text, "") if start < 0 else (text[:start], text[start:])
        return "".join([*done, text])

    def _may_begin(self, tail: str) -> bool:
        return self._HEAD.startswith(tail) or self._TAIL.fullmatch(tail) is not None

    def flush(self) -> str:
        """The text has ended: return what was held."""
        held, self.holds = self.holds, ""
        return held


class EchoFilter:
    """Drops what stands between a thought from a field and the solution: white space, and a block that repeats it.

    The block is followed literally, piece by piece; as soon as it differs, all that was kept back comes out.
    """

    def __init__(self, openers: Sequence[str], thought: str, closers: Sequence[str]) -> None:
        # What may come, part after part; of each part, the spellings that what has come still allows.
        self._parts = [openers, *([[thought]] if thought else []), closers]
        self._met = 0  # characters of the current part that have come
        self._kept: list[str] = []
        self._done = False

    def feed(self, text: str) -> str:
        """Return what is solution of `text` and of what was kept back before."""
        position = 0
        while position < len(text) and not self._done:
            end = _BLANK.match(text, position).end()  # type: ignore[union-attr]  # it always matches
            if self._met or end == position:
                end = self._follow(text, position)
            if end == position:
                self._done = True
            elif self._kept or not text[position:end].isspace():  # white space before the block is dropped either way
                self._kept.append(text[position:end])
            position = end
        return self.flush() + text[position:] if self._done else ""

    def _follow(self, text: str, position: int) -> int:
        """Where the text stops to be the next of the block: at `position` where it differs or the block is whole."""
        if not self._parts:
            return position
        piece = text[position : position + min(map(len, self._parts[0])) - self._met]
        allowed = [spelling for spelling in self._parts[0] if spelling.startswith(piece, self._met)]
        if not allowed:
            return position
        self._parts[0] = allowed
        self._met += len(piece)
        if self._met == len(allowed[0]):
            self._parts.pop(0)
            self._met = 0
        return position + len(piece)

    @property
    def dropped(self) -> bool:
        """Whether the block was whole."""
        return not self._parts

    def flush(self) -> str:
        """The block is whole, and dropped; or it differs, or ends early, and is solution."""
        kept = "".join(self._kept) if self._parts else ""
        self._kept.clear()
        return kept
