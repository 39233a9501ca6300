"""Lines of questions: ours, OpenAI's, and what is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4_http import BatchQuestion, InvalidRequest
from phi4_http.batch.lines import read_lines, taken


def read(*lines: Any) -> list[BatchQuestion]:
    """The questions of a file of these lines: values as JSON, bytes as they are."""
    return read_lines(b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines), "in")


def test_a_text_and_an_object_are_questions() -> None:
    """Without an id, the number of the line is that; blank lines and a byte-order mark are no matter."""
    first, second, third = read(
        b'\xef\xbb\xbf"one"\r', b"", {"id": "b", "prompt": "two", "seed": 3}, {"prompt": "three"}
    )
    assert (first.id, first.prompt, first.place) == (1, "one", "line 1")
    assert (second.id, second.prompt, second.parameters) == ("b", "two", {"seed": 3})
    assert (third.id, third.prompt) == (4, "three")


def test_a_line_of_openais_is_a_question() -> None:
    """Its messages are the history, its body's fields the parameters; unknown ones go out as they are."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 9, "user": "me"}
    line = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": {**body, "stream": False}}
    (question,) = read(line)
    assert (question.id, question.model, question.prompt) == ("r1", "m", None)
    assert question.history == ({"role": "user", "content": "hi"},)
    assert question.parameters == {"max_tokens": 9, "extra": {"user": "me"}}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"What is this?", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'"\xff"', "not UTF-8"),
        (b"3", "a text or an object"),
        ({"prompt": "x", "answer": "y"}, "'answer' is no field"),
        ({"prompt": "x", "id": True}, "the id is True"),
        ({"prompt": "x", "id": ""}, "the id is ''"),
        ({"prompt": "x", "history": "y"}, "history is a str"),
        ({"prompt": "x", "model": 3}, "model is a int"),
        ({"custom_id": "a", "body": {}, "url": "/v1/embeddings"}, "can be asked here"),
        ({"custom_id": "a", "body": {"n": 2}}, "several answers"),
        ({"custom_id": "a"}, "custom_id, method, url and body"),
    ],
)
def test_a_line_that_is_no_question_is_told_by_its_number(line: Any, words: str) -> None:
    """And the file's name."""
    with pytest.raises(InvalidRequest, match=f"^in: line 2: .*{words}"):
        read("fine", line)


def test_all_bad_lines_are_told_the_first_five_in_words() -> None:
    """So that they are mended in one go."""
    with pytest.raises(InvalidRequest, match=r"line 1: .*; line 5: .*; and 2 more$"):
        read(*[b"x"] * 7)


def test_an_id_that_two_lines_have_is_told() -> None:
    """Both lines; a number and a text are two ids; a line's number is an id too."""
    with pytest.raises(InvalidRequest, match="line 3 has the id 'a', which line 1 has"):
        read({"id": "a", "prompt": "x"}, "y", {"id": "a", "prompt": "z"})
    with pytest.raises(InvalidRequest, match="line 2 has the id 2, which line 1 has"):
        read({"id": 2, "prompt": "x"}, "y")
    assert len(read({"id": "2", "prompt": "x"}, "y")) == 2


def test_a_file_without_a_question_is_told() -> None:
    """Nothing to do is more likely a wrong file."""
    with pytest.raises(InvalidRequest, match="in: there is no question"):
        read(b"", b"")


@pytest.mark.parametrize("given", ["a text", {"prompt": "x"}, 3, b"x"])
def test_one_question_is_no_list_of_them(given: Any) -> None:
    """Its characters are not asked one by one."""
    with pytest.raises(InvalidRequest, match="questions is a"):
        taken(given)


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda one: (
            st.lists(one, max_size=3)
            | st.dictionaries(st.sampled_from(["id", "prompt", "history", "custom_id", "body"]), one)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_line_is_questions_or_is_told(line: bytes) -> None:
    """And nothing else is raised; what is a question tells itself from others."""
    try:
        found = read_lines(line, "in")
    except InvalidRequest as error:
        told = str(error)
    else:
        told = "in: " if all(len(question.digest) == 16 for question in found) else ""
    assert told.startswith("in: ")
