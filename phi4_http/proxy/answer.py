"""The model's reply as a client can read it: its events in, the bytes of either answer out. No I/O, no clock.

`Streamed` and `Whole` take the events (`feed`) and the end (`close`).

The protocol can't take words back, so text goes out when it is certain what it is. A thought that was opened streams.
Text before any tag is held: a closing tag makes it thought, an opening tag or the end makes it content. After a closing
tag another may come, and then all so far was thought: so content is held to the end, unless the first one counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from ..errors import Phi4Error, ThoughtUnclosed
from ..events import Event, Finished, Outcome, Reply, Revised, Solution, Thinking, Thought, Usage, Waiting
from ..reply.tags import PROFILES, Tags
from .refused import error_frame, refusal_of
from .repair import Asked, Repair

DONE = b"data: [DONE]\n\n"
_OPENER, *_CLOSERS = PROFILES["phi"]


class Ending(NamedTuple):
    """The last bytes of an answer; `status` and `retry` (whether the same may go well again) count where they are the
    first."""

    data: bytes
    status: int = 200
    retry: bool = True


class Answer(Protocol):
    """What makes the bytes of an answer."""

    @property
    def streamed(self) -> bool:
        """Whether it comes bit by bit."""
        ...

    @property
    def phase(self) -> str:
        """What goes on, in a few words."""
        ...

    def feed(self, event: Event) -> bytes:
        """What one more event makes certain."""
        ...

    def close(self, error: Phi4Error | None = None, *, begun: bool = False) -> Ending:
        """The end, whatever it is. `begun`: bytes have gone out, so that the status can't be told any more."""
        ...


Piece: TypeAlias = tuple[Literal["thought", "content"], str]


class Sorter:
    """Puts the events of a reply into an order in which nothing has to be taken back."""

    def __init__(self, closer: Literal["last", "first"]) -> None:
        self._first_counts = closer == "first"
        self._held: list[str] = []
        self._begun = self._closed = False

    @property
    def holds(self) -> bool:
        """Whether text is held."""
        return bool(self._held)

    def feed(self, event: Event) -> list[Piece]:
        """What can be said."""
        if type(event) is Thinking:
            said = [] if self._begun else self.release()  # a preamble
            self._begun = True
            return [*said, ("thought", event.text)]
        if type(event) is Solution:
            if self._first_counts and self._closed:
                return [("content", event.text)]
            self._held.append(event.text)
        elif type(event) is Revised:
            self._held.clear()
            self._begun = self._closed = True
            return [("thought", event.text)] if event.text else []
        elif type(event) is Thought:
            said = [] if self._begun else self.release()
            self._begun = self._closed = True
            return said
        return []

    def release(self) -> list[Piece]:
        """What was held is content."""
        text = "".join(self._held)
        self._held.clear()
        return [("content", text)] if text else []


class Tagged:
    """Thought and content as one text, the thought between tags. A closing tag inside the thought is written so that
    nobody takes it for the end."""

    def __init__(self) -> None:
        self._closers = Tags(_CLOSERS)
        self._open = False
        self._rest = ""

    def feed(self, piece: Piece) -> str:
        """The text of one more piece."""
        kind, text = piece
        if kind == "content":
            return self.end() + text
        start = "" if self._open else _OPENER
        self._open = True
        text = self._rest + text
        cut = self._closers.partial(text, 0)
        self._rest = text[cut:]
        return start + self._closers.pattern.sub(lambda tag: f"&lt;{tag.group()[1:]}", text[:cut])

    def end(self) -> str:
        """The thought has ended, if there is one."""
        if not self._open:
            return ""
        rest, self._rest, self._open = self._rest, "", False
        return f"{rest}{_CLOSERS[0]}\n\n"


class Streamed:
    """The answer as a stream of chunks; `id` and `created` are those of the completion."""

    streamed: bool = True

    def __init__(self, asked: Asked, repair: Repair, *, id: str, created: int) -> None:
        self._counted = asked.counted
        self._reasoning = repair.reasoning
        self._sorter = Sorter(repair.closer)
        self._tagged = Tagged()
        head = {"id": id, "object": "chat.completion.chunk", "created": created, "model": asked.model}
        self._head = json.dumps(head)[:-1].encode()
        self._begun = False
        self._end = b""
        self._waiting: Waiting | None = None
        self._unclosed: Phi4Error | None = None

    @property
    def phase(self) -> str:
        """What goes on, in a few words."""
        if self._sorter.holds:
            return "answering"
        waiting = self._waiting
        if waiting is None:
            return "thinking" if self._begun else "processing"
        share = "" if waiting.share is None else f" {waiting.share:.0%}"
        return f"{waiting.phase}{share}"

    def feed(self, event: Event) -> bytes:
        """What one more event makes certain."""
        if type(event) is Waiting:
            self._waiting = event
            return b""
        if type(event) is Finished:
            return self._finish(event.reply)
        self._waiting = None
        return b"".join(map(self._said, self._sorter.feed(event)))

    def close(self, error: Phi4Error | None = None, *, begun: bool = False) -> Ending:
        """The end: the finish reason, or an error. What was held goes out before it, if anything has gone out."""
        error = error or self._unclosed
        if error is None:
            return Ending(self._end)
        if not begun:
            return _refused(error)
        held = b"".join(map(self._said, self._sorter.release()))
        return Ending(held + error_frame(error))

    def _finish(self, reply: Reply) -> bytes:
        self._unclosed = unanswered(reply)
        said = b"".join(map(self._said, self._sorter.release()))
        if self._unclosed is not None:
            return said
        if self._reasoning == "tags" and reply.thought_closed:
            said += self._delta({"content": text}) if (text := self._tagged.end()) else b""
        calls = _calls(reply)
        if calls:
            said += self._delta({"tool_calls": [{"index": at, **call} for at, call in enumerate(calls)]})
        said += b"" if self._begun else self._opening()
        self._end = self._chunk(json.dumps([_choice("delta", {}, reply.finish_reason)]))
        usage = usage_of(reply)
        if self._counted and usage is not None:
            self._end += b"data: %b, %b}\n\n" % (self._head, f'"choices": [], "usage": {json.dumps(usage)}'.encode())
        self._end += DONE
        return said

    def _said(self, piece: Piece) -> bytes:
        kind, text = piece
        if self._reasoning == "tags":
            kind, text = "content", self._tagged.feed(piece)
        elif kind == "thought" and self._reasoning == "drop":
            return b""
        return self._delta({"content" if kind == "content" else "reasoning_content": text}) if text else b""

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        opening = b"" if self._begun else self._opening()
        return opening + self._chunk(
            f'[{{"index": 0, "delta": {json.dumps(delta)}, "logprobs": null, "finish_reason": null}}]'
        )

    def _opening(self) -> bytes:
        self._begun = True
        return self._delta({"role": "assistant", "content": ""})

    def _chunk(self, choices: str) -> bytes:
        return b'data: %b, "choices": %b}\n\n' % (self._head, choices.encode())


