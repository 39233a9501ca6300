"""Tapes as files: `NAME.json` beside `NAME.sse` (event streams) or `NAME.body` (all else). FORMAT.md is the page on it.

Rules kept here:

- The body file holds the body's bytes, verbatim. Everything else is in the JSON, which people read, diff and edit.
- The JSON is written last, and every file comes into being whole (written beside its place, then renamed): an exchange
  without its JSON does not exist, so a crash while recording leaves a valid tape or none.
- `cuts` is the last member, one cut a line. In that layout the reader leaves the cuts and the body in their files and
  reads them as they are played; any other layout is read too, with the cuts in memory.
- An error names the file and the field.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import TapeError
from ..wire.fields import Fault, Fields, shown
from .exchange import (
    DEEPEST,
    Cut,
    End,
    Exchange,
    OnDisk,
    Origin,
    RecordedRequest,
    RecordedResponse,
    cut_problems,
    deeper,
)
from .files import (
    PART_SUFFIX,
    body_file,
    check_name,
    created,
    exchange_files,
    files_of,
    opened,
    writing,
)

FORMAT = 1
"""The version of the format. A reader refuses a tape with a later one."""

LATEST = 1e9
"""No time on a tape is later, in seconds: thirty years, which every way of waiting can still be told."""
_LONGEST = 1 << 26
"""Bytes of JSON, without cuts that stand last, one a line: far above any prompt."""

_CUTS_LINE = b'  "cuts": ['
_BLOCK = 1 << 16
_HEADER = re.compile(r"[\t\x20-\x7e\x80-\xff]+")
"""Latin-1 without control characters: a line end would begin another header."""


def load_tape(folder: str | os.PathLike[str]) -> tuple[Exchange, ...]:
    """The exchanges of a folder, in the order of their names (digits by value: `2-models` is before `10-chat`).

    Bodies stay in their files until they are played. Raises `TapeError` naming the file and the field.
    """
    return tuple(load_exchange(file) for file in exchange_files(folder))


def recorded(folder: str | os.PathLike[str]) -> tuple[Exchange, ...]:
    """The exchanges of a tape that is to be played. Raises `TapeError` as `load_tape` does, and where it has none."""
    exchanges = load_tape(folder)
    if not exchanges:
        raise TapeError(str(folder), "there is no exchange on this tape; `phi4_http record` puts some there")
    return exchanges


def load_exchange(file: str | os.PathLike[str]) -> Exchange:
    """One exchange, by its JSON file; its checksum and its cuts are checked.

    Raises `TapeError` naming the file and the field.
    """
    file = Path(file)
    try:
        return _exchange(file, *_read_json(file))
    except Fault as fault:
        raise TapeError(str(file), fault.what, field=fault.where or None) from None


def _exchange(file: Path, data: Any, cuts: Iterable[Cut] | None) -> Exchange:
    top = Fields(data)
    version = top.need("format", int)
    if version != FORMAT:
        raise top.fault("format", f"version {shown(version)}; this library reads version {FORMAT}")
    origin, request, response, body = map(top.object, ("origin", "request", "response", "body"))
    head = _response(response)
    content, end = _content(file, body, cuts, head.seconds)
    exchange = Exchange(file.stem, _request(request), head, content, end, _origin(origin))
    for section in (top, origin, request, response, body):
        section.no_others()
    return exchange


def write_exchange(folder: str | os.PathLike[str], exchange: Exchange) -> Path:
    """Write an exchange under its name, in the place of one that has it; returns the JSON file.

    Raises `TapeError` where the name can't be that of a file, or nothing can be written there.
    """
    writer = ExchangeWriter(folder, exchange.name, exclusive=False)
    try:
        for at, data in exchange.pieces():
            writer.add(at, data)
        return writer.commit(exchange.request, exchange.response, exchange.end, exchange.origin)
    except BaseException:
        writer.discard()
        raise


class ExchangeWriter:
    """Writes one exchange as it comes in: `add` each piece, then `commit` (or `discard`).

    Memory does not grow with the body: bytes and cuts go to files whose names end with `.part`. Until `commit` the
    exchange does not exist. With `exclusive`, making a writer for a name that is being written raises FileExistsError,
    and for one that exists too, unless `replaces()`: at every moment the body of a name is one file or the other, so no
    two writers, in threads or processes, have one name. Raises `TapeError` where nothing can be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        name: str,
        *,
        exclusive: bool = True,
        replaces: Callable[[], bool] = lambda: False,
    ) -> None:
        check_name(folder, name)
        self._folder = Path(folder)
        self.name = name
        self._parts = [self._folder / f".{name}.{what}{PART_SUFFIX}" for what in ("body", "cuts", "json")]
        self._sum = hashlib.sha256()
        self._size = 0
        self.made: list[Path]
        self._body, self.made = created(self._parts[0], exclusive=exclusive)
        with writing(self._folder):
            # Only now is it known that nobody puts one of that name in its place; whoever has just done so still needs
            # the other parts.
            if exclusive and any(map(os.path.lexists, files_of(self._folder, name))) and not replaces():
                self._body.close()
                self._parts[0].unlink()
                raise FileExistsError(errno.EEXIST, "there is an exchange of that name", name)
            self._cuts: IO[bytes] = open(self._parts[1], "wb")  # noqa: SIM115 (closed by commit, discard)

    def cut(self, at: float, size: int) -> None:
        """A piece of `size` bytes came `at` seconds after the request went out."""
        if size:
            with writing(self._folder):
                self._cuts.write(b"    [%s, %d],\n" % (repr(float(at)).encode(), size))

    def write(self, data: bytes) -> None:
        """More bytes of the body."""
        with writing(self._folder):
            self._body.write(data)
        self._sum.update(data)
        self._size += len(data)

    def add(self, at: float, data: bytes) -> None:
        """A piece and its bytes."""
        self.cut(at, len(data))
        self.write(data)

    def commit(self, request: RecordedRequest, response: RecordedResponse, end: End, origin: Origin) -> Path:
        """Put the exchange in its place; returns its JSON file."""
        document = {
            "format": FORMAT,
            "origin": _origin_json(origin),
            "request": _request_json(request),
            "response": {
                "status": response.status,
                "seconds": response.seconds,
                "headers": [f"{name}: {value}" for name, value in response.headers],
            },
            "body": {"bytes": self._size, "sha256": self._sum.hexdigest(), "end": str(end)},
        }
        with writing(self._folder):
            _close(self._body)
            _close(self._cuts)
            with open(self._parts[2], "wb") as file:
                _write_document(file, document, self._parts[1])
                _close(file)
            return self._put(response)

    def _put(self, response: RecordedResponse) -> Path:
        json_file, body, other = files_of(self._folder, self.name)
        if not response.is_event_stream:
            body, other = other, body
        # First the old JSON goes, so that no moment has it beside the new body.
        json_file.unlink(missing_ok=True)
        other.unlink(missing_ok=True)
        os.replace(self._parts[0], body)
        os.replace(self._parts[2], json_file)
        self._parts[1].unlink()
        return json_file

    def discard(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):  # a full disk is full for what was buffered too
            self._body.close()
            self._cuts.close()
        with writing(self._folder):
            for part in reversed(self._parts):  # the one that holds the name is the last to go
                part.unlink(missing_ok=True)


