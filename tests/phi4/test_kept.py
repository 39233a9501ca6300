"""What is kept of a turn and sent again: solutions verbatim, tool calls with their results."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import glued
from support import Face, Recording, delta, playing, sse, usage

from phi4.standin import MODEL, StandIn
from phi4_http import InvalidRequest, Outcome, Reply
from phi4_http.phi4.conversation import Conversation, assemble, build_messages, outgoing, result_messages

ASKED = [{"role": "user", "content": "x"}]
CALLS = [
    {"index": 0, "id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}},
    {"index": 1, "id": "b", "type": "function", "function": {"name": "hear", "arguments": "{}"}},
]


def reply(solution: str, outcome: Outcome = Outcome.COMPLETE) -> Reply:
    """A reply with this solution."""
    return Reply(outcome, "t", True, solution, solution)


# --- solutions --------------------------------------------------------------------------------------------------------


@given(st.lists(st.text() | glued(), min_size=1, max_size=4))
def test_what_was_kept_is_sent_verbatim(solutions: list[str]) -> None:
    """Record, then build: every solution, whatever tags, quotes or white space it holds."""
    conversation = Conversation()
    for solution in solutions:
        conversation.record(ASKED, reply(solution))
    sent = assemble("next", conversation.said)
    assert [message["content"] for message in sent if message["role"] == "assistant"] == solutions
    assert [message["content"] for message in conversation.history if message["role"] == "assistant"] == solutions


@given(st.lists(st.sampled_from(["user", "assistant"]).flatmap(lambda role: st.tuples(st.just(role), glued()))))
def test_what_comes_from_elsewhere_is_split_once(history: list[tuple[str, str]]) -> None:
    """When it comes in; going out again and again changes nothing more."""
    messages = [{"role": role, "content": text} for role, text in history]
    once = [outgoing(message) for message in messages]
    conversation = Conversation(messages)
    assert conversation.said == once
    assert list(conversation.history) == messages
    assert build_messages("x", history=messages) == assemble("x", once)


def test_a_solution_that_speaks_of_tags_goes_out_as_it_was(face: Face) -> None:
    """Turn after turn; a thought of another client's history does not."""
    solution = "Wrap it as <think>x</think> and go on."
    with StandIn(reply=f"<think>I reason.</think>{solution}") as server, face.phi(server.url, system="send") as phi:
        chat = phi.chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b</think>c"}])
        for number in range(3):
            assert face.wait(chat.ask(f"And {number}?")).solution == solution
        said = [message["content"] for message in server.chats[-1]["messages"] if message["role"] == "assistant"]
    assert said == ["c", solution, solution]


def test_an_answer_whose_thought_stands_apart_is_not_split() -> None:
    """Its field says that the content is the solution alone."""
    message = {"role": "assistant", "content": "Say <think>x</think>.", "reasoning_content": "y"}
    assert outgoing(message) == {"role": "assistant", "content": "Say <think>x</think>."}


# --- tools ------------------------------------------------------------------------------------------------------------


def called() -> bytes:
    """A reply that calls two tools."""
    return sse(delta(tool_calls=CALLS), delta(finish="tool_calls"), usage(9, 4))


def answered() -> bytes:
    """A reply that answers."""
    return sse(delta("It is late."), delta(finish="stop"), usage(19, 4))


@pytest.mark.parametrize(
    "results",
    [
        {"b": "loud", "a": "dark"},
        [("a", "dark"), ("b", "loud")],
        [
            {"role": "tool", "tool_call_id": "a", "content": "dark"},
            {"role": "tool", "tool_call_id": "b", "content": "loud"},
        ],
    ],
    ids=["mapping", "pairs", "messages"],
)
def test_the_results_of_tools_are_sent_back_and_kept(face: Face, results: Any) -> None:
    """Calls, results, answer: in this order, each with its id, in the history too."""
    server = Recording({"/v1/chat/completions": called()})
    with face.phi(server, model="m", system="send") as phi:
        chat = phi.chat()
        first = face.wait(chat.ask("Is it late?"))
        assert [call.id for call in first.tool_calls] == ["a", "b"]
        server.answers["/v1/chat/completions"] = answered()
        face.wait(chat.ask(tool_results=results))
        roles = [message["role"] for message in server.body["messages"]]
        assert roles == ["system", "user", "assistant", "tool", "tool"]
        sent = server.body["messages"][-2:]
        assert [(one["tool_call_id"], one["content"]) for one in sent] == [("a", "dark"), ("b", "loud")]
        assert [message["role"] for message in chat.history] == ["user", "assistant", "tool", "tool", "assistant"]
        face.wait(chat.ask("Why?"))
        assert [message["role"] for message in server.body["messages"]][-3:] == ["tool", "assistant", "user"]


