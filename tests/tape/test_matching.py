"""Which exchange answers a request, and what is said where none does."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4_http.errors import TapeMismatch
from phi4_http.tape.exchange import RecordedRequest
from phi4_http.tape.matching import Match, Selection, difference

from .support import exchange


def ask(body: Any = None, path: str = "/v1/chat/completions", method: str = "POST") -> RecordedRequest:
    return RecordedRequest(method, path, body)


def test_by_content_the_order_does_not_count() -> None:
    """By content a request finds its exchange wherever it is on the tape."""
    tape = Selection([exchange("a", body={"n": 1}), exchange("b", body={"n": 2})], Match())
    assert [tape.take(ask({"n": n})).name for n in (2, 1)] == ["b", "a"]
    assert tape.unused == ()


def test_equal_requests_are_answered_in_their_order() -> None:
    """A request recorded twice is answered first by the first, then by the second, and then no more."""
    tape = Selection([exchange("a"), exchange("b")], Match())
    assert [one.name for one in tape.unused] == ["a", "b"]
    assert [tape.take(ask()).name for _ in range(2)] == ["a", "b"]
    with pytest.raises(TapeMismatch, match="recorded twice, and was played as often") as caught:
        tape.take(ask())
    assert caught.value.nearest is None
    assert [one.name for one in tape.played] == ["a", "b"]


def test_a_loop_plays_them_again() -> None:
    """With `loop` exchanges come round again, by content and in order."""
    exchanges = [exchange("a"), exchange("b")]
    by_content, in_order = (Selection(exchanges, Match(loop=True, order=order)) for order in ("content", "tape"))
    assert [by_content.take(ask()).name for _ in range(5)] == list("ababa")
    assert [in_order.take(ask()).name for _ in range(5)] == list("ababa")


def test_in_order_only_the_next_one_answers() -> None:
    """In order a request must be the next one on the tape; a miss changes nothing."""
    tape = Selection([exchange("a", body={"n": 1}), exchange("b", body={"n": 2})], Match(order="tape"))
    with pytest.raises(TapeMismatch, match="number 1 comes next") as caught:
        tape.take(ask({"n": 2}))
    assert caught.value.nearest == "a"
    assert [tape.take(ask({"n": n})).name for n in (1, 2)] == ["a", "b"]
    with pytest.raises(TapeMismatch, match="all of the tape has been played"):
        tape.take(ask({"n": 2}))


@pytest.mark.parametrize(
    ("match", "request_", "fits"),
    [
        (Match(), ask({"b": 2, "a": [1, 2]}), True),
        (Match(), ask({"a": [1, 2], "b": 2.0}), True),
        (Match(), ask({"a": [2, 1], "b": 2}), False),
        (Match(), ask({"a": [1, 2]}), False),
        (Match(), ask(None), False),
        (Match(), ask({"a": [1, 2], "b": 2}, path="/v1/completions"), False),
        (Match(), ask({"a": [1, 2], "b": 2}, method="PUT"), False),
        (Match(path=False), ask({"a": [1, 2], "b": 2}, path="/v1/completions"), True),
        (Match(method=False), ask({"a": [1, 2], "b": 2}, method="PUT"), True),
        (Match(body=False), ask("another"), True),
        (Match(ignore=("b",)), ask({"a": [1, 2], "b": 7}), True),
        (Match(ignore=("b",)), ask({"a": [1, 2]}), True),
        (Match(ignore=("a.0",)), ask({"a": [7, 2], "b": 2}), True),
        (Match(ignore=("a.*",)), ask({"a": [], "b": 2}), True),
        (Match(ignore=("*",)), ask({}), True),
        (Match(ignore=("a.0", "c.d")), ask({"a": [1, 3], "b": 2}), False),
    ],
)
def test_what_fits(match: Match, request_: RecordedRequest, fits: bool) -> None:
    """Bodies are compared as JSON: the order of keys, the spelling of numbers and ignored fields don't count."""
    assert match.fits(ask({"a": [1, 2], "b": 2}), request_) is fits


