"""From the data of server-sent events to a reply: the JSON of a stream, what it says, and the events it makes.

`ReplyDecoder` does no I/O and reads no clock (times are handed in), so both faces and every test drive the same code.
It hands the text to the splitter and keeps the rest. How a reply ended is decided in `outcome`, what becomes of a
thought that does not end in `rescue`. Nearly every chunk is one more piece of text and takes a shortcut (`frame`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import Phi4Error
from ..events import Event, Finished, Outcome, Reply, TextEvent, ToolCall, Usage
from ..wire.fields import json_text, text_of
from ..wire.parts import parse_tool_call, parse_usage
from ..wire.refusals import failure
from .characters import LEVELS, REPLACEMENT, HalfFilter, bounded, has_half, whole
from .frame import Frame, decode_json, delta_of, only_text, texts_of
from .outcome import Seen, conclude, notes
from .rescue import Continuation, Rescue
from .splitter import ThinkSplitter
from .timing import Clock

_DONE = "[DONE]"
_USUAL = frozenset({"id", "object", "created", "model", "system_fingerprint", "choices", "usage"})
# The server's own figures: LM Studio's v0 calls them stats, llama.cpp timings.
_SERVER_STATS = ("stats", "timings")
# Frames that may be made for nothing, one after the other: some servers make no two chunks alike.
_FRAMES = 8


class ReplyDecoder:
    """Decodes one streamed reply.

    `feed` takes the data of one server-sent event, `close` the end of the stream; both return events. After `close`,
    `reply` is the result and `error` what is to be raised, or None. `done` says that nothing more needs to be read.
    `started` and every `at` are seconds on one monotonic clock. A reply may have two parts: where `wants_answer()` is
    true when the first one's stream is over, the model is to be asked to go on from `continued(prompt)`, and `answer`
    begins the second. `expects_thought` makes a reply without one say so in its notes.
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
        self._url = url
        self._expects_thought = expects_thought
        self._clock = Clock(started)
        self._splitter = ThinkSplitter(opener=opener, closer=closer, profile=profile)
        self._parts = Continuation(rescue or Rescue(), self._splitter)
        self._content, self._reasoning = HalfFilter(), HalfFilter()
        self._said = _Said()
        self._before = 0  # characters of an earlier part
        self._frame: Frame | None = None
        self._frames = _FRAMES
        self._add_text = self._splitter.feed  # where the text in a frame belongs
        self._follows = self._parts.follows
        self.dropped: tuple[Mapping[str, Any], ...] = ()
        self.request_id: str | None = None
        self.unread: str = ""
        """The start of a body in which there was no event."""
        self.done: bool = False
        self.error: Phi4Error | None = None
        self.reply: Reply | None = None

    def feed(self, data: str, event: str, at: float) -> list[Event]:
        """The data of one event that arrived at `at`, and the name of the event."""
        if self.done or not data:
            return []
        text = self._frame.text(data) if self._frame is not None else None
        if text is not None and event != "error" and not has_half(text):
            self._frames = _FRAMES
            events = self._add_text(text)
        else:
            chunk = self._read(data, event)
            if chunk is None:
                return []
            events = self._take(chunk, event, data)
        # Nearly always one more delta of the kind that is running.
        if len(events) != 1 or type(events[0]) is not self._clock.running:
            self._clock.note(events, at)
        if self._follows:
            events = self._parts.follow(events)
            self.done = self.done or self._parts.awaited
        return events  # type: ignore[return-value]  # a list of some of its members

    def close(self, at: float, fault: Phi4Error | None = None) -> list[Event]:
        """The stream ended at `at`, because of `fault` or by itself. The last event is Finished, unless it failed."""
        if self.reply is not None:
            return []
        rest = self._end_text()
        self._clock.note(rest, at)
        events: list[Event] = [*self._parts.marked(rest)]
        outcome, self.error = conclude(self._seen(), self.error, fault)
        self.reply = self._reply(outcome, at)
        if self.error is not None:
            self.error.partial = self.reply
        else:
            events.append(Finished(self.reply))
        return events

    def cancel(self, at: float) -> None:
        """The caller left before the end."""
        if self.reply is None:
            self._end_text()
            self.reply = self._reply(Outcome.CANCELLED, at)

    def partial(self, at: float) -> Reply:
        """What has arrived by now; withheld text is not in it."""
        return self.reply or self._reply(Outcome.CANCELLED, at)

    @property
    def finished(self) -> bool:
        """Whether the finish reason has come."""
        return self._said.finish_reason is not None

    @property
    def begun(self) -> bool:
        """Whether the part that comes has said something: text, a tool call, or an error."""
        return self.error is not None or bool(self._said.calls) or self.characters > self._before

    @property
    def characters(self) -> int:
        """How much text has come, tags included."""
        return self._splitter.fed

    @property
    def prompt_share(self) -> float | None:
        """How much of the prompt is processed, where the server has told it and no text has come."""
        told = self._said.extra.get("prompt_progress")
        if not isinstance(told, Mapping):
            return None
        total, processed = told.get("total"), told.get("processed")
        if not isinstance(total, int) or not isinstance(processed, int) or not 0 <= processed <= total or not total:
            return None
        return processed / total

    # The second part of a reply

    def wants_answer(self) -> bool:
        """The first part's stream is over: decide whether its thought is not, and the model is to go on to its answer.
        Asked again, it says the same, until the answer begins."""
        return self.error is None and self._parts.decide(finished=self._said.finish_reason is not None)

    def continued(self, prompt: str) -> str:
        """The prompt, what the model has written, and the end of its thought: its answer goes on from here."""
        return self._parts.continued(prompt, REPLACEMENT if self._content.holds or self._reasoning.holds else "")

    def answer(self, at: float, *, template: str, prompt_tokens: int | None, requests: int) -> list[Event]:
        """The second part begins: the thought is ended, and text that comes now is the answer. The rest is facts of the
        first part's prompt: see `Forced`."""
        half = self._flush_halves()
        ended = self._parts.begin(self._said.usage, template=template, prompt_tokens=prompt_tokens, requests=requests)
        self._follows = True
        self._frame = None
        self._said.begin_part()
        self._before = self.characters
        self.done = False
        events = [*half, *ended]
        self._clock.note(events, at)
        return [*self._parts.marked(events)]

    @property
    def lacks_count(self) -> bool:
        """Whether both parts have ended well, and nobody has counted the prompt of the first."""
        return self._said.finish_reason is not None and self.error is None and self._parts.lacks_count

    def note_count(self, tokens: int | None, requests: int) -> None:
        """The tokens of the first part's prompt, and the requests that counting them took."""
        self._parts.note_count(tokens, requests)

    # A chunk that is read whole

    def _read(self, data: str, event: str) -> dict[str, Any] | None:
        """The JSON object of an event, or None where it has no more to say."""
        try:
            chunk, end = decode_json(data)
            if end == len(data) and type(chunk) is dict:
                return chunk
        except (ValueError, RecursionError):
            pass
        if data == _DONE:
            self.done = self._said.data = True
            return None
        if event == "error":
            return {"error": data}
        if data[:1].isspace() or data[-1:].isspace():
            return self._read(data.strip(), event) if data.strip() else None
        self._said.unreadable, self.done = data, True
        return None

    def _take(self, chunk: dict[str, Any], event: str, data: str) -> list[TextEvent]:
        """Any chunk."""
        said = self._said
        said.data = True
        self._frame = None
        if data.count("[") + data.count("{") > LEVELS:
            chunk = bounded(chunk)
        failed = _failed(chunk, event) if event == "error" or "error" in chunk else None
        if failed is not None:
            self.error, self.done = failure(failed, url=self._url, status=200, model=said.model), True
            return []
        said.note(chunk)
        events: list[TextEvent] = []
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                if choice.get("index"):
                    said.further.add(json_text(choice["index"]))
                else:
                    events += self._choice(choice)
        if self._frames and not (self._content.holds or self._reasoning.holds):
            self._make_frame(chunk, data)
        return events

    def _choice(self, choice: Mapping[str, Any]) -> list[TextEvent]:
        said, delta = self._said, delta_of(choice)
        said.note_choice(choice, delta)
        reasoning, content = texts_of(choice, delta)
        events: list[TextEvent] = []
        if reasoning and isinstance(reasoning, str):
            said.from_field = True
            events += self._splitter.feed_reasoning(self._reasoning.feed(reasoning))
        if content:
            content = self._content.feed(content if type(content) is str else text_of(content))
            if self._reasoning.holds and content.strip():
                events += self._splitter.feed_reasoning(self._reasoning.flush())  # the thought has ended
            events += self._splitter.feed(content)
        return events

    def _make_frame(self, chunk: Mapping[str, Any], data: str) -> None:
        found = only_text(chunk)
        if found is not None:
            from_field, text = found
            self._frames -= 1
            self._frame = Frame.around(text, data)
            self._add_text = self._splitter.feed_reasoning if from_field else self._splitter.feed

    # The end

    def _flush_halves(self) -> list[TextEvent]:
        events: list[TextEvent] = []
        if self._reasoning.holds:
            events += self._splitter.feed_reasoning(self._reasoning.flush())
        if self._content.holds:
            events += self._splitter.feed(self._content.flush())
        return events

    def _end_text(self) -> list[TextEvent]:
        return [*self._flush_halves(), *self._splitter.close()]

    def _seen(self) -> Seen:
        said, splitter = self._said, self._splitter
        return Seen(
            thought=splitter.thought,
            thought_closed=splitter.closed,
            solution=splitter.solution,
            from_field=said.from_field,
            called=bool(said.calls),
            finish_reason=said.finish_reason,
            usage=said.usage,
            data=said.data,
            delta=said.delta,
            done=self.done,
            unreadable=said.unreadable,
            unread=self.unread,
            url=self._url,
            signed=said.signed,
            awaits_answer=self._parts.awaited,
            expects_thought=self._expects_thought,
            further=len(said.further),
        )

    def _reply(self, outcome: Outcome, at: float) -> Reply:
        said, splitter, seen = self._said, self._splitter, self._seen()
        usage, forced = self._parts.both_parts(seen.usage)
        return Reply(
            outcome=outcome,
            thought=seen.thought,
            thought_closed=seen.thought_closed,
            solution=seen.solution,
            raw=splitter.raw,
            finish_reason=said.finish_reason,
            usage=usage,
            stats=self._clock.stats(at, usage, bounded(said.server_stats, whole)),
            model=bounded(said.model, whole),
            id=bounded(said.id, whole),
            request_id=self.request_id,
            tool_calls=tuple(said.calls[index].whole() for index in sorted(said.calls)),
            revisions=splitter.revisions,
            opener_swallowed=splitter.swallowed,
            forced=forced,
            dropped=self.dropped,
            notes=notes(seen, outcome),
            extra=said.whole_extra(),
        )


