"""A thought that does not end by itself: when to end it for the model, and the second part, in which it answers.

The first part's stream is left, or has ended inside the thought. Then the same turn goes on as a raw prompt: the chat's
own, what the model has written, the end of its thought. What comes is read on as one reply (`Continuation`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ..errors import InvalidRequest
from ..events import Forced, TextEvent, Thinking, Thought, Usage
from .loops import LoopDetector
from .splitter import ThinkSplitter

CHARACTERS_A_TOKEN = 8
"""A piece of a stream is a token, nearly always; a server that sends several at once sends more characters than this
for each."""

# Between a thought that is ended for the model and its solution.
_GAP = "\n\n"

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
        self.tokens += max(1, len(text) // CHARACTERS_A_TOKEN)
        if self._budget is not None and self.tokens >= self._budget:
            return "budget"
        if self._loop is not None and self._loop.feed(text):
            return "loop"
        return None


class Continuation:
    """Watches the thought of one reply, and keeps its two parts together where the thought is ended for the model."""

    def __init__(self, rescue: Rescue, splitter: ThinkSplitter) -> None:
        self._rescue = rescue
        self._splitter = splitter
        self._watch = ThoughtWatch(rescue) if rescue.watches else None
        self._reason: Reason | None = None
        self._forced: Forced | None = None

    @property
    def follows(self) -> bool:
        """Whether the events of the reply must be handed to `follow`."""
        return self._watch is not None or self._forced is not None

    @property
    def awaited(self) -> bool:
        """Whether the thought is to be ended, and the answer has not begun."""
        return self._reason is not None and self._forced is None

    def follow(self, events: list[TextEvent]) -> list[TextEvent]:
        """The same events; a Thought among them says whether it was ended. The thought is watched."""
        if self._watch is not None and self._forced is None:
            for event in events:
                if isinstance(event, Thinking) and self._reason is None:
                    self._reason = self._watch.note(event.text)
            if self._reason is not None and not self._splitter.thinking:
                self._reason = None  # closed within the same chunk: it has ended by itself
        return self.marked(events)

    def marked(self, events: list[TextEvent]) -> list[TextEvent]:
        """The same events; a Thought among them says whether it was ended."""
        if self._forced is None:
            return events
        return [replace(event, forced=True) if isinstance(event, Thought) else event for event in events]

    def decide(self, *, finished: bool) -> bool:
        """The stream is over, and `finished` says whether with a finish reason: decide whether the model is to go on
        to its answer. Asked again, it says the same, until the answer begins."""
        if self._forced is not None or not self._splitter.thinking:
            return False
        if self._reason is None and finished and self._rescue.on_unclosed == "answer" and self._splitter.thought:
            self._reason = "unclosed"
        return self._reason is not None

    def continued(self, prompt: str, rest: str = "") -> str:
        """The prompt, what the model has written (`rest` is its end, if the splitter has not got it), and the end of
        its thought: its answer goes on from here."""
        written = self._splitter.written_after(prompt)
        return f"{prompt}{written}{rest}{self._last_words}{self._splitter.closing_tag}{_GAP}"

    @property
    def _last_words(self) -> str:
        return f"{self._rescue.notice}\n"

    def begin(self, first: Usage | None, *, template: str, prompt_tokens: int | None, requests: int) -> list[TextEvent]:
        """The second part begins, and `first` is what the server counted for the first; the rest as in `Forced`."""
        assert self._reason is not None, "no answer is wanted"
        tokens = self._watch.tokens if self._watch else 0
        first = first if first and first.prompt_tokens else None
        if first is None and prompt_tokens is not None:
            first = Usage(prompt_tokens=prompt_tokens)
        if first is not None and first.completion_tokens:
            tokens = first.completion_tokens
        self._forced = Forced(self._reason, tokens, template, requests, (first, None))
        return self._splitter.end_thought(self._last_words, _GAP)

    @property
    def lacks_count(self) -> bool:
        """Whether there is a second part, and nobody has counted the prompt of the first."""
        return self._forced is not None and self._forced.usage[0] is None

    def note_count(self, tokens: int | None, requests: int) -> None:
        """The tokens of the first part's prompt, and the requests that counting them took."""
        if self._forced is not None:
            first = None if tokens is None else Usage(prompt_tokens=tokens)
            requests += self._forced.requests
            self._forced = replace(self._forced, usage=(first, None), requests=requests)

    def both_parts(self, second: Usage | None) -> tuple[Usage | None, Forced | None]:
        """Token counts of the whole reply: the second prompt holds the first part, so their difference counts it."""
        forced = self._forced
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
