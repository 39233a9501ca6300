"""The think splitter, held against its cases and against the slow reading, under every way of cutting the text."""

from __future__ import annotations

import functools
import itertools
import json
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from examples import MANY
from hypothesis import example, given
from hypothesis import strategies as st
from reading import MARKER, PHI, PLAIN, Reading, read, read_with_field
from strategies import MARKER_HEAD, MARKERS, cut, cut_by, glue, glued, glued_and_chunked

from phi4_http.errors import InvalidRequest
from phi4_http.events import Revised, Solution, TextEvent, Thinking, Thought
from phi4_http.reply import filters, tags
from phi4_http.reply import splitter as thinking
from phi4_http.reply.splitter import ThinkSplitter

BRACKETED = ("[T]", "[/T]", "[E]")
DOUBLED = ("<<t>>", "<</t>>")
"""Tags that begin with a repeated character: after `<<<` the tag may have begun at the second."""


@dataclass(frozen=True)
class Options:
    """The options of a splitter, and the tags that the slow reading needs for them."""

    opener: str = "auto"
    closer: str = "last"
    profile: str = "phi"
    tags: tuple[str, ...] | None = None

    @property
    def live(self) -> tuple[str, ...]:
        return self.tags or (PHI if self.profile == "phi" else PLAIN)

    def splitter(self) -> ThinkSplitter:
        arguments: dict[str, Any] = {
            name: value for name, value in vars(self).items() if value != vars(Options())[name]
        }
        return ThinkSplitter(**arguments)

    def read(self, text: str) -> Reading:
        return read(text, opener=self.opener, closer=self.closer, tags=self.live)

    def __str__(self) -> str:
        return "-".join(map(str, (self.opener, self.closer, self.tags[0] if self.tags else self.profile)))


DEFAULT = Options()
EVERY_OPTIONS = [
    DEFAULT,
    Options(opener="assumed"),
    Options(closer="first"),
    Options(opener="assumed", closer="first"),
    Options(profile="plain"),
    Options(tags=BRACKETED),
    Options(tags=DOUBLED, opener="assumed"),
]
each_other_option = pytest.mark.parametrize("options", EVERY_OPTIONS[1:], ids=str)


class Consumer:
    """Somebody who knows nothing but the events, and adds them up as `events.py` says."""

    def __init__(self) -> None:
        self.thought: str | None = None
        self.solution = ""
        self.kept = ""
        self.events: list[TextEvent] = []

    def hear(self, events: Iterable[TextEvent]) -> None:
        for event in events:
            self.events.append(event)
            if isinstance(event, Thinking):
                self.thought = (self.thought or "") + event.text
            elif isinstance(event, Thought):
                self.thought = self.thought or ""
                assert event.text == self.thought, "the consumer has another thought than the event"
                self.kept = self.solution
            elif isinstance(event, Solution):
                self.solution += event.text
            else:
                assert isinstance(event, Revised)
                self.thought = (self.thought or "") + event.text
                self.solution = self.kept

    @property
    def told(self) -> list[tuple[str, bool]]:
        return [(event.text, event.closed) for event in self.events if isinstance(event, Thought)]

    @property
    def moved(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Revised)]


def split(chunks: Iterable[str], options: Options = DEFAULT, *, field: Iterable[str] = ()) -> tuple[Consumer, Reading]:
    """Feed the field, then the content; what the events add up to, and what the splitter says itself."""
    splitter, consumer = options.splitter(), Consumer()
    for piece in field:
        consumer.hear(splitter.feed_reasoning(piece))
    for chunk in chunks:
        consumer.hear(splitter.feed(chunk))
    consumer.hear(splitter.close())
    told = consumer.told[0] if len(consumer.told) == 1 else None
    kept = consumer.kept if told else ""
    said = Reading(splitter.thought, splitter.closed, splitter.solution, splitter.revisions, told, kept)
    return consumer, said


# --- the cases --------------------------------------------------------------------------------------------------------


def load_cases() -> list[dict[str, Any]]:
    folder = Path(__file__).parent.parent / "cases"
    files = [folder / "think_cases.json", folder / "more_think_cases.json"]
    return [case for file in files for case in json.loads(file.read_text(encoding="utf-8"))]


CASES = load_cases()
each_case = pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])


def options_of(case: dict[str, Any]) -> Options:
    options = dict(case.get("options", {}))
    if "tags" in options:
        options["tags"] = tuple(options["tags"])
    return Options(**options)


