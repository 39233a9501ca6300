"""JSON out of a solution, as models write it; the thought comes first, since `response_format` is never asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Face

from phi4.standin import StandIn
from phi4_http.errors import InvalidRequest, NoJson, StreamCut
from phi4_http.events import Outcome, Reply
from phi4_http.phi4.conversation import build_messages
from phi4_http.phi4.schema import mismatches
from phi4_http.phi4.structured import read, repair, request

PERSON: Mapping[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
ADA = {"name": "Ada", "age": 36}
TEXT = json.dumps(ADA)
FENCE = "```"


def solved(solution: str, outcome: Outcome = Outcome.COMPLETE) -> Reply:
    """A reply with this solution."""
    return Reply(outcome=outcome, thought="I think.", thought_closed=True, solution=solution, raw=solution)


# --- where the value stands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solution",
    [
        TEXT,
        f"\n\n  {TEXT} \n",
        json.dumps(ADA, indent=2),
        f"{FENCE}json\n{TEXT}\n{FENCE}",
        f"{FENCE}\n{TEXT}\n{FENCE}",
        f"{FENCE}JSON\r\n{TEXT}\r\n{FENCE}",
        f"{FENCE}json {TEXT} {FENCE}",
        f"Here you are:\n\n{FENCE}json\n{json.dumps(ADA, indent=4)}\n{FENCE}\n\nAsk me for more.",
        f"The answer is {TEXT}, as you see.",
        f"{FENCE}python\nx = {{1: 2}}\n{FENCE}\n\n{TEXT}",
        f"At first I had [1, 2], then {{}}, and now {TEXT}.",
        f'{FENCE}json\n{{"name": "Bob"}}\n{FENCE}\nNo, that has no age:\n{FENCE}json\n{TEXT}\n{FENCE}',
        f"{FENCE}json\n{TEXT}",
        f'{{"name": "Ada", "age": {{ … }} would be wrong. {TEXT}',
        f"\\boxed{{{TEXT}}}",
    ],
)
def test_the_value_is_found_wherever_models_put_it(solution: str) -> None:
    """Bare, in a fence of any spelling, in a sentence, after tries that do not fit."""
    found = read(solved(solution), PERSON)
    assert found.value == ADA
    assert found.reply.solution == solution
    assert not found.repaired


def test_of_several_fences_the_last_that_fits_counts() -> None:
    """The model corrects itself downwards."""
    fences = [f"{FENCE}json\n{json.dumps({**ADA, 'age': age})}\n{FENCE}" for age in (1, 2, 3)]
    assert read(solved("\n".join(fences)), PERSON).value["age"] == 3
    last = f'{FENCE}json\n{{"name": "Ada"}}\n{FENCE}'
    assert read(solved("\n".join([*fences, last])), PERSON).value["age"] == 3


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    VALUES, st.sampled_from(["{}", "\n{}\n", f"{FENCE}json\n{{}}\n{FENCE}", f"Sure.\n{FENCE}\n{{}}\n{FENCE}\nDone."])
)
def test_any_value_is_found_bare_and_in_a_fence(value: Any, around: str) -> None:
    """Texts with fences and braces in them, numbers, null, lists: what was written comes out."""
    text = json.dumps(value, ensure_ascii=False)
    if FENCE in text and FENCE in around:
        return  # a fence inside a fence ends it
    assert read(solved(around.replace("{}", text))).value == value


@given(
    st.dictionaries(st.text(max_size=5), VALUES, max_size=3) | st.lists(VALUES, max_size=3),
    st.text("ab .,:;!", max_size=20),
)
def test_an_object_or_a_list_is_found_in_prose(value: Any, prose: str) -> None:
    """With any words around it."""
    assert read(solved(f"{prose}{json.dumps(value)}{prose}")).value == value


@pytest.mark.parametrize(
    "solution",
    ["", "No.", "{", "[[[[", "name: Ada", f"{FENCE}json\n{FENCE}", "{'name': 'Ada'}", "[" * 100_000, "[1, " * 30_000],
    ids=range(9),
)
def test_where_there_is_none_the_error_has_the_text(solution: str) -> None:
    """And the reply; however deep a model has dug itself in."""
    with pytest.raises(NoJson) as caught:
        read(solved(solution), PERSON)
    assert caught.value.text == solution
    assert caught.value.partial == solved(solution)
    assert "no JSON value" in caught.value.problem


# --- whether it fits --------------------------------------------------------------------------------------------------

HOUSE: Mapping[str, Any] = {
    "type": "object",
    "required": ["rooms"],
    "properties": {
        "rooms": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["size"],
                "properties": {"size": {"type": "number"}, "door": {"enum": ["left", "right", 0]}},
            },
        },
        "owner": {"type": ["string", "null"]},
        "kind": {"const": 1},
    },
}


@pytest.mark.parametrize(
    "value",
    [
        {"rooms": []},
        {"rooms": [{"size": 1}, {"size": 2.5, "door": "left"}], "owner": None, "kind": 1},
        {"rooms": [{"size": 1e3, "more": True}], "owner": "Ada", "else": []},
        {"rooms": [{"size": 1, "door": 0}], "kind": 1.0},
    ],
)
def test_what_fits_has_no_mismatch(value: Any) -> None:
    """Further names are allowed, a whole number is a number."""
    assert list(mismatches(value, HOUSE)) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "the value is [], and not of type object"),
        ({}, "the value has no 'rooms'"),
        ({"rooms": {}}, "rooms is {}, and not of type array"),
        ({"rooms": [1]}, "rooms[0] is 1, and not of type object"),
        ({"rooms": [{"size": 1}, {}]}, "rooms[1] has no 'size'"),
        ({"rooms": [{"size": "1"}]}, 'rooms[0].size is "1", and not of type number'),
        ({"rooms": [{"size": True}]}, "rooms[0].size is true, and not of type number"),
        ({"rooms": [{"size": 1, "door": "up"}]}, 'rooms[0].door is "up", and not one of ["left", "right", 0]'),
        ({"rooms": [{"size": 1, "door": False}]}, "rooms[0].door is false"),
        ({"rooms": [], "owner": 5}, "owner is 5, and not of type string or null"),
        ({"rooms": [], "kind": 2}, "kind is 2, and not 1"),
        ({"rooms": [], "kind": True}, "kind is true, and not 1"),
    ],
)
def test_what_does_not_fit_is_named(value: Any, said: str) -> None:
    """Where it stands, what it is, and what it should be."""
    assert next(mismatches(value, HOUSE)).startswith(said)
    with pytest.raises(NoJson) as caught:
        read(solved(json.dumps(value)), HOUSE)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("value", "name", "fits"),
    [
        (1, "integer", True),
        (1.0, "integer", True),
        (1.5, "integer", False),
        (True, "integer", False),
        (True, "number", False),
        (True, "boolean", True),
        (0, "boolean", False),
        (None, "null", True),
        ("", "null", False),
        (math.inf, "integer", False),
        ({}, "array", False),
        ("x", "text", False),
    ],
)
def test_types_are_those_of_json(value: Any, name: str, fits: bool) -> None:
    """A boolean is no number, a number with no fraction is whole; an unknown type fits nothing."""
    assert (next(mismatches(value, {"type": name}), None) is None) == fits


def test_an_empty_schema_takes_anything() -> None:
    """As in JSON schema."""
    values: tuple[Any, ...] = (None, 1, "x", [], {})
    assert [list(mismatches(value, {})) for value in values] == [[]] * 5


# --- over HTTP --------------------------------------------------------------------------------------------------------


def test_the_schema_goes_out_in_words_and_the_model_thinks_first(face: Face) -> None:
    """One request, no `response_format`, the schema letter for letter behind the prompt."""
    with StandIn(reply=f"<think>Hm.</think>{TEXT}") as server, face.phi(server.url) as phi:
        found = face.wait(phi.ask_json("Who?", PERSON, seed=7))
        (chat,) = server.chats
    assert (found.value, found.reply.thought, found.repaired) == (ADA, "Hm.", False)
    assert "response_format" not in chat
    assert chat["seed"] == 7
    content = chat["messages"][-1]["content"]
    assert content.startswith("Who?\n\n")
    assert content.endswith(json.dumps(PERSON))


def test_an_answer_that_does_not_fit_is_repaired_once_on_request(face: Face) -> None:
    """The second turn has the first one before it, and says what was wrong."""
    answers = iter(['{"name": "Ada"}', TEXT])
    with StandIn(reply=lambda prompt: f"<think>Hm.</think>{next(answers)}") as server, face.phi(server.url) as phi:
        found = face.wait(phi.ask_json("Who?", PERSON, repair=True))
        first, second = server.chats
    assert (found.value, found.repaired) == (ADA, True)
    asked, answer, again = second["messages"][1:]
    assert asked == first["messages"][1]
    assert answer == {"role": "assistant", "content": '{"name": "Ada"}'}
    assert "the value has no 'age'" in again["content"]


def test_a_turn_that_left_nothing_is_asked_again_as_it_was(face: Face) -> None:
    """Where the model stopped inside its thought there is no answer to be repaired, and no question in the history."""
    replies = iter(["<think>I never", f"<think>Hm.</think>{TEXT}"])
    with StandIn(reply=lambda prompt: next(replies)) as server, face.phi(server.url) as phi:
        found = face.wait(phi.ask_json("Who?", PERSON, repair=True))
        first, second = server.chats
    assert (found.value, found.repaired) == (ADA, True)
    assert second["messages"] == first["messages"]


@pytest.mark.parametrize("with_repair", [False, True])
def test_an_answer_that_stays_wrong_is_an_error_with_its_text(face: Face, with_repair: bool) -> None:
    """No third try; the whole last reply is in the error."""
    numbers = iter(range(9))
    with (
        StandIn(reply=lambda prompt: f"<think>Hm.</think>I am Ada, {next(numbers)}.") as server,
        face.phi(server.url) as phi,
    ):
        with pytest.raises(NoJson) as caught:
            face.wait(phi.ask_json("Who?", PERSON, repair=with_repair))
        assert len(server.chats) == 1 + with_repair
    assert caught.value.text == f"I am Ada, {int(with_repair)}."
    assert caught.value.partial is not None
    assert caught.value.partial.thought == "Hm."
    assert caught.value.text in str(caught.value)


def test_without_being_asked_nothing_is_repaired(face: Face) -> None:
    """One request, and the error."""
    with StandIn(reply="<think>Hm.</think>No.") as server, face.phi(server.url) as phi:
        with pytest.raises(NoJson):
            face.wait(phi.ask_json("Who?", PERSON))
        assert len(server.chats) == 1


def test_a_failure_is_raised_as_ever(face: Face) -> None:
    """A reply that was cut is that, and no JSON to be repaired."""
    with StandIn(refuses=lambda path, body: "cut") as server, face.phi(server.url) as phi:
        with pytest.raises(StreamCut):
            face.wait(phi.ask_json("Who?", PERSON, repair=True))
        assert len(server.chats) == 1


def test_the_history_comes_along_and_stays_the_callers(face: Face) -> None:
    """It is sent, and not added to."""
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with StandIn(reply=f"<think>Hm.</think>{TEXT}") as server, face.phi(server.url) as phi:
        face.wait(phi.ask_json("Who?", PERSON, history=history, instructions="Be brief."))
        (chat,) = server.chats
    assert chat["messages"][:3] == [build_messages("x", instructions="Be brief.")[0], *history]
    assert history == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize("schema", [{1, 2}, "object", [1], {"enum": {1}}, None, 7])
def test_a_schema_that_is_none_is_refused_before_anything_is_sent(face: Face, schema: Any) -> None:
    """What is no mapping, or can't be written as JSON."""
    with StandIn() as server, face.phi(server.url) as phi:
        with pytest.raises(InvalidRequest, match="schema"):
            face.wait(phi.ask_json("Who?", schema))
        assert server.seen == []


@pytest.mark.parametrize("prompt", ["", "  \n", None, 5])
def test_a_prompt_that_is_none_is_refused_before_anything_is_sent(face: Face, prompt: Any) -> None:
    """The schema behind it does not make a prompt of nothing."""
    with StandIn() as server, face.phi(server.url) as phi:
        with pytest.raises(InvalidRequest, match="prompt"):
            face.wait(phi.ask_json(prompt, PERSON))
        assert server.seen == []


def test_a_repair_says_what_was_wrong() -> None:
    """Only to a model that has given an answer."""
    asked = request("Who?", PERSON)
    for outcome in Outcome:
        said = repair(asked, NoJson("it has no age", text="x", partial=solved("x", outcome)))
        kept = outcome in (Outcome.COMPLETE, Outcome.SOLUTION_TRUNCATED)
        assert said != asked if kept else said == asked
        assert ("it has no age" in said) == kept
