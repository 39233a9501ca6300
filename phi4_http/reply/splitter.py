r"""Tells the model's thought from its solution, as the text comes, however it is cut.

One principle decides every case: *a closing tag that matches no opening tag in what has so far been called solution
says that all of it was thought.* It covers a reply whose opener was swallowed, a model that closes its thought
several times (the last one counts), a nested block, and a format restated inside the thought.

The splitter is always in one place. In a *gap* only white space and a tag right there mean anything; in *text*
a tag is looked for, and everything else is passed on at once:

    START ──opener──> OPENED ──text──> THOUGHT ──closer──> CLOSED ──text──> SOLUTION ──closer too many──> CLOSED
      └──text──> PREAMBLE ──opener──> OPENED                 └──opener──> OPENED
                     └──closer──> CLOSED (all of it was thought)

(START, OPENED and CLOSED are gaps.) Two more are for servers that have split the reply already, into two fields: FIELD,
and the gap CONTENT before the solution, in which no opener means anything.

Withheld is only what may still become a tag: the proper prefix of one, a whole one with a quote before it (its next
character decides), and the white space at the start of a reply. Every character is looked at a bounded number of
times, so the work is linear in the text, whatever the chunks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Literal

from ..events import Revised, Solution, TextEvent, Thinking, Thought
from .filters import EchoFilter, MarkerFilter
from .places import GAPS, TEXT_AFTER, At, live_tags
from .tags import PROFILES, chosen_tags

__all__ = ["PROFILES", "ThinkSplitter"]

_QUOTES = frozenset("`\"'")
_BLANK = re.compile(r"\s*")


class ThinkSplitter:
    r"""Splits a reply into thought and solution.

    `opener="assumed"` starts inside the thought, for templates that open it in the prompt. `closer="first"` lets the
    first closing tag count instead of the last. `tags` is the opening tag followed by one or more closing tags; without
    it they are those of `profile`: `"phi"` closes on `</think>` and `<\think>`, `"plain"` only on the former.

    `feed` takes text of the reply, `feed_reasoning` text that the server has already called thought; both return the
    events that are certain by now, and `close` returns the rest. Raises InvalidRequest for settings that can't work.
    """

    def __init__(
        self,
        *,
        opener: Literal["auto", "assumed"] = "auto",
        closer: Literal["last", "first"] = "last",
        tags: Sequence[str] | None = None,
        profile: str = "phi",
    ) -> None:
        self._opener, *self._closers = chosen_tags(opener, closer, tags, profile)
        self.opening_tag: str = self._opener
        self.closing_tag: str = self._closers[0]
        self._live = live_tags(self._opener, self._closers, assumed=opener == "assumed", first_counts=closer == "first")
        self._stirring = self._live[At.START].starts | {"_"}  # with none of these, text is just more of what it is
        self._running: tuple[Callable[[str], object], type[Thinking] | type[Solution]] | None = None
        self._field_runs = False  # whether more of a field's thought is just that
        self._field_first = False  # whether no content came before the field
        self._assumed = opener == "assumed"
        self._at = At.OPENED if self._assumed else At.START
        self._held = ""  # the start of what may become a tag
        self._last = ""  # the character before it
        self._lead: list[str] = []  # white space at the start of the reply
        self._gap: list[str] = []  # closers and white space between the thought and the solution
        self._preamble = ""
        self._depth = 0  # tags open in the solution
        self._thought: StringIO | None = None
        self._solution = StringIO()
        self._raw = StringIO()
        self._told = False  # whether the Thought event is out
        self._closed = False
        self.revisions: int = 0
        """How often text that had been called solution turned out to be thought."""
        self.swallowed: bool = False
        """Whether the thought closed without having been opened."""
        self._unmark = MarkerFilter()
        self._unmark_field = MarkerFilter()
        self._echo: EchoFilter | None = None
        self._events: list[TextEvent] = []

    @property
    def thought(self) -> str | None:
        """The thought so far; None where there is none (an empty one is `""`)."""
        return None if self._thought is None else self._thought.getvalue()

    @property
    def solution(self) -> str:
        """The solution so far, with the text before the thought, if any."""
        return self._preamble + self._solution.getvalue()

    @property
    def raw(self) -> str:
        """All text given to `feed`, verbatim."""
        return self._raw.getvalue()

    @property
    def fed(self) -> int:
        """Characters that have come, in the content and in a field."""
        thought = 0 if self._thought is None else self._thought.tell()
        return max(self._raw.tell(), thought + self._solution.tell())

    @property
    def closed(self) -> bool:
        """Whether the thought has ended."""
        return self._closed

    @property
    def thinking(self) -> bool:
        """Whether the text that comes now is thought, as far as can be known."""
        return self._at in (At.OPENED, At.THOUGHT) or (self._at is At.FIELD and not self._closed)

    def feed(self, text: str) -> list[TextEvent]:
        """Take more text of the reply; return the events that it makes certain."""
        self._raw.write(text)
        if self._running is not None and text and self._stirring.isdisjoint(text):
            # Nearly every delta ends here: more of the same, and no tag in sight.
            write, kind = self._running
            write(text)
            self._last = text[-1]
            return [kind(text)]
        if text:
            self._end_field_text()
        self._take(self._unmark.feed(text))
        return self._out()

    def feed_reasoning(self, text: str) -> list[TextEvent]:
        """Take text from a field that holds thought alone (`reasoning_content`, `reasoning`)."""
        if self._field_runs and text and "_" not in text and self._thought is not None:
            self._thought.write(text)
            return [Thinking(text)]
        if text:
            self._take(self._unmark.flush())  # the content before it has ended
        self._field_text(self._unmark_field.feed(text))
        return self._out()

    def end_thought(self, last_words: str, gap: str) -> list[TextEvent]:
        """End a thought that runs, for the model, which goes on to its solution: as if it had written these last words,
        the closing tag and the white space of `gap`. After a thought from a field, the rest is read as after any."""
        if not self.thinking:
            return []
        if self._at is At.FIELD:
            events = self.feed_reasoning(last_words)
            self._closed, self._at, self._echo, self._field_runs = True, At.CLOSED, None, False
            return events
        return self.feed(last_words + self.closing_tag + gap)

    @property
    def written(self) -> str:
        """What the model has written while its thought runs, the tag included, also where the server took that out."""
        if self._at is At.FIELD:
            return self._opener + (self.thought or "")
        swallowed = self._assumed and not self.raw.lstrip().startswith(self._opener)
        return (self._opener if swallowed else "") + self.raw

    def close(self) -> list[TextEvent]:
        """The reply has ended, well or badly: return what was withheld, and the Thought if it is not out yet."""
        self._end_field_text()
        self._take(self._unmark.flush(), final=True)
        self._end_echo()
        if self._lead:
            self._at = At.PREAMBLE
            self._say_lead()
        if self._thought is not None and not self._told:
            self._tell(self._thought.getvalue())
        return self._out()

    def _out(self) -> list[TextEvent]:
        self._running = self._text_runs()
        held = self._unmark.holds or self._unmark_field.holds or self._echo is not None
        self._field_runs = self._at is At.FIELD and not held
        events, self._events = self._events, []
        return events

    def _text_runs(self) -> tuple[Callable[[str], object], type[Thinking] | type[Solution]] | None:
        """Where text goes on to while nothing stirs: None where something may be about to."""
        if self._held or self._unmark.holds or self._unmark_field.holds:
            return None
        if self._at is At.THOUGHT and self._thought is not None:
            return self._thought.write, Thinking
        if self._at in (At.PREAMBLE, At.SOLUTION) or (self._at is At.FIELD and self._closed):
            return self._solution.write, Solution
        return None

    # What happens to text

    def _take(self, text: str, final: bool = False) -> None:
        if self._at is At.FIELD:
            text = self._content_of(text)
            if not text or not self._leave_field():
                return self._say(text)
            self._echo = None
        if self._thought is None and self._at is At.OPENED and text:
            self._thought = StringIO()
        text = self._held + text
        self._held = ""
        position = 0
        while position < len(text):
            step = self._step_gap if self._at in GAPS else self._step_text
            moved = step(text, position, final)
            if moved is None:  # what is left may become a tag
                break
            if moved > position:
                self._last = text[moved - 1]
            position = moved

    def _step_gap(self, text: str, position: int, final: bool) -> int | None:
        """White space, a tag right here, or the start of running text."""
        end = _BLANK.match(text, position).end()  # type: ignore[union-attr]  # it always matches
        if end > position:
            if self._at is At.START:
                self._lead.append(text[position:end])
            elif self._at in (At.CLOSED, At.CONTENT):
                self._gap.append(text[position:end])
            return end
        live = self._live[self._at]
        found = live.pattern.match(text, position)
        if found:
            self._meet(found.group())
            return found.end()
        if not final and live.partial(text, position) == position:
            self._held = text[position:]
            return None
        if self._at is At.OPENED:
            self._live[At.OPENED] = self._live[At.THOUGHT]  # no opener is to be stripped any more
        self._at = TEXT_AFTER[self._at]
        self._say_lead()
        return position

    def _step_text(self, text: str, position: int, final: bool) -> int | None:
        """Running text up to the next tag, or that tag."""
        live = self._live[self._at]
        found = live.pattern.search(text, position)
        if not found:
            end = len(text) if final else live.partial(text, position)
            self._say(text[position:end])
            return self._hold(text, position, end)
        start, end = found.span()
        quote = text[start - 1] if start else self._last
        if quote in _QUOTES:
            if end < len(text):
                if text[end] == quote:
                    self._say(text[position:end])
                    return end
            elif not final:
                self._say(text[position:start])
                return self._hold(text, position, start)
        if start > position:
            self._say(text[position:start])
            return start
        self._meet(found.group())
        return end

    def _hold(self, text: str, position: int, end: int) -> int | None:
        if end == len(text):
            return end
        self._held = text[end:]
        if end > position:
            self._last = text[end - 1]
        return None

    # What a tag means

    def _meet(self, tag: str) -> None:
        if tag == self._opener:
            self._meet_opener(tag)
        else:
            self._meet_closer(tag)

    def _meet_opener(self, tag: str) -> None:
        if self._at is At.SOLUTION:
            self._depth += 1
            return self._say(tag)
        if self._at is At.PREAMBLE:
            self._keep_preamble()
        self._lead.clear()
        self._gap.clear()
        self._thought = self._thought or StringIO()
        self._closed = False
        self._live[At.OPENED] = self._live[At.THOUGHT]
        self._at = At.OPENED

    def _meet_closer(self, tag: str) -> None:
        if self._at is At.SOLUTION and self._depth:
            self._depth -= 1
            return self._say(tag)
        self.swallowed = self.swallowed or self._at in (At.START, At.PREAMBLE)
        if self._at in (At.PREAMBLE, At.SOLUTION):
            self._revise()
        self._lead.clear()
        self._thought = self._thought or StringIO()
        self._gap.append(tag)
        self._closed = True
        self._at = At.CLOSED

    def _revise(self) -> None:
        """All that was called solution since the thought last closed was thought."""
        moved = "".join(self._gap) + self._solution.getvalue()
        self._thought = self._thought or StringIO()
        self._thought.write(moved)
        self._solution = StringIO()
        self._gap.clear()
        self._depth = 0
        self.revisions += 1
        self._events.append(Revised(moved))

    # Where text goes

    def _say(self, text: str) -> None:
        if not text:
            return
        if self._at is At.THOUGHT:
            return self._think(text)
        if self._thought is not None and not self._told:
            self._closed = True
            self._tell(self._thought.getvalue())
        self._solution.write(text)
        self._events.append(Solution(text))

    def _think(self, text: str) -> None:
        self._thought = self._thought or StringIO()
        self._thought.write(text)
        self._events.append(Thinking(text))

    def _tell(self, thought: str) -> None:
        self._told = True
        self._events.append(Thought(thought, self._closed))

    def _say_lead(self) -> None:
        if self._lead:
            self._say("".join(self._lead))
            self._lead.clear()

    def _keep_preamble(self) -> None:
        self._preamble = self.solution
        self._solution = StringIO()

    # A server that has split the reply already

    def _field_text(self, text: str) -> None:
        if text:
            self._enter_field()
            self._think(text)

    def _end_field_text(self) -> None:
        """Content comes, or nothing more: what was held of the field's text is no marker."""
        self._field_text(self._unmark_field.flush())

    def _enter_field(self) -> None:
        self._end_echo()
        if self._at is not At.FIELD:
            self._field_first = self._at in (At.START, At.OPENED) and not self._held and self._thought is None
            self._take("", final=True)
            if self._at is At.PREAMBLE:
                self._keep_preamble()
            self._lead.clear()
            self._gap.clear()
            self._closed = self._at is At.SOLUTION
            self._at = At.FIELD

    def _leave_field(self) -> bool:
        """The content begins: whether tags mean something in it."""
        if self._closed or not self._field_first:
            return False
        self._closed, self._last, self._at = True, "", At.CONTENT
        return True

    def _end_echo(self) -> None:
        """No more content comes: what was kept of it repeats nothing."""
        if self._echo is not None:
            kept, self._echo = self._echo.flush(), None
            if kept and self._leave_field():
                self._take(kept, final=True)
            else:
                self._say(kept)

    def _content_of(self, text: str) -> str:
        """The content without a block that repeats the field's text. It may be left over from a server's own budget."""
        if self._closed or not text:
            return text
        if self._echo is None:
            lead = _BLANK.match(text).group()  # type: ignore[union-attr]  # it always matches
            self._gap.append(lead)
            if lead == text:
                return ""
            self._echo = EchoFilter([self._opener], (self.thought or "").strip(), self._closers)
        text = self._echo.feed(text)
        if text and self._echo.dropped:
            self._gap.clear()
        return text