def test_ignoring_fields_changes_nobodys_body() -> None:
    """Leaving a field out of the comparison leaves it in the body."""
    body = {"a": {"b": [1, {"c": 2}]}}
    assert Match(ignore=("a.b.*.c", "a.b.0")).compared(body) == {"a": {"b": [{}]}}
    assert body == {"a": {"b": [1, {"c": 2}]}}


def test_a_mismatch_says_what_differs_from_the_nearest() -> None:
    """The nearest recorded request is the one most alike, and the difference is told by lines."""
    tape = Selection(
        [
            exchange("models", method="GET", path="/v1/models"),
            exchange("far", body={"model": "phi", "messages": [{"role": "user", "content": "Bye"}], "seed": 9}),
            exchange("near", body={"model": "phi", "messages": [{"role": "user", "content": "Hello"}], "seed": 5}),
        ],
        Match(),
        tape="tapes/hello",
    )
    with pytest.raises(TapeMismatch) as caught:
        tape.take(ask({"model": "phi", "messages": [{"role": "user", "content": "Hello"}], "seed": 7}))
    error = caught.value
    assert error.nearest == "near"
    assert error.difference == '-  "seed": 5\n+  "seed": 7'
    assert error.recorded[0] == "GET /v1/models (models)"
    assert str(error).splitlines() == [
        "POST /v1/chat/completions is not on the tape tapes/hello: no recorded request fits.",
        "Nearest is 'near' (- recorded, + this request):",
        '-  "seed": 5',
        '+  "seed": 7',
        "`phi4_http record tapes/hello --mode new -- …` adds it; in pytest, --phi4-record=new does.",
    ]
    assert "partial" not in error.facts


def test_an_empty_tape_says_so() -> None:
    """On an empty tape there is nothing to compare with."""
    with pytest.raises(TapeMismatch, match="Nothing is recorded there") as caught:
        Selection([], Match()).take(ask())
    assert caught.value.nearest is None


def test_a_long_prompt_is_cut_around_the_difference() -> None:
    """Where two long prompts differ somewhere, the place where they differ is shown, not the thousands before it."""
    told = difference(
        ask({"prompt": "x" * 5000 + "OLD" + "y" * 5000}), ask({"prompt": "x" * 5000 + "NEW" + "y" * 5000}), Match()
    )
    assert len(told) < 500
    assert "OLD" in told
    assert "NEW" in told


@given(st.text(max_size=300), st.text(max_size=300))
def test_a_difference_is_told_exactly_where_there_is_one(one: str, other: str) -> None:
    """Two requests that fit have no difference; two that don't, have one that can be read."""
    told = difference(ask({"p": one}), ask({"p": other}), Match())
    assert bool(told) is (one != other)


def test_many_differences_are_counted() -> None:
    """A hundred different lines are not all shown, but all counted."""
    told = difference(ask({str(n): 1 for n in range(100)}), ask({str(n): 2 for n in range(100)}), Match())
    assert told.splitlines()[-1] == "… and 160 more lines"


def test_long_prompts_are_compared_quickly() -> None:
    """Two prompts of 400,000 characters that differ everywhere are compared in no time."""
    one, other = (Selection([exchange("a", body={"p": text * 100_000})], Match()) for text in ("abcd", "abdc"))
    began = time.process_time()
    for tape in (one, other):
        with pytest.raises(TapeMismatch):
            tape.take(ask({"p": "acbd" * 100_000}))
    assert time.process_time() - began < 2


def test_bodies_that_are_no_json_are_compared_as_text() -> None:
    """Texts are shown by line, and what is not compared is not shown."""
    assert difference(ask("a\nb"), ask("a\nc"), Match()) == "- b\n+ c"
    assert difference(ask("a\nb"), ask("a\nc"), Match(body=False)) == ""
