"""What an answer that is no good answer means."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phi4_http.errors import (
    AuthError,
    ContextOverflow,
    LoadFailed,
    ModelLoading,
    ModelNotFound,
    NotLMStudio,
    Phi4Error,
    ServerError,
)
from phi4_http.wire.refusals import LOOKED_AT, failure, read_json, refusal

URL = "http://127.0.0.1:1234/v1/chat/completions"


def fail(payload: Any, status: int | None = None, **options: Any) -> Phi4Error:
    return failure(payload, url=URL, status=status, **options)


def refuse(body: bytes | str, status: int = 200, content_type: str | None = "application/json") -> Phi4Error:
    data = body.encode() if isinstance(body, str) else body
    return refusal(data, url=URL, status=status, content_type=content_type)


# --- overflow ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "needed", "limit"),
    [
        (
            "Trying to keep the first 9137 tokens when context the overflows. However, the model is loaded with "
            "context length of only 8192 tokens, which is not enough.",
            9137,
            8192,
        ),
        (
            "The number of tokens to keep from the initial prompt is greater than the context length "
            "(n_keep: 9137>= n_ctx: 8192). Try to load the model with a larger context length.",
            9137,
            8192,
        ),
        ("The number of tokens to keep from the initial prompt is greater than the context length", None, None),
        ("Cannot truncate prompt with n_keep (9137) >= n_ctx (8192)", 9137, 8192),
        (
            "Input does not fit in context length. The input has 31430 tokens, but the context length only supports "
            "30000 tokens.",
            31430,
            30000,
        ),
        ("Input does not fit in context length.", None, None),
        (
            "Reached context length of 8192 tokens with model (arch: phi3) that does not currently support "
            "mid-generation context overflow.",
            None,
            8192,
        ),
        ("Context size has been exceeded", None, None),
        ("Context size has been exceeded.", None, None),
        ("request (9,137 tokens) exceeds the available context size (8,192 tokens), try increasing it", 9137, 8192),
        ("the request exceeds the available context size. try increasing the context size", None, None),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 18068 tokens (18063 in the "
            "messages, 5 in the completion).",
            18068,
            4096,
        ),
        ("This model's maximum context length is 4096 tokens. However, your prompt has 5000 input tokens.", 5000, 4096),
    ],
)
@pytest.mark.parametrize("form", ["text", "object", "prefixed", "lower case", "broken into lines"])
def test_every_known_text_of_an_overflow_is_read_with_its_numbers(
    text: str, needed: int | None, limit: int | None, form: str
) -> None:
    """As a text, as an object's message, after other words, in any case, over several lines: the same numbers."""
    payload: Any = {
        "text": {"error": text},
        "object": {"error": {"message": text}},
        "prefixed": {"error": {"message": f"Error: failed to process the request. {text}"}},
        "lower case": {"error": text.lower()},
        "broken into lines": {"error": text.replace(". ", ".\n")},
    }[form]
    error = fail(payload, 400)
    assert type(error) is ContextOverflow
    assert (error.needed, error.limit, error.status) == (needed, limit, 400)


@pytest.mark.parametrize("field", ["code", "type"])
@pytest.mark.parametrize("code", ["exceed_context_size_error", "context_length_exceeded"])
def test_the_code_of_an_overflow_is_enough(field: str, code: str) -> None:
    """With a text that nobody knows, the code says what it is, and llama.cpp's fields have the numbers."""
    error = fail({"error": {"message": "too long", field: code, "n_prompt_tokens": 9, "n_ctx": 8}}, 400)
    assert isinstance(error, ContextOverflow)
    assert (error.needed, error.limit, error.message) == (9, 8, "too long")


@pytest.mark.parametrize(
    "text",
    [
        "Failed to load model: context length 4096 is not supported",
        "The context was deleted",
        "max_tokens exceeds the limit",
        "Unknown parameter n_ctx",
    ],
)
def test_other_talk_of_contexts_is_no_overflow(text: str) -> None:
    """A word is not enough."""
    assert not isinstance(fail({"error": text}, 400), ContextOverflow)


