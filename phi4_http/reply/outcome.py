"""How a reply ended: decided from what was seen of it, in one place, with no state.

A reply is finished when a *finish reason* was seen. `[DONE]` alone, a clean end alone, or a 200 alone are each seen on
failures.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from ..errors import (
    CannotContinue,
    ContextOverflow,
    EmptyReply,
    NotLMStudio,
    Phi4Error,
    ServerUnreachable,
    SilentOverflow,
    StreamCut,
)
from ..events import Outcome, Usage

_OF_A_STREAM = re.compile(r"(?:data|event|id|retry)?:|(?:data|event|id|retry)$")
_LENGTH = ("length", "max_tokens")
_TOOL_CALLS = ("tool_calls", "function_call")

_BY_ERROR: dict[type[Phi4Error], Outcome] = {
    ContextOverflow: Outcome.OVERFLOW,
    SilentOverflow: Outcome.OVERFLOW,
    EmptyReply: Outcome.EMPTY,
    CannotContinue: Outcome.THOUGHT_UNCLOSED,
    StreamCut: Outcome.CUT,
    NotLMStudio: Outcome.NOT_LM_STUDIO,
    ServerUnreachable: Outcome.UNREACHABLE,
}


class Seen(NamedTuple):
    """What has been seen of a reply when its stream is over."""

    thought: str | None
    thought_closed: bool
    solution: str
    from_field: bool
    """Whether the thought, or some of it, came in a field of its own."""
    called: bool
    """Whether there was a tool call."""
    finish_reason: str | None
    usage: Usage | None
    data: bool
    """Whether any event came."""
    delta: bool
    """Whether any delta came, be it an empty one."""
    done: bool
    """Whether `[DONE]` came."""
    unreadable: str | None
    """A chunk that is no JSON."""
    unread: str
    """The start of what came, where no event was in it."""
    url: str
    signed: bool
    """Whether the chunks have a `system_fingerprint`: LM Studio's and llama.cpp's have, llama-cpp-python's have not."""
    awaits_answer: bool
    """Whether the thought was to be ended for the model, and its answer has not begun."""
    expects_thought: bool
    further: int
    """How many answers came beside the first."""
    left: bool = False
    """Whether a thought that was to be ended for the model was left as it is."""


class Length(NamedTuple):
    """The limits of a reply, and what it took."""

    finish_reason: str | None
    usage: Usage | None
    """Of the whole reply."""
    last: Usage | None
    """Of its last part: prompt and completion were in the context together."""
    max_tokens: int | None
    context_length: int | None

    @property
    def ended(self) -> bool:
        """Whether a limit ended the reply."""
        return self.finish_reason in _LENGTH

    @property
    def reason(self) -> Literal["max_tokens", "context"] | None:
        """Which limit it was: arithmetic, where the numbers are there. None where they are not, or none did."""
        if not self.ended:
            return None
        limit = self.max_tokens if self.max_tokens and self.max_tokens > 0 else None
        last = self.last
        if self.context_length and last and last.prompt_tokens and last.completion_tokens:
            if last.prompt_tokens + last.completion_tokens >= self.context_length - 1:
                return "context"
            return "max_tokens" if limit is not None else None  # else it is a limit of the server's own
        used = self.usage.completion_tokens if self.usage else None
        if limit is not None and used:
            return "max_tokens" if used >= limit else None
        return None


def conclude(seen: Seen, error: Phi4Error | None, fault: Phi4Error | None) -> tuple[Outcome, Phi4Error | None]:
    """The outcome, and what is to be raised. `error` is what the server said in the stream, `fault` what ended it."""
    error = error or _judge_end(seen, fault)
    if error is not None:
        return _BY_ERROR.get(type(error), Outcome.SERVER_ERROR), error
    outcome = _judge_text(seen)
    if outcome is Outcome.OVERFLOW:
        needed = (seen.usage and seen.usage.prompt_tokens) or None
        return outcome, SilentOverflow(f"finish reason {seen.finish_reason!r}, and not one delta", needed=needed)
    return outcome, EmptyReply(_why_empty(seen)) if outcome is Outcome.EMPTY else None


