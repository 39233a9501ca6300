"""Keeps tokens, cookies and whatever else a caller names out of a tape. Pure: text in, text out.

Three kinds of things are taken out: what is known to be a secret (the token and the cookies of the request at hand,
those of the environment, cookies that the server set), what looks like one (`sk-…`, `Bearer …`, a JSON web token, the
value of a field called `api_key`), and what a caller's patterns match.

In a request the secret becomes `[scrubbed]`, so that a request with another token is still the same request. In the
body of an answer it becomes as many `*` as it has bytes, so that the cuts stay true; the body is scrubbed as it comes,
line by line, and what may be a secret's beginning is held back from the tape, never from the reader.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, AnyStr, Generic
from urllib.parse import quote

from .exchange import RecordedRequest

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
"""How many bytes of a line without an end are held back, since a secret may begin there."""


@dataclass(frozen=True, slots=True)
class _Rule(Generic[AnyStr]):
    """What to take out; without one of the `hints` in the text (in lower case) there is nothing to look for."""

    pattern: re.Pattern[AnyStr]
    hints: tuple[AnyStr, ...] = ()

    def as_bytes(self: _Rule[str]) -> _Rule[bytes]:
        """The same rule for bytes."""
        pattern = re.compile(self.pattern.pattern.encode(), self.pattern.flags & ~re.UNICODE)
        return _Rule(pattern, tuple(hint.encode() for hint in self.hints))


_SHAPES = [_Rule(re.compile(pattern), hints) for pattern, hints in _SECRET_SHAPES]


class Scrubber:
    """Takes secrets out of requests, headers and bodies.

    `patterns` are a caller's own: regular expressions looked for within a line; of one with groups, only what the
    groups match is taken out. Secrets that are met on the way are remembered. Raises ValueError for a bad pattern.
    """

    def __init__(self, patterns: Iterable[str] = (), *, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        try:
            self._rules = [*_SHAPES, *(_Rule(re.compile(pattern)) for pattern in patterns)]
        except re.error as error:
            raise ValueError(f"{error.pattern!r} is not a regular expression: {error}") from error
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
            body = self.text(body.decode("latin-1")).encode("latin-1")
        return replace(request, path=self.text(request.path), body=body)

    def headers(self, headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """The headers of an answer without secrets; those that are nothing but one are left out."""
        return tuple((name, self.text(value)) for name, value in headers if not _SECRET_HEADERS.fullmatch(name))

    def text(self, text: str) -> str:
        """The text with `[scrubbed]` in the place of each secret."""
        for rule in (*self._known(), *self._rules):
            text = rule.pattern.sub(_bracketed, text)
        return text

    def body(self) -> BodyScrubber:
        """A scrubber for one body of an answer."""
        rules = [rule.as_bytes() for rule in (*self._known(), *self._rules)]
        return BodyScrubber(rules, reach=max([_REACH, *(len(secret) * 6 for secret in self._secrets)]))

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

    def _known(self) -> list[_Rule[str]]:
        """Rules for the known secrets, as they are and as JSON and URLs write them; the longest first."""
        spellings = {form for secret in self._secrets for form in (secret, json.dumps(secret)[1:-1], quote(secret, ""))}
        return [_Rule(re.compile(re.escape(form))) for form in sorted(spellings, key=len, reverse=True)]

    def _value(self, value: Any, name: str = "") -> Any:
        """A JSON value without secrets."""
        if isinstance(value, dict):
            return {key: self._value(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [self._value(item, name) for item in value]
        if not isinstance(value, str):
            return value
        if _SECRET_FIELDS.fullmatch(name):
            self._learn_authorization(value)
            return MASK
        return self.text(value)


class BodyScrubber:
    """Scrubs one body as it comes: `feed` gives what is certain, `close` the rest. The length never changes.

    A line is certain when it has ended. Of a line without an end, all but the last bytes are, where no secret lies
    across that border.
    """

    def __init__(self, rules: list[_Rule[bytes]], *, reach: int) -> None:
        self._rules = rules
        self._always = [rule for rule in rules if not rule.hints]
        self._hints = sorted({hint for rule in rules for hint in rule.hints})
        self._reach = reach
        self._enough = 2 * reach
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """The bytes that may be written now."""
        held = self._held = self._held + data
        cut = held.rfind(b"\n") + 1
        if not cut and len(held) < self._enough:
            return b""
        matches = self._matches(held)
        if len(held) - cut >= self._enough:
            cut = len(held) - self._reach
            cut = min([cut, *(match.start() for match in matches if match.start() < cut < match.end())])
        self._held = held[cut:]
        # Twice as much each time where a secret has no end, so that looking again stays linear.
        self._enough = 2 * max(self._reach, len(self._held))
        return _starred(held, matches)[:cut]

    def close(self) -> bytes:
        """The rest."""
        held, self._held = self._held, b""
        return _starred(held, self._matches(held))

    def _matches(self, data: bytes) -> list[re.Match[bytes]]:
        rules = self._rules if self._hinted(data) else self._always
        return [match for rule in rules for match in rule.pattern.finditer(data)]

    def _hinted(self, data: bytes) -> bool:
        lower = data.lower()
        for hint in self._hints:  # noqa: SIM110 (any() takes three times as long, and this is done for each piece)
            if hint in lower:
                return True
        return False


def _starred(data: bytes, matches: list[re.Match[bytes]]) -> bytes:
    """The data with `*` for each byte that is to go."""
    if not matches:
        return data
    masked = bytearray(data)
    for match in matches:
        for group in range(1, match.re.groups + 1) if match.re.groups else (0,):
            start, end = match.span(group)
            masked[start:end] = b"*" * (end - start)
    return bytes(masked)


def find_secrets(text: str) -> list[str]:
    """What in a text looks like a secret, shortened so that it can be shown."""
    found = [match.group(match.lastindex or 0) for shape in _SHAPES for match in shape.pattern.finditer(text)]
    return [f"{secret[:6]}…" for secret in found if secret != MASK and set(secret) != {"*"}]


def _bracketed(match: re.Match[str]) -> str:
    """What replaces a match in a text: `[scrubbed]`, or that for each group where the pattern has groups."""
    whole, start = match.group(), match.start()
    if not match.re.groups:
        return MASK
    parts, last = [], 0
    for group in range(1, match.re.groups + 1):
        begin, end = match.start(group) - start, match.end(group) - start
        if begin >= last:
            parts += [whole[last:begin], MASK]
            last = end
    return "".join([*parts, whole[last:]])
