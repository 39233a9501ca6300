"""A thought that does not end by itself: when to end it for the model, and the second part, in which it answers.

The first part's stream is left, or has ended inside the thought. Then the same turn goes on as a raw prompt: the chat's
own, what the model has written, the end of its thought. What comes is read on as one reply (`Continuation`). A model
that begins to think again is ended again, on what is left of the same budget; `max_tokens` counts all parts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

from ..errors import InvalidRequest
from ..events import Forced, Solution, TextEvent, Thinking, Thought, Usage
from .loops import LoopDetector
from .splitter import ThinkSplitter

CHARACTERS_A_TOKEN = 8
"""A piece of a stream is a token, nearly always; a server that sends several at once sends more characters than this
for each."""

# Between a thought that is ended for the model and its solution.
_GAP = "\n\n"

CLOSING_TOKENS = 5
"""Tokens at most of a line break, the closing tag and the gap, also where the tag is no token of its own."""

ENDINGS = 3
"""How often the thought of one reply is ended. A model that thinks again after that is left there."""

ANSWER_SHARE, LARGEST_ANSWER = 8, 2_048
"""What of the context is kept free for the answer of a thought that was ended: an eighth, and no more than this."""

LEAST_KEPT = 64
"""Tokens of a thought that must be left where its middle is cut out, for its answer to rest on anything."""

_CUT_OUT = "\n[…]\n"
_HEAD_SHARE = 4  # of what is kept of such a thought, a quarter is its beginning: its end matters more
_SLACK = 16  # tokens by which a prompt may differ from what is expected of it

Reason: TypeAlias = Literal["budget", "loop", "unclosed"]


@dataclass(frozen=True, slots=True)
class Rescue:
    """What is done about a thought that does not end: by closing it, and letting the model go on to its answer.

    `thinking_budget` is tokens of thought, None for no limit. `on_unclosed` is for a model that stopped inside its
    thought, by itself or at the length limit; `on_loop` for one that says the same sentence `loop_repeats` times
    within 64 sentences, or nothing new for very long (see `LoopDetector`). `notice` is put before the closing tag, as
    the thought's last words.
    Raises InvalidRequest for a setting that can't be.
    """

    thinking_budget: int | None = None
    on_unclosed: Literal["return", "answer"] = "return"
    on_loop: Literal["ignore", "answer"] = "ignore"
    loop_repeats: int = 6
    notice: str = ""

    def __post_init__(self) -> None:
        for name, least in (("thinking_budget", 1), ("loop_repeats", 2)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InvalidRequest(f"{name} is {value!r}: it takes a whole number from {least} up")
        for name, allowed in (("on_unclosed", ("return", "answer")), ("on_loop", ("ignore", "answer"))):
            if getattr(self, name) not in allowed:
                raise InvalidRequest(f"{name} is {getattr(self, name)!r}: it can be {' or '.join(map(repr, allowed))}")

    @property
    def watches(self) -> bool:
        """Whether the thought must be followed while it comes: to end it, or to have its tokens counted."""
        return self.thinking_budget is not None or "answer" in (self.on_loop, self.on_unclosed)


class ThoughtWatch:
    """Follows a thought; says when it is to be ended, and why."""

    def __init__(self, rescue: Rescue) -> None:
        self._budget = rescue.thinking_budget
        self._loop = LoopDetector(rescue.loop_repeats) if rescue.on_loop == "answer" else None
        self.tokens: int = 0

    def note(self, text: str) -> Literal["budget", "loop"] | None:
        """One more piece of the thought."""
        self.tokens += _tokens(text)
        if self._budget is not None and self.tokens >= self._budget:
            return "budget"
        if self._loop is not None and self._loop.feed(text):
            return "loop"
        return None


class Part(NamedTuple):
    """One part of a reply that is over."""

    usage: Usage | None
    tokens: int
    """What the model has written: as the server counted it, else as the pieces of the stream do."""
    told: bool
    """Whether the server has counted it."""


class Continuation:
    """Watches the thought of one reply, and keeps its parts together where the thought is ended for the model."""

    def __init__(self, rescue: Rescue, splitter: ThinkSplitter, max_tokens: int | None = None) -> None:
        self._rescue = rescue
        self._splitter = splitter
        self._max_tokens = max_tokens
        self._watch = ThoughtWatch(rescue) if rescue.watches else None
        self._reason: Reason | None = None
        self._forced: Forced | None = None
        self._parts: list[Part] = []
        self._pieces = 0  # tokens of this part's text
        self._written = ""  # what the model had written, and the end of its thought, when that was ended last
        self._raw_then = 0
        self.cut_out: bool = False
        """Whether the answer was asked for without the middle of the thought."""
        self.notes: list[str] = []
        """What is to be said of the parts."""
        self.given_up: str | None = None
        """Why a thought that was to be ended is left as it is."""
        self.used_up: Literal["max_tokens", "context"] | None = None
        """Which limit that was."""
        self.skipped: int = 0
        """How many of the next events are not the model's own words."""

    @property
    def follows(self) -> bool:
        """Whether the events of the reply must be handed to `follow`."""
        return self._watch is not None or self._forced is not None

    @property
    def awaited(self) -> bool:
        """Whether the thought is to be ended, and the answer has not begun."""
        return self._reason is not None

    @property
    def reason(self) -> Reason | None:
        """Why it is to be ended."""
        return self._reason

    def follow(self, events: list[TextEvent]) -> list[TextEvent]:
        """The same events; a Thought among them says whether it was ended. The thought is watched."""
        if self._watch is not None:
            for event in events[self.skipped :]:
                if isinstance(event, (Thinking, Solution)):
                    self._pieces += _tokens(event.text)
                if isinstance(event, Thinking) and self._reason is None:
                    self._reason = self._watch.note(event.text)
            self.skipped = 0
            if self._reason is not None and not self._splitter.thinking:
                self._reason = None  # closed within the same chunk: it has ended by itself
        return self.marked(events)

    def marked(self, events: list[TextEvent]) -> list[TextEvent]:
        """The same events; a Thought among them says whether it was ended."""
        if self._forced is None:
            return events
        return [replace(event, forced=True) if isinstance(event, Thought) else event for event in events]

    def decide(self, *, finished: bool, usage: Usage | None = None) -> bool:
        """The stream is over, and `finished` says whether with a finish reason: decide whether the model is to go on
        to its answer. Asked again, it says the same, until the answer begins."""
        if self.given_up is not None or not self._splitter.thinking:
            return False
        if self._reason is None and finished and self._rescue.on_unclosed == "answer" and self._splitter.thought:
            self._reason = "unclosed"
        if self._reason is None:
            return False
        left = self.left(usage)
        if left is not None and left < 1:
            self.give_up(f"Of `max_tokens` ({self._max_tokens:,}) nothing is left for an answer", "max_tokens")
        elif len(self._parts) >= ENDINGS:
            self.give_up(f"The thought was ended {ENDINGS} times, and the model began to think again each time")
        return self.given_up is None

    def give_up(self, why: str, used_up: Literal["max_tokens", "context"] | None = None) -> None:
        """The thought is not ended for the model (any more)."""
        self._reason = None
        self.used_up = used_up
        self.given_up = f"{why}: the thought is left as it is."

    # What goes out

    def left(self, usage: Usage | None = None) -> int | None:
        """What of `max_tokens` is left for the answer; None where there is no such limit. `usage` is this part's."""
        if self._max_tokens is None or self._max_tokens < 1:
            return None
        used = sum(part.tokens for part in self._parts) + self._part(usage).tokens
        return self._max_tokens - used - (len(self._parts) + 1) * self._closing

    @property
    def _closing(self) -> int:
        """Tokens at most that ending the thought takes."""
        return CLOSING_TOKENS + len(self._rescue.notice.encode("utf-8", "replace"))

    def _part(self, usage: Usage | None) -> Part:
        """This part, as it is over."""
        told = (usage.completion_tokens if usage and usage.prompt_tokens else None) or None
        opener = 1 if not self._parts else 0
        return Part(usage, self._pieces + opener if told is None else told, told is not None)

    def size(self, usage: Usage | None) -> int:
        """Tokens of all that the model has written, and of the ends of its thoughts."""
        return sum(part.tokens + self._closing for part in self._parts) + self._part(usage).tokens + self._closing

    def continued(self, prompt: str, rest: str = "", room: tuple[int, int] | None = None) -> str:
        """The prompt, what the model has written (`rest` is its end, if the splitter has not got it), and the end of
        its thought: its answer goes on from here. With `room`, the first number is how many of its tokens, which are
        the second number, may be there: its middle is cut out."""
        written = self._text(prompt, rest)
        self.cut_out = room is not None and room[0] < room[1]
        if room is not None and self.cut_out:
            opener = self._splitter.opening_tag
            start = opener if written.lstrip().startswith(opener) else ""
            written = written.lstrip().removeprefix(start) if start else written
            kept = len(written) * room[0] // room[1]
            head = kept // _HEAD_SHARE
            written = f"{start}{written[:head]}{_CUT_OUT}{written[len(written) - (kept - head) :]}"
        return f"{prompt}{written}{self._last_words}{self._splitter.closing_tag}{_GAP}"

    def _text(self, prompt: str, rest: str) -> str:
        if self._written:
            written = self._written + self._splitter.raw[self._raw_then :] + rest
        else:
            written = self._splitter.written + rest
        return not_opened_twice(prompt, written, self._splitter.opening_tag)

    @property
    def _last_words(self) -> str:
        return f"{self._rescue.notice}\n"

    # The parts

    def begin(self, usage: Usage | None, *, template: str, prompt_tokens: int | None, requests: int) -> list[TextEvent]:
        """The next part begins, and `usage` is what the server counted for the one before; the rest as in `Forced`."""
        assert self._reason is not None, "no answer is wanted"
        part = self._part(usage)
        tokens = self._watch.tokens if self._watch else 0
        usage = usage if usage and usage.prompt_tokens else None
        if self._forced is None:
            if usage is None and prompt_tokens is not None:
                usage = Usage(prompt_tokens=prompt_tokens)
            if part.told:
                tokens = part.tokens
            self._forced = Forced(self._reason, tokens, template, requests, (usage, None))
        else:
            counts = (*self._forced.usage[:-1], usage, None)
            more = max(tokens, self._forced.thought_tokens)
            self._forced = replace(self._forced, thought_tokens=more, usage=counts)
        rest = self._text("", "")
        self._parts.append(part)
        events = self._splitter.end_thought(self._last_words, _GAP)
        self._written = f"{rest}{self._last_words}{self._splitter.closing_tag}{_GAP}"
        self._raw_then = len(self._splitter.raw)
        self._reason, self._pieces, self.skipped = None, 0, len(events)
        if self.cut_out:
            self.notes.append(
                "The context was full: the model went on to its answer without the middle of its thought."
            )
        return events

    @property
    def lacks_count(self) -> bool:
        """Whether there is a second part, and nobody has counted the prompt of the first."""
        return self._forced is not None and self._forced.usage[0] is None

    def note_count(self, tokens: int | None, requests: int) -> None:
        """The tokens of the first part's prompt, and the requests that counting them took."""
        if self._forced is not None:
            first = None if tokens is None else Usage(prompt_tokens=tokens)
            requests += self._forced.requests
            self._forced = replace(self._forced, usage=(first, *self._forced.usage[1:]), requests=requests)

    def whole(self, last: Usage | None) -> tuple[Usage | None, Forced | None]:
        """Token counts of the whole reply: the last prompt holds all parts before, so their difference counts them."""
        forced = self._forced
        if forced is None:
            return last, None
        first = forced.usage[0]
        forced = replace(forced, usage=(*forced.usage[:-1], last))
        if last is None or last.completion_tokens is None:
            return first, forced
        prompt = first.prompt_tokens if first else None
        before = sum(part.tokens for part in self._parts)
        if not all(part.told for part in self._parts):
            if prompt is not None and (last.prompt_tokens or 0) > prompt and not self.cut_out:
                before = (last.prompt_tokens or 0) - prompt
            elif len(self._parts) == 1:
                before = forced.thought_tokens
        completion = before + last.completion_tokens
        total = None if prompt is None else prompt + completion
        # What was cached is told of the prompt that is told: the first.
        return Usage(prompt, completion, total, first.cached_tokens if first else None), forced

    def unexpected(self, last: Usage | None) -> bool:
        """Whether the prompt that was continued can't have been the server's own, by its count. Said in the notes."""
        first = self._forced.usage[0] if self._forced else None
        got = last.prompt_tokens if last else None
        if not got or first is None or not first.prompt_tokens or self.cut_out:
            return False
        written = sum(part.tokens for part in self._parts)
        expected = first.prompt_tokens + written + len(self._parts) * CLOSING_TOKENS
        least = first.prompt_tokens + written * 3 // 4 - _SLACK
        most = expected + written // 4 + _SLACK + len(self._rescue.notice.encode("utf-8", "replace")) * len(self._parts)
        if not all(part.told for part in self._parts):  # a piece may have been several tokens
            most = max(most, first.prompt_tokens + len(self._written.encode("utf-8", "replace")) + _SLACK)
        if least <= got <= most:
            return False
        self.notes.append(
            f"The answer goes on from a prompt of {got:,} tokens, where about {expected:,} were expected: the server's "
            "template may be another than it was. What was known of it is forgotten."
        )
        return True


def room_for(limit: int | None, prompt: int | None, size: int) -> int | None:
    """How many tokens of what was written, which has `size`, may stand in the prompt that goes on, so that the answer
    has room: `size` where all may, 0 where too few; None where it is not known."""
    if limit is None or prompt is None:
        return None
    free = limit - prompt - answer_room(limit)
    if size <= free:
        return size
    return free if free >= LEAST_KEPT else 0


def answer_room(limit: int) -> int:
    """Tokens of a context that are kept for the answer of a thought that was ended."""
    return min(limit // ANSWER_SHARE, LARGEST_ANSWER)


def _tokens(text: str) -> int:
    """What a piece of a stream is counted as."""
    return max(1, len(text) // CHARACTERS_A_TOKEN)


def not_opened_twice(prompt: str, written: str, opener: str) -> str:
    """What was written, without its opening tag where the prompt ends on one: some templates begin the thought for the
    model, and some servers say so again."""
    _, opened, after = prompt.rpartition(opener)
    if not opened or after.strip() or not written.lstrip().startswith(opener):
        return written
    return written.lstrip().removeprefix(opener).removeprefix(after)
