"""The texts that a person reads in a body, and where each of their characters stands in it. Pure.

A body is JSON, an event stream of JSON, or text. What is read of it is strings with their escapes undone, and of a
stream the texts of its events put together: `"sk-"` in one event and `"secret"` in the next are one text. Each text
knows its places, so that whoever finds something in it can point to the characters of the body that spell it: those
are always whole characters or whole escapes, never a quote or a brace.

Lenient: a line that is no JSON is text, and nothing that comes is an error.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias
from urllib.parse import unquote

Span: TypeAlias = tuple[int, int]
"""From the first character to the one after the last."""

SPOKEN = (
    "content",
    "reasoning_content",
    "reasoning",
    "thinking",
    "text",
    "arguments",
    "partial_json",
    "delta",
    "token",
)
"""The fields of an event whose texts are put together, by the dialects that there are."""

_ESCAPE = re.compile(r'\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|["\\/bfnrt])')
_PERCENT = re.compile(r"(?:%[0-9a-fA-F]{2})+|\+")
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_TOKEN = re.compile(r'"|[{}\[\]:,]|[^\s"{}\[\]:,]+')
_STRING = re.compile(r'([^"\\]*(?:\\.[^"\\]*)*)("?)', re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_FIELD = re.compile(r"\ufeff?(data|event|id|retry|): ?")
_JSON_BEGINS = re.compile(r"\s*[{\[]")
_ENDS = ("\n", "\r")


class Text:
    """A text in parts, each of which stands somewhere in the body."""

    __slots__ = ("_begins", "_joined", "_parts")

    def __init__(self) -> None:
        self._parts: list[tuple[str, int, list[int] | None]] = []
        """Of each part what it says, where it stands, and where each of its characters does (and its end): None for
        a part that is spelt as it reads."""
        self._begins: list[int] = [0]
        self._joined = ""

    def __str__(self) -> str:
        if len(self._joined) != self._begins[-1]:
            self._joined = "".join(part for part, _, _ in self._parts)
        return self._joined

    def add(self, raw: str, at: int, *, escaped: bool) -> None:
        """More of it, spelt `raw` in the body, where it stands at `at`."""
        text, places = (escaped and unescaped(raw)) or (raw, None)
        if text:
            self._parts.append((text, at, [at + place for place in places] if places else None))
            self._begins.append(self._begins[-1] + len(text))

    def places(self, start: int, end: int) -> Iterator[Span]:
        """Where the characters from `start` to `end` stand."""
        index = bisect.bisect_right(self._begins, start) - 1
        while start < end:
            _, at, places = self._parts[index]
            begin, stop = self._begins[index], min(end, self._begins[index + 1])
            first, last = start - begin, stop - begin
            yield (places[first], places[last]) if places else (at + first, at + last)
            start, index = stop, index + 1

    def forget(self, gone: int) -> bool:
        """The first `gone` characters of the body are gone, and the parts in them. Whether any text is left."""
        parts = [part for part in self._parts if part[1] >= gone]
        self._parts, self._begins, self._joined = [], [0], ""
        for text, at, places in parts:
            self._parts.append((text, at - gone, [place - gone for place in places] if places else None))
            self._begins.append(self._begins[-1] + len(text))
        return bool(parts)


View: TypeAlias = Callable[[str], "tuple[str, list[int]] | None"]
"""A text as it reads, with the place of each of its characters and of the end; None where it reads as it is spelt."""


def unescaped(text: str) -> tuple[str, list[int]] | None:
    """JSON's escapes undone."""
    return _undone(text, _ESCAPE, _escaped) if "\\" in text else None


def unquoted(text: str) -> tuple[str, list[int]] | None:
    """The escapes of URLs undone."""
    return _undone(text, _PERCENT, _percent) if "%" in text or "+" in text else None


def _undone(
    text: str, escape: re.Pattern[str], meaning: Callable[[str], Iterable[tuple[str, int]]]
) -> tuple[str, list[int]] | None:
    parts: list[str] = []
    places: list[int] = []
    last = 0
    for match in escape.finditer(text):
        parts.append(text[last : match.start()])
        places += range(last, match.start())
        at = match.start()
        for character, size in meaning(match.group()):
            parts.append(character)
            places.append(at)
            at += size
        last = match.end()
    parts.append(text[last:])
    places += range(last, len(text) + 1)
    return ("".join(parts), places) if last else None


def _escaped(escape: str) -> Iterable[tuple[str, int]]:
    if escape[1] != "u":
        return [(_SHORT.get(escape[1], escape[1]), len(escape))]
    units = [int(unit, 16) for unit in escape[2:].split("\\u")]
    code = units[0] if len(units) == 1 else 0x10000 + (units[0] - 0xD800 << 10) + (units[1] - 0xDC00)
    return [(chr(code), len(escape))]


def _percent(escape: str) -> Iterable[tuple[str, int]]:
    if escape == "+":
        return [(" ", 1)]
    text = unquote(escape, errors="surrogateescape")
    return [(character, 3 * len(character.encode("utf-8", "surrogateescape"))) for character in text]


class _Frame:
    """An object or an array that has begun; `name` is what its parent calls it."""

    __slots__ = ("array", "count", "index", "key", "name")

    def __init__(self, *, array: bool, name: str | int) -> None:
        self.array = array
        self.name = name
        self.index: str | None = None
        """Its member `index`, which counts through a stream, as the place in an array does not."""
        self.key: str | None = None
        """The key of the member at hand."""
        self.count = 0

    @property
    def label(self) -> str | int:
        """What it is in the path of a text."""
        return self.name if self.index is None else self.index

    @property
    def member(self) -> str | int:
        """What the member at hand is called."""
        return self.count if self.array else self.key or ""


