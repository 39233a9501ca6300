"""What a person or a script sees: JSON lines, solution, dim thought, a status line that vanishes, messages."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from ..errors import Phi4Error
from ..events import Event, Finished, Reply, Revised, Solution, Thinking, Thought, Waiting

_DIM, _PLAIN, _CLEAR_LINE = "\x1b[2m", "\x1b[0m", "\r\x1b[K"
# What a model writes must not steer the terminal: control characters are shown, but for line breaks and tabs.
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
UNKNOWN = "?"
"""What the server does not tell."""
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


class Output:
    """Where a command writes to. On a terminal it may be dim and change a line; in a pipe it is plain."""

    def __init__(self, *, as_json: bool = False, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.as_json = as_json
        self.out: TextIO = out or sys.stdout
        self.err: TextIO = err or sys.stderr
        self.live: bool = self.out.isatty()
        self.err_live: bool = self.err.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self.err_live and not os.environ.get("NO_COLOR")

    @property
    def waits(self) -> bool:
        """Whether anybody sees what is waited for."""
        return self.as_json or self.err_live

    def object(self, fields: dict[str, Any]) -> None:
        """One JSON object, on a line of its own."""
        utf8 = (self.out.encoding or "").lower().replace("-", "") == "utf8"
        self.out.write(json.dumps(fields, ensure_ascii=not utf8, default=str) + "\n")
        self.out.flush()

    def line(self, text: str = "") -> None:
        """A line of the answer, to stdout."""
        self.out.write(f"{text}\n")

    def text(self, text: str) -> None:
        """More of the answer, to stdout, at once."""
        self.out.write(text.translate(_VISIBLE) if self.live else text)
        self.out.flush()

    def note(self, text: str) -> None:
        """A message, to stderr."""
        self.err.write(f"{text}\n")
        self.err.flush()

    def dim(self, text: str) -> None:
        """More of what stands back, to stderr, at once."""
        text = text.translate(_VISIBLE) if self.err_live else text
        self.err.write(f"{_DIM}{text}{_PLAIN}" if self._colour else text)
        self.err.flush()

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
            self.note(f"phi4_http: {error}")

    def table(self, rows: Sequence[Sequence[str]], numbers: Collection[str] = ()) -> None:
        """Rows as aligned columns, to stdout; the first row is the head."""
        for line in aligned(rows, numbers):
            self.line(line)

    def flush(self) -> None:
        """Let a broken pipe show now."""
        self.out.flush()

    def reader_gone(self) -> int:
        """Whoever read stdout has left: nothing more can be said, and Python must not try at its exit."""
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.out.fileno())
        return _READER_GONE

    @contextlib.contextmanager
    def status(self, text: Callable[[float], str]) -> Generator[Callable[[], None], None, None]:
        """A line on the terminal that says how long something takes; what is yielded makes it vanish.

        `text` gets the seconds since the start. Elsewhere than on a terminal there is no such line.
        """
        over = threading.Event()
        gone = threading.Lock()
        started = time.monotonic()

        def show() -> None:
            while not over.wait(0.1 if time.monotonic() - started < 1 else 0.5):
                with gone:
                    if not over.is_set():
                        self.err.write(_CLEAR_LINE)
                        self.dim(text(time.monotonic() - started))

        def vanish() -> None:
            with gone:
                if not over.is_set():
                    over.set()
                    self.err.write(_CLEAR_LINE)
                    self.err.flush()

        if not self.err_live or self.as_json:
            yield lambda: None
            return
        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield vanish
        finally:
            vanish()
            thread.join()


def aligned(rows: Sequence[Sequence[str]], numbers: Collection[str] = ()) -> Iterator[str]:
    """Rows as lines with aligned columns; those that the first row calls one of `numbers`, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(rows[0], row, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()


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
