"""Writes exchanges to a tape as they happen: names, times, scrubbing, and how each ended. Knows nothing of httpx.

Safe for several threads, each with its own `Recording`. An exchange is on the tape when it has ended; where the
process dies before, it never was.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import re
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import TapeError
from .exchange import End, Origin, RecordedRequest, RecordedResponse
from .files import exchange_files, files_of, remove_empty, try_folder
from .format import ExchangeWriter, remove_exchange
from .scrub import Scrubber

Headers = Iterable[tuple[str, str]]

_DONE = b"data: [DONE]"


class Recorder:
    """Records exchanges into a folder, numbered in the order in which they began.

    With `anew`, what was on the tape goes when the first new exchange is whole. Several may record onto one tape, in
    threads and processes: none takes a name that another has taken. Raises `TapeError`, before anything is recorded,
    where nothing can be written into the folder; one that was made for nothing is removed again.

    `server` is the name and version to note in each exchange; without it, the `Server` header is noted. `clock` gives
    seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        scrubber: Scrubber | None = None,
        server: str = "",
        anew: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.folder = folder
        self.scrubber: Scrubber = scrubber or Scrubber()
        self.server = server
        self.clock = clock
        self.kept: int = 0
        """How many exchanges this recorder has put on the tape."""
        self._lock = threading.Lock()
        try_folder(folder)
        self._made: list[Path] = []
        old = self._there()
        self._old = {name: _identity(folder, name) for name in old} if anew else {}
        self._number = 0 if anew else max((_number(name) for name in old), default=0)

    def _there(self) -> list[str]:
        """The names on the tape; none where there is no folder, which another recorder may just have taken away."""
        try:
            return [file.stem for file in exchange_files(self.folder)]
        except TapeError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise

    def begin(self, method: str, path: str, headers: Headers, body: bytes) -> Recording:
        """A request goes out now."""
        began = self.clock()
        with self._lock:
            self.scrubber.learn(headers)
            request = self.scrubber.request(RecordedRequest.from_bytes(method, path, body))
            return Recording(self, self._writer(request), request, began)

    def _writer(self, request: RecordedRequest) -> ExchangeWriter:
        slug = re.sub(r"[^a-z0-9]+", "-", f"{request.method} {request.path.partition('?')[0]}".lower()).strip("-")
        while True:
            self._number += 1
            name = f"{self._number:04d}-{slug[:48].rstrip('-')}"
            # FileExistsError: another recorder has an exchange of that name, or writes one.
            with contextlib.suppress(FileExistsError):
                writer = ExchangeWriter(self.folder, name, replaces=functools.partial(self._is_old, name))
                self._made = self._made or writer.made
                return writer

    def _is_old(self, name: str) -> bool:
        """Whether there is still the exchange of this name that is to go."""
        return name in self._old and self._old[name] == _identity(self.folder, name)

    def _discard(self, writer: ExchangeWriter) -> None:
        with self._lock:
            writer.discard()
            remove_empty(self._made)

    def _count(self) -> None:
        with self._lock:
            self.kept += 1

    def _start_anew(self) -> None:
        with self._lock:
            for name in self._old:
                if self._is_old(name):
                    remove_exchange(self.folder, name)
            self._old.clear()


class Recording:
    """One exchange being recorded: `head`, then each `piece`, then `end` (or `leave`). Times are taken here."""

    def __init__(self, recorder: Recorder, writer: ExchangeWriter, request: RecordedRequest, began: float) -> None:
        self._recorder = recorder
        self._writer = writer
        self._request = request
        self._began = began
        self._response: RecordedResponse | None = None
        self._scrub = recorder.scrubber.body()
        self._tail = b""
        self._open = True
        self.kept: bool = False
        """Whether the exchange is on the tape."""

    @property
    def name(self) -> str:
        """The name of the exchange."""
        return self._writer.name

    def head(self, status: int, headers: Headers) -> None:
        """The head of the answer has come. Raises `TapeError` for a body that could not be read on a tape."""
        headers = tuple(headers)
        encoding = next((value for name, value in headers if name.lower() == "content-encoding"), "identity")
        if encoding.lower() != "identity":
            self.discard()
            what = f"the answer to {self._request.method} {self._request.path}"
            raise TapeError(str(self._recorder.folder), f"{what} is encoded ({encoding}), and was not asked to be")
        self._recorder.scrubber.learn((name, value) for name, value in headers if name.lower() == "set-cookie")
        self._scrub = self._recorder.scrubber.body()
        self._response = RecordedResponse(status, self._recorder.scrubber.headers(headers), self.elapsed())

    def elapsed(self) -> float:
        """Seconds since the request went out, now."""
        return round(self._recorder.clock() - self._began, 6)

    def piece(self, data: bytes, at: float | None = None) -> None:
        """A piece of the body has come: now, or `at` seconds after the request went out."""
        self._writer.cut(self.elapsed() if at is None else at, len(data))
        self._writer.write(self._scrub.feed(data))
        self._tail = (self._tail + data)[-len(_DONE) - 4 :]

    def end(self, end: End = End.CLEAN) -> None:
        """The body has ended so; without a head there is nothing to keep. Harmless when repeated."""
        if not self._open or self._response is None:
            return
        self._open = False
        self._writer.write(self._scrub.close())
        server = self._recorder.server or self._response.header("server") or ""
        origin = Origin("recorded", server=server, date=datetime.date.today().isoformat())
        self._recorder._start_anew()
        self._writer.commit(self._request, self._response, end, origin)
        self.kept = True
        self._recorder._count()

    def leave(self) -> None:
        """The reader left. After `[DONE]` nothing was to come, so that is a clean end; many clients stop there."""
        self.end(End.CLEAN if self._tail.rstrip().endswith(_DONE) else End.LEFT)

    def discard(self) -> None:
        """Nothing of this goes on the tape. Harmless after the end."""
        if self._open:
            self._open = False
            self._recorder._discard(self._writer)


def _number(name: str) -> int:
    digits = re.match(r"\d+", name)
    return int(digits.group()) if digits else 0


def _identity(folder: Path, name: str) -> tuple[int, int] | None:
    """What tells an exchange from another one of its name, whoever wrote that since."""
    try:
        found = files_of(folder, name)[0].lstat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
