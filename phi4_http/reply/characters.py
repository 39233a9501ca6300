"""Text that every reader can hold: whole characters, and values that are not nested without end.

JSON may write a character beyond U+FFFF as two escapes, and a server that cuts its text by UTF-16 unit sends one half
in each of two chunks. Python keeps such a half as it is, and neither UTF-8 nor a terminal takes it. So halves are
joined where they meet, and one that meets none becomes U+FFFD, as a decoder of bytes would have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

LEVELS = 100
"""Lists and objects inside each other that are kept of a server's JSON: reading it, printing it or copying it then
takes a tenth of the depth that Python allows."""

REPLACEMENT = "\ufffd"
_CUT_OFF = "…"
_HALF = re.compile(r"[\ud800-\udfff]")


def has_half(text: str) -> bool:
    """Whether a half of a character is in the text."""
    return not text.isascii() and _HALF.search(text) is not None


def whole(text: str) -> str:
    """The text with its halves joined; a lone one is U+FFFD."""
    if not has_half(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class HalfFilter:
    """Joins the halves of characters in a text that comes in pieces."""

    def __init__(self) -> None:
        self.holds: str = ""
        """The first half of a character, whose second may come."""

    def feed(self, text: str) -> str:
        """Return what is certain of the text: not a first half at its end, which is held."""
        if not text or (text.isascii() and not self.holds):
            return text
        text, self.holds = self.holds + text, ""
        if "\ud800" <= text[-1] <= "\udbff":
            text, self.holds = text[:-1], text[-1]
        return whole(text)

    def flush(self) -> str:
        """The text has ended: return U+FFFD for a half that was held."""
        held, self.holds = self.holds, ""
        return REPLACEMENT if held else ""


def bounded(value: Any, text: Callable[[str], str] = str, levels: int = LEVELS) -> Any:
    """A JSON value with what lies deeper than `levels` cut off, and every string in it as `text` makes it."""
    if isinstance(value, str):
        return text(value)
    if not isinstance(value, (dict, list)):
        return value
    if not levels:
        return _CUT_OFF
    if isinstance(value, dict):
        return {text(name): bounded(held, text, levels - 1) for name, held in value.items()}
    return [bounded(held, text, levels - 1) for held in value]
