"""A thought that does not end: ended for the model, which then answers, in one stream of events that adds up."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import cut_by, glue
from support import AddedUp, Face, Heard, delta, playing, sse, usage

from phi4 import standin
from phi4.standin import CHAT, RAW, StandIn, Trouble
from phi4_http.errors import (
    CannotContinue,
    ContextOverflow,
    EmptyReply,
    InvalidRequest,
    ModelLoading,
    NotLMStudio,
    Phi4Error,
    ServerError,
    SilentOverflow,
    SolutionTruncated,
    StreamCut,
)
from phi4_http.events import Event, Finished, Outcome, Revised, Solution, Thinking, Thought, Usage
from phi4_http.phi4.conversation import build_messages
from phi4_http.reply.decoder import ReplyDecoder
from phi4_http.reply.loops import LoopDetector
from phi4_http.reply.outcome import Length
from phi4_http.reply.rescue import CLOSING_TOKENS, ENDINGS, Rescue, ThoughtWatch, answer_room
from phi4_http.reply.splitter import ThinkSplitter

PROMPT = "Is it late?"
THOUGHT = "I reason, and the train is late, and so on."
ENDLESS = f"<think>{THOUGHT * 40}"
LOOP = "Let me look at the question again. "
MODES = pytest.mark.parametrize("field", [False, True], ids=["in content", "in a field"])


def after(thought: str, notice: str = "") -> str:
    """What follows the prompt that goes on: the model's own text and the end of its thought."""
    return f"<think>{thought}{notice}\n</think>\n\n"


def chat_prompt() -> str:
    """The prompt of a chat of one question."""
    return standin.own_turn(build_messages(PROMPT))


def endless(path: str, body: dict[str, Any]) -> bool:
    """A model that goes on for ever in a chat."""
    return path == CHAT and bool(body.get("stream"))


def check_adds_up(heard: Heard) -> AddedUp:
    """The events make the reply, for somebody who knows nothing else; the thought is told once, as forced or not."""
    added = AddedUp(heard.events)
    reply = heard.reply
    assert (added.thought, added.solution) == (reply.thought, reply.solution)
    told = [event for event in heard.events if isinstance(event, Thought)]
    assert [event.forced for event in told] == [reply.forced is not None]
    assert (added.finished is not None) == (heard.error is None)
    return added


# --- a budget ---------------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("budget", [1, 5, 40])
def test_a_thought_over_its_budget_is_ended_and_answered(face: Face, field: bool, budget: int) -> None:
    """The stream is left after that many tokens, and the same turn goes on behind a closed thought."""
    with StandIn(reply=ENDLESS, holds=endless, split_field=field) as server, face.phi(server.url) as phi:
        heard = face.read(phi.stream(PROMPT, thinking_budget=budget))
        assert server.wait_left(CHAT)
        thought = "".join(standin.tokens(ENDLESS)[1 : budget + 1])
        (raw,) = server.completions
        assert raw["prompt"] == chat_prompt() + after(thought)
    added, reply = check_adds_up(heard), heard.reply
    assert (added.thought, added.solution) == (f"{thought}\n", "So it is 4.")
    assert (reply.outcome, reply.thought_closed, reply.finish_reason) == (Outcome.COMPLETE, True, "stop")
    assert reply.forced is not None
    assert (reply.forced.reason, reply.forced.thought_tokens) == ("budget", budget)


@MODES
def test_the_tokens_of_both_parts_are_exact(face: Face, field: bool) -> None:
    """The prompt's are counted; the thought's are what the second prompt has more; the answer's are the server's."""
    with StandIn(reply=ENDLESS, holds=endless, split_field=field) as server, face.phi(server.url) as phi:
        reply = face.read(phi.stream(PROMPT, thinking_budget=7)).reply
        second = standin.count(server.completions[0]["prompt"])
    prompt, answer = standin.count(chat_prompt()), standin.count("So it is 4.")
    assert reply.usage == Usage(prompt, second - prompt + answer, second + answer)
    assert reply.forced is not None
    assert reply.forced.usage == (Usage(prompt), Usage(second, answer, None))


@MODES
def test_the_prompt_is_counted_when_the_answer_is_there(face: Face, field: bool) -> None:
    """Once the template is known, nothing comes between the thought and its answer: what is cached of it is used."""
    with StandIn(reply=ENDLESS, split_field=field) as server, face.phi(server.url) as phi:
        face.read(phi.stream(PROMPT, thinking_budget=2))
        at = len(server.asked)
        reply = face.read(phi.stream(PROMPT, thinking_budget=2)).reply
        assert [(path, body.get("max_tokens")) for path, body in server.asked[at:]] == [
            (CHAT, None),
            (RAW, -1),
            (CHAT, 1),
        ]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == standin.count(chat_prompt())


