"""When to play and when to record: the four modes that recorders of HTTP have had since VCR."""

from __future__ import annotations

from typing import Literal, TypeAlias

Mode: TypeAlias = Literal["none", "once", "new", "all"]
"""`none`: play only. `once`: record if the tape is empty, else play only. `new`: play what is there, record the rest.
`all`: record everything; the old exchanges go when the first new one is whole."""

MODES: tuple[Mode, ...] = ("none", "once", "new", "all")


def plays(mode: Mode, *, empty: bool) -> bool:
    """Whether what is on the tape is played."""
    return mode in ("none", "new") or (mode == "once" and not empty)


def records(mode: Mode, *, empty: bool) -> bool:
    """Whether what is not played is recorded."""
    return mode in ("new", "all") or (mode == "once" and empty)
