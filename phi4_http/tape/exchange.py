"""One recorded exchange, as values: what was asked, what came back, in which pieces, when, and how it ended.

Nothing here does I/O but `OnDisk.pieces`, which reads a body piece by piece so that the memory of a replay does not
grow with the length of a stream. Times are seconds since the request went out; sizes are bytes.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from ..errors import TapeError
from .files import opened

DEEPEST = 100
"""A request's body is not nested deeper: JSON for people is not, and what compares and shows it recurses."""


class End(str, enum.Enum):
    """How a body ended."""

    CLEAN = "clean"
    """It was whole, as far as HTTP can tell."""
    CUT = "cut"
    """The connection was closed inside the body, between two HTTP chunks."""
    CUT_INSIDE_CHUNK = "cut_inside_chunk"
    """The connection was closed inside an HTTP chunk: fewer bytes came than were announced."""
    RESET = "reset"
    """The connection was reset."""
    STALLED = "stalled"
    """Nothing more came, and the client's time limit ended the wait."""
    LEFT = "left"
    """The client left before the end; what the server would have sent is not known."""

    def __str__(self) -> str:
        return self.value


class Cut(NamedTuple):
    """One piece of a body as it came: `at` seconds after the request went out, `size` bytes (never 0)."""

    at: float
    size: int


class Piece(NamedTuple):
    """One piece of a body with its bytes, due `at` seconds after the request went out."""

    at: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an exchange comes from.

    `recorded`: real bytes of the server named in `server` (name and version), on the day `date` (`2026-11-22`).
    `composed`: written by hand or by a script after the document or report named in `source`.
    """

    kind: Literal["recorded", "composed"]
    server: str = ""
    source: str = ""
    date: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """What was asked. No headers: they carry tokens and cookies, and no answer depends on them here.

    `path` has the query string, if any. `body` is a dict or list where the body was a JSON object or array, a string
    where it was other text, bytes where it was neither, None where there was none.
    """

    method: str
    path: str
    body: Any = None

    @classmethod
    def from_bytes(cls, method: str, path: str, data: bytes) -> RecordedRequest:
        """The request with the body `data`, read as JSON, text or bytes, whichever it is first."""
        return cls(method, path, _read_body(data))


@dataclass(frozen=True, slots=True)
class RecordedResponse:
    """The head of the answer. `seconds` is when it came, counted from the moment the request went out."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0

    def header(self, name: str) -> str | None:
        """The first value of a header, by its name in any case; None where it was not sent."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def is_event_stream(self) -> bool:
        """Whether the body is said to be server-sent events."""
        return (self.header("content-type") or "").split(";")[0].strip().lower() == "text/event-stream"


class Content(Protocol):
    """A body: its length in bytes, its checksum (hexadecimal), and its pieces in order."""

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    @property
    def cuts(self) -> Iterable[Cut]: ...

    def pieces(self) -> Iterator[Piece]: ...


@dataclass(frozen=True, slots=True)
class InMemory:
    """A body held in memory. Raises ValueError where the cuts don't add up to it."""

    data: bytes
    cuts: tuple[Cut, ...]

    def __post_init__(self) -> None:
        problem = next(cut_problems(self.cuts, len(self.data)), None)
        if problem:
            raise ValueError(": ".join(problem))

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def pieces(self) -> Iterator[Piece]:
        ends = itertools.accumulate(cut.size for cut in self.cuts)
        return (Piece(cut.at, self.data[end - cut.size : end]) for cut, end in zip(self.cuts, ends, strict=True))


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A body left in its file, read when it is played. `cuts` may be read from a file each time, too."""

    file: Path
    size: int
    sha256: str
    cuts: Iterable[Cut]

    def pieces(self) -> Iterator[Piece]:
        """Raises `TapeError` where the file changed since it was loaded."""
        with opened(self.file) as body:
            for at, size in self.cuts:
                data = body.read(size)
                if len(data) != size:
                    raise TapeError(
                        str(self.file), f"ends {size - len(data)} bytes early: it changed since it was loaded"
                    )
                yield Piece(at, data)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer. `content` is the body of the answer, in memory or on disk."""

    name: str
    request: RecordedRequest
    response: RecordedResponse
    content: Content
    end: End
    origin: Origin

    @classmethod
    def of(
        cls,
        name: str,
        request: RecordedRequest,
        response: RecordedResponse,
        body: bytes,
        *,
        cuts: Iterable[tuple[float, int]] | None = None,
        end: End = End.CLEAN,
        origin: Origin,
    ) -> Exchange:
        """An exchange with its body in memory; without `cuts`, in one piece that comes with the head.

        Raises ValueError where the cuts don't add up to the body.
        """
        if cuts is None:
            cuts = [(response.seconds, len(body))] if body else []
        content = InMemory(body, tuple(Cut(float(at), size) for at, size in cuts))
        return cls(name, request, response, content, end, origin)

    @property
    def body(self) -> bytes:
        """The whole body, in memory. For long streams, take `pieces()`."""
        return b"".join(piece.data for piece in self.pieces())

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """All cuts, in memory."""
        return tuple(self.content.cuts)

    def pieces(self) -> Iterator[Piece]:
        """The body piece by piece, as it came, with memory for one piece."""
        return self.content.pieces()


def cut_problems(cuts: Iterable[Cut], size: int) -> Iterator[tuple[str, str]]:
    """What is wrong with the cuts of a body of `size` bytes, each as (field, sentence)."""
    total, last = 0, 0.0
    for index, (at, length) in enumerate(cuts):
        where = f"cuts[{index}]"
        if not (math.isfinite(at) and at >= last):
            yield where, f"the time {at} s is before {last} s, when the piece before it came"
        if length < 1:
            yield where, f"a piece of {length} bytes"
        total, last = total + length, at
    if total != size:
        yield "cuts", f"they add up to {total} bytes, the body has {size}"


def _read_body(data: bytes) -> Any:
    """The body as a JSON object or array, else as text, else as bytes; None where it is empty."""
    if not data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return data
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
        if deeper(value, DEEPEST):
            return text
        json.dumps(value, allow_nan=False)  # 1e999 reads as infinity
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict | list) else text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key comes twice")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def deeper(value: Any, than: int) -> bool:
    """Whether a JSON value is nested deeper than so many arrays and objects."""
    level = [value]
    for _ in range(than + 1):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True