def test_a_prompt_may_come_with_the_results(face: Face) -> None:
    """After them."""
    server = Recording({"/v1/chat/completions": called()})
    with face.phi(server, model="m", system="send") as phi:
        chat = phi.chat()
        face.wait(chat.ask("Is it late?"))
        server.answers["/v1/chat/completions"] = answered()
        face.wait(chat.ask("Be brief.", tool_results={"a": "1", "b": "2"}))
        assert [message["role"] for message in server.body["messages"]][-3:] == ["tool", "tool", "user"]


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({"a": "1"}, "no result for 'b'"),
        ({"a": "1", "b": "2", "c": "3"}, "'c' is no call"),
        ([("a", "1"), ("a", "1"), ("b", "2")], "'a' is answered twice"),
        ([("a", 7), ("b", "2")], r"tool_results\[0\] takes"),
        (["a"], r"tool_results\[0\] is 'a'"),
        ([{"role": "user", "content": "x"}], r"tool_results\[0\] takes"),
        ([], "no result for 'a', 'b'"),
    ],
)
def test_results_that_dont_fit_are_refused_and_nothing_changes(face: Face, results: Any, words: str) -> None:
    """Before anything is sent; the history is as it was."""
    server = Recording({"/v1/chat/completions": called()})
    with face.phi(server, model="m", system="send") as phi:
        chat = phi.chat()
        face.wait(chat.ask("Is it late?"))
        before = chat.history
        with pytest.raises(InvalidRequest, match=words):
            face.wait(chat.ask(tool_results=results))
        assert (chat.history, len(server.requests)) == (before, 1)


def test_results_where_nothing_was_called_are_refused() -> None:
    """Whatever they are."""
    with pytest.raises(InvalidRequest, match="none does"):
        result_messages({"a": "1"}, [])
    assert result_messages({}, []) == []


def test_no_prompt_is_refused_where_nothing_is_to_be_answered(face: Face) -> None:
    """In an empty chat and after an answer; a history that ends in a question, or in results, is gone on with."""
    with face.phi(playing(answered()), model="m", system="send") as phi:
        for history in ([], [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]):
            chat = phi.chat(history)
            with pytest.raises(InvalidRequest, match="no prompt"):
                face.wait(chat.ask(None))
            assert list(chat.history) == history
        chat = phi.chat([{"role": "user", "content": "Is it late?"}])
        assert face.wait(chat.ask()).solution == "It is late."
        assert [message["role"] for message in chat.history] == ["user", "assistant"]
        done = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": CALLS[:1]}]
        told = {"role": "tool", "tool_call_id": "a", "content": "dark"}
        assert face.ask(phi, history=[*done, told]).reply.solution == "It is late."


def test_calls_and_results_stay_together_in_a_window_that_moves(face: Face) -> None:
    """A chat of tools that outgrows its context: no result without its call, no call without its result."""
    history: list[dict[str, Any]] = []
    for number in range(12):
        call = {"id": f"c{number}", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        history += [
            {"role": "user", "content": f"{number}{'?' * 60}"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": "dark " * 12},
            {"role": "assistant", "content": "It is dark."},
        ]
    with StandIn(context_length=1400) as server, face.phi(server.url, model=MODEL, system="send", reserve=100) as phi:
        for end in range(3, len(history) + 1):
            if history[end - 1]["role"] == "assistant":
                continue
            assert face.ask(phi, history=history[:end]).error is None
            sent = server.chats[-1]["messages"][1:]
            calls = {call["id"] for message in sent for call in message.get("tool_calls", ())}
            results = {message["tool_call_id"] for message in sent if message["role"] == "tool"}
            assert results <= calls
            assert len(calls - results) == 0
            assert sent[0]["role"] == "user"
    assert any(len(body["messages"]) < len(history) for body in server.chats)
