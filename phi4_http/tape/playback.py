"""How an exchange is played: when each piece is due, how the body is cut, and how it ends. No I/O, no clock.

The transports and the loopback server share this: they wait until a piece is due and hand it on.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

from .exchange import End, Exchange, Piece

RANDOM_RECUT = 64
"""The largest piece, in bytes, where a seed is given and no `recut`: small enough for cuts inside tags."""


@dataclass(frozen=True, slots=True)
class Playback:
    """How to play.

    `speed` is how many times as fast as it was recorded (1.0: as recorded), None is without any waiting. `recut` cuts
    the body anew into pieces of so many bytes; with `seed`, into pieces of 1 to `recut` bytes at random, the same ones
    for the same seed. `fail_after` breaks the connection after so many bytes of body.

    Raises ValueError for a speed, `recut` or `fail_after` that makes no sense.
    """

    speed: float | None = 1.0
    recut: int | None = None
    seed: int | None = None
    fail_after: int | None = None

    def __post_init__(self) -> None:
        if self.speed is not None and not 0 < self.speed < float("inf"):
            raise ValueError(f"speed must be above 0, or None for no waiting, not {self.speed!r}")
        if self.recut is not None and self.recut < 1:
            raise ValueError(f"recut must be at least 1 byte, not {self.recut!r}")
        if self.fail_after is not None and self.fail_after < 0:
            raise ValueError(f"fail_after must be at least 0 bytes, not {self.fail_after!r}")

    def due(self, seconds: float) -> float:
        """When something recorded at `seconds` is due, in seconds after the request came."""
        return 0.0 if self.speed is None else seconds / self.speed

    def fails(self, exchange: Exchange) -> bool:
        """Whether `fail_after` comes before the end of this body."""
        return self.fail_after is not None and self.fail_after < exchange.content.size

    def size(self, exchange: Exchange) -> int:
        """Bytes of body that will be played."""
        size = exchange.content.size
        return size if self.fail_after is None else min(size, self.fail_after)

    def end(self, exchange: Exchange) -> End:
        """How the body will end."""
        return End.CUT if self.fails(exchange) else exchange.end

    def pieces(self, exchange: Exchange) -> Generator[Piece, None, None]:
        """The body to play, piece by piece, each with the second when it is due. Lazy: close it to close the file."""
        pieces = exchange.pieces()
        if self.fail_after is not None:
            pieces = _first(pieces, self.fail_after)
        if self.seed is not None:
            pieces = recut(pieces, random_sizes(self.seed, self.recut or RANDOM_RECUT))
        elif self.recut is not None:
            pieces = recut(pieces, equal_sizes(self.recut))
        return (Piece(self.due(at), data) for at, data in pieces)


AS_RECORDED = Playback()
AT_ONCE = Playback(speed=None)


def recut(pieces: Iterable[Piece], sizes: Iterator[int]) -> Iterator[Piece]:
    """The same bytes in pieces of other sizes; each is due when its last byte was. Linear in the bytes."""
    held: list[bytes] = []  # joined once per piece, so that many small pieces stay linear
    missing, at = next(sizes), 0.0
    for piece in pieces:
        at, data, start = piece.at, piece.data, 0
        while len(data) - start >= missing:
            yield Piece(at, b"".join([*held, data[start : start + missing]]))
            held.clear()
            start, missing = start + missing, next(sizes)
        if start < len(data):
            held.append(data[start:])
            missing -= len(data) - start
    if held:
        yield Piece(at, b"".join(held))


def equal_sizes(size: int) -> Iterator[int]:
    """`size` for ever."""
    while True:
        yield size


def random_sizes(seed: int, most: int) -> Iterator[int]:
    """Sizes from 1 to `most` at random, the same ones for the same seed."""
    generator = random.Random(seed)
    while True:
        yield generator.randint(1, most)


def _first(pieces: Iterable[Piece], size: int) -> Iterator[Piece]:
    """The first `size` bytes."""
    for at, data in pieces:
        if size <= 0:
            return
        yield Piece(at, data[:size])
        size -= len(data)