@MODES
@pytest.mark.parametrize("trouble", ["failed", "html", "missing", "overflow"])
def test_an_answer_is_not_lost_to_a_count_that_fails(face: Face, field: bool, trouble: Trouble) -> None:
    """The prompt's tokens are then not known, and that is all."""
    failing: list[bool] = []
    with (
        StandIn(
            reply=ENDLESS,
            split_field=field,
            refuses=lambda path, body: trouble if failing and body.get("max_tokens") == 1 else None,
        ) as server,
        face.phi(server.url) as phi,
    ):
        face.read(phi.stream(PROMPT, thinking_budget=2))
        failing.append(True)
        heard = face.read(phi.stream(PROMPT, thinking_budget=2))
    assert check_adds_up(heard).solution == "So it is 4."
    assert heard.reply.forced is not None
    assert heard.reply.forced.usage[1] is not None
    assert heard.reply.forced.usage[0] is None
    assert heard.reply.usage == Usage(None, 2 + len(standin.tokens("So it is 4.")))


@MODES
def test_a_notice_is_the_last_word_of_the_thought(face: Face, field: bool) -> None:
    """The model reads it, and so does the caller."""
    with StandIn(reply=ENDLESS, holds=endless, split_field=field) as server, face.phi(server.url) as phi:
        heard = face.read(phi.stream(PROMPT, thinking_budget=3, notice=" Time is up."))
        thought = "".join(standin.tokens(ENDLESS)[1:4])
        assert server.completions[0]["prompt"] == chat_prompt() + after(thought, " Time is up.")
    assert check_adds_up(heard).thought == f"{thought} Time is up.\n"


@MODES
def test_a_thought_that_closes_in_time_is_left_alone(face: Face, field: bool) -> None:
    """One request, and no word of a rescue."""
    with StandIn(split_field=field) as server, face.phi(server.url) as phi:
        heard = face.read(phi.stream(PROMPT, thinking_budget=50, on_unclosed="answer", on_loop="answer"))
        assert [path for path, _ in server.asked] == [CHAT]
    assert check_adds_up(heard).solution == "The answer is 4."
    assert heard.reply.forced is None


@pytest.mark.parametrize(
    "chunks",
    [
        ["<think>ab", "c</think>d"],
        ["<think>", "a", "b</think>", "d"],
        ["<think>a", "b</think>d e f", "g"],
        ["<think>", "a", "b</think>", "<think>x</think>y", "z"],
    ],
)
def test_a_thought_that_closes_in_the_chunk_of_its_last_token_has_ended_by_itself(
    face: Face, chunks: list[str]
) -> None:
    """There is nothing left to be ended."""
    stream = sse(*map(delta, chunks), delta(finish="stop"), usage(9, 4))
    with face.phi(playing(stream), model="phi") as phi:
        heard = face.read(phi.stream(PROMPT, thinking_budget=2))
    assert heard.error is None
    assert check_adds_up(heard).thought == ThinkSplitterReading("".join(chunks)).thought


class ThinkSplitterReading:
    """What the splitter makes of a whole text."""

    def __init__(self, text: str) -> None:
        splitter = ThinkSplitter()
        splitter.feed(text)
        splitter.close()
        self.thought, self.solution = splitter.thought, splitter.solution


def test_a_loop_in_the_solution_is_the_models_own_business(face: Face) -> None:
    """Only thoughts are ended."""
    with StandIn(reply=f"<think>I</think>{LOOP * 20}") as server, face.phi(server.url) as phi:
        reply = face.read(phi.stream(PROMPT, thinking_budget=5, on_loop="answer")).reply
        assert reply.solution == LOOP * 20
        assert server.completions == []


# --- what may end it --------------------------------------------------------------------------------------------------


@MODES
def test_a_model_that_stops_inside_its_thought_is_asked_on(face: Face, field: bool) -> None:
    """On request, it answers after all."""
    with StandIn(reply=f"<think>{THOUGHT}", split_field=field) as server, face.phi(server.url) as phi:
        heard = face.read(phi.stream(PROMPT, on_unclosed="answer"))
        pieces = standin.tokens(f"<think>{THOUGHT}")
        assert server.completions[0]["prompt"] == chat_prompt() + after("".join(pieces[1:]))
        second = standin.count(server.completions[0]["prompt"])
        said = standin.tokens("So it is 4.")
    reply = heard.reply
    assert check_adds_up(heard).solution == "".join(said)
    assert (reply.outcome, reply.finish_reason, reply.length_reason) == (Outcome.COMPLETE, "stop", None)
    prompt = standin.count(chat_prompt())
    assert reply.usage == Usage(prompt, len(pieces) + len(said), prompt + len(pieces) + len(said))
    assert reply.forced is not None
    assert (reply.forced.reason, reply.forced.thought_tokens) == ("unclosed", len(pieces))
    assert reply.forced.usage[1] == Usage(second, len(said), None)


