"""What is known of one server and its models, how it was learned, and what disproves it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

_MOST = 4096
"""Histories remembered of one model; the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class Written:
    """An answer's tokens, by the server's count of what it wrote; a prompt may have up to `slack` more for it."""

    tokens: int
    slack: int


@dataclass(slots=True)
class Histories:
    """What is remembered of the histories that went to one model, by a digest of their messages."""

    doubted: bool = False
    """Whether a count of the server's fell while a prompt grew: what its replies count is not to be believed."""
    _counts: dict[bytes, int] = field(default_factory=dict)
    _answers: dict[bytes, Written] = field(default_factory=dict)
    _starts: dict[bytes, None] = field(default_factory=dict)

    def count(self, digest: bytes) -> int | None:
        """The tokens that the server counted of exactly these messages; None where it was not asked."""
        return self._counts.get(digest)

    def note_count(self, digest: bytes, tokens: int) -> None:
        """The server has counted these messages."""
        _note(self._counts, digest, tokens)

    def answer(self, digest: bytes) -> Written | None:
        """What the server said of the last of these messages when it wrote it; None where it did not."""
        return self._answers.get(digest)

    def note_answer(self, digest: bytes, written: Written) -> None:
        """The last of these messages is an answer that the server wrote."""
        _note(self._answers, digest, written)

    def began(self, digest: bytes) -> bool:
        """Whether a window began at the last of these messages."""
        return digest in self._starts

    def note_start(self, digest: bytes) -> None:
        """A window begins at the last of these messages."""
        _note(self._starts, digest, None)

    def clear(self) -> None:
        """Another model, or another context: nothing of this holds any more."""
        self.doubted = False
        self._counts.clear()
        self._answers.clear()
        self._starts.clear()


def _note(known: dict[bytes, T], digest: bytes, value: T) -> None:
    """Keep it as the newest; threads may do so at the same time."""
    known.pop(digest, None)
    known[digest] = value
    if len(known) > _MOST:
        known.pop(list(known)[0], None)  # noqa: RUF015 - an iterator would see what other threads do