def expected_of(case: dict[str, Any]) -> tuple[str | None, bool, str, int]:
    return case["thought"], case["closed"], case["solution"], case["revisions"]


def result(reading: Reading) -> tuple[str | None, bool, str, int]:
    return reading.thought, reading.closed, reading.solution, reading.revisions


def cuts_of(text: str) -> Iterator[list[str]]:
    """Whole, one character at a time, in two everywhere, and in three everywhere where the text is short."""
    yield [text]
    yield list(text)
    for place in range(len(text) + 1):
        yield cut(text, [place])
    if len(text) <= 40:
        for places in itertools.combinations(range(len(text) + 1), 2):
            yield cut(text, places)


@each_case
def test_a_case_holds_however_it_is_cut(case: dict[str, Any]) -> None:
    """A case's thought, solution, and revisions are the same whole, by characters, in two, and in three pieces."""
    for chunks in cuts_of(case["text"]):
        field = [case["reasoning"]] if "reasoning" in case else []
        consumer, said = split(chunks, options_of(case), field=field)
        assert result(said) == expected_of(case), chunks
        assert (consumer.thought, consumer.solution) == (case["thought"], case["solution"]), chunks


@pytest.mark.parametrize("case", [case for case in CASES if "reasoning" in case], ids=lambda case: case["id"])
def test_a_field_case_holds_however_its_field_is_cut(case: dict[str, Any]) -> None:
    """Where a case has a reasoning field, the result is the same however that field is cut."""
    for field in cuts_of(case["reasoning"]):
        _, said = split([case["text"]], options_of(case), field=field)
        assert result(said) == expected_of(case), field


@each_case
def test_the_slow_reading_agrees_with_the_cases(case: dict[str, Any]) -> None:
    """The slow reading, against which the splitter is held below, gives every case's result itself."""
    options = options_of(case)
    if "reasoning" in case:
        reading = read_with_field(case["reasoning"], case["text"], tags=options.live)
    else:
        reading = options.read(case["text"])
    assert result(reading) == expected_of(case)


# --- text only --------------------------------------------------------------------------------------------------------


Drawn = tuple[Options, list[str]]


def optioned() -> st.SearchStrategy[Drawn]:
    """Options, and text glued from their tags, cut anywhere."""

    def build(options: Options, draws: bytes, seed: bytes) -> Drawn:
        return options, cut_by(seed, glue(draws, options.live))

    return st.builds(build, st.sampled_from(EVERY_OPTIONS), st.binary(max_size=16), st.binary(max_size=25))


def check_against_the_reading(chunks: list[str], options: Options) -> None:
    consumer, said = split(chunks, options)
    assert said == options.read("".join(chunks))
    assert len(consumer.told) == (said.thought is not None)


@MANY
@given(glued_and_chunked())
@example(["<think>a</think></think>b</think>c"])
@example(['"<think>', "__LM"])
@example([f"<think>a</th{MARKER_HEAD}", "ab", "_", "_", "ink>b"])
@example([f"{MARKER_HEAD}{MARKERS[0]}", "ab__"])
@example([f"{MARKER_HEAD}{MARKERS[0]}ab__"])
def test_equals_the_slow_reading_however_it_is_cut(chunks: list[str]) -> None:
    """With default options, all that the splitter says and tells equals the slow reading of the whole text."""
    check_against_the_reading(chunks, DEFAULT)


@each_other_option
def test_equals_the_slow_reading_with_each_other_option(options: Options) -> None:
    """With other options and tags, all that the splitter says and tells equals the slow reading of the whole text."""

    @MANY
    @given(glued_and_chunked(options.live, max_size=12))
    def equals_the_slow_reading(chunks: list[str]) -> None:
        check_against_the_reading(chunks, options)

    equals_the_slow_reading()


@given(optioned())
def test_events_add_up_to_what_the_splitter_says_after_every_chunk(drawn: Drawn) -> None:
    """At every moment, the events so far add up to the attributes, `raw` is what was fed, and revisions are counted."""
    options, chunks = drawn
    splitter, consumer, fed = options.splitter(), Consumer(), ""
    for chunk in chunks:
        consumer.hear(splitter.feed(chunk))
        fed += chunk
        assert (consumer.thought or "", consumer.solution) == (splitter.thought or "", splitter.solution)
        assert splitter.raw == fed
        assert splitter.revisions == len(consumer.moved)
    consumer.hear(splitter.close())
    assert (consumer.thought, consumer.solution) == (splitter.thought, splitter.solution)
    assert splitter.raw == fed
    assert splitter.revisions == len(consumer.moved)