@MODES
@pytest.mark.parametrize("zero", [False, True], ids=["no usage", "usage of 0"])
def test_tokens_are_counted_where_the_first_part_says_none(face: Face, field: bool, zero: bool) -> None:
    """A server whose streams bring no usage, or 0, still counts prompts: the pieces of the thought are its tokens."""
    with StandIn(reply=f"<think>{THOUGHT}", split_field=field) as server, face.phi(server.url) as phi:
        server.says_streaming = (lambda tokens: 0) if zero else None
        reply = face.read(phi.stream(PROMPT, on_unclosed="answer")).reply
    assert reply.forced is not None
    assert reply.forced.thought_tokens == len(standin.tokens(THOUGHT))
    assert reply.forced.usage[0] == Usage(standin.count(chat_prompt()))
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == standin.count(chat_prompt())


@MODES
def test_without_being_asked_an_unclosed_thought_is_returned(face: Face, field: bool) -> None:
    """Nothing is sent behind the caller's back."""
    with StandIn(reply=f"<think>{THOUGHT}", split_field=field) as server, face.phi(server.url) as phi:
        heard = face.read(phi.stream(PROMPT, max_tokens=6))
        assert [path for path, _ in server.asked] == [CHAT]
    assert heard.reply.outcome is Outcome.THOUGHT_UNCLOSED
    assert heard.reply.forced is None


@MODES
def test_a_thought_that_goes_round_in_circles_is_ended(face: Face, field: bool) -> None:
    """The sentence is said once more than sound thoughts do, and no more."""
    reply_text = f"<think>{THOUGHT} {LOOP * 30}"
    with StandIn(reply=reply_text, holds=endless, split_field=field) as server, face.phi(server.url) as phi:
        heard = face.read(phi.stream(PROMPT, on_loop="answer", loop_repeats=4))
        assert server.wait_left(CHAT)
    added = check_adds_up(heard)
    assert added.solution == "So it is 4."
    assert added.thought is not None
    assert added.thought.count(LOOP.strip()) == 4
    assert heard.reply.forced is not None
    assert heard.reply.forced.reason == "loop"


@MODES
def test_what_the_model_goes_on_with_is_split_as_ever(face: Face, field: bool) -> None:
    """A second thought goes on with the first; a closing tag too many moves what was said into it."""
    for answer, thought, solution in (
        ("<think>More.</think>\n\nIt is 4.", "I\nMore.", "It is 4."),
        ("So.</think> It is 4.", None, "It is 4."),
        ("\n\n  It is 4.", "I\n", "It is 4."),
    ):
        with StandIn(reply="<think>I", answer=answer, split_field=field) as server, face.phi(server.url) as phi:
            heard = face.read(phi.stream(PROMPT, on_unclosed="answer"))
        added = check_adds_up(heard)
        assert added.solution == solution
        assert thought in (None, added.thought)
        assert "So." not in added.solution


@MODES
@pytest.mark.parametrize(("limit", "outcome"), [(None, Outcome.EMPTY), (2, Outcome.SOLUTION_TRUNCATED)])
def test_a_model_that_has_nothing_more_to_say(face: Face, field: bool, limit: int | None, outcome: Outcome) -> None:
    """An answer of no text is an empty reply, or a cut one, with the thought closed, in either mode."""
    answer = "" if limit is None else "\n\n\n"
    options = {} if limit is None else {"max_tokens": 2 + CLOSING_TOKENS + limit}
    with StandIn(reply=ENDLESS, answer=answer, split_field=field) as server, face.phi(server.url) as phi:
        heard = face.read(phi.stream(PROMPT, thinking_budget=1, on_unclosed="answer", **options))
    assert heard.reply.outcome is outcome
    assert (heard.reply.thought_closed, heard.reply.solution) == (True, "")
    assert isinstance(heard.error, EmptyReply) == (outcome is Outcome.EMPTY)
    check_adds_up(heard)


# --- what goes out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("native", "unlimited"), [(True, -1), (False, None)])
def test_the_answer_is_asked_for_as_the_chat_was(face: Face, native: bool, unlimited: int | None) -> None:
    """The same model, sampling and further fields; none that only a chat has; no shorter than the chat might be."""
    options = {"seed": 7, "stop": ["x"], "ttl": 60, "extra": {"cache_prompt": True}}
    shape = {"response_format": {"type": "text"}}
    with StandIn(reply=ENDLESS, native=native) as server, face.phi(server.url, min_p=0.1) as phi:
        assert face.read(phi.stream(PROMPT, thinking_budget=2, **options, **shape)).error is None
        (chat,), (raw,) = server.chats, server.completions
    sent = {name: value for name, value in chat.items() if name not in ("messages", "response_format")}
    assert {name: raw[name] for name in raw if name not in ("prompt", "max_tokens")} == sent
    assert sent["temperature"] == 0.8
    assert raw["max_tokens"] == unlimited


LONG = "It is four, and so on, " * 40