def remove_exchange(folder: str | os.PathLike[str], name: str) -> None:
    """Delete an exchange: its JSON first, so that it is gone at once."""
    for file in files_of(Path(folder), name):
        file.unlink(missing_ok=True)


def _close(file: IO[bytes]) -> None:
    """Close a file whose bytes must be there before its name is."""
    if not file.closed:
        file.flush()
        os.fsync(file.fileno())
        file.close()


def _write_document(file: IO[bytes], document: dict[str, Any], cuts: Path) -> None:
    # A lone surrogate can't be written as UTF-8; its escape, which backslashreplace makes, is good JSON.
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    file.write(text.removesuffix("\n}").encode("utf-8", "backslashreplace") + b",\n" + _CUTS_LINE)
    last = b""
    with open(cuts, "rb") as lines:
        for line in lines:
            file.write(last or b"\n")
            last = line
    file.write(last.removesuffix(b",\n") + b"\n  ]\n}\n" if last else b"]\n}\n")


def _origin_json(origin: Origin) -> dict[str, str]:
    optional = {"server": origin.server, "source": origin.source, "date": origin.date, "note": origin.note}
    return {"kind": origin.kind, **{name: value for name, value in optional.items() if value}}


def _request_json(request: RecordedRequest) -> dict[str, Any]:
    head = {"method": request.method, "path": request.path}
    if request.body is None:
        return head
    if isinstance(request.body, bytes):
        return {**head, "body_base64": base64.b64encode(request.body).decode("ascii")}
    return {**head, "body": request.body}