@given(optioned())
def test_the_thought_comes_once_and_right_before_the_solution_that_follows_it(drawn: Drawn) -> None:
    """`Thought` comes once if there is a thought: directly before the solution after it, or as the end of all."""
    options, chunks = drawn
    consumer, said = split(chunks, options)
    places = [place for place, event in enumerate(consumer.events) if isinstance(event, Thought)]
    assert len(places) == (said.thought is not None)
    for place in places:
        assert all(isinstance(event, Solution) for event in consumer.events[place + 1 : place + 2])
        after = "".join(event.text for event in consumer.events[place:] if isinstance(event, Solution))
        before = [event for event in consumer.events[:place] if not isinstance(event, Solution)]
        assert said.closed or not after or any(isinstance(event, Revised) for event in consumer.events[place:])
        assert said.thought is not None
        assert said.thought.startswith(consumer.told[0][0])
        assert before or consumer.told[0][0] == ""


@given(optioned())
def test_no_event_is_empty(drawn: Drawn) -> None:
    """No delta is empty, and feeding nothing tells nothing."""
    options, chunks = drawn
    consumer, _ = split(chunks, options)
    assert all(event.text for event in consumer.events if not isinstance(event, Thought))
    splitter = options.splitter()
    for chunk in chunks:
        splitter.feed(chunk)
        assert splitter.feed("") == []


@given(optioned())
def test_a_revision_carries_the_verbatim_text_up_to_its_closer(drawn: Drawn) -> None:
    """What a revision moves stands in the reply as it is (markers apart), directly before a closer."""
    options, chunks = drawn
    consumer, _ = split(chunks, options)
    text = MARKER.sub("", "".join(chunks))
    for moved in consumer.moved:
        assert any(moved + closer in text for closer in options.live[1:])


@given(optioned())
def test_all_event_text_is_linear_in_the_text(drawn: Drawn) -> None:
    """All events carry at most twice the text; a swallowed opener's text once more, as it is shown, moved, and told."""
    options, chunks = drawn
    consumer, _ = split(chunks, options)
    early = next((event.text for event in consumer.events if isinstance(event, (Revised, Thought))), "")
    swallowed = early if consumer.moved and early == consumer.moved[0] else ""
    assert sum(len(event.text) for event in consumer.events) <= 2 * len("".join(chunks)) + len(swallowed)


# --- what may be withheld ---------------------------------------------------------------------------------------------

PARTIAL_MARKER = re.compile(
    "|".join([f"{MARKER_HEAD}[0-9a-fA-F]{{1,64}}_?", *(MARKER_HEAD[:end] for end in range(len(MARKER_HEAD), -1, -1))])
)
"""What may still become a synthetic marker, also nothing."""


def may_be_withheld(late: str, shown: str, live: Sequence[str], *, white_space: bool) -> bool:
    """Whether `late`, which comes after `shown` and was told only at the end, can still have been undecided.

    It can where it is white space that may stand before a tag, then a proper prefix of a live tag (or a whole live tag
    after a quote, of which one more character decides), then what may be the start of a marker.
    """
    rest = late.lstrip() if white_space else late
    tags = {"", *(tag[:end] for tag in live for end in range(len(tag)))}
    if late == rest and shown[-1:] in ("`", '"', "'"):
        tags |= set(live)
    return any(rest.startswith(tag) and PARTIAL_MARKER.fullmatch(rest[len(tag) :]) for tag in tags)


def ends_undecided(text: str, options: Options) -> bool:
    """Whether the text ends with a tag behind a quote (and maybe a part of a marker): one more character decides."""
    tags = "|".join(map(re.escape, options.live))
    return re.search(f"[`\"'](?:{tags})(?:{PARTIAL_MARKER.pattern})$", text) is not None


