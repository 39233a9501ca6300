"""What a person or a script sees: JSON lines, solution, dim thought, a status line that vanishes, messages."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from ..errors import Phi4Error
from ..events import Event, Finished, Reply, Revised, Solution, Thinking, Thought, Waiting
from .text import Wrapping, aligned, clipped, columns, in_words, seen

_DIM, _PLAIN, _CLEAR_LINE = "\x1b[2m", "\x1b[0m", "\r\x1b[K"
UNKNOWN = "?"
"""What the server does not tell."""
_UNWRITABLE = 1
_READER_GONE = 141  # as a shell reports a program that a broken pipe ended


def prepare_streams() -> None:
    """No character may break the output: what an encoding can't hold is written as an escape.

    Nor may a stream that was closed before we were started.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115  # for as long as we run
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Unwritable(Exception):
    """Stdout does not take what is written: a full disk, mostly. Its text says why."""


class _Log(logging.Handler):
    """What the library logs, as messages; where a line of the reply is not at its end, they wait for that."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output
        self._held: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """One message."""
        self._held.append(f"phi4_http: {record.getMessage()}")
        self.tell_held()

    def tell_held(self, *, anyhow: bool = False) -> None:
        """Tell what is held, if it may be."""
        while self._held and (anyhow or not self._output.inside_line):
            self._output.note(self._held.pop(0))


class Output:
    """Where a command writes to. On a terminal it may be dim and change a line; in a pipe it is plain.

    All text for a terminal passes `_seen`; what is written to stderr passes `_tell`, which knows of the status line. A
    stderr that can't be written is no error: the answer goes on.
    """

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, out: TextIO | None = None, err: TextIO | None = None
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out: TextIO = out or sys.stdout
        self.err: TextIO = err or sys.stderr
        self.live: bool = self.out.isatty()
        self._err_seen = self.err.isatty()
        self._lock = threading.RLock()
        self._status: list[Callable[[float], str]] = []
        self._on_line = False
        self.err_live: bool = self._err_seen and os.environ.get("TERM") != "dumb"
        self._colour = self.err_live and not os.environ.get("NO_COLOR")
        moves = self.live and os.environ.get("TERM") != "dumb"
        self._out_wraps = Wrapping(self.out if moves else None)
        self._err_wraps = Wrapping(self.err if self.err_live else None)
        self._log: _Log = _Log(self)

    @property
    def waits(self) -> bool:
        """Whether anybody sees what is waited for."""
        return self.as_json or (self.err_live and not self.quiet)

    @property
    def inside_line(self) -> bool:
        """Whether the terminal shows a line of a reply that goes on."""
        return bool(self._out_wraps.column or self._err_wraps.column)

    @property
    def width(self) -> int | None:
        """Columns of the terminal that the answer goes to; None elsewhere."""
        return columns(self.out) if self.live else None

    def object(self, fields: dict[str, Any]) -> None:
        """One JSON object, on a line of its own; all of it ASCII, since line readers take more for line breaks."""
        self._put(json.dumps(fields, default=str) + "\n")
        self.flush()

    def line(self, text: str = "") -> None:
        """A line of the answer, to stdout."""
        self._put(f"{seen(text) if self.live else text}\n")

    def text(self, text: str) -> None:
        """More of the answer, to stdout, at once."""
        self._put(self._out_wraps.feed(seen(text)) if self.live else text)
        self.flush()
        self._log.tell_held()

    def note(self, text: str) -> None:
        """A message, to stderr."""
        if not self.quiet:
            self.told_plainly(f"{text}\n")

    def dim(self, text: str) -> None:
        """More of what stands back, to stderr, at once."""
        if self.quiet:
            return
        text = self._err_wraps.feed(seen(text)) if self._err_seen else text
        self._tell(f"{_DIM}{text}{_PLAIN}" if self._colour else text)
        self._log.tell_held()

    def written(self, text: str) -> None:
        """Text of our own, to stdout, as it is."""
        self._put(text)
        self.flush()

    def told_plainly(self, text: str) -> None:
        """A message that nothing silences, to stderr."""
        self._tell(Wrapping(self.err if self.err_live else None).feed(seen(text)) if self._err_seen else text)

    def _put(self, text: str) -> None:
        try:
            self.out.write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Unwritable(error.strerror or str(error)) from None

    def _tell(self, text: str, *, status: bool = False) -> None:
        with self._lock:
            clear = _CLEAR_LINE if self._on_line or status else ""
            self._on_line = status and bool(text)
            try:
                self.err.write(clear + text)
                self.err.flush()
            except OSError:
                self.lose(self.err)
                self.err, self.err_live = io.StringIO(), False

    @contextlib.contextmanager
    def told(self, *, verbose: bool = False) -> Generator[None, None, None]:
        """What the library logs meanwhile is told as messages are: no line of it is glued to the status line."""
        log = logging.getLogger("phi4_http")
        before = log.level
        log.setLevel(logging.DEBUG if verbose else logging.WARNING)
        log.addHandler(self._log)
        try:
            yield
        finally:
            log.removeHandler(self._log)
            self._log.tell_held(anyhow=True)
            log.setLevel(before)

    def error(self, error: Phi4Error) -> None:
        """An error, as the last object or as one line."""
        if self.as_json:
            partial = reply_fields(error.partial) if isinstance(error.partial, Reply) else None
            self.object(
                {
                    "type": "error",
                    "error": type(error).__name__,
                    **error.facts,
                    "message": str(error),  # not the server's own, which may be empty
                    "partial": partial,
                }
            )
        else:
            self.told_plainly(f"phi4_http: {in_words(error)}\n")

    def table(self, rows: Sequence[Sequence[str]], numbers: Collection[str] = ()) -> None:
        """Rows as aligned columns, to stdout; the first row is the head."""
        for line in aligned(rows, numbers, self.width):
            self.line(line)

    def flush(self) -> None:
        """Let a broken pipe or a full disk show now."""
        try:
            self.out.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Unwritable(error.strerror or str(error)) from None

    def ended(self, code: int) -> int:
        """The exit code, once all is written."""
        try:
            self.flush()
        except BrokenPipeError:
            return self.reader_gone()
        except Unwritable as error:
            return self.unwritable(error)
        return code

    def reader_gone(self) -> int:
        """Whoever read stdout has left: nothing more can be said there."""
        self.lose(self.out)
        return _READER_GONE

    def unwritable(self, error: Unwritable) -> int:
        """Stdout can't be written: say so."""
        self.lose(self.out)
        self._tell(f"phi4_http: stdout can't be written: {error}\n")
        return _UNWRITABLE

    @staticmethod
    def lose(stream: TextIO) -> None:
        """Let what is still to be written there vanish: Python must not try at its exit."""
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    def looking(self, what: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """A status line that says what is waited for, and for how long."""
        return self.status(lambda seconds: f"{what} {seconds:.0f} s")

    @contextlib.contextmanager
    def status(self, text: Callable[[float], str]) -> Generator[Callable[[], None], None, None]:
        """A line on the terminal that says how long something takes; what is yielded makes it vanish.

        `text` gets the seconds since the start; it is cut where the terminal is narrower. One inside another takes its
        place. Elsewhere than on a terminal there is no such line.
        """
        over = threading.Event()
        started = time.monotonic()

        def show() -> None:
            while not over.wait(0.1 if time.monotonic() - started < 1 else 0.5):
                with self._lock:
                    if not over.is_set() and self._status[-1:] == [text] and self.err_live:
                        line = clipped(seen(text(time.monotonic() - started)), columns(self.err) - 1)
                        self._tell(f"{_DIM}{line}{_PLAIN}" if self._colour else line, status=True)

        def vanish() -> None:
            with self._lock:
                if not over.is_set():
                    over.set()
                    self._status.remove(text)
                    self._tell("", status=True)

        if not self.err_live or self.as_json or self.quiet:
            yield lambda: None
            return
        self._status.append(text)
        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield vanish
        finally:
            vanish()
            thread.join()


def number(value: int | None) -> str:
    """A number in a table; one that nobody tells is shown as unknown."""
    return UNKNOWN if value is None else f"{value:,}"


def gibibytes(size: int | None) -> str:
    """A size in bytes, in a table."""
    return UNKNOWN if size is None else f"{size / 2**30:.2f} GiB"


def event_fields(event: Event) -> dict[str, Any]:
    """An event as the object of a JSON line."""
    if isinstance(event, Finished):
        return {"type": "finished", **reply_fields(event.reply)}
    fields = asdict(event)
    if not fields.get("forced", True):
        del fields["forced"]  # said only where it is so
    return {"type": type(event).__name__.lower(), **fields}


def reply_fields(reply: Reply) -> dict[str, Any]:
    """A reply as JSON can hold it."""
    return {**asdict(reply), "outcome": str(reply.outcome)}


class ReplyPrinter:
    """Writes the events of one reply: as JSON lines, or the thought dim to stderr and the solution to stdout.

    On a terminal the solution appears as it comes. In a pipe it is written at the end, when it can't be revised any
    more: text that turned out to be thought must not be in it.
    """

    def __init__(self, output: Output, *, thinking: bool = True) -> None:
        self._output = output
        self._thinking = thinking
        self._in_thought = False
        self._in_solution = False
        self._shown = ""
        self.tokens: int = 0
        """Pieces of thought so far: a token each, nearly always."""
        self.waiting: Waiting | None = None
        """What was waited for last."""

    def writes(self, event: Event) -> bool:
        """Whether showing this event writes anything."""
        if isinstance(event, Thinking):
            return self._thinking
        if isinstance(event, Revised):
            return self._thinking or self._output.live
        return not isinstance(event, Thought | Waiting)

    def show(self, event: Event) -> None:
        """One event."""
        if isinstance(event, Thinking):
            self.tokens += 1
        elif isinstance(event, Waiting):
            self.waiting = event
        if self._output.as_json:
            if self._thinking or not isinstance(event, Thinking):
                self._output.object(event_fields(event))
        elif isinstance(event, Thinking):
            if self._thinking:
                self._in_thought = True
                self._output.dim(event.text)
        elif isinstance(event, Thought):
            self._end_thought()
        elif isinstance(event, Revised):
            self._revise(event)
        elif isinstance(event, Solution) and self._output.live:
            self._show_solution(event.text)

    def finish(self, solution: str) -> None:
        """The text has ended, well or badly, with this solution: write what is still to be written."""
        if self._output.as_json:
            return
        self._end_thought()
        if not self._output.live:
            self._show_solution(solution)
        if self._in_solution and not self._shown.endswith("\n"):
            self._output.text("\n")

    def _end_thought(self) -> None:
        if self._in_thought:
            self._in_thought = False
            self._output.dim("\n\n" if self._output.live and self._output.err_live else "\n")

    def _show_solution(self, text: str) -> None:
        if text:
            self._in_solution = True
            self._shown = text
            self._output.text(text)

    def _revise(self, event: Revised) -> None:
        if self._output.live:
            if not self._shown.endswith("\n"):
                self._output.text("\n")
            self._in_solution = False
            self._output.dim("(all of that was the thought)\n\n")
        elif self._thinking:
            self._output.dim(event.text + "\n")