def notes(seen: Seen, outcome: Outcome) -> tuple[str, ...]:
    """What is odd about a reply, in sentences."""
    found = []
    if seen.expects_thought and outcome is Outcome.COMPLETE and seen.thought is None and not seen.called:
        found.append(
            "There was no thought in this reply, and no tag. Either the server's template drops the system prompt, "
            "or its engine prints the tags as empty text, and the thought stands in the solution: `probe()` tells."
        )
    if seen.further:
        more = "one more answer" if seen.further == 1 else f"{seen.further} more answers"
        found.append(f"The server sent {more} beside this one (`n`): only the first was read.")
    return tuple(found)


def _judge_end(seen: Seen, fault: Phi4Error | None) -> Phi4Error | None:
    if fault is not None and seen.awaits_answer:
        return _cut_if_late(seen, fault)
    if seen.finish_reason is not None:
        return None  # finished: how the connection ended after that does not matter
    if seen.left:
        return None  # by us
    odd = _no_events(seen.unread) if not seen.data else None
    if odd is not None and (fault is None or isinstance(fault, StreamCut)):
        if odd:
            return NotLMStudio(seen.url, "what came is no stream of events", status=200, excerpt=seen.unread[:200])
        came = " ".join(seen.unread.split())[:80]
        return StreamCut(f"it ended before any event that says something; what came is {came!r}")
    if fault is not None:
        return _cut_if_late(seen, fault)
    if seen.unreadable is not None:
        return StreamCut(f"it ended inside a chunk, at {seen.unreadable[:80]!r}")
    if not seen.data:
        return SilentOverflow("the server answered 200 and sent nothing")
    if not seen.done:
        return StreamCut("the stream ended")
    perhaps = "" if seen.signed else " (another request may have ended it, as llama-cpp-python does by default)"
    return StreamCut(f"[DONE] came{perhaps}")


def _cut_if_late(seen: Seen, fault: Phi4Error) -> Phi4Error:
    """A time limit that ended the wait after text had come has cut a reply."""
    if isinstance(fault, ServerUnreachable) and fault.timed_out and (seen.solution or seen.thought or seen.called):
        return StreamCut(fault.reason)
    return fault


def _no_events(unread: str) -> bool | None:
    """Whether a body with no event in it is no stream of events at all; None where there is nothing in it."""
    if not unread:
        return None
    *lines, last = unread.split("\n")
    if any(line and not _OF_A_STREAM.match(line) for line in lines):
        return True
    return not (_OF_A_STREAM.match(last) or any(name.startswith(last) for name in ("data:", "event:", "id:", "retry:")))


def _judge_text(seen: Seen) -> Outcome:
    at_length = seen.finish_reason in _LENGTH
    if seen.called or seen.finish_reason in _TOOL_CALLS:
        return Outcome.SOLUTION_TRUNCATED if at_length else Outcome.COMPLETE
    if seen.thought is not None and not seen.thought_closed:
        # A field's thought that is followed by nothing was mostly the answer, put in the wrong place.
        misplaced = seen.from_field and not at_length and not seen.left
        return Outcome.EMPTY if misplaced else Outcome.THOUGHT_UNCLOSED
    if seen.solution.strip():
        return Outcome.SOLUTION_TRUNCATED if at_length else Outcome.COMPLETE
    if seen.thought is not None:
        return Outcome.SOLUTION_TRUNCATED if at_length else Outcome.EMPTY
    if not seen.delta and not (seen.usage and seen.usage.completion_tokens):
        return Outcome.OVERFLOW
    return Outcome.EMPTY


def _why_empty(seen: Seen) -> str:
    reason = f"finish reason {seen.finish_reason!r}"
    if seen.thought:
        where = "in a field that holds no answer" if seen.from_field else "as thought, closed, with nothing after it"
        return f"{reason}, and all {len(seen.thought):,} characters came {where}"
    return f"{reason}, and no text"