@MODES
@pytest.mark.parametrize("limit", [20, 60, 100])
def test_the_callers_limit_is_for_the_whole_reply(face: Face, field: bool, limit: int) -> None:
    """`max_tokens` counts both parts: what the thought has used, and what ending it takes, is taken off."""
    with StandIn(reply=ENDLESS, answer=LONG, split_field=field) as server, face.phi(server.url) as phi:
        heard = face.read(phi.stream(PROMPT, thinking_budget=8, max_tokens=limit))
        assert [body["max_tokens"] for body in (*server.chats, *server.completions)] == [
            limit,
            limit - 9 - CLOSING_TOKENS,
        ]
    reply = heard.reply
    check_adds_up(heard)
    assert (reply.outcome, reply.length_reason) == (Outcome.SOLUTION_TRUNCATED, "max_tokens")
    assert reply.usage is not None
    assert reply.usage.completion_tokens is not None
    assert limit - CLOSING_TOKENS <= reply.usage.completion_tokens <= limit


@MODES
@pytest.mark.parametrize(("limit", "budget"), [(6, None), (9, 8), (10, 8), (13, 8)])
def test_where_nothing_is_left_of_the_limit_the_thought_is_returned(
    face: Face, field: bool, limit: int, budget: int | None
) -> None:
    """With a word of why; no second request."""
    with StandIn(reply=ENDLESS, split_field=field) as server, face.phi(server.url) as phi:
        heard = face.read(phi.stream(PROMPT, max_tokens=limit, thinking_budget=budget, on_unclosed="answer"))
        assert [path for path, _ in server.asked] == [CHAT]
    check_adds_up(heard)
    assert heard.error is None
    assert (heard.reply.outcome, heard.reply.length_reason) == (Outcome.THOUGHT_UNCLOSED, "max_tokens")
    assert (heard.reply.forced, heard.reply.thought_closed) == (None, False)
    assert [note for note in heard.reply.notes if "max_tokens" in note] == list(heard.reply.notes)
    assert heard.reply.notes


# --- a model that thinks again ----------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("budget", [5, 12, 60])
def test_a_second_thought_is_watched_by_the_same_budget(face: Face, field: bool, budget: int) -> None:
    """What is left of it; the model answers when it is ended again."""

    def again(prompt: str) -> str:
        return f"<think>{THOUGHT * 30}" if prompt.count("</think>") == 2 else "So it is 4."

    with StandIn(reply=ENDLESS, answer=again, holds=endless, split_field=field) as server, face.phi(server.url) as phi:
        heard = face.read(phi.stream(PROMPT, thinking_budget=budget))
        first, second = server.completions
    added, reply = check_adds_up(heard), heard.reply
    assert (reply.outcome, added.solution) == (Outcome.COMPLETE, "So it is 4.")
    assert second["prompt"].startswith(first["prompt"] + "<think>")
    assert second["prompt"].endswith("\n</think>\n\n")
    assert reply.forced is not None
    assert (reply.forced.times, reply.forced.thought_tokens) == (2, budget + 1)
    assert added.thought is not None
    assert standin.count(added.thought) <= budget + 8
    prompt = standin.count(chat_prompt())
    whole = standin.count(second["prompt"]) + len(standin.tokens("So it is 4."))
    assert reply.usage == Usage(prompt, whole - prompt, whole)


@MODES
def test_a_model_that_always_thinks_again_is_left(face: Face, field: bool) -> None:
    """Its thought is ended so many times, and no more; no text is lost, and the notes say so."""
    with (
        StandIn(reply=ENDLESS, answer=f"<think>{THOUGHT * 30}", split_field=field) as server,
        face.phi(server.url) as phi,
    ):
        heard = face.read(phi.stream(PROMPT, thinking_budget=4))
        assert len(server.completions) == ENDINGS
    check_adds_up(heard)
    assert heard.error is None
    assert (heard.reply.outcome, heard.reply.thought_closed) == (Outcome.THOUGHT_UNCLOSED, False)
    assert heard.reply.forced is not None
    assert heard.reply.forced.times == ENDINGS
    assert f"{ENDINGS} times" in heard.reply.notes[-1]
    assert heard.reply.thought is not None
    assert standin.count(heard.reply.thought) < 40


# --- a context that is full -------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("shift", [0, 1])
def test_a_thought_that_fills_the_context_is_answered_without_its_middle(face: Face, field: bool, shift: int) -> None:
    """Room is kept for the answer; the reply keeps the whole thought, and says so."""
    context = 900 + shift
    with (
        StandIn(reply=f"<think>BEGIN {THOUGHT * 80} END", context_length=context, split_field=field) as server,
        face.phi(server.url, on_unclosed="answer") as phi,
    ):
        heard = face.read(phi.stream(PROMPT))
        (raw,) = server.completions
    reply = heard.reply
    assert check_adds_up(heard).solution == "So it is 4."
    assert reply.outcome is Outcome.COMPLETE
    assert reply.thought is not None
    assert standin.count(reply.thought) > 300
    assert "BEGIN" in raw["prompt"]
    assert "[…]" in raw["prompt"]
    assert raw["prompt"].endswith(f"{reply.thought[-99:]}</think>\n\n")
    assert standin.count(raw["prompt"]) <= context - answer_room(context) + 16
    assert any("middle" in note for note in reply.notes)


