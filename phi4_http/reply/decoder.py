"""From the data of server-sent events to a reply: the JSON of a stream, what it says, and the events it makes.

`ReplyDecoder` does no I/O and reads no clock (times are handed in), so both faces and every test drive the same code.
It hands the text to the splitter and keeps the rest. How a reply ended is decided in `outcome`, what becomes of a
thought that does not end in `rescue`. Nearly every chunk is one more piece of text and takes a shortcut (`frame`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ..errors import ContextOverflow, Phi4Error, ServerError, SilentOverflow
from ..events import Event, Finished, Outcome, Reply, TextEvent
from ..wire.fields import json_text, text_of
from ..wire.refusals import failure
from .characters import LEVELS, REPLACEMENT, HalfFilter, bounded, has_half, whole
from .frame import Frame, decode_json, delta_of, only_text, texts_of
from .outcome import Length, Seen, conclude, notes
from .rescue import Continuation, Rescue, room_for
from .said import Said
from .splitter import ThinkSplitter
from .timing import Clock

_DONE = "[DONE]"
# Frames that may be made for nothing, one after the other: some servers make no two chunks alike.
_FRAMES = 8


class _Next(NamedTuple):
    """A next part that has been asked for, of which no text has come; what the part before had ended with."""

    template: str
    prompt_tokens: int | None
    requests: int
    finish_reason: str | None
    counts: Any
    data: bool


class ReplyDecoder:
    """Decodes one streamed reply.

    `feed` takes the data of one server-sent event, `close` the end of the stream; both return events. After `close`,
    `reply` is the result and `error` what is to be raised, or None. `done` says that nothing more needs to be read.
    `started` and every `at` are seconds on one monotonic clock. A reply may have several parts, where a thought has to
    be ended for the model: `reply.stream` leads from one to the next, by the steps that begin with an underscore.
    `expects_thought` makes a reply without one say so in its notes; `notes` are further ones, `max_tokens` and
    `context_length` the limits of the reply.
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
        max_tokens: int | None = None,
    ) -> None:
        self._url = url
        self._expects_thought = expects_thought
        self._clock = Clock(started)
        self._splitter = ThinkSplitter(opener=opener, closer=closer, profile=profile)
        self._max_tokens = max_tokens
        self._parts = Continuation(rescue or Rescue(), self._splitter, max_tokens)
        self._next: _Next | None = None
        self._overgrown = False  # whether the reply has outgrown the context
        self._content, self._reasoning = HalfFilter(), HalfFilter()
        self._said = Said()
        self._before = 0  # characters of an earlier part
        self._frame: Frame | None = None
        self._frames = _FRAMES
        self._add_text = self._splitter.feed  # where the text in a frame belongs
        self._follows = self._parts.follows
        self.dropped: tuple[Mapping[str, Any], ...] = ()
        self.notes: list[str] = []
        self.context_length: int | None = None
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
            self.done = self.done or (self._parts.awaited and self._next is None)
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
        return self._said.prompt_share

    # The second part of a reply

    def _wants_answer(self) -> bool:
        """This part's stream is over: decide whether its thought is not, and the model is to go on to its answer.
        Asked again, it says the same, until the answer begins."""
        if self.error is not None or self._next is not None:
            return False
        return self._parts.decide(finished=self._said.finish_reason is not None, usage=self._said.usage)

    def _continued(self, prompt: str, prompt_tokens: int | None = None) -> str | None:
        """The prompt, what the model has written, and the end of its thought: its answer goes on from here. None where
        the context is too full for an answer, which is then not asked for."""
        usage = self._said.usage
        size = self._parts.size(usage)
        kept = room_for(self.context_length, self._first_prompt or prompt_tokens, size)
        if kept == 0:
            self._parts.give_up("The context is full, with too little room for an answer", "context")
            return None
        rest = REPLACEMENT if self._content.holds or self._reasoning.holds else ""
        return self._parts.continued(prompt, rest, None if kept is None else (kept, size))

    @property
    def _first_prompt(self) -> int | None:
        """Tokens of the first part's prompt, where the server has told them."""
        usage, _ = self._parts.whole(self._said.usage)
        return (usage.prompt_tokens if usage else None) or None

    @property
    def left(self) -> int | None:
        """What of `max_tokens` the answer may take; None where there is no such limit."""
        return self._parts.left(self._said.usage)

    def _answer(self, at: float, *, template: str, prompt_tokens: int | None, requests: int) -> list[Event]:
        """The answer was asked for, and is read now; with its first text, the thought is ended. The facts are those of
        the first part's prompt: see `Forced`."""
        said, half = self._said, self._flush_halves()
        self._clock.note(half, at)
        self._next = _Next(template, prompt_tokens, requests, said.finish_reason, said.counts, said.data)
        self._follows = True
        self._frame = None
        said.begin_part()
        self._before = self.characters
        self.done = False
        return [*half]

    def _begin(self) -> list[TextEvent]:
        """The answer begins: the thought is ended, and text that comes now is the answer."""
        assert self._next is not None
        template, prompt_tokens, requests, _, counts, _ = self._next
        ended = self._parts.begin(
            Said(counts=counts).usage, template=template, prompt_tokens=prompt_tokens, requests=requests
        )
        self._next = None
        return ended

    def _unanswered(self, error: Phi4Error | None = None) -> Phi4Error | None:
        """No answer came, for this reason or as the stream shows: what is to be raised for it. A thought in which the
        model had stopped by itself stands as it is, with a note, and nothing is to be raised."""
        if self._next is None and error is None:
            return None
        if self._next is not None:
            error = error or self.error or conclude(self._seen(), None, None)[1]
            said = self._said
            said.finish_reason, said.counts, said.data = self._next[3:]
            said.unreadable = None
            self._next = self.error = None
        if error is not None and self._parts.reason == "unclosed":
            self._parts.give_up(f"The model could not be asked on to its answer ({error})")
            return None
        return error

    def _check_parts(self) -> bool:
        """Whether the prompt that was continued can't have been the server's own, by its count. Said in the notes."""
        return self._parts.unexpected(self._said.usage)

    @property
    def _lacks_count(self) -> bool:
        """Whether all parts have ended well, and nobody has counted the prompt of the first."""
        return self._said.finish_reason is not None and self.error is None and self._parts.lacks_count

    def _note_count(self, tokens: int | None, requests: int) -> None:
        """The tokens of the first part's prompt, and the requests that counting them took."""
        self._parts.note_count(tokens, requests)

    @property
    def length(self) -> Length:
        """Which limit ended the reply, if one did."""
        usage, forced = self._parts.whole(self._said.usage)
        last = self._said.usage if forced else usage
        return Length(self._said.finish_reason, usage, last, self._max_tokens, self.context_length)

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
            self.error, self.done = self._failed(failed), True
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
        if self._next is not None and (reasoning or content or said.finish_reason):
            events += self._begin()
        if reasoning and isinstance(reasoning, str):
            said.from_field = True
            events += self._splitter.feed_reasoning(self._reasoning.feed(reasoning))
        if content:
            content = self._content.feed(content if type(content) is str else text_of(content))
            if self._reasoning.holds and content.strip():
                events += self._splitter.feed_reasoning(self._reasoning.flush())  # the thought has ended
            events += self._splitter.feed(content)
        return events

    def _failed(self, failed: Mapping[str, Any]) -> Phi4Error:
        """What the server says. Once there is text, its prompt did fit: then it is no overflow of that."""
        error = failure(failed, url=self._url, status=200, model=self._said.model)
        begun = self._next is None and (self._splitter.raw or self._splitter.thought)
        if begun and isinstance(error, ContextOverflow) and not isinstance(error, SilentOverflow):
            self._overgrown = True
            return ServerError(error.message, status=error.status, code=error.code, kind=error.kind)
        return error

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
            left=self._parts.given_up is not None,
        )

    def _reply(self, outcome: Outcome, at: float) -> Reply:
        said, splitter, seen = self._said, self._splitter, self._seen()
        usage, forced = self._parts.whole(seen.usage)
        given_up, used_up = self._parts.given_up, self._parts.used_up
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
            notes=(*notes(seen, outcome), *self.notes, *self._parts.notes, *([given_up] if given_up else [])),
            extra=said.whole_extra(),
            length_reason="context" if self._overgrown else self.length.reason or used_up,
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