def check_what_comes_late(chunks: list[str], options: Options) -> None:
    splitter, consumer = options.splitter(), Consumer()
    for chunk in chunks:
        consumer.hear(splitter.feed(chunk))
    text = MARKER.sub("", "".join(chunks))
    told, solution, thought = bool(consumer.told), consumer.solution, consumer.thought
    undecided = ends_undecided(text, options)
    assert undecided or splitter.closed == options.read(text).closed, "a tag that is certain was withheld"
    late = [event for event in splitter.close() if not isinstance(event, Thought)]
    assert undecided or not any(isinstance(event, Revised) for event in late), "a revision was withheld"
    deltas = [event for event in late if not isinstance(event, Revised)]
    assert len({type(event) for event in deltas}) <= 1
    withheld = "".join(event.text for event in deltas)
    assert text.endswith(withheld)
    live: Sequence[str] = options.live
    if all(isinstance(event, Thinking) for event in deltas):
        live = live if options.opener == "assumed" and not thought else live[1:]
    elif options.closer == "first" and told:
        live = ()
    at_start = options.opener == "auto" and not thought and not solution and not told
    shown = text[: len(text) - len(withheld)]
    assert may_be_withheld(withheld, shown, live, white_space=at_start), withheld


@given(optioned())
@example((DEFAULT, ["<think>a</think>b", '"', "<think>", "__L"]))
@example((DEFAULT, [" \n<think>a", "</thi"]))
@example((DEFAULT, [" \n", "<thi"]))
def test_nothing_is_withheld_but_what_may_still_be_a_tag(drawn: Drawn) -> None:
    """Only part of a live tag, a quoted tag's next character, white space before a tag, or part of a marker waits."""
    options, chunks = drawn
    check_what_comes_late(chunks, options)


@each_case
def test_nothing_is_withheld_at_any_place_of_a_case(case: dict[str, Any]) -> None:
    """Cut off after any of its characters, a case withholds nothing but what may still be a tag."""
    if "reasoning" not in case:
        for end in range(len(case["text"]) + 1):
            check_what_comes_late([case["text"][:end]], options_of(case))


@pytest.mark.parametrize(
    ("chunks", "events"),
    [
        (["Sure, 1 < 2 <b> `"], [Solution("Sure, 1 < 2 <b> `")]),
        (["Sure. <think> a\n"], [Solution("Sure. "), Thinking("a\n")]),
        (["<think>a <think> <thi"], [Thinking("a <think> <thi")]),
        (["<think>a</think> b <th"], [Thinking("a"), Thought("a", True), Solution("b ")]),
        (["<think>a</think>b \n"], [Thinking("a"), Thought("a", True), Solution("b \n")]),
        (["<think>a</think>b</think>"], [Thinking("a"), Thought("a", True), Solution("b"), Revised("</think>b")]),
    ],
)
def test_what_is_certain_comes_at_once(chunks: list[str], events: list[TextEvent]) -> None:
    """What can't change any more is told by the feed that brings it, one delta a channel (adjacent ones are joined)."""
    splitter = ThinkSplitter()
    heard: list[TextEvent] = []
    for event in itertools.chain.from_iterable(splitter.feed(chunk) for chunk in chunks):
        last = heard[-1] if heard else None
        if isinstance(event, (Thinking, Solution)) and type(last) is type(event):
            heard[-1] = type(event)(heard[-1].text + event.text)
        else:
            heard.append(event)
    assert heard == events


# --- the reasoning field ----------------------------------------------------------------------------------------------


def field_and_content() -> st.SearchStrategy[tuple[list[str], list[str]]]:
    """A thought in its field, and content that often repeats it, or nearly; each cut anywhere."""

    def build(field: str, lead: str, kind: int, rest: str, seeds: tuple[bytes, bytes]) -> tuple[list[str], list[str]]:
        repeated = [field, field.strip(), field[:-1], field + "x", field.upper()][kind % 5]
        block = f"{lead}<think>{lead}{repeated}\n</think>"
        content = ["", block, block, block[:-1]][kind % 4] + rest
        return cut_by(seeds[0], field), cut_by(seeds[1], content)

    seed = st.binary(max_size=25)
    lead = st.sampled_from(["", " ", "\n\n"])
    return st.builds(build, glued(max_size=4), lead, st.integers(0, 19), glued(max_size=4), st.tuples(seed, seed))


@given(field_and_content())
@example((["The name is __"], ["A"]))
@example((["__"], ["<think>__</think>A"]))
def test_a_field_wins_and_its_repetition_is_dropped(drawn: tuple[list[str], list[str]]) -> None:
    """With a thought in its field, content is solution as it is, apart from a leading block that repeats the field."""
    field, content = "".join(drawn[0]), "".join(drawn[1])
    _, said = split(drawn[1], field=drawn[0])
    assert said == (read_with_field(field, content) if MARKER.sub("", field) else read(content))


