"""The reader of a JSON object's fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4_http.wire.fields import Fault, Fields, count, each, json_text, shown

ITEM = {"text": "a", "number": 1.5, "whole": 7, "null": None, "list": ["a", "b"], "object": {"name": "x", "on": True}}


def test_what_is_read_is_taken_and_the_rest_is_left() -> None:
    """A null is taken too; the object that was given stays as it is."""
    item = dict(ITEM)
    fields = Fields(item)
    assert (fields.text("text"), fields.number("number"), fields.count("whole")) == ("a", 1.5, 7)
    assert (fields.names("list"), fields.text("null"), fields.text("nowhere")) == (("a", "b"), None, None)
    assert fields.rest() == {"object": {"name": "x", "on": True}}
    assert fields.rest("object") == {}
    assert item == ITEM


def test_a_value_of_another_kind_is_none_and_stays() -> None:
    """Read tolerantly, nothing raises and nothing is lost."""
    fields = Fields(ITEM)
    assert (fields.text("whole"), fields.count("text"), fields.number("text"), fields.names("text")) == (
        *(None, None, None),
        (),
    )
    assert fields.rest() == ITEM


def test_details_of_an_object_are_read_and_kept() -> None:
    """Its names that are on, and a text in it."""
    fields = Fields(ITEM)
    assert (fields.flags("object"), fields.flags("list")) == (("name", "on"), ("a", "b"))
    assert (fields.inner("object", "name"), fields.inner("object", "on"), fields.inner("text", "x")) == (
        "x",
        None,
        None,
    )
    assert fields.rest()["object"] == ITEM["object"]


@pytest.mark.parametrize(
    ("read", "where", "what"),
    [
        (lambda fields: fields.need("nowhere", str), "top.nowhere", "is missing"),
        (lambda fields: fields.need("whole", str), "top.whole", "is not a text but 7"),
        (lambda fields: fields.need("text", int), "top.text", "is not a whole number but 'a'"),
        (lambda fields: fields.need("number", int), "top.number", "is not a whole number but 1.5"),
        (lambda fields: fields.need("text", float, 0.0), "top.text", "is not a number but 'a'"),
        (lambda fields: fields.need("null", list), "top.null", "is not an array but null"),
        (lambda fields: fields.need("list", dict), "top.list", "is not an object but an array"),
        (lambda fields: fields.object("text"), "top.text", "is not an object but 'a'"),
        (lambda fields: fields.object("object").need("on", int), "top.object.on", "is not a whole number but True"),
        (lambda fields: fields.objects("list"), "top.list[0]", "is not an object but 'a'"),
        (lambda fields: fields.no_others(), "top.text", "is not a field of this format"),
        (lambda fields: Fields([], "top"), "top", "is not an object but an array"),
    ],
)
def test_a_strict_reading_says_where_and_what(read: Callable[[Fields], Any], where: str, what: str) -> None:
    """The path to the field and what is wrong about it, in one sentence and apart."""
    with pytest.raises(Fault) as caught:
        read(Fields(ITEM, "top"))
    assert (caught.value.where, caught.value.what, str(caught.value)) == (where, what, f"{where}: {what}")


def test_a_strict_reading_gives_the_value_or_the_default() -> None:
    """A whole number is a number too; no field is left that somebody has read."""
    fields = Fields(ITEM)
    assert (fields.need("whole", float), fields.need("text", str), fields.need("nowhere", str, "x")) == (7.0, "a", "x")
    assert each([{"a": 1}, {"a": 2}], "x", lambda item: item.need("a", int)) == (1, 2)
    for name in ("number", "null", "list", "object"):
        fields.anything(name)
    fields.no_others()


def test_the_fault_of_the_whole_has_no_place() -> None:
    """Where there is no path, the sentence is all."""
    with pytest.raises(Fault, match=r"^is not an object but 3$"):
        Fields(3)


def test_a_number_too_large_for_a_float_is_none() -> None:
    """It is a fault, not an overflow."""
    with pytest.raises(Fault, match="is not a number"):
        Fields({"x": 10**400}).need("x", float)


@pytest.mark.parametrize(
    ("value", "number"),
    [(0, 0), (4096, 4096), (4096.0, 4096), (1.5, None), (-1, None), (True, None), ("7", None), (2**63, None),
     (float("nan"), None), (float("inf"), None), (None, None), (1e300, None)],
)  # fmt: skip
def test_a_count_is_a_whole_number_from_zero_up(value: Any, number: int | None) -> None:
    """However JSON writes it."""
    assert count(value) == number


def nested(depth: int, inside: Any = "x") -> Any:
    for _ in range(depth):
        inside = [inside]
    return inside


@pytest.mark.parametrize("depth", [500, 100_000])
def test_a_value_of_any_depth_is_a_text(depth: int) -> None:
    """What is nested too deep for Python is said to be."""
    text = json_text(nested(depth))
    assert text.startswith(("[[[[", "(an array that is nested too deep"))


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([1]) | st.just({}))
def test_any_value_is_shown_shortly(value: Any) -> None:
    """An error's sentence has room for it."""
    assert 0 < len(shown(value)) <= 60