def _read_json(file: Path) -> tuple[Any, Iterable[Cut] | None]:
    """The JSON of an exchange without its cuts, and the cuts: left in the file where they stand last, one a line."""
    try:
        head, offset = _head(file)
        data = json.loads(head.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TapeError(str(file), f"is not JSON: {error}") from error
    if offset is not None:
        return data, _CutsInFile(file, offset)
    if not isinstance(data, dict) or "cuts" not in data:
        return data, None
    values = Fields(data).need("cuts", list)
    del data["cuts"]
    return data, tuple(_cut(file, index, value) for index, value in enumerate(values))


def _head(file: Path) -> tuple[bytes, int | None]:
    """The JSON up to its cuts, closed, and where these begin; or all of it, where they don't stand last, one a line."""
    with opened(file) as lines:
        head: list[bytes] = []
        size = 0
        while line := lines.readline(_LONGEST):
            size += len(line)
            if size >= _LONGEST:
                raise TapeError(str(file), f"is longer than {_LONGEST:,} bytes without its cuts")
            if line.rstrip() == _CUTS_LINE and head and head[-1].rstrip().endswith(b"},"):
                offset = lines.tell()
                lines.seek(max(offset, lines.seek(0, os.SEEK_END) - 16))
                if re.search(rb"\]\s*}\s*$", lines.read()):
                    return b"".join(head).rstrip().removesuffix(b",") + b"}", offset
                lines.seek(offset)
            head.append(line)
    return b"".join(head), None


@dataclass(frozen=True, slots=True)
class _CutsInFile:
    """The cuts of an exchange, read from its JSON each time they are asked for."""

    file: Path
    offset: int

    def __iter__(self) -> Iterator[Cut]:
        with opened(self.file) as lines:
            lines.seek(self.offset)
            for index in itertools.count():
                line = lines.readline(_BLOCK)
                if not line:
                    break
                text = line.strip()
                if text == b"]":
                    if lines.read(_BLOCK).strip() != b"}":
                        raise TapeError(str(self.file), "is not JSON: something stands after the cuts")
                    return
                try:
                    value = json.loads(text.removesuffix(b","))
                except (ValueError, RecursionError) as error:
                    raise TapeError(str(self.file), "is not [seconds, bytes]", field=f"cuts[{index}]") from error
                yield _cut(self.file, index, value)
        raise TapeError(str(self.file), "is not JSON: it ends inside the cuts")


def _cut(file: Path, index: int, value: Any) -> Cut:
    match value:
        case [int() | float() as at, int() as size] if not isinstance(at, bool) and not isinstance(size, bool):
            # Not finite, or too large for a float, for a file or for a clock.
            if abs(at) <= LATEST and abs(size) < 2**63:
                return Cut(float(at), size)
            problem = "the time" if abs(size) < 2**63 else "the size"
            raise TapeError(str(file), f"{problem} is none that could be", field=f"cuts[{index}]")
        case _:
            raise TapeError(str(file), f"is not [seconds, bytes] but {shown(value)}", field=f"cuts[{index}]")


def _origin(section: Fields) -> Origin:
    kind = section.need("kind", str)
    if kind not in ("recorded", "composed"):
        raise section.fault("kind", f"neither 'recorded' nor 'composed' but {shown(kind)}")
    server, source, date, note = (section.need(name, str, "") for name in ("server", "source", "date", "note"))
    return Origin("recorded" if kind == "recorded" else "composed", server, source, date, note)


def _request(section: Fields) -> RecordedRequest:
    method, path = section.need("method", str), section.need("path", str)
    if not path.startswith("/"):
        raise section.fault("path", f"does not start with '/' but is {shown(path)}")
    encoded = section.need("body_base64", str, "")
    if not encoded:
        body = section.anything("body")
        if deeper(body, DEEPEST):
            raise section.fault("body", f"is nested deeper than {DEEPEST}")
        return RecordedRequest(method, path, body)
    try:
        return RecordedRequest(method, path, base64.b64decode(encoded, validate=True))
    except ValueError as error:
        raise section.fault("body_base64", f"is not base64: {error}") from error


def _response(section: Fields) -> RecordedResponse:
    headers = []
    for index, line in enumerate(section.need("headers", list)):
        name, colon, value = line.partition(":") if isinstance(line, str) else ("", "", "")
        if not colon:
            raise section.fault(f"headers[{index}]", f"is not 'Name: value' but {shown(line)}")
        if not _HEADER.fullmatch(line):
            raise section.fault(f"headers[{index}]", f"has a character that HTTP can't carry: {shown(line)}")
        headers.append((name, value.removeprefix(" ")))
    status = section.need("status", int)
    if not 200 <= status <= 599:
        raise section.fault("status", f"{shown(status)} is no status of an answer")
    seconds = section.need("seconds", float, 0.0)
    if not 0 <= seconds <= LATEST:
        raise section.fault("seconds", f"{seconds} is no time that could be")
    return RecordedResponse(status, tuple(headers), seconds)


def _content(file: Path, section: Fields, cuts: Iterable[Cut] | None, seconds: float) -> tuple[OnDisk, End]:
    body = body_file(file)
    size, checksum = _measure(body)
    said = section.need("bytes", int, size)
    if said != size:
        raise section.fault("bytes", f"{shown(said)}, but {body.name} has {size}: it was changed after it was recorded")
    if section.need("sha256", str, checksum) != checksum:
        raise section.fault("sha256", f"does not fit {body.name}: it was changed after it was recorded")
    end = section.need("end", str, str(End.CLEAN))
    if end not in {str(known) for known in End}:
        raise section.fault("end", f"{shown(end)} is none of {', '.join(End)}")
    if cuts is None:
        cuts = (Cut(seconds, size),) if size else ()
    problem = next(cut_problems(cuts, size), None)
    if problem:
        raise Fault(*problem)
    return OnDisk(body, size, checksum, cuts), End(end)


def _measure(body: Path) -> tuple[int, str]:
    checksum, size = hashlib.sha256(), 0
    with opened(body) as file:
        while block := file.read(_BLOCK):
            checksum.update(block)
            size += len(block)
    return size, checksum.hexdigest()
