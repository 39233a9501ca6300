"""What a question of a batch came to, how far a batch is, and the line that an answer is kept as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import NotLMStudio, Phi4Error, ServerUnreachable
from ..events import Outcome, Reply
from .lines import BatchQuestion


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """What one question of a batch came to."""

    question: BatchQuestion
    reply: Reply | None
    """The reply, or as much of it as came; None where nothing was answered at all."""
    error: Phi4Error | None = None
    """Why there is no complete answer; None where there is one."""
    url: str = ""
    """The server that was asked last."""
    tries: int = 1
    """How often it was asked."""

    @property
    def id(self) -> str | int:
        """The question's id."""
        return self.question.id

    @property
    def outcome(self) -> Outcome:
        """How the reply ended. All but `complete` have an error."""
        if self.reply is not None:
            return self.reply.outcome
        kinds = ((ServerUnreachable, Outcome.UNREACHABLE), (NotLMStudio, Outcome.NOT_LM_STUDIO))
        return next((outcome for kind, outcome in kinds if isinstance(self.error, kind)), Outcome.SERVER_ERROR)

    @property
    def solution(self) -> str:
        """The solution, as far as it came."""
        return self.reply.solution if self.reply is not None else ""


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is, in questions."""

    total: int
    kept: int = 0
    """Those that an earlier run has answered, which are not asked again."""
    answered: int = 0
    """Those that this run has answered, the failed ones among them."""
    failed: int = 0
    """Those without a complete answer, of all runs."""
    running: int = 0
    """Those that are being answered now."""
    away: tuple[str, ...] = ()
    """Addresses of servers that are gone, and waited for."""
    lost: tuple[Phi4Error, ...] = ()
    """Why servers are not asked any more."""

    @property
    def done(self) -> int:
        """Those with an answer, of all runs."""
        return self.kept + self.answered


def line_of(answer: BatchAnswer, *, thought: bool = True, stats: bool = False) -> dict[str, Any]:
    """An answer as the object of its line."""
    reply, error = answer.reply, answer.error
    line: dict[str, Any] = {
        "id": answer.id,
        "outcome": str(answer.outcome),
        "thought": reply.thought if reply is not None and thought else None,
        "solution": answer.solution,
        "usage": asdict(reply.usage) if reply is not None and reply.usage is not None else None,
        "finish_reason": reply.finish_reason if reply is not None else None,
        "model": reply.model if reply is not None else None,
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
        "question": answer.question.digest,
    }
    if reply is not None:
        if reply.tool_calls:
            line["tool_calls"] = [asdict(call) for call in reply.tool_calls]
        if reply.notes:
            line["notes"] = list(reply.notes)
        if stats:
            line["stats"] = asdict(reply.stats)
    return line


def encode_line(line: Mapping[str, Any]) -> bytes:
    """A line as it is written: UTF-8, with escapes where that can't hold it."""
    try:
        return json.dumps(line, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(line, default=str).encode() + b"\n"