@given(field_and_content())
def test_field_text_is_told_at_once(drawn: tuple[list[str], list[str]]) -> None:
    """Every piece of the field comes out as `Thinking` of the same feed, but for what may be the start of a marker."""
    field, _ = drawn
    splitter, consumer, fed = ThinkSplitter(), Consumer(), ""
    for piece in field:
        events = splitter.feed_reasoning(piece)
        assert all(isinstance(event, Thinking) for event in events)
        consumer.hear(events)
        fed += piece
        withheld = MARKER.sub("", fed).removeprefix(consumer.thought or "")
        assert PARTIAL_MARKER.fullmatch(withheld)
        assert MARKER.sub("", fed) == (consumer.thought or "") + withheld
        assert splitter.raw == ""


Piece = tuple[str, str]


def interleaved() -> st.SearchStrategy[tuple[Options, list[Piece], list[Piece]]]:
    """Content and field text in turns, and the same turns with each text cut anywhere."""

    def build(
        options: Options, turns: list[tuple[bytes, bytes]], field_first: bool
    ) -> tuple[Options, list[Piece], list[Piece]]:
        names = itertools.cycle(["feed_reasoning", "feed"] if field_first else ["feed", "feed_reasoning"])
        whole = [(next(names), glue(draws, options.live)) for draws, _ in turns]
        seeds = [seed for _, seed in turns]
        return (
            options,
            whole,
            [(n, piece) for (n, text), seed in zip(whole, seeds, strict=True) for piece in cut_by(seed, text)],
        )

    turn = st.tuples(st.binary(max_size=5), st.binary(max_size=13))
    return st.builds(build, st.sampled_from(EVERY_OPTIONS), st.lists(turn, max_size=4), st.booleans())


def feed_pieces(options: Options, pieces: Iterable[Piece]) -> tuple[Consumer, ThinkSplitter]:
    splitter, consumer = options.splitter(), Consumer()
    for name, text in pieces:
        consumer.hear(splitter.feed(text) if name == "feed" else splitter.feed_reasoning(text))
    consumer.hear(splitter.close())
    return consumer, splitter


UNDERSCORES_THEN_MARKER = [("feed", "<think>a__"), ("feed_reasoning", MARKERS[0]), ("feed", "x")]


@given(interleaved())
@example(
    (
        DEFAULT,
        [("feed_reasoning", "__"), ("feed", "</think>a")],
        [("feed_reasoning", "_"), ("feed_reasoning", "_"), ("feed", "</thi"), ("feed", "nk>a")],
    )
)
@example((DEFAULT, UNDERSCORES_THEN_MARKER, UNDERSCORES_THEN_MARKER))
@example(
    (DEFAULT, [("feed", "___"), ("feed_reasoning", "a")], [("feed", "_"), ("feed", "__"), ("feed_reasoning", "a")])
)
@example(
    (
        DEFAULT,
        [("feed", f"_{MARKERS[0]}"), ("feed_reasoning", "a")],
        [("feed", "___"), ("feed", MARKERS[0][2:]), ("feed_reasoning", "a")],
    )
)
def test_content_and_field_in_turns_depend_on_the_turns_not_on_their_cuts(
    drawn: tuple[Options, list[Piece], list[Piece]],
) -> None:
    """Content and field in turns, however each is cut: one result, events that add up to it, and raw is the content."""
    options, whole, pieces = drawn
    consumer, splitter = feed_pieces(options, pieces)
    _, uncut = feed_pieces(options, whole)
    assert splitter.raw == "".join(text for name, text in pieces if name == "feed")
    assert (consumer.thought, consumer.solution) == (splitter.thought, splitter.solution)
    assert all(event.text for event in consumer.events if not isinstance(event, Thought))
    assert len(consumer.told) == (splitter.thought is not None)
    assert (splitter.thought, splitter.closed, splitter.solution, splitter.revisions) == (
        uncut.thought,
        uncut.closed,
        uncut.solution,
        uncut.revisions,
    )


@given(interleaved())
def test_field_text_is_never_lost(drawn: tuple[Options, list[Piece], list[Piece]]) -> None:
    """However content and field take turns, all text of the field stands in the thought, in its order."""
    options, _, pieces = drawn
    pieces = [
        (name, text.replace("_", "-") if name == "feed_reasoning" else text) for name, text in pieces
    ]  # no marker
    _, splitter = feed_pieces(options, pieces)
    fields = "".join(text for name, text in pieces if name == "feed_reasoning")
    rest = iter(splitter.thought or "")
    assert all(character in rest for character in fields)