@MODES
def test_a_context_too_full_for_any_answer_leaves_the_thought(face: Face, field: bool) -> None:
    """No request is wasted on it."""
    context = standin.count(chat_prompt()) + 60
    with (
        StandIn(reply=ENDLESS, context_length=context, split_field=field) as server,
        face.phi(server.url, on_unclosed="answer") as phi,
    ):
        heard = face.read(phi.stream(PROMPT))
        assert server.completions == []
    assert heard.error is None
    check_adds_up(heard)
    assert (heard.reply.outcome, heard.reply.length_reason) == (Outcome.THOUGHT_UNCLOSED, "context")
    assert any("full" in note for note in heard.reply.notes)


@pytest.mark.parametrize("options", [{}, {"max_tokens": 5000}, {"max_tokens": 20}])
def test_what_ended_a_reply_is_told(face: Face, options: dict[str, int]) -> None:
    """The context, where prompt and completion fill it; else `max_tokens`."""
    with StandIn(reply=f"<think>I</think>{LONG}", context_length=400) as server, face.phi(server.url) as phi:
        reply = face.read(phi.stream(PROMPT, **options)).reply
    assert reply.outcome is Outcome.SOLUTION_TRUNCATED
    assert reply.length_reason == ("max_tokens" if options.get("max_tokens") == 20 else "context")
    with pytest.raises(SolutionTruncated, match="max_tokens" if options.get("max_tokens") == 20 else "context is full"):
        reply.raise_for_outcome()


@given(
    st.none() | st.integers(-1, 300),
    st.none() | st.integers(1, 300),
    st.integers(0, 300),
    st.integers(0, 300),
    st.sampled_from(["length", "max_tokens", "stop", None]),
)
def test_why_a_length_ended_is_arithmetic(
    limit: int | None, context: int | None, prompt: int, completion: int, finish: str | None
) -> None:
    """Never said where no limit ended the reply, and never against the numbers."""
    counts = Usage(prompt, completion)
    reason = Length(finish, counts, counts, limit, context).reason
    if finish in ("stop", None):
        assert reason is None
    if reason == "context":
        assert context is not None
        assert prompt + completion >= context - 1
    if reason == "max_tokens":
        assert limit is not None
        assert limit > 0


OVERGROWN = (
    "Context size has been exceeded.",
    "Reached context length of 4096 tokens with model (phi3) which does not currently support mid-generation "
    "context overflow.",
)


@pytest.mark.parametrize("said", OVERGROWN)
@pytest.mark.parametrize("before", [{"content": "<think>a"}, {"reasoning_content": "a"}, {"content": "So"}])
def test_a_reply_that_outgrows_the_context_is_no_prompt_that_does_not_fit(
    face: Face, said: str, before: dict[str, str]
) -> None:
    """After text, it is the server's error, in its own words; nothing is asked again, and the text is kept."""
    stream = sse(delta(**before), {"error": {"message": said}}, done=False)
    with face.phi(playing(stream), model="phi", on_unclosed="answer") as phi:
        heard = face.read(phi.stream(PROMPT))
    assert type(heard.error) is ServerError
    assert said in str(heard.error)
    assert (heard.reply.outcome, heard.reply.length_reason) == (Outcome.SERVER_ERROR, "context")
    assert (heard.reply.thought or "") + heard.reply.solution in ("a", "So")


@pytest.mark.parametrize("said", OVERGROWN)
def test_before_any_text_the_same_words_are_about_the_prompt(face: Face, said: str) -> None:
    """Then it did not fit."""
    with face.phi(playing(sse({"error": {"message": said}}, done=False)), model="phi") as phi:
        assert isinstance(face.read(phi.stream(PROMPT)).error, ContextOverflow)


@pytest.mark.parametrize(
    "settings",
    [
        {"rescue": Rescue(thinking_budget=3, notice="!")},
        {"thinking_budget": 3, "notice": "!"},
        {"rescue": Rescue(thinking_budget=9, notice="!"), "thinking_budget": 3},
    ],
    ids=["a rescue", "parameters", "both"],
)
def test_settings_of_the_model_hold_where_a_question_has_none(face: Face, settings: dict[str, Any]) -> None:
    """Given as a `Rescue` or by name; those of the question come first; the server sees none of them."""
    with StandIn(reply=ENDLESS) as server, face.phi(server.url, **settings) as phi:
        for options, tokens, notice in (({}, 3, "!"), ({"thinking_budget": 5}, 5, "!"), ({"notice": "?"}, 3, "?")):
            reply = face.read(phi.stream(PROMPT, **options)).reply
            assert reply.forced is not None
            assert reply.forced.thought_tokens == tokens
            assert reply.thought is not None
            assert reply.thought.endswith(f"{notice}\n")
        assert not {"thinking_budget", "notice", "rescue"} & {name for _, body in server.asked for name in body}


