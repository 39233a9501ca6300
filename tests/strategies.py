"""Hypothesis strategies that the tests share: text as a model that goes wrong would write it, and input cut anywhere.

Both draw plain bytes and map them (a byte to a fragment, two bytes to a place): some three times faster than lists of
draws, which pays for thousands of examples, and it shrinks as well: to fewer fragments, to the first ones of the table,
to fewer cuts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st

AnyText = TypeVar("AnyText", str, bytes)

PHI_TAGS = ("<think>", "</think>", "<\\think>")
MARKER_HEAD = "__LM_STUDIO_INTERNAL_LSEP_SYNTHETIC_REASONING_END_"
QUOTES = ("`", '"', "'")
SPACES = (" ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", " \n ")
WORDS = ("a", "b", "So 42.", "x < y", ">", "🧠", "👩🏽‍🚀", "é\u0301", "</s>", "```xml\n", "_", "\\", "</")
MARKERS = (f"{MARKER_HEAD}0aF9__", f"{MARKER_HEAD}{'e' * 64}__")
MARKER_PIECES = (
    "__",
    "__LM_",
    MARKER_HEAD[:-5],
    MARKER_HEAD,
    f"{MARKER_HEAD}12",
    f"{MARKER_HEAD}12_",
    "ab__",
    "c" * 63,
)


def cut(whole: AnyText, places: Sequence[int]) -> list[AnyText]:
    """Cut at these places, in any order; a place named twice, or an end, gives an empty piece."""
    inner: list[int] = sorted(places)
    starts = [0, *inner]
    ends = [*inner, len(whole)]
    return [whole[start:end] for start, end in zip(starts, ends, strict=True)]


def cut_by(seed: bytes, whole: AnyText) -> list[AnyText]:
    """Cut at the places that random bytes say: `chunked`, for strategies that draw the bytes themselves."""
    if seed[:1] >= b"\xe0":
        return cut(whole, range(1, len(whole)))
    pairs = zip(seed[1::2], seed[2::2])  # noqa: B905  # an odd byte at the end means nothing
    return cut(whole, [(high * 256 + low) * (len(whole) + 1) >> 16 for high, low in pairs])


def chunked(whole: AnyText) -> st.SearchStrategy[list[AnyText]]:
    """The whole cut anywhere: not at all, at every place, or at some places at random (some pieces may be empty)."""
    return st.binary(max_size=25).map(lambda seed: cut_by(seed, whole))


@functools.cache
def fragments(tags: tuple[str, ...] = PHI_TAGS) -> tuple[str, ...]:
    """What `glued` glues: text, white space, tags (most of it), quoted tags, parts and look-alikes of tags, markers."""
    quoted = [f"{quote}{tag}{quote}" for tag in tags for quote in QUOTES]
    pieces = [piece for tag in tags for piece in (tag[0], tag[:2], tag[:-1], tag[1:], tag[: len(tag) // 2])]
    alike = [alike for tag in tags for alike in (tag.upper(), f"{tag[:-1]}ing>", f"{tag[0]} {tag[1:]}", tag[0] + tag)]
    weighted = [*WORDS, *SPACES, *SPACES, *tags * 6, *tags[:1] * 4, *QUOTES * 3, *quoted, *pieces, *alike]
    return (*weighted, *MARKERS, *MARKER_PIECES)


def glue(draws: bytes, tags: tuple[str, ...] = PHI_TAGS) -> str:
    """The fragments that random bytes say: `glued`, for strategies that draw the bytes themselves."""
    table = fragments(tags)
    assert len(table) <= 256, "a fragment would never be drawn"
    return "".join([table[draw % len(table)] for draw in draws])


def glued(tags: tuple[str, ...] = PHI_TAGS, *, max_size: int = 16) -> st.SearchStrategy[str]:
    """Text glued from at most `max_size` fragments at random."""
    return st.binary(max_size=max_size).map(lambda draws: glue(draws, tags))


def glued_and_chunked(tags: tuple[str, ...] = PHI_TAGS, *, max_size: int = 16) -> st.SearchStrategy[list[str]]:
    """Such text, cut anywhere: the pieces."""
    return st.builds(cut_by, st.binary(max_size=25), glued(tags, max_size=max_size))