def test_field_text_after_the_solution_still_goes_to_the_thought() -> None:
    """Field text that comes after solution text is thought, told as `Thinking`, and the solution stays."""
    splitter, consumer = ThinkSplitter(), Consumer()
    consumer.hear(splitter.feed_reasoning("a"))
    consumer.hear(splitter.feed("A"))
    assert consumer.events == [Thinking("a"), Thought("a", True), Solution("A")]
    consumer.hear(splitter.feed_reasoning("b"))
    consumer.hear(splitter.feed("\n<think>ab</think>B"))
    consumer.hear(splitter.close())
    assert consumer.events[3:] == [Thinking("b"), Solution("\n<think>ab</think>B")]
    assert (splitter.thought, splitter.closed, splitter.solution) == ("ab", True, "A\n<think>ab</think>B")
    assert splitter.raw == splitter.solution


@pytest.mark.parametrize(
    ("before", "after", "thought", "solution"),
    [
        ("Sure. ", "A", "r", "Sure. A"),
        (" \n", "A", "r", "A"),
        ("<thi", "nk>A</think>", "r", "<think>A</think>"),
        ("<think>a", "b</think>A", "ar", "b</think>A"),
        ("<think>a</thi", "nk>A", "a</thir", "nk>A"),
        ("<think>a</think> ", "A</think>B", "ar", "A</think>B"),
        ("<think>a</think>A", " B</think>C", "ar", "A B</think>C"),
        ("a</think>A", "B</think>C", "ar", "AB</think>C"),
    ],
)
def test_content_before_a_field_stays_what_it_was(before: str, after: str, thought: str, solution: str) -> None:
    """Content that came before the field was split and stays so; from the field on, content is not split."""
    consumer, splitter = feed_pieces(DEFAULT, [("feed", before), ("feed_reasoning", "r"), ("feed", after)])
    assert (splitter.thought, splitter.closed, splitter.solution) == (thought, True, solution)
    assert (consumer.thought, consumer.solution) == (thought, solution)


def test_white_space_between_two_field_texts_does_not_close_the_thought() -> None:
    """Content that is only white space neither closes the thought nor keeps the field from going on."""
    splitter, consumer = ThinkSplitter(), Consumer()
    for feed, text in ((splitter.feed_reasoning, "a"), (splitter.feed, " \n"), (splitter.feed_reasoning, "b")):
        consumer.hear(feed(text))
        assert not splitter.closed
    consumer.hear(splitter.close())
    assert consumer.events == [Thinking("a"), Thinking("b"), Thought("ab", False)]


def test_a_field_is_whole_before_the_solution_is_told() -> None:
    """A field that ends like the start of a marker is told whole when content comes, not after the solution."""
    splitter, consumer = ThinkSplitter(), Consumer()
    consumer.hear(splitter.feed_reasoning("see __"))
    consumer.hear(splitter.feed("A"))
    assert consumer.told == [("see __", True)]
    assert (consumer.solution, splitter.close()) == ("A", [])


def test_a_thought_is_whole_before_a_field_goes_on_with_it() -> None:
    """Content that ends like the start of a marker, in the thought, stays thought when a field goes on with it."""
    splitter = ThinkSplitter()
    splitter.feed("<think>see __")
    splitter.feed_reasoning("b")
    splitter.feed("A")
    splitter.close()
    assert (splitter.thought, splitter.closed, splitter.solution) == ("see __b", True, "A")


def test_an_empty_field_is_no_field() -> None:
    """An empty reasoning field, which some servers send beside every delta, leaves the content to be split."""
    splitter, consumer = ThinkSplitter(), Consumer()
    for chunk in ("<think>a", "</think>b"):
        consumer.hear(splitter.feed_reasoning(""))
        consumer.hear(splitter.feed(chunk))
    consumer.hear(splitter.close())
    assert consumer.events == [Thinking("a"), Thought("a", True), Solution("b")]


def test_a_reply_without_text_tells_nothing() -> None:
    """No text, no event: neither before nor at the end, and the thought is None."""
    for options in EVERY_OPTIONS:
        splitter = options.splitter()
        assert [*splitter.feed(""), *splitter.close()] == []
        assert (splitter.thought, splitter.closed, splitter.solution, splitter.raw) == (None, False, "", "")


# --- the work it takes ------------------------------------------------------------------------------------------------