@pytest.mark.parametrize(
    "options",
    [
        {"thinking_budget": 0},
        {"thinking_budget": -1},
        {"thinking_budget": True},
        {"thinking_budget": 1.5},
        {"thinking_budget": "9"},
        {"loop_repeats": 1},
        {"on_unclosed": "ask"},
        {"on_loop": True},
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_sent(face: Face, options: dict[str, Any]) -> None:
    """With the setting's name."""
    (name,) = options
    with pytest.raises(InvalidRequest, match=name):
        Rescue(**options)
    with StandIn() as server, face.phi(server.url) as phi:
        with pytest.raises(InvalidRequest, match=name):
            phi.stream(PROMPT, **options)
        assert server.seen == []


# --- leaving, and what goes wrong -------------------------------------------------------------------------------------


@MODES
def test_leaving_during_the_answer_stops_it(face: Face, field: bool) -> None:
    """Both connections are closed; the reply is cancelled, with all that had come."""
    with (
        StandIn(reply=ENDLESS, split_field=field, holds=lambda path, body: bool(body.get("stream"))) as server,
        face.phi(server.url) as phi,
    ):
        stream = phi.stream(PROMPT, thinking_budget=2)
        with face.entered(stream) as reply:
            for event in face.events(reply):
                if isinstance(event, Solution) and "4" in event.text:
                    break
            assert reply.partial().solution == "So it is 4"
        assert server.wait_left(CHAT, RAW)
    reply = stream.result
    assert (reply.outcome, reply.solution, reply.thought_closed) == (Outcome.CANCELLED, "So it is 4", True)
    assert reply.forced is not None
    assert reply.forced.reason == "budget"


TROUBLES: dict[Trouble, tuple[type[Phi4Error], Outcome]] = {
    "missing": (NotLMStudio, Outcome.NOT_LM_STUDIO),
    "failed": (ServerError, Outcome.SERVER_ERROR),
    "loading": (ModelLoading, Outcome.SERVER_ERROR),
    "html": (NotLMStudio, Outcome.NOT_LM_STUDIO),
    "overflow": (ContextOverflow, Outcome.OVERFLOW),
    "silent": (SilentOverflow, Outcome.OVERFLOW),
    "cut": (StreamCut, Outcome.CUT),
    "reset": (StreamCut, Outcome.CUT),
    "framed": (ServerError, Outcome.SERVER_ERROR),
    "unreadable": (StreamCut, Outcome.CUT),
}


@MODES
@pytest.mark.parametrize("reply", [ENDLESS, f"<think>{THOUGHT}"], ids=["budget", "unclosed"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_an_error_of_the_second_part_carries_the_whole_first(
    face: Face, field: bool, reply: str, trouble: Trouble
) -> None:
    """Refused, failed or cut: it is known how, and no text is lost. A thought in which the model had stopped by itself
    is no worse for an answer that did not begin."""
    with (
        StandIn(
            reply=reply,
            split_field=field,
            refuses=lambda path, body: trouble if path == RAW and body.get("stream") else None,
        ) as server,
        face.phi(server.url) as phi,
    ):
        budget = 9 if reply is ENDLESS else None
        heard = face.read(phi.stream(PROMPT, thinking_budget=budget, on_unclosed="answer"))
    kind, outcome = TROUBLES[trouble]
    partial = heard.reply
    begun = trouble in ("cut", "reset", "framed", "unreadable")
    if budget or begun:
        assert type(heard.error) is kind
        assert partial.outcome is outcome
    else:  # the thought is as good as it was before
        assert heard.error is None
        assert partial.outcome is Outcome.THOUGHT_UNCLOSED
        assert partial.usage == Usage(standin.count(chat_prompt()), len(standin.tokens(reply)))
        assert "could not be asked on" in partial.notes[-1]
    thought = "".join(standin.tokens(reply)[1 : 10 if budget else None])
    assert partial.thought == (f"{thought}\n" if begun else thought)
    assert partial.solution == ("So" if begun else "")
    assert partial.thought_closed == begun
    assert (partial.forced is not None) == begun
    check_adds_up(heard)


@MODES
@pytest.mark.parametrize("trouble", ["failed", "html", "overflow"])
def test_an_error_while_the_template_is_looked_for_carries_the_whole_first(
    face: Face, field: bool, trouble: Trouble
) -> None:
    """The thought is there, and nothing was continued."""
    with (
        StandIn(
            reply=ENDLESS,
            split_field=field,
            refuses=lambda path, body: trouble if body.get("max_tokens") == 1 and path == RAW else None,
        ) as server,
        face.phi(server.url) as phi,
    ):
        heard = face.read(phi.stream(PROMPT, thinking_budget=4))
        assert server.completions == []
    kinds = {"failed": ServerError, "html": NotLMStudio, "overflow": CannotContinue}
    assert type(heard.error) is kinds[trouble]
    assert heard.reply.thought == "".join(standin.tokens(ENDLESS)[1:5])
    check_adds_up(heard)


def test_a_stream_that_breaks_inside_the_thought_is_not_rescued(face: Face) -> None:
    """What the model would have gone on with is not known: it is cut, as without a rescue."""
    for trouble in ("cut", "reset", "framed", "unreadable"):
        with (
            StandIn(reply=ENDLESS, refuses=lambda path, body: trouble) as server,  # noqa: B023  # used at once
            face.phi(server.url) as phi,
        ):
            heard = face.read(phi.stream(PROMPT, thinking_budget=50, on_unclosed="answer"))
            assert [path for path, _ in server.asked] == [CHAT]
        assert isinstance(heard.error, ServerError if trouble == "framed" else StreamCut)
        assert heard.reply.thought == "I"


# --- both parts, with no server ---------------------------------------------------------------------------------------


def decoded(
    first: Sequence[str], second: Sequence[str], *, in_field: bool, notice: str = ""
) -> tuple[list[Event], ReplyDecoder, str | None]:
    """Both parts through a decoder; what the second goes on from, None where there is none."""
    decoder = ReplyDecoder(started=0.0, rescue=Rescue(on_unclosed="answer", notice=notice))
    events: list[Event] = []
    for piece in first:
        said = {"reasoning_content": piece} if in_field else {"content": piece}
        events += decoder.feed(json.dumps({"choices": [{"index": 0, "delta": said}]}), "message", 1.0)
    events += decoder.feed(json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]}), "message", 2.0)
    continued = decoder._continued("") if decoder._wants_answer() else None
    if continued is not None:
        events += decoder._answer(3.0, template="own turn", prompt_tokens=9, requests=0)
        for piece in second:
            events += decoder.feed(json.dumps({"choices": [{"index": 0, "text": piece}]}), "message", 4.0)
        events += decoder.feed(json.dumps({"choices": [{"text": "", "finish_reason": "stop"}]}), "message", 5.0)
    events += decoder.close(6.0)
    return events, decoder, continued


CUTS = st.binary(max_size=9)


@given(st.binary(max_size=14), CUTS, st.binary(max_size=12), CUTS, st.sampled_from(["", " Up!", '"', "`"]))
@example(b"", b"", b"", b"", "")
def test_two_parts_are_read_as_one_text_however_they_are_cut(
    first: bytes, cuts: bytes, second: bytes, more_cuts: bytes, notice: str
) -> None:
    """The thought, the solution and the events are those of a model that had ended its thought by itself."""
    written, answer = f"<think>x{glue(first)}", glue(second)
    pieces, more_pieces = cut_by(cuts, written), cut_by(more_cuts, answer)
    events, decoder, continued = decoded(pieces, more_pieces, in_field=False, notice=notice)
    reply = decoder.reply
    assert reply is not None
    assert continued in (None, f"{written}{notice}\n</think>\n\n")
    expected = ThinkSplitterReading(written if continued is None else continued + answer)
    assert (reply.thought, reply.solution) == (expected.thought, expected.solution)
    assert reply.raw == (written if continued is None else continued + answer)
    assert (reply.forced is not None) == (continued is not None)
    added = AddedUp(events)
    assert (added.thought, added.solution) == (reply.thought, reply.solution)


@given(st.binary(max_size=14), CUTS, st.binary(max_size=12), CUTS)
def test_a_thought_from_a_field_goes_on_in_a_text(first: bytes, cuts: bytes, second: bytes, more_cuts: bytes) -> None:
    """What comes after it is read as after a closed thought; the events add up."""
    written, answer = f"x{glue(first)}", glue(second)
    events, decoder, continued = decoded(cut_by(cuts, written), cut_by(more_cuts, answer), in_field=True)
    reply = decoder.reply
    assert reply is not None
    assert continued is not None
    added = AddedUp(events)
    assert (added.thought, added.solution) == (reply.thought, reply.solution)
    expected = ThinkSplitterReading(f"<think>x</think>{answer}")
    assert reply.solution == expected.solution


def test_a_thought_that_the_prompt_has_opened_is_not_opened_twice() -> None:
    """A template that begins the thought for the model: the field's text follows it as it is."""
    said: tuple[tuple[Literal["auto", "assumed"], dict[str, str]], ...] = (
        ("auto", {"reasoning_content": "x"}),
        ("auto", {"content": "<think>x"}),
        ("assumed", {"content": "<think>x"}),
        ("assumed", {"content": "x"}),
    )
    for prompt, written in (("P<think>", "P<think>x"), ("P<think>\n", "P<think>\nx"), ("P", "P<think>x")):
        for opener, delta_said in said:
            decoder = ReplyDecoder(started=0.0, opener=opener, rescue=Rescue(on_unclosed="answer"))
            decoder.feed(json.dumps({"choices": [{"delta": delta_said}]}), "message", 1.0)
            assert decoder._continued(prompt) == f"{written}\n</think>\n\n"


def test_the_events_of_a_rescue_are_told_apart_in_order(face: Face) -> None:
    """Thinking, the thought as forced, the solution, the end."""
    with StandIn(reply=ENDLESS) as server, face.phi(server.url) as phi:
        events = face.read(phi.stream(PROMPT, thinking_budget=2)).events
    kinds = [type(event) for event in events]
    assert [kind for at, kind in enumerate(kinds) if at == 0 or kinds[at - 1] is not kind] == [
        Thinking,
        Thought,
        Solution,
        Finished,
    ]
    assert not any(isinstance(event, Revised) for event in events)


# --- the watch --------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=20), st.integers(1, 30))
def test_a_piece_is_a_token_and_a_long_one_several(sizes: bytes, budget: int) -> None:
    """One for each eight characters; the budget is reached with the piece that fills it."""
    watch = ThoughtWatch(Rescue(thinking_budget=budget))
    tokens = 0
    for size in sizes:
        tokens += max(1, size // 8)
        assert watch.note("日" * size) == ("budget" if tokens >= budget else None)
        assert watch.tokens == tokens


SENTENCES = (
    "Let me look at the question again.",
    "let me  look at the\tQUESTION again!",
    "Wait.",
    "Hmm, so it is.",
    "The number of trains is seven and not eight?",
    "\n",
    "No end to this one",
    "3.14159",
    "… and so on … and so on …",
)


def thought_of(draws: bytes) -> str:
    """Sentences, each up to seven times."""
    return " ".join(f"{SENTENCES[draw % len(SENTENCES)]} " * (1 + draw // 37) for draw in draws)


def loops(text: str, repeats: int) -> int | None:
    """The slow reading: the character with which the text has looped; None where it never does."""
    said: list[str] = []
    start = 0
    for end in re.finditer(r"[.!?\n]+", text):
        sentence = " ".join(text[start : end.start()].lower().split())
        start = end.end()
        if len(sentence) >= 20:
            said = [*said, sentence][-64:]
            if said.count(sentence) >= repeats:
                return end.start() + 1
    return None


@given(st.binary(max_size=12), CUTS, st.integers(2, 8))
def test_a_loop_is_the_same_however_it_is_cut(draws: bytes, cuts: bytes, repeats: int) -> None:
    """And is noticed with the piece that holds the end of the sentence said once too often."""
    text = thought_of(draws)
    detector, at = LoopDetector(repeats), 0
    where = loops(text, repeats)
    for piece in cut_by(cuts, text):
        at += len(piece)
        looped = detector.feed(piece)
        if where is not None and at >= where:
            assert looped
            return
        assert not looped
    assert where is None


@pytest.mark.parametrize(
    ("text", "repeats", "looped"),
    [
        (LOOP * 6, 6, True),
        (LOOP * 5, 6, False),
        ("Wait. " * 99, 6, False),
        ("LET me look at the   question again!\n" * 3 + LOOP * 3, 6, True),
        ("".join(f"Now I try the number {n} instead. " for n in range(99)), 2, False),
        ((LOOP + "".join(f"Now I try the number {n} instead. " for n in range(62))) * 2, 2, True),
        ((LOOP + "".join(f"Now I try the number {n} instead. " for n in range(64))) + LOOP, 2, False),
    ],
)
def test_what_is_a_loop(text: str, repeats: int, looped: bool) -> None:
    """The same sentence, spelling and white space folded, so many times within 64; short ones don't count."""
    assert LoopDetector(repeats).feed(text) is looped


def test_the_detector_remembers_no_more_than_it_needs() -> None:
    """However long the thought."""
    detector = LoopDetector(2)
    for number in range(5000):
        detector.feed(f"Now I try the number {number} instead. ")
    held = [value for value in vars(detector).values() if hasattr(value, "__len__")]
    assert max(map(len, held)) <= 64


Reason = Literal["budget", "loop", None]


@pytest.mark.parametrize(
    ("rescue", "reason"),
    [
        (Rescue(), None),
        (Rescue(on_unclosed="answer"), None),
        (Rescue(on_loop="answer"), "loop"),
        (Rescue(thinking_budget=3, on_loop="answer"), "budget"),
    ],
)
def test_what_is_asked_for_is_watched_for(rescue: Rescue, reason: Reason) -> None:
    """A loop only where it is to be ended; a budget first."""
    watch = ThoughtWatch(rescue)
    assert next((why for why in (watch.note(LOOP) for _ in range(20)) if why), None) == reason
