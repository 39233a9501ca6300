"""What is known of one server and its models, how it was learned, and what disproves it."""

from __future__ import annotations

from dataclasses import dataclass, field

DEFAULT_URL = "http://127.0.0.1:1234"
"""LM Studio's default. Its server listens on IPv4 only, so `localhost` may cost a failed try at `::1` first."""

_MOST = 4096
"""Histories remembered of one model; the oldest are forgotten."""


@dataclass(slots=True)
class Histories:
    """What is remembered of the histories that went to one model, by a digest of their messages."""

    _counts: dict[bytes, int] = field(default_factory=dict)
    _starts: dict[bytes, None] = field(default_factory=dict)

    def count(self, digest: bytes) -> int | None:
        """The tokens that the server counted of exactly these messages; None where it was not asked."""
        return self._counts.get(digest)

    def note_count(self, digest: bytes, tokens: int) -> None:
        """The server has counted these messages."""
        self._counts[digest] = tokens
        if len(self._counts) > _MOST:
            del self._counts[next(iter(self._counts))]

    def began(self, digest: bytes) -> bool:
        """Whether a window began at the last turn of these messages."""
        return digest in self._starts

    def note_start(self, digest: bytes) -> None:
        """A window begins at the last turn of these messages."""
        self._starts[digest] = None
        if len(self._starts) > _MOST:
            del self._starts[next(iter(self._starts))]

    def clear(self) -> None:
        """Another model, or another context: nothing of this holds any more."""
        self._counts.clear()
        self._starts.clear()