class Whole:
    """The answer as one JSON object."""

    streamed: bool = False
    phase: str = ""

    def __init__(self, asked: Asked, repair: Repair, *, id: str, created: int) -> None:
        self._head = {"id": id, "object": "chat.completion", "created": created, "model": asked.model}
        self._reasoning = repair.reasoning
        self._reply: Reply | None = None

    def feed(self, event: Event) -> bytes:
        """Nothing is certain before the end."""
        if type(event) is Finished:
            self._reply = event.reply
        return b""

    def close(self, error: Phi4Error | None = None, *, begun: bool = False) -> Ending:
        """The whole answer, or the error."""
        reply = self._reply
        error = error or (unanswered(reply) if reply is not None else None)
        if error is not None or reply is None:
            return _refused(error or Phi4Error())
        message: dict[str, Any] = {"role": "assistant", "content": reply.solution}
        if reply.thought and self._reasoning == "field":
            message["reasoning_content"] = reply.thought
        elif reply.thought and self._reasoning == "tags":
            tagged = Tagged()
            thought = tagged.feed(("thought", reply.thought))
            message["content"] = thought + (tagged.end() if reply.thought_closed else "") + reply.solution
        if calls := _calls(reply):
            message["tool_calls"] = calls
        usage = usage_of(reply)
        answer = {**self._head, "choices": [_choice("message", message, reply.finish_reason)]}
        return Ending(json.dumps(answer if usage is None else {**answer, "usage": usage}).encode())


def answer_to(asked: Asked, repair: Repair, *, id: str, created: int) -> Answer:
    """What makes the answer, in the form that was asked for."""
    return (Streamed if asked.streamed else Whole)(asked, repair, id=id, created=created)


def comment(phase: str) -> bytes:
    """What keeps a stream alive that has nothing to say."""
    return f": {phase}\n\n".encode()


def unanswered(reply: Reply) -> Phi4Error | None:
    """The error for a thought that ended by itself with no answer after it: no finish reason says that."""
    if reply.outcome is Outcome.THOUGHT_UNCLOSED and reply.finish_reason != "length":
        return ThoughtUnclosed(reply.finish_reason, length_reason=reply.length_reason, partial=reply)
    return None


def usage_of(reply: Reply) -> dict[str, Any] | None:
    """Token counts as OpenAI's API has them; None where the server told none.

    Tokens of thought are the server's own count where it gives one, else their share of the text.
    """
    usage = reply.usage
    if usage is None or usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    total = usage.prompt_tokens + usage.completion_tokens
    found: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": total if usage.total_tokens is None else usage.total_tokens,
        **usage.extra,
    }
    if usage.cached_tokens is not None:
        found["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    details = found.get("completion_tokens_details")
    details = dict(details) if isinstance(details, Mapping) else {}
    details.setdefault("reasoning_tokens", _thought_tokens(reply, usage))
    return {**found, "completion_tokens_details": details}


def _thought_tokens(reply: Reply, usage: Usage) -> int:
    thought = len(reply.thought or "")
    rest = len(reply.solution) + sum(len(call.name) + len(call.arguments) for call in reply.tool_calls)
    return round((usage.completion_tokens or 0) * thought / ((thought + rest) or 1))


def repairs(reply: Reply | None) -> Iterator[str]:
    """What was done for a reply beside telling its thought apart, in words for a log."""
    if reply is None:
        return
    if reply.dropped:
        yield f"history cut by {len(reply.dropped)}"
    if reply.opener_swallowed:
        yield "opening tag missing"
    if reply.revisions:
        yield f"text taken back {reply.revisions}×"
    if reply.forced is not None:
        yield f"thought ended: {reply.forced.reason}"


def _refused(error: Phi4Error) -> Ending:
    refusal = refusal_of(error)
    return Ending(json.dumps(refusal.body).encode(), refusal.status, refusal.retry)


def _choice(name: str, said: Mapping[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, name: said, "logprobs": None, "finish_reason": finish_reason}


def _calls(reply: Reply) -> list[dict[str, Any]]:
    return [
        {"id": call.id, "type": call.type, "function": {"name": call.name, "arguments": call.arguments}}
        for call in reply.tool_calls
    ]
