"""Where the splitter is in a reply, and which tags mean something there; its own docstring draws the ways between."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from .tags import Tags


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


def live_tags(opener: str, closers: Sequence[str], *, assumed: bool, first_counts: bool) -> dict[At, Tags]:
    """The tags that mean something at each place, where the reply is assumed to begin inside its thought or not, and
    its first closing tag counts or the last."""
    opening, closing, every = Tags([opener]), Tags(closers), Tags([opener, *closers])
    return {
        At.START: every,
        At.PREAMBLE: every,
        At.OPENED: every if assumed else closing,
        At.THOUGHT: closing,
        At.CLOSED: opening if first_counts else every,
        At.CONTENT: Tags([]) if first_counts else closing,
        At.SOLUTION: Tags([]) if first_counts else every,
    }