# --- other refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "status", "kind"),
    [
        ({"error": {"message": "no token", "code": "invalid_api_key"}}, 401, AuthError),
        ({"error": {"message": "no token"}}, 401, AuthError),
        ({"error": {"message": "not yours"}}, 403, AuthError),
        ({"error": {"message": "bad key", "type": "authentication_error"}}, 400, AuthError),
        ({"error": {"message": "bad key", "code": "invalid_api_key"}}, 200, AuthError),
        ({"error": {"message": "gone", "code": "model_not_found"}}, 404, ModelNotFound),
        ({"error": {"message": "gone", "code": "model_not_found"}}, 400, ModelNotFound),
        ({"error": "No models loaded. Please load a model."}, 404, ModelNotFound),
        ({"error": "No models loaded. Please load a model."}, 400, ModelNotFound),
        ({"error": {"message": "The model `x` does not exist."}}, 404, ModelNotFound),
        ({"error": 'Failed to load model "x". Error: Operation canceled.'}, 400, LoadFailed),
        ({"error": "Model loading was stopped due to insufficient system resources."}, 500, LoadFailed),
        ({"error": {"message": "Loading model", "code": 503}}, 503, ModelLoading),
        ({"error": {"message": "Overloaded"}}, 503, ServerError),
        ({"error": {"message": "boom"}}, 500, ServerError),
        ({"error": None, "message": "boom"}, 500, ServerError),
        ({"detail": "Method Not Allowed"}, 405, NotLMStudio),
        ({"error": {"message": "This server does not support embeddings.", "code": 501}}, 501, NotLMStudio),
        ({"error": {"message": "gone", "code": "model_not_found"}}, 501, ModelNotFound),
        ({"error": "Unexpected endpoint or method. (GET /x)"}, 200, NotLMStudio),
        ({"detail": "Not Found"}, 404, NotLMStudio),
        ({"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}, 404, NotLMStudio),
        ({"detail": [{"msg": "field required"}]}, 422, ServerError),
        ({"message": "flat", "type": "BadRequestError"}, 400, ServerError),
    ],
)
def test_a_body_says_what_went_wrong(payload: Any, status: int, kind: type[Phi4Error]) -> None:
    """Body first, status second."""
    error = fail(payload, status)
    assert type(error) is kind
    assert str(error)


def test_the_servers_own_words_and_codes_are_kept() -> None:
    """Message, code, type and status are facts of the error."""
    error = fail({"error": {"message": "It broke.", "code": "E7", "type": "odd", "more": 1}}, 418)
    assert error.facts == {"message": "It broke.", "status": 418, "code": "E7", "kind": "odd"}


def test_a_missing_model_is_named() -> None:
    """The name that was asked for is in the error, not only in the server's words."""
    error = fail({"error": {"message": "gone", "code": "model_not_found"}}, 404, model="phi-5")
    assert isinstance(error, ModelNotFound)
    assert error.model == "phi-5"


def test_an_error_without_words_has_a_sentence_all_the_same() -> None:
    """An empty body with an error status is told by its status."""
    for body in ("", "  \n", "{}"):
        error = refuse(body, 500)
        assert isinstance(error, ServerError)
        assert "500" in str(error)


@pytest.mark.parametrize(
    ("body", "status", "content_type", "words"),
    [
        ("<!DOCTYPE html><title>Sign in</title>", 200, "text/html", "web page"),
        ("\n\n  <HTML>", 404, "text/html", "web page"),
        ("", 200, None, "empty body"),
        ("hello", 200, "text/plain", "text/plain"),
        ("hello", 200, None, "no stated type"),
        ("[1]", 200, "application/json", "application/json"),
        ("moved", 302, "text/plain", "redirects"),
        ('{"error": "Unexpected endpoint or method. (GET /x)"}', 200, "application/json", "no such endpoint"),
        ("404 page not found", 404, "text/plain", "no such endpoint"),
    ],
)
def test_what_is_not_the_api_is_told_with_what_came_instead(
    body: str, status: int, content_type: str | None, words: str
) -> None:
    """Status, type and the start of the body are facts; the sentence says what it looks like."""
    error = refuse(body, status, content_type)
    assert isinstance(error, NotLMStudio)
    assert words in str(error)
    assert (error.status, error.content_type) == (status, content_type)
    assert len(error.excerpt) <= 200


@pytest.mark.parametrize("name", ["", "event: error\n", "event: error\r\nid: 1\r\n"])
def test_a_refusal_framed_as_an_event_is_read(name: str) -> None:
    """A failure may come as `data: {…}` where no stream was begun."""
    error = refuse(
        name + 'data: {"error": {"message": "Context size has been exceeded"}}\n\n', 400, "text/event-stream"
    )
    assert isinstance(error, ContextOverflow)
    assert error.message == "Context size has been exceeded"


def test_a_long_page_is_cut_to_an_excerpt() -> None:
    """Not more than 200 characters of somebody's page are carried around, and the sentence stays on one line."""
    error = refuse("<html>\n" + "x\n" * 10_000)
    assert isinstance(error, NotLMStudio)
    assert len(error.excerpt) == 200
    assert "\n" not in str(error)


def test_a_good_answer_is_its_json() -> None:
    """An object without an error, with a status of 2xx; `"error": null` is no error."""
    for body in (b'{"data": []}', b'{"data": [], "error": null}'):
        value = read_json(body, url=URL, status=200, content_type="application/json")
        assert value["data"] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[]", 200),
        (b"1", 200),
        (b"", 200),
        (b"{", 200),
        (b'{"error": "x"}', 200),
        (b'{"data": []}', 500),
        (b"\xff", 200),
    ],
)
def test_any_other_answer_is_an_error(body: bytes, status: int) -> None:
    """A list, a number, half an object, an error: none of them is handed on."""
    with pytest.raises(Phi4Error):
        read_json(body, url=URL, status=status, content_type="application/json")


