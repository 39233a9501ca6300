"""What `lms` prints, read: memory sizes, estimates, the progress of a load, errors in boxes.

Written after the outputs of the command at commit 07b7252 and the source of earlier releases. Only `ls`, `ps` and
`server status` have JSON; all else is text for people, on stderr, which may be coloured, boxed and localised.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ...errors import DoesNotFit, LmsFailed, LoadFailed, ModelNotFound, Phi4Error
from ...flow import Completed

_UNITS: dict[str, int] = {"Bytes": 1} | {
    prefix + suffix: base**power
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMGT", start=1)
}
_SIZE = r"(?P<number>\d+(?:\.\d+)?) (?P<unit>Bytes|[KMGT]i?B)"


def parse_size(text: str) -> int:
    """Bytes of `4.67 GiB` (base 1024), `4.36 GB` (base 1000, older releases) or `0 Bytes`.

    Raises ValueError for anything else.
    """
    found = re.fullmatch(_SIZE, text.strip())
    if not found:
        raise ValueError(f"a size such as '4.67 GiB' was expected, not {text!r}")
    return round(float(found["number"]) * _UNITS[found["unit"]])


@dataclass(frozen=True, slots=True)
class Estimate:
    """What loading a model would take, as LM Studio guesses it."""

    model: str
    """The key, or the path with older releases."""
    gpu_bytes: int
    total_bytes: int
    """GPU memory included."""
    fits: bool
    """Whether LM Studio's own guardrails would let it load."""
    confident: bool = True
    """False where LM Studio calls its confidence low."""


def parse_estimate(done: Completed) -> Estimate:
    """The output of `lms load --estimate-only`, which exits with 0 even for a model that won't fit.

    Raises LmsFailed where it is no estimate.
    """
    # With --verbose each line has an "I " before it.
    lines = [line.removeprefix("I ").partition(": ") for line in _plain(done.stderr).splitlines()]
    fields = {name: value for name, colon, value in lines if colon}
    try:
        return Estimate(
            model=fields["Model"],
            gpu_bytes=parse_size(fields["Estimated GPU Memory"]),
            total_bytes=parse_size(fields["Estimated Total Memory"]),
            fits=_verdict(fields["Estimate"]),
            confident=fields.get("Confidence") != "LOW",
        )
    except (KeyError, ValueError):
        raise LmsFailed(done.arguments, done.exit_code, message_of(done)) from None


def _verdict(text: str) -> bool:
    found = re.match(r"This model (?:(may be loaded)|will fail to load)", text)
    if not found:
        raise ValueError(text)
    return found[1] is not None


def parse_json(done: Completed, kind: type[list[Any] | dict[str, Any]] = list) -> Any:
    """The JSON that `lms` printed on stdout: a list of objects, or one object, the longest there is.

    Warnings may stand before and after it, on its own line too. An empty list counts only where nothing else there
    could be a list. Raises LmsFailed where there is none, or the command failed.
    """
    found: list[tuple[int, Any]] = []
    text, at, broken = _plain(done.stdout), 0, False
    while done.exit_code == 0 and (start := re.compile(r"[\[{]").search(text, at)):
        at = start.start()
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except RecursionError:
            break
        except ValueError:
            broken, at = True, at + 1
            continue
        if isinstance(value, kind) and all(isinstance(item, dict) for item in value if kind is list):
            found.append((end - at, value))
        at = end
    length, value = max(found, key=lambda one: one[0], default=(0, None))
    if not length or (value == [] and broken):
        raise LmsFailed(
            done.arguments, done.exit_code, message_of(done) or f"its output can't be read: {done.stdout[:80]!r}"
        )
    return value


_TITLES = re.compile(r"(?i)model not found|path not provided|invalid usage|failed to load( the)? model")
_ADVICE = re.compile(r"(To (disable|see|select|load|unload)|Note,) ")


def message_of(done: Completed) -> str:
    """What the command said went wrong, as one line without colours, boxes, advice on typing and stack traces."""
    text = _plain(done.stderr)
    box = re.search(r"┌[^┐]*┐(.*)└[^┘]*┘", text, re.DOTALL)
    if box:
        text = "\n".join(row.strip() for row in re.findall(r"│([^│]*)│", box[1]))
    else:
        text = re.split(r"(?im)^error: ", text)[-1]  # before it, warnings and what it did meanwhile
    text = re.sub(r"(?m)^ +at .*$", "", text)
    text = text.replace("(X) CAUSE", "Cause:").replace("(!) SUGGESTION", "Suggestion:")
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    parts = [part for part in parts if part]
    if len(parts) > 1 and _TITLES.fullmatch(parts[0].rstrip(".")):
        del parts[0]
    advice = next((index for index, part in enumerate(parts) if index and _ADVICE.match(part)), None)
    return " ".join(parts[:advice]).removeprefix("W ")


def load_error(done: Completed, key: str) -> Phi4Error:
    """The exception for an `lms load` that loaded nothing."""
    message = message_of(done)
    if re.match(r"(Model not found\W*)?No model found", message, re.IGNORECASE):
        return ModelNotFound(message, model=key)
    if "insufficient system resources" in message:
        return no_room(message)
    if is_unreachable(message):
        return LmsFailed(done.arguments, done.exit_code, message)
    return LoadFailed(message or f"lms load ended with exit code {done.exit_code} and said nothing")


def no_room(message: str) -> DoesNotFit:
    """The exception for a load that LM Studio's guardrails stopped, with the bytes needed where it tells them."""
    found = re.search(rf"requires approximately ({_SIZE})", message)
    return DoesNotFit(message, needed=parse_size(found[1]) if found else None)


def is_unreachable(message: str) -> bool:
    """Whether the command says that it found no LM Studio to talk to. It was then never asked for anything.

    One that is too old to be told a port is none for us.
    """
    return (
        "does not appear to be running at" in message
        or "Failed to start or connect" in message
        or unknown_option(message) in ("--port", "--host")
    )


def is_taken(message: str) -> bool:
    """Whether a load was refused since the name is in use: by an instance, or by a load that is under way."""
    return re.search(r"identifier .* is already in use", message, re.IGNORECASE | re.DOTALL) is not None


def is_vanished(message: str) -> bool:
    """Whether `lms ps` failed since a model was unloaded while it listed them: ask again."""
    return "already been unloaded" in message


def unknown_option(message: str) -> str | None:
    """The option that this release of `lms` does not have, if that is why it did nothing."""
    found = re.match(r"unknown option '(--[a-z-]+)'", message)
    return found[1] if found else None


class Progress:
    """Reads the share loaded, 0 to 1, out of what `lms load` prints on stdout, cut anywhere; gives each rise once.

    The command redraws one line, `Loading KEY 25% ⠋`, behind a carriage return, on a terminal or not.
    """

    def __init__(self) -> None:
        self._line = ""
        self._last = -1

    def feed(self, text: str) -> list[float]:
        """Take more of the output; the shares that it tells."""
        told: list[float] = []
        *whole, self._line = (self._line + text).split("\r")
        for line in whole:
            # Whole lines alone, and the last percentage in one: the key may hold anything, "25% " too.
            found = re.match(r"Loading .+ (\d{1,3})% ", line)
            if found and self._last < int(found[1]) <= 100:
                self._last = int(found[1])
                told.append(self._last / 100)
        return told


def _plain(text: str) -> str:
    """Without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
