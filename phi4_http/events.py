"""What a stream yields, and what it adds up to: frozen values, no logic but their own consistency.

A consumer needs nothing else to follow a reply live:

    Thinking(text)          append to the thought
    Thought(text, closed)   the thought is whole; `text` equals what the consumer has
    Solution(text)          append to the solution
    Revised(text)           append to the thought, which is closed; the solution goes back to what it was when
                            the thought last closed (to empty, where none was opened)
    Finished(reply)         the last one: the reply, and how it ended

A stream that was asked to (`waiting=True`) also says that it waits, before all of these:

    Waiting(phase, seconds, share)

No event carries an empty delta.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from .errors import SolutionTruncated, ThoughtUnclosed


class Outcome(str, enum.Enum):
    """How a reply ended: exactly one of these, always known."""

    COMPLETE = "complete"
    """A finish reason was seen and the solution (or a tool call) is there."""
    THOUGHT_UNCLOSED = "thought_unclosed"
    """The model stopped inside its thought."""
    SOLUTION_TRUNCATED = "solution_truncated"
    """The length limit came inside the solution."""
    EMPTY = "empty"
    """No answer: no text at all, or text only where an answer can't be."""
    OVERFLOW = "overflow"
    """The prompt did not fit in the context."""
    SERVER_ERROR = "server_error"
    """The server said that it failed."""
    CUT = "cut"
    """The stream ended with no finish reason."""
    NOT_LM_STUDIO = "not_lm_studio"
    """What answered does not speak this API."""
    UNREACHABLE = "unreachable"
    """Nobody answered, or a time limit ended the wait."""
    CANCELLED = "cancelled"
    """The caller left before the end."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the server gave them; `None` where it did not. Some failed replies say 0/0/0."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    """Prompt tokens taken from the server's prompt cache (llama.cpp: `prompt_tokens_details.cached_tokens`)."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Every other field of the server's usage object, as it came."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Times in seconds, by the client's own clock from the moment the request went out, and the server's figures.

    `server` is the server's own object as it came: LM Studio's `stats` (v0), llama.cpp's `timings`.
    """

    time_to_first_token: float | None = None
    time_thinking: float | None = None
    """From the first text of the thought to the first of the solution, or to the end. None without a thought."""
    total_time: float | None = None
    tokens_per_second: float | None = None
    """Completion tokens per second after the first text; None where the server counted none."""
    server_tokens_per_second: float | None = None
    server: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool call; `arguments` is the JSON text as the model wrote it, which may not be valid JSON."""

    id: str
    name: str
    arguments: str
    type: str = "function"


@dataclass(frozen=True, slots=True)
class Forced:
    """A thought that was ended for the model, which then answered in a second request."""

    reason: Literal["budget", "loop", "unclosed"]
    """It had reached its budget, went round in circles, or the model had stopped inside it."""
    thought_tokens: int
    """Tokens of the thought when it was ended, as the stream's pieces count them."""
    template: str
    """Which template's prompt was continued."""
    requests: int
    """Requests of one token that finding the template took, beside the two of the reply."""
    usage: tuple[Usage | None, ...]
    """What the server counted for each part: two, or more where the model began to think again and that was ended too.
    The part of a stream that was closed has no count."""

    @property
    def times(self) -> int:
        """How often the thought was ended."""
        return len(self.usage) - 1


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, whole or as much as arrived: `outcome` tells which."""

    outcome: Outcome
    thought: str | None
    """None: there was no thought (an empty one is `""`)."""
    thought_closed: bool
    solution: str
    raw: str
    """The text as the server sent it, tags included. Text from a reasoning field is not in it but in `thought`; what
    ended a thought for the model is, as if the model had written it."""
    finish_reason: str | None = None
    usage: Usage | None = None
    stats: Stats = Stats()
    model: str | None = None
    id: str | None = None
    """The server's name for this completion (`chatcmpl-…`)."""
    request_id: str | None = None
    """The `x-request-id` header, where the server sends one."""
    tool_calls: tuple[ToolCall, ...] = ()
    revisions: int = 0
    """How often text that had been shown as solution turned out to be thought."""
    opener_swallowed: bool = False
    """Whether the thought closed without having been opened."""
    forced: Forced | None = None
    """How the thought was ended for the model, if it was."""
    dropped: tuple[Mapping[str, Any], ...] = ()
    """Messages of the history that did not fit in the context and were not sent."""
    notes: tuple[str, ...] = ()
    """What is odd about this reply, in sentences."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the last chunks that this library does not know, as they came."""
    length_reason: Literal["max_tokens", "context"] | None = None
    """What was used up where a limit ended the reply: `max_tokens`, or the context, which is full. None where no limit
    did, or where nobody can tell which."""

    def raise_for_outcome(self) -> Reply:
        """Return self if the reply is complete.

        Raises `ThoughtUnclosed` or `SolutionTruncated`; the other outcomes raise by themselves when they happen.
        """
        if self.outcome is Outcome.THOUGHT_UNCLOSED:
            raise ThoughtUnclosed(self.finish_reason, length_reason=self.length_reason, partial=self)
        if self.outcome is Outcome.SOLUTION_TRUNCATED:
            raise SolutionTruncated(self.finish_reason, length_reason=self.length_reason, partial=self)
        return self


@dataclass(frozen=True, slots=True)
class Thinking:
    """More of the thought."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """The thought is whole. It comes once; text that turns out later to be thought comes as `Revised`."""

    text: str
    closed: bool
    forced: bool = False
    """Whether it was ended for the model, which answers now."""


@dataclass(frozen=True, slots=True)
class Solution:
    """More of the solution."""

    text: str


@dataclass(frozen=True, slots=True)
class Revised:
    """What was shown as solution since the thought last closed is thought; `text` is to be appended to it, verbatim."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a reply."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing was said yet. About one a second, and one for each word of the server's on how far it is."""

    phase: Literal["loading", "queued", "processing"]
    """What is waited for: the model is being loaded, others come first, or the prompt is being processed. What nobody
    tells counts as processing."""
    seconds: float
    """Since the stream was entered."""
    share: float | None = None
    """How much of the prompt is processed, 0 to 1, where the server tells it (llama.cpp)."""


TextEvent: TypeAlias = Thinking | Thought | Solution | Revised
"""What the splitter yields."""

Event: TypeAlias = TextEvent | Waiting | Finished
"""What a stream yields."""
