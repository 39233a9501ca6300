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
from collections.abc import Iterable, Mapping
from dataclasses import replace
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import quote

from .exchange import RecordedRequest

MASK = "[scrubbed]"

_NAMES = r"(?:x[-_])?api[-_]?(?:key|token)|(?:access|refresh|auth|session)[-_]token|client[-_]secret|password|cookie"
_SECRET_HEADERS = re.compile(rf"(?:proxy-)?authorization|(?:set-)?cookie2?|{_NAMES}", re.IGNORECASE)
_SECRET_FIELDS = re.compile(rf"authorization|{_NAMES}", re.IGNORECASE)
_SECRET_SHAPES = (
    r"\bsk-[A-Za-z0-9_:\-]{16,}",
    r"\b(?:hf|ghp|gho|github_pat)_[A-Za-z0-9_]{20,}",
    r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+",
    # With a digit in it: "the bearer certificates" is prose.
    r"\b[Bb]earer[ \t]+(?=[^\s\"]*\d)([A-Za-z0-9._~+/:=\-]{12,})",
    rf"(?i:[?&](?:{_NAMES})=)([^&\s\"]+)",
    rf"(?i:\"(?:authorization|{_NAMES})\"[ \t]*:[ \t]*\")([^\"\\]+)",
)
_ENVIRONMENT = ("LM_API_TOKEN", "LMSTUDIO_API_TOKEN", "OPENAI_API_KEY")

_PLACEHOLDERS = frozenset({"lm-studio", "lmstudio", "not-needed", "no-key-needed", "sk-no-key-required", "ollama"})
"""What people write where a client wants a key and the server does not. They are words; masking them hides texts."""
_SHORTEST = 6
"""A known secret with fewer characters is not looked for in bodies: it would be found everywhere."""
_REACH = 4096
"""How many bytes of a line without an end are held back, since a secret may begin there."""


class Scrubber:
    """Takes secrets out of requests, headers and bodies.

    `patterns` are a caller's own: regular expressions looked for within a line; of one with groups, only what the
    groups match is taken out. Secrets that are met on the way are remembered. Raises ValueError for a bad pattern.
    """

    def __init__(self, patterns: Iterable[str] = (), *, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._patterns = (*_SECRET_SHAPES, *patterns)
        try:
            self._rules = [re.compile(pattern) for pattern in self._patterns]
        except re.error as error:
            raise ValueError(f"{error.pattern!r} is not a regular expression: {error}") from error
        self._secrets: set[str] = set()
        for name in _ENVIRONMENT:
            self._learn(environment.get(name, ""))

    def learn(self, headers: Iterable[tuple[str, str]]) -> None:
        """Remember the secrets in these headers, of a request or of an answer."""
        for name, value in headers:
            if "cookie" in name.lower():
                self._learn_cookies(value)
            elif _SECRET_HEADERS.fullmatch(name):
                self._learn_authorization(value)

    def request(self, request: RecordedRequest) -> RecordedRequest:
        """The request without secrets; those in fields that are named like one are remembered."""
        body = request.body
        if isinstance(body, dict | list):
            body = self._value(body)
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
            text = rule.sub(lambda match: _masked(match, lambda _: MASK), text)
        return text

    def body(self) -> BodyScrubber:
        """A scrubber for one body of an answer."""
        rules = [_as_bytes(rule) for rule in (*self._known(), *self._rules)]
        return BodyScrubber(rules, reach=max([_REACH, *(len(secret) * 6 for secret in self._secrets)]))

    def _learn(self, secret: str) -> None:
        if len(secret) >= _SHORTEST and secret.lower() not in _PLACEHOLDERS:
            self._secrets.add(secret)

    def _learn_cookies(self, value: str) -> None:
        try:
            for cookie in SimpleCookie(value).values():
                self._learn(cookie.value)
        except CookieError:
            self._learn(value)

    def _learn_authorization(self, value: str) -> None:
        scheme, _, token = value.partition(" ")
        self._learn(token.strip() or scheme)
        if scheme.lower() == "basic":
            with contextlib.suppress(binascii.Error):
                self._learn(base64.b64decode(token).decode("latin-1").partition(":")[2])

    def _known(self) -> list[re.Pattern[str]]:
        """Patterns for the known secrets, as they are and as JSON and URLs write them; the longest first."""
        spellings = {form for secret in self._secrets for form in (secret, json.dumps(secret)[1:-1], quote(secret, ""))}
        return [re.compile(re.escape(form)) for form in sorted(spellings, key=len, reverse=True)]

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
    """Scrubs one body as it comes: `feed` gives what is certain, `close` the rest. The length never changes."""

    def __init__(self, rules: list[re.Pattern[bytes]], *, reach: int) -> None:
        self._rules = rules
        self._reach = reach
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """The bytes that may be written now."""
        self._held += data
        line = self._held.rfind(b"\n") + 1
        if not line and len(self._held) < 2 * self._reach:
            return b""
        clean = self._clean(self._held)
        # What stays is clean already, so a secret across the cut is masked on both sides.
        cut = max(line, len(clean) - self._reach)
        self._held = clean[cut:]
        return clean[:cut]

    def close(self) -> bytes:
        """The rest."""
        rest, self._held = self._clean(self._held), b""
        return rest

    def _clean(self, data: bytes) -> bytes:
        for rule in self._rules:
            data = rule.sub(lambda match: _masked(match, lambda secret: b"*" * len(secret)), data)
        return data


def find_secrets(text: str) -> list[str]:
    """What in a text looks like a secret, shortened so that it can be shown."""
    found = [match.group(match.lastindex or 0) for shape in _SECRET_SHAPES for match in re.finditer(shape, text)]
    return [f"{secret[:6]}…" for secret in found if secret != MASK and set(secret) != {"*"}]


def _masked(match: re.Match[Any], mask: Any) -> Any:
    """What replaces a match: a mask for all of it, or, where the pattern has groups, for each of them."""
    whole, start = match.group(), match.start()
    if not match.re.groups:
        return mask(whole)
    parts, last = [], 0
    for index in range(1, match.re.groups + 1):
        begin, end = match.start(index) - start, match.end(index) - start
        if begin >= last:
            parts += [whole[last:begin], mask(whole[begin:end])]
            last = end
    return whole[:0].join([*parts, whole[last:]])


def _as_bytes(rule: re.Pattern[str]) -> re.Pattern[bytes]:
    return re.compile(rule.pattern.encode(), rule.flags & ~re.UNICODE)
