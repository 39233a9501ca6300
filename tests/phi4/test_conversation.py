"""What is sent: the system prompt once, first, letter for letter; the history without its thoughts."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reading import read
from strategies import glued
from support import GOOD, Face, Recording

from phi4_http import SYSTEM_PROMPT, Outcome, Reply, ToolCall
from phi4_http.errors import InvalidRequest
from phi4_http.phi4.conversation import Conversation, build_messages, result_messages, system_message

PLAIN = Reply(Outcome.COMPLETE, None, thought_closed=False, solution="b", raw="b", finish_reason="stop")

TEXTS = st.text(max_size=20) | st.sampled_from(
    [SYSTEM_PROMPT, f"{SYSTEM_PROMPT}\n\nBe brief.", "Be brief.", " Be brief.\n"]
)
PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}), max_size=2)
MESSAGE = st.builds(
    lambda role, content, more: {"role": role, "content": content, **more},
    st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
    TEXTS | PARTS,
    st.sampled_from([{}, {"name": "x"}, {"tool_call_id": "1"}, {"reasoning_content": "t"}, {"reasoning": "t"}]),
)
HISTORY = st.lists(MESSAGE, max_size=6)


def test_the_system_prompt_is_the_trained_one_letter_for_letter() -> None:
    """1,232 characters with this checksum; three independent code bases carry the same."""
    assert len(SYSTEM_PROMPT) == 1232
    digest = "88df15fe1f347e9837ab4579c60f4fbae1cd1abf5a5ceab1bd93b846f65e1228"
    assert hashlib.sha256(SYSTEM_PROMPT.encode()).hexdigest() == digest


def test_a_prompt_alone_is_two_messages() -> None:
    """System prompt and prompt, as they are."""
    assert build_messages(" 7 × 8?\n") == [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": " 7 × 8?\n"},
    ]


def test_instructions_follow_the_system_prompt_in_the_same_message() -> None:
    """One message; the prompt first, untouched."""
    messages = build_messages("x", instructions="Be brief.")
    assert messages[0] == {"role": "system", "content": f"{SYSTEM_PROMPT}\n\nBe brief."}
    assert len(messages) == 2


def test_system_messages_of_the_history_go_into_the_first_one() -> None:
    """In their order, before the instructions of this request; the turns keep theirs."""
    history: list[dict[str, Any]] = [
        {"role": "system", "content": "One."},
        {"role": "user", "content": "a"},
        {"role": "developer", "content": [{"type": "text", "text": "Two."}]},
        {"role": "assistant", "content": "b"},
    ]
    messages = build_messages("c", history=history, instructions="Three.")
    assert messages == [
        {"role": "system", "content": f"{SYSTEM_PROMPT}\n\nOne.\n\nTwo.\n\nThree."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]


def test_what_was_sent_before_can_be_sent_again() -> None:
    """The messages of one request as the history of the next: prompt and instructions don't pile up."""
    first = build_messages("a", instructions="Be brief.")
    second = build_messages("b", history=[*first, {"role": "assistant", "content": "x"}], instructions="Be brief.")
    assert second[0] == first[0]
    assert [message["content"] for message in second[1:]] == ["a", "x", "b"]


@given(HISTORY, st.none() | TEXTS)
def test_exactly_one_system_message_goes_out_whatever_the_history(
    history: list[dict[str, Any]], instructions: str | None
) -> None:
    """It is first, it begins with the prompt, the prompt is in it once, and the caller's history is untouched."""
    before = copy.deepcopy(history)
    messages = build_messages("x", history=history, instructions=instructions)
    assert history == before
    assert [message["role"] for message in messages].count("system") == 1
    assert not [message for message in messages if message["role"] == "developer"]
    system = messages[0]["content"]
    assert messages[0]["role"] == "system"
    assert system.startswith(SYSTEM_PROMPT)
    assert system.count(SYSTEM_PROMPT) == 1
    assert messages[-1] == {"role": "user", "content": "x"}
    said = [message for message in history if message["role"] not in ("system", "developer")]
    assert [message["role"] for message in messages[1:-1]] == [message["role"] for message in said]
    own = (instructions or "").replace(SYSTEM_PROMPT, "").strip()
    assert own in system


