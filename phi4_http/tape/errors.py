"""What can go wrong with a tape. An exception holds facts; `__str__` makes the sentence.

Phi4Error
├── TapeError       a tape can't be read or written: which file, which field, what about it
└── TapeMismatch    a request that is not on the tape
"""

from __future__ import annotations

from ..errors import Phi4Error


def told(file: str, field: str | None, problem: str) -> str:
    """What is wrong with a tape, on one line."""
    return ": ".join(part for part in (file, field, problem) if part)


class TapeError(Phi4Error):
    """A tape that can't be read, was tampered with, or can't be written.

    `file` is the file (or folder) it is about, `field` the field inside it (`response.status`, `cuts[17]`) or None.
    """

    def __init__(self, file: object, problem: str, *, field: str | None = None) -> None:
        super().__init__()
        self.file: str = str(file)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return told(self.file, self.field, self.problem)


class TapeMismatch(Phi4Error):
    """A request that is not on the tape; nothing was sent anywhere.

    `method` and `path` are the request's. `reason` says why nothing fits, `nearest` names the recorded exchange that
    comes closest (None on an empty tape), `difference` is how the request differs from it, one line each, and
    `recorded` lists what is on the tape, as `"POST /v1/chat/completions (name)"`.
    """

    def __init__(
        self,
        method: str,
        path: str,
        *,
        tape: str = "",
        reason: str = "no recorded request fits",
        nearest: str | None = None,
        difference: str = "",
        recorded: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.method = method
        self.path = path
        self.tape = tape
        self.reason = reason
        self.nearest = nearest
        self.difference = difference
        self.recorded = recorded

    def __str__(self) -> str:
        where = f"the tape {self.tape}" if self.tape else "the tape"
        lines = [f"{self.method} {self.path} is not on {where}: {self.reason}."]
        if self.nearest and self.difference:
            lines += [f"Nearest is {self.nearest!r} (- recorded, + this request):", self.difference]
        if not self.recorded:
            lines.append("Nothing is recorded there.")
        elif not self.difference:
            lines += ["Recorded there:", *(f"  {line}" for line in self.recorded)]
        return "\n".join(lines)
