"""Structured answers: schemas are checked before anything is asked, values against them, and no reply is lost."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Face, Recording, delta, playing, sse, usage

from phi4_http import InvalidRequest, NoJson, Outcome, Reply
from phi4_http.phi4.schema import KEYWORDS, check_schema, mismatches
from phi4_http.phi4.structured import read

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
keywords = st.sampled_from([*KEYWORDS, "title", "$ref", "pattern", "x"])


def answered(solution: str) -> bytes:
    """A stream with this solution."""
    return sse(delta("<think>t</think>"), delta(solution), delta(finish="stop"), usage(9, 9))


def reply(solution: str) -> Reply:
    """A reply with it."""
    return Reply(Outcome.COMPLETE, "t", True, solution, solution)


# --- schemas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"required": True}, r"schema\.required is true: it takes a list of names"),
        ({"properties": None}, r"schema\.properties is null"),
        ({"type": 5}, r"schema\.type is 5"),
        ({"type": "text"}, r"schema\.type is \"text\": it takes one of object, array"),
        ({"type": []}, r"schema\.type is \[\]"),
        ({"items": [{}]}, r"schema\.items"),
        ({"minItems": -1}, r"schema\.minItems is -1"),
        ({"minimum": "1"}, r"schema\.minimum"),
        ({"enum": []}, r"schema\.enum"),
        ({"anyOf": []}, r"schema\.anyOf"),
        ({"properties": {"a": {"type": "number", "multipleOf": 2}}}, r"schema\.properties\.a\.multipleOf can't be"),
        ({"anyOf": [{}, {"pattern": "x"}]}, r"schema\.anyOf\[1\]\.pattern can't be checked here: bring a validator"),
        ({"$ref": "#/x"}, r"schema\.\$ref can't be checked"),
        ({"properties": {"a": 7}}, r"schema\.properties\.a is a int"),
    ],
)
def test_a_schema_that_cant_be_checked_is_refused_before_anything_is_asked(
    face: Face, schema: Mapping[str, Any], words: str
) -> None:
    """With the place and what it takes."""
    server = Recording()
    with face.phi(server, model="m", system="send") as phi, pytest.raises(InvalidRequest, match=words):
        face.wait(phi.ask_json("x", schema))
    assert server.requests == []


@given(st.dictionaries(keywords, values, max_size=3), values)
def test_any_schema_is_refused_with_words_or_can_be_checked(schema: dict[str, Any], value: Any) -> None:
    """Nothing else comes of any JSON, taken for a schema."""
    with contextlib.suppress(InvalidRequest):
        check_schema(schema)
        assert all(isinstance(said, str) for said in mismatches(value, schema))


FITS: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"minItems": 1, "maxItems": 2}, [[1], [1, 2], "x", {}], [[], [1, 2, 3]]),
    ({"minLength": 2, "maxLength": 3}, ["ab", "abc", 7], ["a", "abcd"]),
    ({"minimum": 1, "maximum": 2.5}, [1, 2.5, "x", True], [0.9, 3]),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, ["x", None], [1]),
    ({"oneOf": [{"minimum": 1}, {"maximum": 2}]}, [0, 3], [1.5]),
    ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, [1, 2], [0, 3]),
    ({"properties": {"a": {"type": "integer"}}, "additionalProperties": False}, [{}, {"a": 1}], [{"b": 1}, {"a": "x"}]),
    ({"additionalProperties": {"type": "string"}}, [{"b": "x"}], [{"b": 1}]),
    ({"items": {"enum": [1, "a"]}}, [[1, "a"], []], [[True], [2]]),
    ({"const": [1, {"a": True}]}, [[1, {"a": True}]], [[True, {"a": True}], [1, {"a": 1}]]),
    ({"items": False}, [[]], [[1]]),
    ({"title": "x", "format": "date", "type": ["array", "null"]}, [[], None], [{}]),
]


@pytest.mark.parametrize(("schema", "fitting", "others"), FITS, ids=range(len(FITS)))
def test_each_keyword_holds_what_it_says(schema: dict[str, Any], fitting: list[Any], others: list[Any]) -> None:
    """Of values that it does not speak of, it says nothing."""
    check_schema(schema)
    assert [list(mismatches(value, schema)) for value in fitting] == [[]] * len(fitting)
    assert all(list(mismatches(value, schema)) for value in others)


# --- a validator of the caller's --------------------------------------------------------------------------------------


class Refused(Exception):
    """As jsonschema raises it."""

    message = "'x' is too short"


def picky(value: Any, schema: Any) -> None:
    """A validator that raises."""
    if value == "x":
        raise Refused


@pytest.mark.parametrize("validate", [picky, lambda value, schema: value != "x"])
def test_a_validator_decides_and_any_keyword_may_stand(face: Face, validate: Any) -> None:
    """It raises, or returns False; its own words are the problem."""
    for solution, good in (('"x"', False), ('"yes"', True)):
        with face.phi(playing(answered(solution)), model="m", system="send") as phi:
            if good:
                assert face.wait(phi.ask_json("?", {"$ref": "#"}, validate=validate)).value == "yes"
                continue
            with pytest.raises(NoJson) as caught:
                face.wait(phi.ask_json("?", {"$ref": "#"}, validate=validate))
            assert caught.value.problem in (Refused.message, "it does not fit the schema")
            assert caught.value.partial is not None
            assert caught.value.partial.solution == solution


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solution",
    ["NaN", "[Infinity]", "-Infinity", "1" * 5000, f"[{'9' * 5000}]", "[" * 5000, '{"a":' * 3000, "```json\nNaN\n```"],
    ids=range(8),
)
def test_what_is_no_json_is_told_with_the_reply(face: Face, solution: str) -> None:
    """Numbers that JSON has not, numbers without end, depths without end: never a bare error."""
    with face.phi(playing(answered(solution)), model="m", system="send") as phi, pytest.raises(NoJson) as caught:
        face.wait(phi.ask_json("x", {"type": "string"}))
    assert caught.value.partial is not None
    assert caught.value.partial.solution == caught.value.text == solution


@pytest.mark.parametrize(
    ("solution", "value"),
    [
        ('First {"a": 1}, then {"a": 2}.', {"a": 2}),
        ('{"a": 1} and {"b": 2}', {"a": 1}),
        ('```json\n{"a": 1}\n```\nor\n```json\n{"a": 2}\n```', {"a": 2}),
        ('```json\n{"a": 1}\n```\nand not {"a": 2}', {"a": 1}),
        ('```json\n{"b": 1}\n```\nbut {"a": 2}', {"a": 2}),
    ],
)
def test_of_several_values_the_one_that_fits_is_taken(solution: str, value: Any) -> None:
    """The last where several do; what stands in a fence before what stands in the text."""
    schema = {"type": "object", "required": ["a"]}
    assert read(reply(solution), schema).value == value


@given(values, st.sampled_from(["{}", "So: {}.", "```json\n{}\n```", "```\n{}\n```\nDone."]))
def test_any_value_comes_back_as_it_was(value: Any, around: str) -> None:
    """Bare, in a sentence, in a fence; an object or a list also inside a text."""
    text = around.replace("{}", json.dumps(value))
    if around == "So: {}." and not isinstance(value, dict | list):
        return
    assert read(reply(text)).value == value
