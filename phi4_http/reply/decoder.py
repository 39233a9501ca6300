"""From the data of server-sent events to a reply: events on the way, and how it ended.

`ReplyDecoder` knows the JSON of a stream; it does no I/O and reads no clock (times are handed in), so both faces and
every test drive the same code. It decides the outcome: a reply is finished when a *finish reason* was seen. `[DONE]`
alone, a clean end alone, or a 200 alone are each seen on failures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

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
from ..events import Event, Finished, Forced, Outcome, Reply, TextEvent, Thinking, Thought, Usage
from ..wire.fields import json_text, text_of
from ..wire.parts import parse_tool_call, parse_usage
from ..wire.refusals import failure
from .rescue import Rescue, ThoughtWatch
from .splitter import ThinkSplitter
from .timing import Clock

# What `json.loads` does around it takes as long as a small chunk does.
_decode_json = json.JSONDecoder().raw_decode
_DONE = "[DONE]"
_KNOWN = frozenset({"id", "object", "created", "model", "system_fingerprint", "choices", "usage"})
# The server's own figures: LM Studio's v0 calls them stats, llama.cpp timings.
_SERVER_STATS = ("stats", "timings")
_LENGTH = ("length", "max_tokens")
_TOOL_CALLS = ("tool_calls", "function_call")
# Between a thought that is ended for the model and its solution.
_GAP = "\n\n"


class ReplyDecoder:
    """Decodes one streamed reply.

    `feed` takes the data of one server-sent event, `close` the end of the stream; both return events. After `close`,
    `reply` is the result and `error` what is to be raised, or None. `done` says that nothing more needs to be read.
    `started` and every `at` are seconds on one monotonic clock. A reply may have two parts: where `wants_answer` is
    set when the first one's stream is over, `answer` begins the second. `expects_thought` makes a reply without one
    say so in its notes.
    """

    def __init__(
        self,
        *,
        started: float,
        url: str = "",
        opener: Literal["auto", "assumed"] = "auto",
        closer: Literal["last", "first"] = "last",
        profile: str = "phi",
        rescue: Rescue | None = None,
        expects_thought: bool = False,
    ) -> None:
        self._rescue = rescue or Rescue()
        self._watch = ThoughtWatch(self._rescue) if self._rescue.watches else None
        self._follows = self._watch is not None
        self._end_because: Literal["budget", "loop", "unclosed"] | None = None
        self._forced: Forced | None = None
        self._expects_thought = expects_thought
        self.dropped: tuple[Mapping[str, Any], ...] = ()
        self._splitter = ThinkSplitter(opener=opener, closer=closer, profile=profile)
        self._url = url
        self._clock = Clock(started)
        self._id: str | None = None
        self._model: str | None = None
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._server_stats: Mapping[str, Any] | None = None
        self._extra: dict[str, Any] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._width = -1  # how many fields the last chunk had that was looked at whole
        self._saw_data = False
        self._saw_delta = False
        self._from_field = False
        self._unreadable: str | None = None
        self.request_id: str | None = None
        self.done = False
        self.error: Phi4Error | None = None
        self.reply: Reply | None = None

    def feed(self, data: str, event: str, at: float) -> list[Event]:
        """The data of one event that arrived at `at`, and the name of the event."""
        if self.done or not data:
            return []
        chunk = self._read(data, event)
        if chunk is None:
            return []
        text = self._plain_text(chunk)
        events = self._take(chunk, event) if text is None else self._splitter.feed(text)
        # Nearly always one more delta of the kind that is running.
        if len(events) != 1 or type(events[0]) is not self._clock.running:
            self._clock.note(events, at)
        return self._followed(events) if self._follows else events  # type: ignore[return-value]  # a list of some

    def _followed(self, events: list[TextEvent]) -> list[Event]:
        """The same events, of a thought that is watched or was ended; a Thought says if it was."""
        if self._watch is not None and self._forced is None:
            self._watch_for_end(events, self._watch)
        if self._forced is not None:
            events = [replace(event, forced=True) if isinstance(event, Thought) else event for event in events]
        return events  # type: ignore[return-value]  # a list of some of its members

    def _read(self, data: str, event: str) -> dict[str, Any] | None:
        """The JSON object of an event, or None where it has no more to say."""
        try:
            chunk, end = _decode_json(data)
            if end == len(data) and type(chunk) is dict:
                return chunk
        except (ValueError, RecursionError):
            pass
        if data == _DONE:
            self.done = self._saw_data = True
            return None
        if event == "error":
            return {"error": data}
        if data[:1].isspace() or data[-1:].isspace():
            return self._read(data.strip(), event) if data.strip() else None
        self._unreadable, self.done = data, True
        return None

    def _plain_text(self, chunk: dict[str, Any]) -> str | None:
        """The text of a chunk like the one before it, that holds nothing but more text; None for any other."""
        choices = chunk.get("choices")
        if len(chunk) != self._width or type(choices) is not list or len(choices) != 1:
            return None
        choice = choices[0]
        if type(choice) is not dict or choice.get("finish_reason") or choice.get("index") or "error" in chunk:
            return None
        delta = choice.get("delta")
        if type(delta) is not dict or len(delta) != 1:
            return None
        text = delta.get("content")
        return text if type(text) is str else None

    def _take(self, chunk: dict[str, Any], event: str) -> list[TextEvent]:
        """Any chunk."""
        self._saw_data = True
        if event == "error" or chunk.get("error") is not None:  # some servers say `"error": null` in every chunk
            self.error, self.done = failure(chunk, url=self._url, status=200, model=self._model), True
            return []
        self._note(chunk)
        events: list[TextEvent] = []
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and not choice.get("index"):
                events += self._choice(choice)
        return events

    def _note(self, chunk: dict[str, Any]) -> None:
        """What rarely comes: names at the start, figures at the end, fields that nobody knows."""
        self._width = len(chunk)
        self._id = self._id or chunk.get("id")
        self._model = self._model or chunk.get("model")
        if chunk.get("usage"):
            self._usage = parse_usage(chunk["usage"])
        for name in _SERVER_STATS:
            if isinstance(chunk.get(name), Mapping):
                self._server_stats = chunk[name]
        self._extra.update(
            (name, value) for name, value in chunk.items() if name not in _KNOWN and name not in _SERVER_STATS
        )

    def _choice(self, choice: Mapping[str, Any]) -> list[TextEvent]:
        # `message` is a whole answer where a stream was asked for, `text` a continued raw prompt.
        delta = choice.get("delta") or choice.get("message")
        delta = delta if isinstance(delta, dict) else {}
        if choice.get("finish_reason"):
            self._finish_reason = json_text(choice["finish_reason"])
        if delta or "text" in choice:
            self._saw_delta = True
        events: list[TextEvent] = []
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if reasoning and isinstance(reasoning, str):
            self._from_field = True
            events += self._splitter.feed_reasoning(reasoning)
        content = delta.get("content") or choice.get("text")
        if content:
            events += self._splitter.feed(text_of(content))
        if isinstance(delta.get("tool_calls"), list):
            self._collect(delta["tool_calls"])
        return events

    def _collect(self, parts: list[Any]) -> None:
        """Tool calls come in pieces that belong together by their index."""
        for position, part in enumerate(parts):
            if not isinstance(part, dict):
                continue
            index = part.get("index")
            index = index if isinstance(index, int) else position
            call = self._calls.setdefault(index, {"function": {"name": "", "arguments": ""}})
            call.update((name, part[name]) for name in ("id", "type") if part.get(name))
            function = part.get("function")
            if isinstance(function, dict):
                for name in ("name", "arguments"):
                    call["function"][name] += json_text(function.get(name))

    # A thought that does not end by itself

    def _watch_for_end(self, events: list[TextEvent], watch: ThoughtWatch) -> None:
        for event in events:
            if isinstance(event, Thinking) and self._end_because is None:
                self._end_because = watch.note(event.text)
        if self._end_because is not None:
            # A thought that closed within the same chunk has ended by itself.
            self.done, self._end_because = (True, self._end_because) if self._splitter.thinking else (self.done, None)

    @property
    def wants_answer(self) -> bool:
        """Whether the stream is over, the thought is not, and the model is to go on to its answer."""
        if self._forced is not None or self.error is not None or not self._splitter.thinking:
            return False
        if self._end_because is None and self._finish_reason is not None and self._rescue.on_unclosed == "answer":
            self._end_because = "unclosed" if self._splitter.thought else None
        return self._end_because is not None

    @property
    def lacks_count(self) -> bool:
        """Whether both parts have ended well, and nobody has counted the prompt of the first."""
        ended = self._finish_reason is not None and self.error is None
        return ended and self._forced is not None and self._forced.usage[0] is None

    def note_count(self, tokens: int | None, requests: int) -> None:
        """The tokens of the first part's prompt, and the requests that counting them took."""
        if self._forced is not None:
            first = None if tokens is None else Usage(prompt_tokens=tokens)
            requests += self._forced.requests
            self._forced = replace(self._forced, usage=(first, None), requests=requests)

    def continued(self, prompt: str) -> str:
        """The prompt, what the model has written, and the end of its thought: its answer goes on from here."""
        written = self._splitter.written_after(prompt)
        return f"{prompt}{written}{self._last_words}{self._splitter.closing_tag}{_GAP}"

    @property
    def _last_words(self) -> str:
        return f"{self._rescue.notice}\n"

    def answer(self, at: float, *, template: str, prompt_tokens: int | None, requests: int) -> list[Event]:
        """The second part begins: the thought is ended, and text that comes now is the answer. The rest is facts of the
        first part's prompt: see `Forced`."""
        assert self._end_because is not None
        tokens = self._watch.tokens if self._watch else 0
        first = self._usage if self._usage and self._usage.prompt_tokens else None
        if first is None and prompt_tokens is not None:
            first = Usage(prompt_tokens=prompt_tokens)
        if first is not None and first.completion_tokens:
            tokens = first.completion_tokens
        self._follows = True
        self._forced = Forced(self._end_because, tokens, template, requests, (first, None))
        self._usage = self._finish_reason = None
        self._width, self.done, self._saw_data = -1, False, False
        events = self._splitter.end_thought(self._last_words, _GAP)
        self._clock.note(events, at)
        return events  # type: ignore[return-value]  # a list of some of its members

    def _both_parts(self) -> tuple[Usage | None, Forced | None]:
        """Token counts of the whole reply: the second prompt holds the first part, so their difference counts it."""
        forced, second = self._forced, self._usage
        if forced is None:
            return second, None
        first = forced.usage[0]
        forced = replace(forced, usage=(first, second))
        if second is None or second.completion_tokens is None:
            return first, forced
        prompt = first.prompt_tokens if first else None
        thought = (first.completion_tokens if first else None) or None
        if thought is None and prompt is not None and (second.prompt_tokens or 0) > prompt:
            thought = (second.prompt_tokens or 0) - prompt
        completion = (forced.thought_tokens if thought is None else thought) + second.completion_tokens
        total = None if prompt is None else prompt + completion
        return Usage(prompt, completion, total, second.cached_tokens), forced

    def close(self, at: float, fault: Phi4Error | None = None) -> list[Event]:
        """The stream ended at `at`, because of `fault` or by itself. The last event is Finished, unless it failed."""
        if self.reply is not None:
            return []
        events: list[Event] = []
        rest = self._splitter.close()
        self._clock.note(rest, at)
        events += self._followed(rest)
        if self.error is None:
            self.error = self._judge_end(fault)
        outcome = _OUTCOMES.get(type(self.error), Outcome.SERVER_ERROR) if self.error else self._judge_text()
        self.reply = self._reply(outcome, at)
        if outcome is Outcome.EMPTY and self.error is None:
            self.error = EmptyReply(self._why_empty())
        if self.error is not None:
            self.error.partial = self.reply
        else:
            events.append(Finished(self.reply))
        return events

    def cancel(self, at: float) -> None:
        """The caller left before the end."""
        if self.reply is None:
            self._splitter.close()
            self.reply = self._reply(Outcome.CANCELLED, at)

    def partial(self, at: float) -> Reply:
        """What has arrived by now; withheld text is not in it."""
        return self.reply or self._reply(Outcome.CANCELLED, at)

    def _judge_end(self, fault: Phi4Error | None) -> Phi4Error | None:
        if fault is not None and self._end_because is not None and self._forced is None:
            return fault  # there was to be an answer
        if self._finish_reason is not None:
            return None  # finished: how the connection ended after that does not matter
        if fault is not None:
            return fault
        if self._unreadable is not None:
            return StreamCut(f"it ended inside a chunk, at {self._unreadable[:80]!r}")
        if not self._saw_data:
            return SilentOverflow("the server answered 200 and sent nothing")
        return StreamCut("[DONE] came" if self.done else "the stream ended")

    def _judge_text(self) -> Outcome:
        splitter = self._splitter
        at_length = self._finish_reason in _LENGTH
        if self._calls or self._finish_reason in _TOOL_CALLS:
            return Outcome.SOLUTION_TRUNCATED if at_length else Outcome.COMPLETE
        thought = splitter.thought
        if thought is not None and not splitter.closed:
            # A field's thought that is followed by nothing was mostly the answer, put in the wrong place.
            return Outcome.EMPTY if self._from_field and not at_length else Outcome.THOUGHT_UNCLOSED
        if splitter.solution.strip():
            return Outcome.SOLUTION_TRUNCATED if at_length else Outcome.COMPLETE
        if thought is not None:
            return Outcome.SOLUTION_TRUNCATED if at_length else Outcome.EMPTY
        if not self._saw_delta and not (self._usage and self._usage.completion_tokens):
            self.error = SilentOverflow(
                f"finish reason {self._finish_reason!r}, and not one delta",
                needed=(self._usage and self._usage.prompt_tokens) or None,
            )
            return Outcome.OVERFLOW
        return Outcome.EMPTY

    def _why_empty(self) -> str:
        thought = self._splitter.thought
        reason = f"finish reason {self._finish_reason!r}"
        if thought:
            where = (
                "in a field that holds no answer" if self._from_field else "as thought, closed, with nothing after it"
            )
            return f"{reason}, and all {len(thought):,} characters came {where}"
        return f"{reason}, and no text"

    def _notes(self, outcome: Outcome) -> tuple[str, ...]:
        if self._expects_thought and outcome is Outcome.COMPLETE and self._splitter.thought is None and not self._calls:
            return (
                "There was no thought in this reply, and no tag. Either the server's template drops the system prompt, "
                "or its engine prints the tags as empty text, and the thought stands in the solution: `probe()` tells.",
            )
        return ()

    def _reply(self, outcome: Outcome, at: float) -> Reply:
        usage, forced = self._both_parts()
        return Reply(
            outcome=outcome,
            thought=self._splitter.thought,
            thought_closed=self._splitter.closed,
            solution=self._splitter.solution,
            raw=self._splitter.raw,
            finish_reason=self._finish_reason,
            usage=usage,
            stats=self._clock.stats(at, usage, self._server_stats),
            model=self._model,
            id=self._id,
            request_id=self.request_id,
            tool_calls=tuple(parse_tool_call(call) for _, call in sorted(self._calls.items())),
            revisions=self._splitter.revisions,
            opener_swallowed=self._splitter.swallowed,
            forced=forced,
            dropped=self.dropped,
            notes=self._notes(outcome),
            extra=dict(self._extra),
        )


_OUTCOMES: dict[type[Phi4Error], Outcome] = {
    ContextOverflow: Outcome.OVERFLOW,
    SilentOverflow: Outcome.OVERFLOW,
    EmptyReply: Outcome.EMPTY,
    CannotContinue: Outcome.THOUGHT_UNCLOSED,
    StreamCut: Outcome.CUT,
    NotLMStudio: Outcome.NOT_LM_STUDIO,
    ServerUnreachable: Outcome.UNREACHABLE,
}
