"""Text for a terminal: nothing in it steers the terminal, it fits, and it speaks of options."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import TextIO
from unicodedata import combining, east_asian_width

from ..errors import (
    ContextOverflow,
    ContextTooShort,
    InvalidRequest,
    ModelNotFound,
    Phi4Error,
    ServerUnreachable,
    SolutionTruncated,
    ThoughtUnclosed,
)
from ..settings import BY_FIELD, near

# What a model writes must not steer the terminal: control characters are shown, but for line breaks and tabs.
# Nor may it let text seem to stand in another order.
_ORDER = (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"} | {
    code: f"\\u{code:04x}" for code in _ORDER
}
_IN_A_CELL = {10: "\\n", 9: " "}
_COLUMNS = 80  # of a terminal that does not tell
_NARROWEST = 6  # of a column: less tells nothing


def seen(text: str) -> str:
    """Text from outside as a terminal may get it: what would steer it is shown."""
    return text.translate(_VISIBLE)


def columns(stream: TextIO) -> int:
    """How wide a terminal is."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or _COLUMNS
    except (OSError, ValueError):
        return _COLUMNS


def wide(text: str) -> int:
    """Columns that a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)


def clipped(text: str, width: int) -> str:
    """A text in so many columns at most; what is left out is shown as an ellipsis."""
    if wide(text) <= width:
        return text
    while text and wide(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


class Wrapping:
    """Text that comes in pieces, broken between words where the terminal ends. Without a terminal it stays as it is.

    What has come of a word is shown at once, and taken to the next line where its rest does not fit. Markdown's code
    and tables are left to the terminal: a break of ours would change them.
    """

    def __init__(self, terminal: TextIO | None) -> None:
        self._terminal = terminal
        self._line = self._word = ""
        self.column: int = 0
        """Where the cursor is."""
        self._begin = 0  # of the word that it stands in
        self._fenced = False

    def feed(self, text: str) -> str:
        """More of it, as it is to be written."""
        if self._terminal is None:
            return text
        width = columns(self._terminal) - 1  # in the very last column, terminals differ in where the cursor is
        return "".join(self._piece(piece, width) for piece in re.findall(r"\n|[^\S\n]+|\S+", text))

    def _piece(self, piece: str, width: int) -> str:
        if piece == "\n":
            self._fenced ^= self._line.lstrip().startswith("```")
            self._line, self._word, self.column, self._begin = "", "", 0, 0
            return piece
        self._line += piece if len(self._line) < width else ""
        if piece.isspace():
            room = width - self.column
            piece = piece if self._verbatim else piece[: max(room, 0)]
            self.column += wide(piece)
            self._word, self._begin = "", self.column
            return piece
        self._word += piece
        if self.column + wide(piece) <= width or not self._begin or self._verbatim:
            self.column += wide(piece)
            if self.column > width and not self._begin:
                self.column %= width + 1
            return piece
        shown = self.column - self._begin
        self.column, self._begin = wide(self._word) % (width + 1), 0
        return (f"\x1b[{shown}D\x1b[K" if shown else "") + f"\n{self._word}"

    @property
    def _verbatim(self) -> bool:
        return self._fenced or self._line.startswith(("    ", "\t", "|")) or self._line.lstrip().startswith("```")


def in_words(error: Phi4Error) -> str:
    """An error's sentence, with the options of the command line in place of Python's parameters."""
    said = str(error)
    if isinstance(error, ModelNotFound) and error.model and error.available:
        return said + near(error.model, error.available)
    if isinstance(error, InvalidRequest | ContextOverflow | ContextTooShort | SolutionTruncated | ThoughtUnclosed):
        said = re.sub(r"`(\w+)`", lambda found: _option(found[1], found[0]), said)
        return re.sub(r"^(\w+)(?= is )", lambda found: _option(found[1], found[0]), said)
    if isinstance(error, ServerUnreachable):
        said = re.sub(r"\((connect|request|first_byte|idle)\)", "(--timeout)", said)
        return said.replace("(total)", "(--max-time)").replace("`base_url`", "--url")
    return said


def _option(field: str, otherwise: str) -> str:
    setting = BY_FIELD.get(field)
    return f"--{setting.name}" if setting else otherwise


def aligned(rows: Sequence[Sequence[str]], numbers: Collection[str] = (), width: int | None = None) -> Iterator[str]:
    """Rows as lines with aligned columns; those that the first row calls one of `numbers`, to the right.

    Where they are wider than `width`, the widest columns lose what is too much, the first one last.
    """
    cells = [[cell.translate(_IN_A_CELL) for cell in row] for row in rows]
    widths = [max(map(wide, column)) for column in zip(*cells, strict=True)]
    while width and sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > _NARROWEST:
        others = widths[1:] if max(widths[1:], default=0) > _NARROWEST else widths  # the name goes last
        widths[widths.index(max(others), len(widths) - len(others))] -= 1
    for row in cells:
        line = []
        for name, cell, space in zip(rows[0], row, widths, strict=True):
            text = clipped(cell, space)
            pad = " " * (space - wide(text))
            line.append(pad + text if name in numbers else text + pad)
        yield "  ".join(line).rstrip()
