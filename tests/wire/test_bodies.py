"""Bodies of requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4_http.errors import InvalidRequest
from phi4_http.wire.bodies import chat_body, completion_body, embeddings_body, encode, streamed


def test_a_body_is_utf8_json_with_nothing_escaped() -> None:
    """Characters go out as themselves, not as escapes, which would cost a server's tokeniser nothing and us bytes."""
    assert encode({"text": "é 中 🧠", "number": 0.8}) == '{"text":"é 中 🧠","number":0.8}'.encode()


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))
    )
)
@settings(deadline=None)
def test_what_goes_out_is_what_was_given(body: dict[str, str]) -> None:
    """Any text survives."""
    assert json.loads(encode(body)) == body


@pytest.mark.parametrize("text", ["a\ud800", "\udc80b", "🧠\ude00"])
def test_half_a_character_is_refused_with_where_it_stands(text: str) -> None:
    """A lone surrogate can't be sent as UTF-8; the text before it is told."""
    with pytest.raises(InvalidRequest, match="surrogate"):
        encode({"messages": [{"content": text}]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, b"x"])
def test_what_json_can_t_hold_is_refused(value: Any) -> None:
    """No number that is none, no bytes, no objects."""
    with pytest.raises(InvalidRequest):
        encode({"x": value})


def test_what_holds_itself_is_refused() -> None:
    """A body without end is an invalid request, not a crash."""
    body: dict[str, Any] = {}
    body["x"] = body
    with pytest.raises(InvalidRequest):
        encode(body)


def test_what_is_nested_too_deep_is_refused() -> None:
    """Not a RecursionError."""
    body: dict[str, Any] = {}
    for _ in range(100_000):
        body = {"x": body}
    with pytest.raises(InvalidRequest, match="nested too deep"):
        encode(body)


def test_bodies_hold_what_was_given_and_leave_it_alone() -> None:
    """Parameters stand beside messages, prompt or input; what the caller gave is not changed."""
    message = {"role": "user", "content": "a"}
    body = chat_body("phi", (message,), {"temperature": 0, "seed": None, "extra": {"x": 1}})
    assert body == {"model": "phi", "messages": [message], "temperature": 0, "x": 1}
    assert body["messages"][0] is not message
    assert completion_body("phi", "a", {"max_tokens": 1}) == {"model": "phi", "prompt": "a", "max_tokens": 1}
    assert embeddings_body("e", "a", {}) == {"model": "e", "input": "a"}
    assert embeddings_body("e", ("a", "b"), {"x": 1}) == {"model": "e", "input": ["a", "b"], "x": 1}


def test_a_stream_ends_with_its_counts_unless_told_otherwise() -> None:
    """The caller's own options count."""
    assert streamed({"x": 1}) == {"x": 1, "stream": True, "stream_options": {"include_usage": True}}
    assert streamed({"stream_options": {"include_usage": False}})["stream_options"] == {"include_usage": False}


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (chat_body, (" ", [{"role": "user"}], {})),
        (chat_body, ("phi", [], {})),
        (chat_body, ("phi", "hello", {})),
        (chat_body, ("phi", ["hello"], {})),
        (completion_body, ("phi", "", {})),
        (completion_body, (7, "a", {})),
        (embeddings_body, ("e", [], {})),
        (embeddings_body, ("e", ["a", ""], {})),
        (embeddings_body, ("e", "a", {"input": "b"})),
    ],
)
def test_what_can_t_be_sent_is_refused_before_it_is(make: Any, arguments: Any) -> None:
    """Empty names, prompts and messages, and fields that the call itself sets."""
    with pytest.raises(InvalidRequest):
        make(*arguments)