def lines_executed(work: Callable[[], object]) -> int:
    """How many lines of the splitter's module the work executes: the same on every machine, unlike its time."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in (thinking.__file__, filters.__file__, tags.__file__):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def drive(chunks: Iterable[str], options: Options, field: str = "") -> ThinkSplitter:
    splitter = options.splitter()
    splitter.feed_reasoning(field)
    for chunk in chunks:
        splitter.feed(chunk)
    splitter.close()
    return splitter


FIRST, ASSUMED = Options(closer="first"), Options(opener="assumed")
SHAPES: dict[str, Callable[[int], tuple[str, Options, str]]] = {
    "plain solution": lambda n: ("ab " * n, DEFAULT, ""),
    "plain thought": lambda n: ("<think>" + "ab " * n, DEFAULT, ""),
    "newlines before the opener": lambda n: ("\n" * n + "<think>a</think>b", DEFAULT, ""),
    "newlines before text": lambda n: ("\n" * n + "b", DEFAULT, ""),
    "newlines after the opener": lambda n: ("<think>" + "\n" * n + "a</think>b", DEFAULT, ""),
    "newlines after the closer": lambda n: ("<think>a</think>" + "\n" * n + "b", DEFAULT, ""),
    "newlines between blocks": lambda n: ("<think>a</think>\n" * n + "b", DEFAULT, ""),
    "newlines between closers, then a revision": lambda n: ("<think>a" + "</think>\n" * n + "b</think>c", DEFAULT, ""),
    "< in the solution": lambda n: ("a" + "<" * n, DEFAULT, ""),
    "< in the thought": lambda n: ("<think>" + "<" * n + "</think>b", DEFAULT, ""),
    "look-alikes": lambda n: ("<think></thin" * n, DEFAULT, ""),
    "openers in the thought": lambda n: ("<think>" * n, DEFAULT, ""),
    "balanced depth": lambda n: ("</think>a" + "<think>" * n + "</think>" * n, DEFAULT, ""),
    "quotes": lambda n: ("`'\"" * n, DEFAULT, ""),
    "quoted tags": lambda n: ("`</think>` `<think>` " * n, DEFAULT, ""),
    "half quoted tags": lambda n: ("<think>a" + "`</think>' " * n, DEFAULT, ""),
    "revisions": lambda n: ("b</think>" * n, DEFAULT, ""),
    "later closers, the first counts": lambda n: ("b</think>" * n, FIRST, ""),
    "assumed, white space": lambda n: (" " * n + "<think>" + " " * n + "a", ASSUMED, ""),
    "underscores": lambda n: ("_" * n, DEFAULT, ""),
    "parts of a marker": lambda n: ("<think>" + MARKER_HEAD[:30] * n, DEFAULT, ""),
    "markers": lambda n: (f"</think>{MARKER_HEAD}ab__" * n, DEFAULT, ""),
    "a field, white space": lambda n: ("\n" * n + "b", DEFAULT, "a"),
    "a field, repeated": lambda n: ("<think>" + "a < b " * n + "</think>c", DEFAULT, "a < b " * n),
    "a field, nearly repeated": lambda n: ("<think>" + "a < b " * n + "x</think>c", DEFAULT, "a < b " * n),
    "a field, white space in a repeated block": lambda n: ("<think>a" + " " * n + "</think>c", DEFAULT, "a"),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


@each_shape
@pytest.mark.parametrize("one_by_one", [False, True], ids=["whole", "one by one"])
def test_twice_the_text_takes_about_twice_the_lines(
    shape: Callable[[int], tuple[str, Options, str]], one_by_one: bool
) -> None:
    """Twice the text makes the splitter execute less than three times the lines, in one chunk and by characters."""

    def lines(size: int) -> int:
        text, options, field = shape(size)
        chunks = list(text) if one_by_one else [text]
        return lines_executed(lambda: drive(chunks, options, field))

    small = lines(300)
    assert small > 0
    assert lines(600) < 3 * small


def transient_memory(work: Callable[[], object]) -> int:
    """How many bytes the work takes beyond those that it started with, at its peak."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    work()
    return tracemalloc.get_traced_memory()[1] - before


