"""Which recorded exchange answers a request, and what to say where none does. Pure.

By content (the default), a request is answered by the first exchange not yet played whose method, path and body are
its own; in order, by the next exchange on the tape, which must fit. Bodies are compared as JSON where they are JSON:
the order of keys doesn't count, and fields can be left out of the comparison.
"""

from __future__ import annotations

import difflib
import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import TapeMismatch
from .exchange import Exchange, RecordedRequest
from .scrub import Scrubber

_SHOWN = 40
"""At most so many lines of a difference, so many exchanges of a list."""
_WIDTH = 160
"""At most so many characters of one line: prompts are long."""


@dataclass(frozen=True, slots=True)
class Match:
    """What must be equal, and in what order exchanges are played.

    `ignore` names fields of a JSON body by their path, `*` for any key or index: `"seed"`, `"messages.0.content"`,
    `"messages.*.content"`. With `body` False, method and path decide alone. With `loop`, exchanges that were all
    played are played again from the first.
    """

    method: bool = True
    path: bool = True
    body: bool = True
    ignore: tuple[str, ...] = ()
    order: Literal["content", "tape"] = "content"
    loop: bool = False

    def fits(self, recorded: RecordedRequest, request: RecordedRequest) -> bool:
        """Whether the recorded request is this one, as far as it is compared."""
        return (
            (not self.method or recorded.method == request.method)
            and (not self.path or recorded.path == request.path)
            and (not self.body or self.compared(recorded.body) == self.compared(request.body))
        )

    def compared(self, body: Any) -> Any:
        """The body without the ignored fields."""
        for field in self.ignore:
            body = _without(body, field.split("."))
        return body


class Selection:
    """What of a tape has been played; chooses what comes next. Safe for several threads.

    `scrubber` takes out of requests what is not on the tape, before they are compared.
    """

    def __init__(
        self, exchanges: Sequence[Exchange], match: Match, *, scrubber: Scrubber | None = None, tape: str = ""
    ) -> None:
        self._exchanges = tuple(exchanges)
        self._match = match
        self._scrubber = scrubber or Scrubber()
        self._tape = tape
        self._times = [0] * len(self._exchanges)
        self._next = 0
        self._lock = threading.Lock()

    @property
    def played(self) -> tuple[Exchange, ...]:
        """The exchanges that were played."""
        return tuple(exchange for exchange, times in zip(self._exchanges, self._times, strict=True) if times)

    @property
    def unused(self) -> tuple[Exchange, ...]:
        """The exchanges that were never played."""
        return tuple(exchange for exchange, times in zip(self._exchanges, self._times, strict=True) if not times)

    def take(self, request: RecordedRequest, headers: Iterable[tuple[str, str]] = ()) -> Exchange:
        """The exchange that answers this request, from now on played. `headers` are the request's.

        Raises `TapeMismatch`, and nothing changes.
        """
        self._scrubber.learn(headers)
        scrubbed = self._scrubber.request(request)
        # What is recorded fits scrubbed, what was composed by hand may fit as it is.
        fits = [any(self._match.fits(one.request, asked) for asked in (scrubbed, request)) for one in self._exchanges]
        with self._lock:
            index = (self._in_order if self._match.order == "tape" else self._by_content)(scrubbed, fits)
            self._times[index] += 1
        return self._exchanges[index]

    def _by_content(self, request: RecordedRequest, fits: Sequence[bool]) -> int:
        fitting = [index for index, fit in enumerate(fits) if fit]
        if not fitting:
            raise self._mismatch(request, "no recorded request fits", self._nearest(request))
        index = min(fitting, key=lambda i: self._times[i])
        if self._times[index] and not self._match.loop:
            raise self._mismatch(request, f"it is recorded {_times(len(fitting))}, and was played as often", None)
        return index

    def _in_order(self, request: RecordedRequest, fits: Sequence[bool]) -> int:
        if self._next >= len(self._exchanges) and self._match.loop:
            self._next = 0
        if self._next >= len(self._exchanges):
            raise self._mismatch(request, "all of the tape has been played", None)
        index = self._next
        if not fits[index]:
            reason = f"number {index + 1} comes next, and it is another request"
            raise self._mismatch(request, reason, self._exchanges[index])
        self._next += 1
        return index

    def _nearest(self, request: RecordedRequest) -> Exchange | None:
        """The most alike: the method and the path count more than any body."""
        wanted = _lines(request, self._match)

        def likeness(exchange: Exchange) -> tuple[bool, bool, float]:
            recorded = exchange.request
            same = (recorded.path == request.path, recorded.method == request.method)
            # Lines, not characters: prompts are long, and SequenceMatcher is quadratic.
            return *same, difflib.SequenceMatcher(None, _lines(recorded, self._match), wanted, autojunk=False).ratio()

        return max(self._exchanges, key=likeness, default=None)

    def _mismatch(self, request: RecordedRequest, reason: str, nearest: Exchange | None) -> TapeMismatch:
        return TapeMismatch(
            request.method,
            request.path,
            tape=self._tape,
            reason=reason,
            nearest=nearest.name if nearest else None,
            difference=difference(nearest.request, request, self._match) if nearest else "",
            recorded=tuple(f"{x.request.method} {x.request.path} ({x.name})" for x in self._exchanges),
        )


def difference(recorded: RecordedRequest, request: RecordedRequest, match: Match) -> str:
    """How a request differs from a recorded one, as far as they are compared: one line each, `-` and `+` before it."""
    old, new = _lines(recorded, match), _lines(request, match)
    changed = []
    # Not difflib.ndiff, which compares lines by character: prompts are long.
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            changed += [f"- {line}" for line in old[i:j]] + [f"+ {line}" for line in new[k:m]]
    lines = [_shortened(line, changed) for line in changed[:_SHOWN]]
    if len(changed) > _SHOWN:
        lines.append(f"… and {len(changed) - _SHOWN} more lines")
    return "\n".join(lines)


def _lines(request: RecordedRequest, match: Match) -> list[str]:
    lines = [f"{request.method} {request.path}"]
    body = match.compared(request.body) if match.body else None
    if isinstance(body, dict | list):
        lines += json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False).splitlines()
    elif body is not None:
        lines += str(body).splitlines()
    return lines


def _shortened(line: str, changed: Sequence[str]) -> str:
    """A long line, cut around the place where it departs from its likeliest counterpart."""
    if len(line) <= _WIDTH:
        return line
    others = [other for other in changed if other[0] != line[0]]
    same = max((_common(line[2:], other[2:]) for other in others), default=0)
    start = max(0, min(same - _WIDTH // 3, len(line) - 2 - _WIDTH))
    text = line[2:][start : start + _WIDTH]
    return f"{line[:2]}{'…' if start else ''}{text}{'…' if start + _WIDTH < len(line) - 2 else ''}"


def _common(one: str, other: str) -> int:
    """How many first characters two texts share."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _without(value: Any, path: list[str]) -> Any:
    """A copy of a JSON value without the field at `path`."""
    key, *rest = path
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if rest or key not in ("*", k)}
        return {k: _without(v, rest) if rest and key in ("*", k) else v for k, v in kept.items()}
    if isinstance(value, list):
        hit = [key in ("*", str(index)) for index in range(len(value))]
        if not rest:
            return [item for item, gone in zip(value, hit, strict=True) if not gone]
        return [_without(item, rest) if inside else item for item, inside in zip(value, hit, strict=True)]
    return value


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")
