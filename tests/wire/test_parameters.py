"""Parameters are checked before anything is sent."""

from __future__ import annotations

import copy
from typing import Any, get_type_hints

import pytest
from support import MESSAGES, Face, Recording

from phi4_http.errors import InvalidRequest
from phi4_http.wire.parameters import Parameters, check

GOOD: dict[str, list[Any]] = {
    "temperature": [0, 0.0, 0.8, 2],
    "top_p": [0, 0.95, 1],
    "top_k": [0, 50],
    "min_p": [0.0, 1],
    "repeat_penalty": [0, 1.1],
    "presence_penalty": [-2, 0, 1.5],
    "frequency_penalty": [-2, 0.5],
    "logit_bias": [{}, {"15043": -100}],
    "seed": [-1, 0, 2**40],
    "stop": ["\n", ["a", "b"], ("a",)],
    "max_tokens": [-1, 1, 32_768],
    "ttl": [1, 3600],
    "response_format": [{"type": "json_object"}],
    "tools": [[], [{"type": "function"}]],
    "tool_choice": ["auto", {"type": "function"}],
    "draft_model": ["qwen"],
    "stream_options": [{}, {"include_usage": False}],
}
BAD: dict[str, list[Any]] = {
    "temperature": [-0.1, "hot", True, float("nan"), float("inf")],
    "top_p": [-0.1, 1.1, "0.9", float("nan")],
    "top_k": [-1, 1.5, True, "50"],
    "min_p": [-1, 2],
    "repeat_penalty": [-1, "1"],
    "presence_penalty": ["x", float("inf")],
    "frequency_penalty": [[], False],
    "logit_bias": [[1], "x"],
    "seed": [1.0, "7", True],
    "stop": [7, [7], b"x", {"a": 1}.keys()],
    "max_tokens": [0, -2, 1.0, "7", True],
    "ttl": [0, -1, 1.5, "60"],
    "response_format": ["json", [1]],
    "tools": [{"type": "function"}, ["f"], "f"],
    "tool_choice": [7, ["f"]],
    "draft_model": ["", 7],
    "stream_options": [True, [1]],
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={value!r}") for name, values in table.items() for value in values]


def test_every_parameter_has_good_and_bad_values_here() -> None:
    """The tables of this test know all parameters that the type names."""
    known = set(get_type_hints(Parameters)) - {"extra"}
    assert set(GOOD) == known
    assert set(BAD) == known


@pytest.mark.parametrize(("name", "value"), cases(GOOD))
def test_a_good_value_goes_out_as_it_is(name: str, value: Any) -> None:
    """Nothing is converted or rounded."""
    assert check({name: value}) == {name: value}


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_a_value_that_can_t_be_is_refused_with_what_it_takes(name: str, value: Any) -> None:
    """The message has the name, the value and the range."""
    with pytest.raises(InvalidRequest) as caught:
        check({name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}: it takes ")


def test_none_is_left_out() -> None:
    """A parameter that is None is one that was not given."""
    assert check(dict.fromkeys(GOOD)) == {}
    assert check({"extra": None}) == {}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("temperatur", "temperature"),
        ("topp", "top_p"),
        ("top-k", "top_k"),
        ("max_token", "max_tokens"),
        ("stops", "stop"),
        ("Seed", "seed"),
        ("repetition_penalty", "repeat_penalty"),
    ],
)
def test_a_name_that_is_nearly_a_known_one_is_refused_with_that_one(wrong: str, right: str) -> None:
    """A slip is told, since a server would ignore it in silence; in `extra` the very name goes out."""
    with pytest.raises(InvalidRequest, match=right):
        check({wrong: 1})
    assert check({"extra": {wrong: 1}}) == {wrong: 1}


@pytest.mark.parametrize("name", ["reasoning_effort", "n", "logprobs", "user", "x"])
def test_an_unknown_name_goes_out_as_it_is(name: str) -> None:
    """Servers know more than this library."""
    assert check({name: {"any": ["thing"]}}) == {name: {"any": ["thing"]}}


def test_extra_fields_are_not_checked_and_win() -> None:
    """`extra` is the way around every check."""
    assert check({"temperature": 1, "extra": {"temperature": "hot", "x": None}}) == {"temperature": "hot", "x": None}


@pytest.mark.parametrize("name", ["model", "messages", "prompt", "stream", "input"])
def test_what_the_call_itself_sets_can_t_be_a_parameter(name: str) -> None:
    """Neither by name nor in `extra`."""
    for parameters in ({name: "x"}, {"extra": {name: "x"}}):
        with pytest.raises(InvalidRequest, match=name):
            check(parameters)


@pytest.mark.parametrize("extra", ["x", [("a", 1)], 7])
def test_extra_that_is_no_mapping_is_refused(extra: Any) -> None:
    """A mapping, or nothing."""
    with pytest.raises(InvalidRequest, match="extra"):
        check({"extra": extra})


def test_the_callers_arguments_are_left_alone() -> None:
    """Checking changes nothing that was handed in."""
    given = {"stop": ["a"], "extra": {"x": {"y": 1}}, "temperature": None}
    before = copy.deepcopy(given)
    check(given)["x"] = "changed"
    assert given == before


@pytest.mark.parametrize("call", ["chat_completion", "completion", "stream_chat_completion", "stream_completion"])
def test_nothing_is_sent_for_a_parameter_that_can_t_be(face: Face, call: str) -> None:
    """Every call that takes parameters refuses a wrong one before its request."""
    server = Recording()
    prompt = "x" if "chat" not in call else MESSAGES
    with face.studio(server) as client:
        with pytest.raises(InvalidRequest):
            face.wait(getattr(client, call)("phi", prompt, temperature=-1))
        with pytest.raises(InvalidRequest):
            face.wait(getattr(client, call)("", prompt))
        with pytest.raises(InvalidRequest):
            face.wait(getattr(client, call)("phi", prompt[:0]))
    assert server.requests == []


def test_nothing_is_sent_for_a_phi_that_can_t_be(face: Face) -> None:
    """So do `Phi4` itself, `ask` and `stream`."""
    server = Recording()
    with face.studio(server) as client:
        with pytest.raises(InvalidRequest):
            face.Phi4(client, top_p=2)
        phi = face.Phi4(client)
        with pytest.raises(InvalidRequest):
            phi.stream("x", top_k=-1)
        with pytest.raises(InvalidRequest):
            face.wait(phi.ask("x", max_tokens=0))
        for prompt in ("", " \n", None, 7):
            with pytest.raises(InvalidRequest):
                phi.stream(prompt)
    assert server.requests == []