VALUES = st.sampled_from([None, True, 0, 404, 1.5, "", "x", "model", "loading", [], ["x"], {}, {"message": "x"}])


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "error": VALUES | st.dictionaries(st.sampled_from(["message", "code", "type", "detail", "n_ctx"]), VALUES),
            "message": VALUES,
            "detail": VALUES,
            "code": VALUES,
        },
    )
    | VALUES,
    st.sampled_from([200, 301, 400, 401, 404, 422, 500, 503]),
)
@example([[]], 200)
def test_any_json_makes_an_error_with_a_sentence(payload: Any, status: int) -> None:
    """Whatever comes in the place of an answer, it becomes one of this library's errors."""
    error = refuse(json.dumps(payload), status)
    assert isinstance(error, Phi4Error)
    assert str(error)
    assert getattr(error, "status", status) == status


@given(st.binary(max_size=300), st.sampled_from([200, 302, 400, 404, 500]))
def test_any_bytes_make_an_error_with_a_sentence(body: bytes, status: int) -> None:
    """So do bytes that are no text."""
    assert str(refuse(body, status))


@pytest.mark.parametrize("piece", ["[", '{"a":', "9"])
def test_json_that_is_too_deep_or_too_long_to_read_is_no_json(piece: str) -> None:
    """What makes `json.loads` give up is an error of this library, not one of Python's."""
    error = refuse(piece * 100_000)
    assert isinstance(error, NotLMStudio)


@pytest.mark.parametrize(
    ("body", "status", "missing"),
    [
        ('{"error": "Unexpected endpoint or method. (GET /x)"}', 200, True),
        ('{"detail": "Not Found"}', 404, True),
        ("404 page not found", 404, True),
        ("<html>nothing here</html>", 404, True),
        ('{"detail": "Method Not Allowed"}', 405, True),
        ("", 501, True),
        ("<html>sign in</html>", 200, False),
        ("hello", 200, False),
        ("moved", 302, False),
    ],
)
def test_an_endpoint_that_is_missing_is_told_from_a_server_that_is_another(
    body: str, status: int, missing: bool
) -> None:
    """Where the server says that there is none, another endpoint may be there."""
    error = refuse(body, status)
    assert isinstance(error, NotLMStudio)
    assert error.missing is missing


