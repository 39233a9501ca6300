"""Characters that came in halves, and values that are nested too deep."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4_http.reply.characters import LEVELS, HalfFilter, bounded, has_half, whole

HALVES = st.text(st.sampled_from("ab日\ud83e\udde0\ud800\udfff🧠"), max_size=12)


def slow(text: str) -> str:
    """The slow reading: a first half with a second one behind it is a character, every other half is U+FFFD."""
    found, at = "", 0
    while at < len(text):
        pair = text[at : at + 2]
        if len(pair) == 2 and "\ud800" <= pair[0] <= "\udbff" and "\udc00" <= pair[1] <= "\udfff":
            found += chr(0x10000 + (ord(pair[0]) - 0xD800) * 0x400 + ord(pair[1]) - 0xDC00)
            at += 2
        else:
            found += "\ufffd" if "\ud800" <= text[at] <= "\udfff" else text[at]
            at += 1
    return found


@given(HALVES)
@settings(deadline=None, max_examples=500)
def test_halves_are_joined_where_they_meet(text: str) -> None:
    """Every other one is one U+FFFD; text without halves is what it was."""
    assert whole(text) == slow(text)
    assert has_half(text) == any("\ud800" <= character <= "\udfff" for character in text)
    assert not has_half(whole(text))


@given(st.lists(HALVES, max_size=6))
@settings(deadline=None, max_examples=500)
def test_halves_are_joined_however_a_text_is_cut(pieces: list[str]) -> None:
    """At most a first half is held back, and it comes out at the end."""
    joiner, said = HalfFilter(), ""
    for piece in pieces:
        said += joiner.feed(piece)
        assert not has_half(said)
        assert len(joiner.holds) <= 1
    assert said + joiner.flush() == slow("".join(pieces))
    assert joiner.flush() == ""


def nested(levels: int, kind: type = list) -> Any:
    """Lists, or objects, inside each other."""
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind is list else {"x": value}
    return value


@pytest.mark.parametrize("kind", [list, dict])
def test_a_value_is_kept_to_a_depth(kind: type) -> None:
    """As many levels as are allowed stay as they are; what lies below the last is cut off."""
    assert bounded(nested(LEVELS, kind)) == nested(LEVELS, kind)
    assert repr(bounded(nested(500, kind))).count("[" if kind is list else "{") == LEVELS


def test_every_text_in_a_value_is_made_whole() -> None:
    """Names of fields too."""
    assert bounded({"\ud800": ["\udfff", 1, None, {"a": "b"}]}, whole) == {"\ufffd": ["\ufffd", 1, None, {"a": "b"}]}
