"""The shortcut through a chunk that is like the one before."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from support import delta, usage

from phi4_http.reply.frame import Frame, only_text

PLAIN = json.dumps(delta("a"))


def holding(content: Any) -> dict[str, Any]:
    """A chunk with anything in the place of its text."""
    chunk = delta("a")
    chunk["choices"][0]["delta"]["content"] = content
    return chunk


def frame_of(chunk: Any) -> Frame | None:
    """The frame of a chunk's own text."""
    found = only_text(chunk)
    assert found is not None
    return Frame.around(found[1], json.dumps(chunk))


@pytest.mark.parametrize("text", ["b", "<think>", 'a "quote" \\ \n', "\ud83e", "日本", ' "content": "a", ', "}]}"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_frame_gives_the_text_of_a_chunk_like_its_own(text: str, ascii_only: bool) -> None:
    """Whatever the text, and however it is written."""
    frame = Frame.around("a", PLAIN)
    assert frame is not None
    assert frame.text(json.dumps(delta(text), ensure_ascii=ascii_only)) == text


@pytest.mark.parametrize(
    "chunk",
    [
        delta("a", finish="stop"),
        delta("a", role="assistant"),
        delta("a", reasoning_content="b"),
        holding(["a"]),
        holding(7),
        holding(None),
        delta(""),
        holding([["a"]]),
        {**delta("a"), "usage": {"completion_tokens": 1}},
        {"error": "x", **delta("a")},
        usage(1, 1),
    ],
)
def test_another_chunk_has_another_frame(chunk: Any) -> None:
    """Anything more or less than another text is to be read whole."""
    frame = Frame.around("a", PLAIN)
    assert frame is not None
    assert frame.text(json.dumps(chunk)) is None


@pytest.mark.parametrize("data", ["", "[DONE]", PLAIN[:-1], PLAIN[1:], PLAIN.replace('"a"', '"a'), PLAIN + " "])
def test_what_is_no_such_chunk_has_no_text(data: str) -> None:
    """Cut, broken, or something else."""
    frame = Frame.around("a", PLAIN)
    assert frame is not None
    assert frame.text(data) is None
    assert frame.text(PLAIN.replace('"a"', "[" * 100_000)) is None


@pytest.mark.parametrize(
    "chunk",
    [
        {"content": "a", **delta("a")},
        {**delta("a"), "content": "a"},
        {"note": '"content":', **delta("a")},
        {'x"content': "a", **delta("a")},
        {"text": "a", "choices": [{"text": "a"}]},
        delta(reasoning="a"),
        delta(reasoning_content="a"),
        delta(content=None, reasoning_content="a"),
    ],
)
def test_the_text_is_found_among_others_that_look_like_it(chunk: Any) -> None:
    """The string that is taken for the text is the one that a reader of the whole chunk takes, and no other is."""
    frame, data = frame_of(chunk), json.dumps(chunk)
    assert frame is not None
    for place in re.finditer('"a"', data):
        other = f'{data[: place.start()]}"b"{data[place.end() :]}'
        found = only_text(json.loads(other))
        assert frame.text(other) == ("b" if found is not None and found[1] == "b" else None)


def test_a_text_that_nobody_finds_has_no_frame() -> None:
    """Its name is written in another way, or there are too many of it."""
    assert Frame.around("a", PLAIN.replace('"content"', r'"\u0063ontent"')) is None
    assert Frame.around("a", json.dumps({**{f"{n}": {"text": "a"} for n in range(9)}, **delta("a")})) is None


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"content": "a"}, "finish_reason": "stop"},
        {"delta": {"content": "a"}, "index": 1},
        {"delta": {"content": "a"}, "logprobs": {"content": [1]}},
        {"delta": {"content": "a", "tool_calls": [{}]}},
        {"delta": {"content": "a", "reasoning": "b"}},
        {"delta": {"content": ["a"]}},
        {"delta": {}},
        "a",
    ],
)
def test_what_adds_up_is_not_text_alone(choice: Any) -> None:
    """Such a chunk says more each time it comes, even where it looks the same."""
    assert only_text({"choices": [choice]}) is None
    assert only_text({"choices": [choice, choice]}) is None