def _failed(chunk: Mapping[str, Any], event: str) -> Mapping[str, Any] | None:
    """What of a chunk says that the server failed; None where it did not."""
    error = chunk.get("error")  # some servers say `"error": null` in every chunk
    told = "error" in chunk and isinstance(chunk.get("message"), str) and not chunk.get("choices")
    if error is None and not told and event != "error":
        return None
    failed = chunk if error is not None else {name: held for name, held in chunk.items() if name != "error"}
    found: Mapping[str, Any] = bounded(failed, whole)
    return found


@dataclass(slots=True)
class _Call:
    """A tool call, in the pieces in which it comes."""

    head: dict[str, Any] = field(default_factory=dict)
    name: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)

    def add(self, part: Mapping[str, Any]) -> None:
        self.head.update((name, part[name]) for name in ("id", "type") if part.get(name))
        function = part.get("function")
        if isinstance(function, dict):
            self.name.append(json_text(function.get("name")))
            self.arguments.append(json_text(function.get("arguments")))

    def whole(self) -> ToolCall:
        function = {"name": "".join(self.name), "arguments": "".join(self.arguments)}
        return parse_tool_call(bounded({**self.head, "function": function}, whole))


@dataclass(slots=True)
class _Said:
    """What the chunks have said, beside the text."""

    id: Any = None
    model: Any = None
    finish_reason: str | None = None
    counts: Any = None
    server_stats: Mapping[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    calls: dict[int, _Call] = field(default_factory=dict)
    further: set[str] = field(default_factory=set)
    data: bool = False
    delta: bool = False
    from_field: bool = False
    unreadable: str | None = None
    signed: bool = False

    @property
    def usage(self) -> Usage | None:
        """The token counts that came last."""
        return parse_usage(bounded(self.counts, whole))

    def note(self, chunk: Mapping[str, Any]) -> None:
        """Names at the start, figures at the end, fields that nobody knows."""
        self.id = self.id or chunk.get("id")
        self.model = self.model or chunk.get("model")
        self.signed = self.signed or "system_fingerprint" in chunk
        self.counts = chunk.get("usage") or self.counts
        if _USUAL.issuperset(chunk):
            return
        for name, value in chunk.items():
            if name not in _SERVER_STATS and name not in _USUAL:
                self.extra[name] = value
            elif name in _SERVER_STATS and isinstance(value, Mapping):
                self.server_stats = value

    def note_choice(self, choice: Mapping[str, Any], delta: Mapping[str, Any]) -> None:
        """Of the first choice: why it ended, its log probabilities, its tool calls."""
        if choice.get("finish_reason"):
            self.finish_reason = whole(json_text(choice["finish_reason"]))
        if choice.get("logprobs"):
            self.logprobs.append(choice["logprobs"])
        if delta or "text" in choice:
            self.delta = True
        if isinstance(delta.get("tool_calls"), list):
            self._collect(delta["tool_calls"])

    def _collect(self, parts: Sequence[Any]) -> None:
        """Tool calls come in pieces that belong together by their index."""
        for position, part in enumerate(parts):
            if isinstance(part, dict):
                index = part.get("index")
                self.calls.setdefault(index if isinstance(index, int) else position, _Call()).add(part)

    def begin_part(self) -> None:
        """The second part of the reply counts and ends for itself."""
        self.counts = self.finish_reason = None
        self.data = False

    def whole_extra(self) -> dict[str, Any]:
        """The fields that nobody knows, and the log probabilities: those of a chat as one object, others as a list."""
        found: dict[str, Any] = bounded(self.extra, whole)
        if self.logprobs:
            pieces = bounded(self.logprobs, whole)
            if all(isinstance(piece, dict) and isinstance(piece.get("content"), list) for piece in pieces):
                content = [token for piece in pieces for token in piece["content"]]
                pieces = {**pieces[-1], "content": content}
            found["logprobs"] = pieces
        return found
