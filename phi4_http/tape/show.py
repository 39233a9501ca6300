"""What a tape holds, as text for people: the cells of a table, and the time line of one exchange.

No I/O but the reading of the bodies.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence

from .exchange import Exchange, Piece
from .readable import SPOKEN

_BARS = "▁▂▃▄▅▆▇█"
_EXCERPT = 60
_TEXT = re.compile(rf'"(?:{"|".join(SPOKEN)})": *"((?:[^"\\]|\\.)*)"')
"""The text in a delta: what a reader of a time line wants to see of it."""
_COLUMNS = ("NAME", "REQUEST", "STATUS", "BYTES", "PIECES", "SECONDS", "END", "FROM")
NUMBERS = frozenset({"STATUS", "BYTES", "PIECES", "SECONDS"})
"""The columns that are numbers."""


def table(exchanges: Iterable[Exchange]) -> list[tuple[str, ...]]:
    """The cells of a row for each exchange, after a row of column names."""
    return [_COLUMNS, *(_row(exchange) for exchange in exchanges)]


def time_line(exchange: Exchange, *, width: int = 80, pieces: int = 0) -> Iterator[str]:
    """When the bytes of an exchange came: a chart `width` characters wide, the pauses, and the first `pieces` pieces.

    Each bar is a stretch of time, as high as bytes came in it; a dot is a stretch in which none came.
    """
    head, cuts = exchange.response, exchange.cuts
    request = f"{exchange.request.method} {exchange.request.path}"
    yield f"{exchange.name}: {request} -> {head.status}, {exchange.content.size:,} bytes, ends {exchange.end}"
    if exchange.origin.note:
        yield f"  {exchange.origin.note}"
    yield f"  {exchange.origin.kind}: {exchange.origin.server or exchange.origin.source or 'source not noted'}"
    last = max(cuts[-1].at if cuts else 0.0, head.seconds)
    yield f"  {_seconds(0.0)}{_seconds(last).rjust(width - len(_seconds(0.0)))}"
    yield f"  {_bars(exchange, width, last)}"
    yield f"  head at {_seconds(head.seconds)}" + "".join(f", {fact}" for fact in _pauses([cut.at for cut in cuts]))
    for index, piece in zip(range(pieces), exchange.pieces(), strict=False):
        yield _piece(index, piece)
    if 0 < pieces < len(cuts):
        yield f"  … and {len(cuts) - pieces:,} more pieces"


def _row(exchange: Exchange) -> tuple[str, ...]:
    cuts = exchange.cuts
    return (
        exchange.name,
        f"{exchange.request.method} {exchange.request.path}",
        str(exchange.response.status),
        f"{exchange.content.size:,}",
        f"{len(cuts):,}",
        f"{cuts[-1].at if cuts else exchange.response.seconds:.3f}",
        str(exchange.end),
        f"{exchange.origin.kind} {exchange.origin.server}".rstrip(),
    )


def _bars(exchange: Exchange, width: int, last: float) -> str:
    counts = [0] * width
    for at, size in exchange.content.cuts:
        counts[min(width - 1, int(at / last * width) if last else 0)] += size
    most = max(counts, default=0)
    return "".join(_BARS[(count * len(_BARS) - 1) // most] if count else "·" for count in counts)


def _pauses(times: Sequence[float]) -> Iterator[str]:
    """The first piece, the usual pause and the longest one."""
    if not times:
        yield "no body"
        return
    yield f"first piece at {_seconds(times[0])}"
    pauses = [(later - earlier, earlier) for earlier, later in itertools.pairwise(times)]
    if pauses:
        longest, after = max(pauses)
        yield f"usual pause {statistics.median(pause for pause, _ in pauses) * 1000:.1f} ms"
        yield f"longest {longest * 1000:.1f} ms, after {_seconds(after)}"


def _piece(index: int, piece: Piece) -> str:
    text = piece.data.decode("utf-8", "replace").replace("\n", "⏎")
    deltas = _TEXT.findall(text)
    text = "".join(deltas) if any(deltas) else text
    excerpt = text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"
    return f"  {index:>6}  {_seconds(piece.at):>10}  {len(piece.data):>6} B  {excerpt}"


def _seconds(value: float) -> str:
    return f"{value:.3f} s"
