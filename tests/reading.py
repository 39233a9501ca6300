"""The rules of the think splitter, read slowly: the whole text at once, no increments, as plain as can be.

It exists so that the splitter can be held against it, so it shares nothing with `phi4_http.thinking`. The text is cut
at its live tags; then one walk over the pieces, outside and inside the thought. "Outside" needs three strings:

    kept    the solution that no revision can move: a preamble before a real opener
    shown   the solution since the thought last closed (since the start, where none was opened)
    zone    the same stretch verbatim, with the closers and the white space in front of it: what a revision moves
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PHI = ("<think>", "</think>", "<\\think>")
PLAIN = ("<think>", "</think>")
MARKER = re.compile("__LM_STUDIO_INTERNAL_LSEP_SYNTHETIC_REASONING_END_[0-9a-fA-F]{1,64}__")


@dataclass(frozen=True)
class Reading:
    """What a reply comes to."""

    thought: str | None
    closed: bool
    solution: str
    revisions: int = 0
    told: tuple[str, bool] | None = None
    """What the one `Thought` event says: the thought when solution text first followed it, or at the end."""
    kept: str = ""


def pieces(text: str, tags: Sequence[str]) -> Iterator[str]:
    """Cut the text at its live tags, which are pieces of their own; a quoted tag is part of the text around it."""
    start = 0
    for tag in re.finditer("|".join(map(re.escape, tags)), text):
        before, after = text[: tag.start()][-1:], text[tag.end() :][:1]
        if before == after and before in ("`", '"', "'"):
            continue
        yield text[start : tag.start()]
        yield tag[0]
        start = tag.end()
    yield text[start:]


def read(text: str, *, opener: str = "auto", closer: str = "last", tags: Sequence[str] = PHI) -> Reading:
    """Read a reply that came as text only."""
    text = MARKER.sub("", text)
    thought: str | None = None
    told: tuple[str, bool] | None = None
    inside = fresh = False  # in the thought; right after an opener
    kept = shown = zone = ""
    revisions = depth = 0
    if opener == "assumed" and text:
        text = text.lstrip().removeprefix(tags[0])
        thought, inside, fresh = "", True, True
    for piece in pieces(text, tags):
        opens, closes = piece == tags[0], piece in tags[1:]
        if inside and closes:
            inside, shown, zone = False, "", piece
        elif inside:
            thought = f"{thought}{piece.lstrip() if fresh else piece}"
            fresh = False
        elif opens and (thought is None or not shown):  # the first opener, or one right after a closer
            if thought is None and shown.strip():
                kept = shown
            thought, inside, fresh, shown = thought or "", True, True, ""
        elif closes and not shown.strip() and (thought is None or closer == "last"):  # nothing moves
            zone = piece if thought is None else zone + piece
            thought, shown = thought or "", ""
        elif closes and depth == 0 and (thought is None or closer == "last"):
            thought, shown, zone = (thought or "") + zone, "", piece
            revisions += 1
        else:  # solution text, literal tags included
            zone += piece
            shown += piece.lstrip() if thought is not None and not shown else piece
            depth += opens - closes
            if thought is not None and shown and told is None:
                told = (thought, True)
    if thought is not None and told is None:
        told = (thought, not inside)
    return Reading(thought, thought is not None and not inside, kept + shown, revisions, told, kept)


def read_with_field(field: str, content: str, *, tags: Sequence[str] = PHI) -> Reading:
    """Read a reply whose thought came in a field of its own, before any content."""
    field, content = MARKER.sub("", field), MARKER.sub("", content)
    closers = "|".join(map(re.escape, tags[1:]))
    repeated = re.match(rf"\s*{re.escape(tags[0])}\s*{re.escape(field.strip())}\s*({closers})", content)
    rest = content[repeated.end() if repeated else 0 :]
    solution = rest.lstrip()
    if not solution:
        return Reading(field, False, "", told=(field, False))
    # As after a closed thought, but that an opener is no opener: a letter stands before it.
    lead = rest[: len(rest) - len(solution)] if not repeated else ""
    closer = re.match(rf"({closers})", solution)
    if closer:
        said = read(f"{tags[0]}x{tags[1]}{solution}", tags=tags)
        more = (said.thought or "").removeprefix("x")
        moved = lead + more.removeprefix(tags[1]) if more.startswith(tags[1]) else more
        first = said.told and (field + said.told[0].removeprefix("x"), said.told[1])
        return Reading(field + moved, said.closed, said.solution, said.revisions, told=first)
    said = read(f"{tags[0]}x{tags[1]}\x01{solution}", tags=tags)
    if not said.revisions:
        return Reading(field, True, solution, told=(field, True))
    moved = (said.thought or "").removeprefix(f"x{tags[1]}\x01")
    return Reading(field + lead + moved, said.closed, said.solution, said.revisions, told=(field, True))
