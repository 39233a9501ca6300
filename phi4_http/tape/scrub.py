"""Keeps tokens, cookies and whatever else a caller names out of a tape. Pure: text in, text out.

Three kinds of things are taken out: what is known to be a secret (the token and the cookies of the request at hand,
those of the environment, cookies that the server set), what looks like one (`sk-…`, `Bearer …`, a JSON web token, the
value of a field called `api_key`), and what a caller's patterns match.

They are looked for in the texts that a person reads: strings and keys with their escapes undone, the deltas of a
stream put together (`readable`). In a request the secret becomes `[scrubbed]`, so that a request with another token is
still the same request. In the body of an answer it becomes as many `*` as it has bytes, so that the cuts stay true;
the body is scrubbed as it comes, and what may be a secret's beginning is held back from the tape, never from the
reader.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import codecs
import contextlib
import itertools
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from ..errors import InvalidRequest
from .exchange import RecordedRequest
from .readable import Reader, Span, Text, View, unescaped, unquoted

MASK = "[scrubbed]"

_NAMES = r"(?:x[-_])?api[-_]?(?:key|token)|(?:access|refresh|auth|session)[-_]token|client[-_]secret|password|cookie"
_SECRET_HEADERS = re.compile(rf"(?:proxy-)?authorization|(?:set-)?cookie2?|{_NAMES}", re.IGNORECASE)
_SECRET_FIELDS = re.compile(rf"authorization|{_NAMES}", re.IGNORECASE)
_HINTS = ("api", "token", "secret", "password", "cookie")
_START = r"(?<![A-Za-z0-9_])"
_SECRET_SHAPES = (
    (_START + r"sk-[A-Za-z0-9_:\-]{16,}", ("sk-",)),
    (_START + r"(?:hf|ghp|gho|github_pat)_[A-Za-z0-9_]{20,}", ("hf_", "ghp_", "gho_", "github_pat_")),
    (_START + r"eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+", ("eyj",)),
    # With a digit in it: "the bearer certificates" is prose.
    (_START + r"[Bb]earer[ \t]+(?=[^\s\"]*\d)([A-Za-z0-9._~+/:=\-]{12,})", ("bearer",)),
    (rf"(?i:[?&](?:{_NAMES})=)([^&\s\"]+)", _HINTS),
    (rf"(?i:\"(?:authorization|{_NAMES})\\?\"[ \t]*:[ \t]*\\?\")([^\"\\]+)", ("authorization", *_HINTS)),
)
"""What secrets look like, each with what is always in one, in lower case. Looking for that first makes a recording
five times as fast: most pieces of a stream have none of it."""
_ENVIRONMENT = ("LM_API_TOKEN", "LMSTUDIO_API_TOKEN", "OPENAI_API_KEY")

_PLACEHOLDERS = frozenset({"lm-studio", "lmstudio", "not-needed", "no-key-needed", "sk-no-key-required", "ollama"})
"""What people write where a client wants a key and the server does not. They are words; masking them hides texts."""
_SHORTEST = 6
"""A known secret with fewer characters is not looked for in bodies: it would be found everywhere."""
_REACH = 4096
"""A secret of so many characters is found wherever it stands; a pattern is tried on twice as many at a time."""
_KEPT = 1 << 16
"""How many characters of a body are held back, since a secret may begin there: some hundred events of a stream."""
_PIECE = 1 << 16
"""A line of so many characters is taken as if it ended there."""
_LINE_END, _NO_LINE_END = re.compile(r"[\r\n]"), re.compile(r"[^\r\n]+")


_VIEWS: tuple[View, ...] = (unescaped, unescaped)
"""How a text may be read, beside as it is: it may hold JSON, as the arguments of a tool are, and so may that."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """What to take out; without one of the `hints` in the text (in lower case) there is nothing to look for.

    `reach` is how many characters of what it finds can be found in a text that is looked at in stretches.
    """

    pattern: re.Pattern[str]
    hints: tuple[str, ...] = ()
    reach: int = _REACH

    def spans(self, text: str) -> Iterator[Span]:
        """What of a text is to go: what it matches, or what its groups do where it has some.

        It is looked at in stretches, since patterns are often quadratic; a match at the end of one makes it longer.
        """
        start, size = 0, 2 * self.reach
        while True:
            end = min(start + size, len(text))
            matches = list(self.pattern.finditer(text, start, end))
            if end < len(text) and matches and matches[-1].end() == end:
                size *= 2
                continue
            groups = range(1, self.pattern.groups + 1) if self.pattern.groups else (0,)
            spans = (match.span(group) for match in matches for group in groups)
            yield from (span for span in spans if span[0] < span[1])
            if end == len(text):
                return
            start, size = end - self.reach, 2 * self.reach


_SHAPES = tuple(_Rule(re.compile(pattern), hints) for pattern, hints in _SECRET_SHAPES)


def _found(rules: Iterable[_Rule], text: str, views: Sequence[View] = _VIEWS) -> Iterator[Span]:
    """What of a text is to go, as it is and in the first of the views (in which the others are looked at)."""
    lower = text.lower()
    for rule in rules:
        if not rule.hints or any(hint in lower for hint in rule.hints):
            yield from rule.spans(text)
    made = views[0](text) if views else None
    if made is not None:
        inner, places = made
        yield from ((places[start], places[end]) for start, end in _found(rules, inner, views[1:]))


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile("" + pattern)  # which no bytes can be added to
    except (re.error, ValueError, OverflowError, RecursionError, TypeError) as error:
        raise InvalidRequest(f"{pattern!r} is not a regular expression for texts: {error}") from None


class Scrubber:
    """Takes secrets out of requests, headers and bodies.

    `patterns` are a caller's own: regular expressions looked for within a line; of one with groups, only what the
    groups X
    """

    def __init__(self, patterns: Iterable[str] = (), *, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._own = [_Rule(_compiled(pattern)) for pattern in patterns]
        self._lock = threading.Lock()
        self._secrets: frozenset[str] = frozenset()
        for name in _ENVIRONMENT:
            self._learn(environment.get(name, ""))

    def learn(self, headers: Iterable[tuple[str, str]]) -> None:
        """Remember the secrets in these headers, of a request or of an answer."""
        for name, value in headers:
            if "cookie" in name.lower():
                # Set-Cookie has attributes after the first `;`, which are words: Path, Domain, …
                for cookie in value.split(";")[: 1 if name.lower().startswith("set-") else None]:
                    self._learn(cookie.partition("=")[2].strip(' "'))
            elif _SECRET_HEADERS.fullmatch(name):
                self._learn_authorization(value)

    def request(self, request: RecordedRequest) -> RecordedRequest:
        """The request without secrets; those in fields that are named like one are remembered."""
        body = request.body
        if isinstance(body, dict | list):
            body = self._value(self._value(body))  # the first time learns what the second looks for everywhere
        elif isinstance(body, str):
            body = self.text(body)
        elif isinstance(body, bytes):
            body = self.text(body.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        return replace(request, path=self.text(request.path, (unquoted, unquoted)), body=body)

    def headers(self, headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """The headers of an answer without secrets; those that are nothing but one are left out."""
        return tuple((name, self.text(value)) for name, value in headers if not _SECRET_HEADERS.fullmatch(name))

    def text(self, text: str, views: Sequence[View] = _VIEWS) -> str:
        """The text with `[scrubbed]` in the place of each secret."""
        parts, last = [], 0
        for start, end in _merged(_found([*self._known(), *_SHAPES, *self._own], text, views)):
            parts += [text[last:start], MASK]
            last = end
        return "".join([*parts, text[last:]])

    def body(self) -> BodyScrubber:
        """A scrubber for one body of an answer."""
        return BodyScrubber(_SHAPES, [*self._known(), *self._own])

    def _learn(self, secret: str) -> None:
        if len(secret) >= _SHORTEST and secret.lower() not in _PLACEHOLDERS:
            with self._lock:  # threads that record read the set without it
                self._secrets |= {secret}

    def _learn_authorization(self, value: str) -> None:
        scheme, _, token = value.partition(" ")
        self._learn(token.strip() or scheme)
        if scheme.lower() == "basic":
            with contextlib.suppress(binascii.Error):
                self._learn(base64.b64decode(token).decode("latin-1").partition(":")[2])

    def _known(self) -> list[_Rule]:
        """Rules for the known secrets, as they are and as JSON and URLs write them; the longest first."""
        spellings = {form for secret in self._secrets for form in (secret, json.dumps(secret)[1:-1], quote(secret, ""))}
        ordered = sorted(spellings, key=len, reverse=True)
        return [_Rule(re.compile(re.escape(form)), reach=max(_REACH, len(form))) for form in ordered]

    def _value(self, value: Any, name: str = "") -> Any:
        """A JSON value without secrets."""
        if isinstance(value, dict):
            clean: dict[str, Any] = {}
            for key, item in value.items():
                name = base = self.text(key)
                number = 1
                while name in clean or (name != key and name in value):
                    number += 1
                    name = f"{base} {number}"
                clean[name] = self._value(item, key)
            return clean
        if isinstance(value, list):
            return [self._value(item, name) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            # As the body of an answer has it: only what somebody named is looked for in numbers.
            return 0 if any(_found([*self._known(), *self._own], json.dumps(value), ())) else value
        if not isinstance(value, str):
            return value
        if _SECRET_FIELDS.fullmatch(name):
            self._learn_authorization(value)
            return MASK
        return self.text(value)


class BodyScrubber:
    """Scrubs one body as it comes: `feed` gives what is certain, `close` the rest. The length never changes.

    What is certain does not depend on how the body was cut. Text becomes `*`, as many as it has bytes; a number
    becomes 0 and spaces: JSON stays JSON, UTF-8 stays UTF-8, and no line end is touched.
    """

    def __init__(self, shapes: Iterable[_Rule], known: Iterable[_Rule]) -> None:
        self._known = list(known)
        self._rules = [*self._known, *shapes]
        self._keep = max([_KEPT, *(6 * rule.reach for rule in self._rules if rule.reach > _REACH)])
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._reader = Reader()
        self._line = ""
        self._looked = 0
        self._held: list[str] = []
        self._gone: list[tuple[Span, str]] = []
        """What of it is to go for certain, and what it becomes: a text, or nothing for `*`."""
        self._size = 0
        self._enough = 2 * self._keep
        self.found: set[str] = set()
        """What has been taken out, as it reads."""

    def feed(self, data: bytes) -> bytes:
        """The bytes that may be written now."""
        return self._read(self._decoder.decode(data))

    def close(self) -> bytes:
        """The rest."""
        ready = self._read(self._decoder.decode(b"", True))
        self._take(self._line)
        self._line = ""
        return ready + self._release(final=True)

    def _read(self, text: str) -> bytes:
        """Take in the lines that are whole, and long ones in pieces."""
        line, start, ready = self._line + text, 0, []
        while True:
            end = _LINE_END.search(line, self._looked, start + _PIECE)
            if end is None and len(line) - start < _PIECE:
                break
            stop = end.end() if end else _before_an_escape(line, start + _PIECE)
            self._take(line[start:stop])
            start = self._looked = stop
            if self._size >= self._enough:
                ready.append(self._release())
        self._line, self._looked = line[start:], len(line) - start
        return b"".join(ready)

    def _take(self, line: str) -> None:
        if line:
            self._reader.read(line, self._size)
            for text in self._reader.whole:
                self._gone += [(span, "") for find in self._finds(text) for span in find]
            for start, end in self._reader.numbers:
                if any(_found(self._known, line[start - self._size : end - self._size], ())):
                    self._gone.append(((start, end), "0"))
            for name, start, end in self._reader.named:
                if start < end and _SECRET_FIELDS.fullmatch(name):
                    self.found.add(line[start - self._size : end - self._size])
                    self._gone.append(((start, end), ""))
            self._held.append(line)
            self._size += len(line)

    def _release(self, *, final: bool = False) -> bytes:
        """Scrub what is held, and let go of what is certain: lines with nothing that goes on behind them."""
        held, starts = "".join(self._held), [0, *itertools.accumulate(map(len, self._held))]
        finds = [find for text in self._reader.texts.values() for find in self._finds(text)]
        last = len(self._held) if final else bisect.bisect_right(starts, len(held) - self._keep) - 1
        while across := [find for find in finds if find[0][0] < starts[last] < find[-1][1]]:
            last = bisect.bisect_right(starts, min(find[0][0] for find in across)) - 1
        cut = starts[last]
        gone = [*self._gone, *((span, "") for find in finds for span in find)]
        self._held, self._size = self._held[last:], len(held) - cut
        self._gone = [((start - cut, end - cut), instead) for (start, end), instead in self._gone if start >= cut]
        # Twice as much each time where a secret has no end, so that looking again stays linear.
        self._enough = 2 * max(self._keep, self._size)
        self._reader.forget(cut)
        return _masked(held[:cut], [item for item in gone if item[0][1] <= cut])

    def _finds(self, text: Text) -> Iterator[list[Span]]:
        """What of a text is to go, each with its places."""
        for start, end in _found(self._rules, str(text)):
            self.found.add(str(text)[start:end])
            yield list(text.places(start, end))


def _masked(text: str, gone: Iterable[tuple[Span, str]]) -> bytes:
    """The text as bytes, with what is to go filled up with `*`, or with a text and spaces; line ends stay."""
    parts, last = [], 0
    for (start, end), instead in sorted(gone):
        if end > last:
            hidden = instead.ljust(end - start) if instead else _NO_LINE_END.sub(_stars, text[max(start, last) : end])
            parts += [text[last:start], hidden]
            last = end
    return "".join([*parts, text[last:]]).encode("utf-8", "surrogateescape")


def _stars(match: re.Match[str]) -> str:
    return "*" * len(match.group().encode("utf-8", "surrogateescape"))


def _merged(spans: Iterable[Span]) -> list[Span]:
    """The same places, in order, those that overlap as one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _before_an_escape(line: str, stop: int) -> int:
    """Where to cut a line at `stop` or just before it, so that no escape is cut in two."""
    last = line.rfind("\\", stop - 6, stop)
    slashes = len(line[: last + 1]) - len(line[: last + 1].rstrip("\\")) if last >= 0 else 0
    return last if slashes % 2 else stop


def find_secrets(pieces: Iterable[bytes]) -> list[str]:
    """What in a body looks like a secret, shortened so that it can be shown."""
    body = BodyScrubber(_SHAPES, ())
    for data in pieces:
        body.feed(data)
    body.close()
    return sorted(f"{secret[:6]}…" for secret in body.found if secret != MASK and set(secret) != {"*"})