@pytest.mark.parametrize(
    "payload",
    [
        {"error": None, "message": "boom"},
        {"error": "", "message": "boom"},
        {"error": {}, "message": "boom"},
        {"error": True, "message": "boom"},
        {"error": {"code": 7}, "message": "boom"},
        {"error": {"message": None, "detail": "boom"}},
        {"error": "boom", "message": "something else"},
    ],
)
def test_the_message_is_found_where_the_error_is_empty(payload: Any) -> None:
    """The error itself counts first; without words in it, those beside it do."""
    for error in (fail(payload, 500), refuse(json.dumps(payload), 500)):
        assert isinstance(error, ServerError)
        assert error.message == "boom"


def test_an_error_that_is_null_is_none() -> None:
    """Some servers write it into every answer: where a stream was asked for, JSON came."""
    error = refuse('{"error": null, "choices": []}')
    assert isinstance(error, NotLMStudio)


@pytest.mark.parametrize(
    "unit",
    [
        "keep the first 9 tokens when context the overflows ",
        "does not fit in context length has 9 ",
        "maximum context length is 9 tokens requested ",
        "n_keep: 9 n_keep (9) request (9 tokens) ",
        "9",
        " ",
        "data:\n",
        "é",
    ],
)
@pytest.mark.parametrize("form", ["text", "JSON"])
def test_a_long_error_takes_no_longer_than_its_length(unit: str, form: str) -> None:
    """Of 8 million characters one is looked at, and the message says that it was cut."""
    text = "boom " + unit * (8_000_000 // len(unit)) + "."
    began = time.perf_counter()
    error = refuse(text if form == "text" else json.dumps({"error": {"message": text}}), 500)
    assert time.perf_counter() - began < 5
    assert isinstance(error, ServerError)
    assert len(error.message) < LOOKED_AT + 100
    assert error.message.startswith("boom ") or isinstance(error, ContextOverflow)
    assert "[cut: " in error.message


def nested(depth: int, form: str) -> str:
    opened, closed = {"array": ("[", "]"), "object": ('{"message":', "}")}[form]
    return '{"error": ' + opened * depth + "1" + closed * depth + "}"


@pytest.mark.parametrize("form", ["array", "object"])
@pytest.mark.parametrize("depth", [500, 900, 100_000])
@pytest.mark.parametrize("status", [200, 500])
def test_a_refusal_of_any_depth_is_an_error_of_ours(form: str, depth: int, status: int) -> None:
    """Never a RecursionError, however much of the stack is used already."""
    assert isinstance(refuse(nested(depth, form), status), Phi4Error)
    with pytest.raises(Phi4Error):
        read_json(nested(depth, form).encode(), url=URL, status=status, content_type=None)


def test_what_was_read_with_a_deeper_stack_is_told_with_a_shallow_one() -> None:
    """A stream's data has been read elsewhere; what can't be written again is said to be nested too deep."""
    payload: Any = "x"
    for _ in range(sys.getrecursionlimit() * 200):
        payload = [payload]
    error = fail({"error": {"message": payload, "code": payload, "type": payload}}, 500)
    assert isinstance(error, ServerError)
    assert (error.code, error.kind) == (None, None)
    assert "nested too deep" in error.message


@pytest.mark.parametrize("number", ["9" * 5_000, "9" * 19, "9" * 20, ",,,", "٣٤", "9,", "0"])
def test_a_number_of_any_length_and_form_is_read_or_left(number: str) -> None:
    """It is an overflow all the same."""
    error = fail({"error": f"request ({number} tokens) exceeds the available context size ({number} tokens)"}, 400)
    assert isinstance(error, ContextOverflow)
    assert error.needed is None or 0 <= error.needed < 2**63
    assert str(error)


@pytest.mark.parametrize("value", [10**4000, -1, 1.5, 8192.0, True, "8192", None, [8192], float("inf")])
def test_a_number_in_a_field_is_a_count_or_none(value: Any) -> None:
    """llama.cpp's own fields are not believed blindly."""
    error = fail({"error": {"message": "x", "type": "exceed_context_size_error", "n_ctx": value}}, 400)
    assert isinstance(error, ContextOverflow)
    assert error.limit == (8192 if value == 8192 and not isinstance(value, str) else None)
    assert str(error)