@given(glued())
def test_of_an_answer_only_the_solution_is_sent_back(content: str) -> None:
    """What the slow reading of the rules calls solution, and nothing else."""
    messages = build_messages("x", history=[{"role": "assistant", "content": content}])
    assert messages[1] == {"role": "assistant", "content": read(content).solution}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_thought_in_a_field_is_not_sent_back(name: str) -> None:
    """The field that a server had split off stays here."""
    message = {"role": "assistant", "content": "b", name: "a", "tool_calls": [{"id": "1"}]}
    sent = build_messages("x", history=[message])[1]
    assert sent == {"role": "assistant", "content": "b", "tool_calls": [{"id": "1"}]}


def test_a_thought_in_content_of_parts_is_not_sent_back() -> None:
    """An answer in parts is an answer."""
    message = {"role": "assistant", "content": [{"type": "text", "text": "<think>a</think>b"}]}
    sent = build_messages("x", history=[message])[1]
    assert "<think>" not in str(sent["content"])
    assert "b" in str(sent["content"])


@pytest.mark.parametrize("role", ["user", "tool"])
def test_what_others_say_is_sent_as_it_is(role: str) -> None:
    """Tags in a question are part of the question."""
    message = {"role": role, "content": "What does <think>x</think>y mean?", "tool_call_id": "1"}
    assert build_messages("x", history=[message])[1] == message


def test_an_answer_of_tool_calls_needs_no_content() -> None:
    """Content null, with calls, is a turn like any other."""
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert build_messages("x", history=[message])[1] == message


@pytest.mark.parametrize("prompt", ["", " \n\t", None, 7, b"x", ["x"]])
def test_a_prompt_that_is_none_is_refused(prompt: Any) -> None:
    """Empty, blank or no text."""
    with pytest.raises(InvalidRequest, match="prompt"):
        build_messages(prompt)