class _String:
    """A string that has begun: in which objects it is, its field's name, whether it is a key itself."""

    __slots__ = ("frames", "key", "name")

    def __init__(self, frames: tuple[_Frame, ...], name: str | None) -> None:
        self.frames = frames
        self.name = name
        self.key: tuple[object, ...] | None = None

    def text_key(self) -> tuple[object, ...]:
        """The same for strings that are one text."""
        if self.key is None:
            # The tokens of log probabilities are a list in each event, and one text together.
            path = [frame.label for frame in self.frames]
            path = [0 if "logprobs" in path and isinstance(label, int) else label for label in path]
            self.key = (*path, self.name) if self.name in SPOKEN else (self,)
        return self.key


class Reader:
    """Reads a body line by line (or a long line in pieces).

    Texts that may go on are in `texts`. What a line has beside is in `whole`, `numbers` and `named`, until the next.
    """

    def __init__(self) -> None:
        self.texts: dict[tuple[object, ...], Text] = {}
        self.whole: list[Text] = []
        self.numbers: list[Span] = []
        self.named: list[tuple[str, int, int]] = []
        """Strings that are values: the name of the field, and where it stands."""
        self._stack: list[_Frame] = []
        self._open: _String | None = None
        self._stream = self._returned = self._within = False

    def read(self, line: str, at: int) -> None:
        """The next line, with its end, or the next piece of one; it stands at `at`."""
        self.whole, self.numbers, self.named = [], [], []
        returned, self._returned = self._returned, line.endswith("\r")
        within, self._within = self._within, not line.endswith(_ENDS)
        if returned and line == "\n":
            return
        if not line.strip() and not within:
            if self._stream:
                self._stack.clear()
                self._open = None
            else:
                self._add(("plain",), line, at)
            return
        field = None if within else _FIELD.match(line)
        if not within:
            self._stream = field is not None
        start = field.end() if field else 0
        if (field is None or field[1] == "data") and (
            self._open or self._stack or (not within and _JSON_BEGINS.match(line, start))
        ):
            if self._json(line, start, at):
                return
            self._stack.clear()
            self._open = None
        content = line[start:].rstrip("\r\n") if self._stream else line[start:]
        key = ("plain",) if not self._stream else ("data",) if field is None or field[1] == "data" else (object(),)
        self._add(key, content, at + start)

    def forget(self, gone: int) -> None:
        """The first `gone` characters of the body are gone."""
        self.texts = {key: text for key, text in self.texts.items() if text.forget(gone)}

    def _add(self, key: tuple[object, ...], raw: str, at: int, *, escaped: bool = False) -> None:
        self.texts.setdefault(key, Text()).add(raw, at, escaped=escaped)

    def _json(self, line: str, pos: int, at: int) -> bool:
        """Read it as JSON. False, and nothing was read, where it is none."""
        strings: list[tuple[_String, int, str]] = []
        numbers: list[Span] = []
        while True:
            if self._open is None:
                token = _TOKEN.search(line, pos)
                if token is None:
                    break
                pos = token.end()
                if token.group() != '"':
                    if not self._mark(token.group(), at + token.start(), numbers):
                        return False
                    continue
                self._open = self._string()
            string = _STRING.match(line, pos)
            if string is None:  # a backslash at the very end
                return False
            strings.append((self._open, string.start(1), string[1]))
            pos = string.end()
            if not string[2]:
                if line.endswith(_ENDS):
                    return False
                break
            self._close(self._open, string[1])
            self._open = None
        for opened, start, raw in strings:
            if opened.name in SPOKEN or opened.key or opened is self._open:
                self._add(opened.text_key(), raw, at + start, escaped=True)
            else:
                self.whole.append(Text())
                self.whole[-1].add(raw, at + start, escaped=True)
            if opened.name is not None:
                self.named.append((opened.name, at + start, at + start + len(raw)))
        self.numbers = numbers
        return True

    def _mark(self, token: str, at: int, numbers: list[Span]) -> bool:
        """A token that is no string. False where JSON has none such."""
        frame = self._stack[-1] if self._stack else None
        if token in "{[":
            name = frame.member if frame else ""
            self._stack.append(_Frame(array=token == "[", name=name))
        elif token in "}]":
            if self._stack:
                self._stack.pop()
        elif token == ",":
            if frame:
                frame.key, frame.count = None, frame.count + 1
        elif _NUMBER.fullmatch(token):
            if frame and frame.key == "index":
                frame.index = token
            numbers.append((at, at + len(token)))
        else:
            return token in (":", "true", "false", "null")
        return True

    def _string(self) -> _String:
        """A string begins here."""
        if self._stack and not self._stack[-1].array and self._stack[-1].key is None:
            return _String((), None)
        names = [frame.name for frame in self._stack]
        last = self._stack[-1].member if self._stack else ""
        name = next((name for name in (last, *reversed(names)) if isinstance(name, str)), "")
        return _String(tuple(self._stack), name)

    def _close(self, string: _String, raw: str) -> None:
        """It ends; a key names what follows."""
        if string.name is None and self._stack:
            self._stack[-1].key = (unescaped(raw) or (raw,))[0]
