"""One look of `doctor`: what was looked at, what was found, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look has found. A later finding of the same name takes the place of an earlier one."""

    name: str
    """What was looked at, as a script asks for it: `address`, `token`, `model`, …; it does not change."""
    state: Literal["good", "note", "unknown", "bad", "plan"]
    """`bad` stands in the way of a good answer; a `note` does not; `plan` is what is about to be done."""
    looked_at: str
    found: str
    advice: str | None = None
    """What to do; None where there is nothing."""