@pytest.mark.parametrize(
    "history",
    [
        "x",
        b"x",
        {"role": "user", "content": "x"},
        ["x"],
        [None],
        [{"content": "x"}],
        [{"role": "robot", "content": "x"}],
        [{"role": "System", "content": "x"}],
        [{"role": ["user"], "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "assistant", "content": None}],
        [{"role": "system", "content": None, "tool_calls": [{}]}],
        [{"role": "system", "content": 7}],
        [{"role": "user", "content": 7}],
        [{"role": "system", "content": [{"text": 7}]}],
    ],
)
def test_a_history_that_is_none_is_refused(history: Any) -> None:
    """With the place of the wrong message, as an invalid request and nothing else."""
    with pytest.raises(InvalidRequest, match="history"):
        build_messages("x", history=history)


def test_any_iterable_of_any_mappings_is_a_history() -> None:
    """A generator is read once; a mapping that is no dict is a message."""
    from types import MappingProxyType

    messages: list[Mapping[str, Any]] = [MappingProxyType({"role": "user", "content": "a"})]
    assert build_messages("b", history=iter(messages))[1] == {"role": "user", "content": "a"}


def test_instructions_are_each_said_once() -> None:
    """The same words twice are said once, blank ones not at all."""
    assert system_message(["a", " a\n", "", " ", "b"]) == f"{SYSTEM_PROMPT}\n\na\n\nb"


# --- on the wire ------------------------------------------------------------------------------------------------------


def test_the_instructions_of_phi_and_of_the_call_are_both_sent(face: Face) -> None:
    """Those of the `Phi4` first, in one system message, with every request."""
    server = Recording({"/v1/chat/completions": GOOD})
    with face.phi(server, model="phi", instructions="One.") as phi:
        face.ask(phi, "a", instructions="Two.")
        both = server.body["messages"]
        face.ask(phi, "b", history=[*both, {"role": "assistant", "content": "<think>t</think>s"}])
    assert both == [
        {"role": "system", "content": f"{SYSTEM_PROMPT}\n\nOne.\n\nTwo."},
        {"role": "user", "content": "a"},
    ]
    again = server.body["messages"]
    assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
    assert again[0]["content"].count("One.") == 1
    assert again[2]["content"] == "s"


def test_a_chat_without_phi_sends_the_messages_as_they_are(face: Face) -> None:
    """`LMStudio` adds no prompt and takes no thought out: it sends what it was given."""
    server = Recording({"/v1/chat/completions": GOOD})
    messages = [{"role": "assistant", "content": "<think>a</think>b"}, {"role": "user", "content": "c"}]
    before = copy.deepcopy(messages)
    with face.studio(server) as client:
        face.read(client.stream_chat_completion("phi", messages))
    assert server.body["messages"] == messages == before


@given(solution=st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", "`", "<", "x "]), max_size=12).map("".join))
@example(solution="Wrap it as `<think>x</think>` and go on.")
@example(solution="Then </think> closes it.")
def test_a_kept_solution_is_sent_verbatim_also_after_the_history_was_saved_and_read(solution: str) -> None:
    """What is recorded goes out as it is, from the conversation itself and from its history as JSON."""
    kept = Conversation()
    kept.record([{"role": "user", "content": "x"}], Reply(Outcome.COMPLETE, None, False, solution, solution))
    again = Conversation(json.loads(json.dumps(kept.history)))
    assert kept.said == again.said == [{"role": "user", "content": "x"}, {"role": "assistant", "content": solution}]


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ("hello", "history is a str: it takes a list of messages"),
        (["hello"], "history[0] is a str: it takes a mapping with role and content"),
        (
            [{"role": "bot", "content": "x"}],
            "history[0] has role 'bot': it can be system, developer, user, assistant, tool",
        ),
    ],
)
def test_what_is_no_history_is_told_with_what_it_is(history: Any, words: str) -> None:
    """The place, what stands there, and what can."""
    with pytest.raises(InvalidRequest) as caught:
        build_messages("hi", history=history)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (None, "there is neither a prompt nor a history"),
        (" \n", "the prompt is empty"),
        (7, "the prompt is a int, not a text"),
    ],
)
def test_what_is_no_prompt_is_told_with_what_it_is(prompt: Any, words: str) -> None:
    """Empty, missing, or of another type."""
    with pytest.raises(InvalidRequest) as caught:
        build_messages(prompt)
    assert str(caught.value) == words


def test_parts_of_an_instruction_are_read_as_one_text() -> None:
    """Those that are no text, such as pictures, have none."""
    parts = [{"type": "text", "text": "Be "}, {"type": "image_url"}, {"type": "text", "text": "brief."}]
    messages = build_messages("hi", history=[{"role": "system", "content": parts}])
    assert messages[0]["content"] == f"{SYSTEM_PROMPT}\n\nBe brief."


def test_what_was_learned_of_a_reply_stays_learned() -> None:
    """Nothing is known at first; neither a later reply that shows nothing nor clearing takes anything back."""
    conversation = Conversation()
    assert (conversation.opener_swallowed, conversation.noted) == (False, False)
    first = dataclasses.replace(PLAIN, opener_swallowed=True, notes=("odd",))
    for reply in (first, PLAIN):
        conversation.record([], reply)
        assert (conversation.opener_swallowed, conversation.noted) == (True, True)
    conversation.clear()
    assert (conversation.opener_swallowed, conversation.noted) == (True, True)


def test_a_call_is_kept_as_it_is_sent_back() -> None:
    """In the field's own form, in the history and in what goes out; it is open until a result names its id."""
    conversation = Conversation()
    calls = (ToolCall("1", "weather", '{"city": "Paris"}'), ToolCall("2", "clock", "{}"))
    answer = conversation.record([{"role": "user", "content": "q"}], dataclasses.replace(PLAIN, tool_calls=calls))
    expected = {
        "role": "assistant",
        "content": "b",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
            {"id": "2", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
        ],
    }
    assert answer == expected
    assert conversation.history == conversation.said == [{"role": "user", "content": "q"}, expected]
    assert conversation.open_calls() == ["1", "2"]
    conversation.record(result_messages({"2": "noon"}, ["2"]), dataclasses.replace(PLAIN, outcome=Outcome.CUT))
    assert conversation.open_calls() == ["1", "2"]
    conversation.said.append({"role": "tool", "tool_call_id": "2", "content": "noon"})
    assert conversation.open_calls() == ["1"]


@pytest.mark.parametrize(
    ("said", "calls"),
    [
        ([], []),
        ([{"role": "user", "content": "q", "tool_calls": [{"id": "1"}]}], []),
        ([{"role": "assistant", "content": "a"}], []),
        ([{"role": "assistant", "content": "a", "tool_calls": None}], []),
        ([{"role": "assistant", "content": "", "tool_calls": [7, {"id": 3}, {}]}], ["3", ""]),
        ([{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, {"role": "user", "content": "q"}], []),
    ],
)
def test_the_newest_answers_calls_are_open_until_they_are_answered(said: list[Any], calls: list[str]) -> None:
    """Whatever a history from elsewhere has in their place."""
    conversation = Conversation()
    conversation.said.extend(said)
    assert conversation.open_calls() == calls


ONE = {"role": "tool", "tool_call_id": "1", "content": "x"}


@pytest.mark.parametrize(
    "results", [{"2": "y", "1": "x"}, [("2", "y"), ["1", "x"]], [{**ONE, "name": "n"}, ("2", "y")]]
)
def test_results_are_messages_in_the_order_of_their_calls(results: Any) -> None:
    """A mapping, pairs, messages; a message keeps all its fields."""
    first, second = result_messages(results, ["1", "2"])
    assert first in (ONE, {**ONE, "name": "n"})
    assert second == {"role": "tool", "tool_call_id": "2", "content": "y"}


TAKES = "tool_results[0] takes role 'tool', a tool_call_id and content, a text"


@pytest.mark.parametrize(
    ("results", "calls", "words"),
    [
        (["ab"], ["1"], "tool_results[0] is 'ab': it takes a call's id with its result, as a text"),
        ([b"ab"], ["1"], "tool_results[0] is b'ab': it takes a call's id with its result, as a text"),
        ([("1",)], ["1"], "tool_results[0] is ('1',): it takes a call's id with its result, as a text"),
        ([7], ["1"], "tool_results[0] is 7: it takes a call's id with its result, as a text"),
        ([{**ONE, "role": "user"}], ["1"], TAKES),
        ([(1, "x")], ["1"], TAKES),
        ([("1", None)], ["1"], TAKES),
        ([("9", "x")], ["1", "2"], "tool_results[0]: '9' is no call that waits for its result; those that do: 1, 2"),
        ([("9", "x")], [], "tool_results[0]: '9' is no call that waits for its result; none does"),
        ([ONE, ONE], ["1"], "tool_results[1]: '1' is answered twice; those that do: 1"),
        ([], ["1", "2"], "tool_results has no result for '1', '2': each call needs one"),
        ({"2": "y"}, ["1", "2"], "tool_results has no result for '1': each call needs one"),
    ],
)
def test_what_answers_no_call_is_told_with_its_place(results: Any, calls: list[str], words: str) -> None:
    """What it is, and what could stand there."""
    with pytest.raises(InvalidRequest) as caught:
        result_messages(results, calls)
    assert str(caught.value) == words
