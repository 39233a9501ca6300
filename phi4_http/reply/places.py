"""Where the splitter is in a reply; its own docstring draws the ways between them."""

from __future__ import annotations

import enum


class At(enum.Enum):
    """A place in a reply."""

    START = enum.auto()
    PREAMBLE = enum.auto()
    OPENED = enum.auto()
    THOUGHT = enum.auto()
    CLOSED = enum.auto()
    SOLUTION = enum.auto()
    FIELD = enum.auto()
    CONTENT = enum.auto()


GAPS = frozenset({At.START, At.OPENED, At.CLOSED, At.CONTENT})
TEXT_AFTER = {
    At.START: At.PREAMBLE,
    At.OPENED: At.THOUGHT,
    At.CLOSED: At.SOLUTION,
    At.CONTENT: At.SOLUTION,
}