@pytest.mark.parametrize(
    "after",
    [
        [("feed", "a")],
        [("feed", "<think>a")],
        [("feed", "<think>a</think>b")],
        [("feed", "b</think>a")],
        [("feed_reasoning", "a")],
        [("feed_reasoning", "a"), ("feed", "b")],
    ],
    ids=["text", "thought", "solution", "revised", "field", "field and solution"],
)
def test_one_more_piece_takes_no_memory_of_the_size_of_the_text(after: list[Piece]) -> None:
    """After a long text, another piece of it is fed without building the whole text anew, whatever is in the piece."""
    size = 200_000
    splitter = ThinkSplitter()
    for name, text in after:
        getattr(splitter, name)(text)
    feed = getattr(splitter, after[-1][0])
    feed("a" * size)
    tracemalloc.start()
    try:
        transient = sum(transient_memory(functools.partial(feed, piece)) for piece in ["a", "< b", "_ ", "\n"] * 16)
    finally:
        tracemalloc.stop()
    assert transient < size


def test_white_space_beside_each_piece_of_a_field_takes_no_memory_of_its_size() -> None:
    """A field whose pieces come with white space as content is not built anew for each of them."""
    size = 200_000
    splitter = ThinkSplitter()
    splitter.feed_reasoning("a" * size)
    tracemalloc.start()
    try:
        feeds = [functools.partial(splitter.feed_reasoning, "a"), functools.partial(splitter.feed, "\n")]
        transient = sum(transient_memory(feed) for feed in feeds * 32)
    finally:
        tracemalloc.stop()
    assert transient < size


HUGE = {
    "< only": ("<" * 400_000, Reading(None, False, "<" * 400_000)),
    "< in the thought": ("<think>" + "<" * 400_000, Reading("<" * 400_000, False, "")),
    "newlines before the opener": ("\n" * 200_000 + "<think>a</think>b", Reading("a", True, "b")),
    "newlines after the closer": ("<think>a</think>" + "\n" * 200_000 + "b", Reading("a", True, "b")),
    "newlines before text": ("\n" * 200_000 + "b", Reading(None, False, "\n" * 200_000 + "b")),
    "revisions": ("b</think>" * 50_000, Reading("b</think>" * 49_999 + "b", True, "", 50_000)),
    "blocks": ("<think>b</think>" * 50_000, Reading("b" * 50_000, True, "")),
    "quoted tags": ("`</think>`" * 100_000, Reading(None, False, "`</think>`" * 100_000)),
    "openers": ("<think>" * 100_000, Reading("<think>" * 99_999, False, "")),
    "underscores": ("_" * 400_000, Reading(None, False, "_" * 400_000)),
    "markers": (f"<think>{MARKERS[0]}" * 20_000, Reading("<think>" * 19_999, False, "")),
}


@pytest.mark.parametrize(("text", "expected"), HUGE.values(), ids=HUGE.keys())
def test_one_huge_chunk_ends(text: str, expected: Reading) -> None:
    """A single chunk of hundreds of thousands of the characters that trap a splitter is split, and rightly."""
    splitter = drive([text], DEFAULT)
    assert (splitter.thought, splitter.closed, splitter.solution, splitter.revisions) == result(expected)


def test_a_long_reply_by_characters_ends() -> None:
    """A reply of 200,000 characters, one a chunk, is split, and rightly."""
    chunks = itertools.chain("\n" * 50_000, "<think>", "a<" * 50_000, "</think>", "b\n" * 25_000)
    splitter = drive(chunks, DEFAULT)
    assert (splitter.thought, splitter.closed, splitter.solution) == ("a<" * 50_000, True, "b\n" * 25_000)


# --- its settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings_that_cannot_work",
    [
        {"opener": "none"},
        {"closer": "second"},
        {"profile": "pi"},
        {"tags": ()},
        {"tags": ("<think>",)},
        {"tags": "<think>"},
        {"tags": ("<think>", "")},
        {"tags": ("<t", "<t>")},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(settings_that_cannot_work: dict[str, Any]) -> None:
    """A setting of another value, tags without a closer, an empty tag, or one that begins another: InvalidRequest."""
    with pytest.raises(InvalidRequest):
        ThinkSplitter(**settings_that_cannot_work)


def test_a_field_that_goes_on_after_its_thought_was_ended_is_thought_again() -> None:
    """What a server puts in the thought's field is thought, whatever was ended before."""
    splitter = ThinkSplitter()
    splitter.feed_reasoning("a")
    assert splitter.end_thought("!", "\n") == [Thinking("!")]
    assert not splitter.thinking
    assert splitter.feed_reasoning("b") == [Thinking("b")]
    assert splitter.thinking
    splitter.feed("c")
    splitter.close()
    assert (splitter.thought, splitter.solution) == ("a!b", "c")
