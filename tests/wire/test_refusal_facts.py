"""Every fact of a refusal: what its error knows, letter for letter, for one answer of each kind.

Composed after LM Studio's published error texts, FastAPI's and llama.cpp's; the table is `cases/refusals.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phi4_http import errors
from phi4_http.errors import ContextOverflow, ModelNotFound, NotLMStudio, Phi4Error, ServerError, TapeMismatch
from phi4_http.flow import Answer
from phi4_http.tape.server import not_on_tape
from phi4_http.wire.refusals import LOOKED_AT, failure, read_answer, read_json, refusal

URL = "http://x/y"
REFUSALS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "cases" / "refusals.json").read_text(encoding="utf-8")
)
each_refusal = pytest.mark.parametrize("row", REFUSALS, ids=range(len(REFUSALS)))


def facts_of(error: Phi4Error) -> dict[str, Any]:
    """What an error says; the address, which each has, and what says nothing are left out."""
    return {name: value for name, value in error.facts.items() if name != "url" and value not in (None, "", (), False)}


@each_refusal
def test_an_error_knows_all_that_was_said(row: dict[str, Any]) -> None:
    """Its class and every fact; what the body says counts before what the status does."""
    body, said = row["body"].encode(), {"status": row["status"], "content_type": row["content_type"]}
    error = refusal(body, url=URL, model="m", wanted="a stream", **said)
    assert type(error) is getattr(errors, row["error"])
    assert facts_of(error) == row["facts"]
    assert error.facts.get("url", URL) == URL


@each_refusal
def test_where_json_was_wanted_the_error_says_so(row: dict[str, Any]) -> None:
    """A good object is no error there; all else is the same error, in the words for JSON."""
    headers = {} if row["content_type"] is None else {"content-type": row["content_type"]}
    answer = Answer(URL, row["status"], headers, row["body"].encode())
    if row["body"].startswith('{"object"'):
        assert read_answer(answer, dict, "m") == {"object": "chat.completion"}
        return
    with pytest.raises(getattr(errors, row["error"])) as caught:
        read_answer(answer, dict, "m")
    wanted = json.loads(json.dumps(row["facts"]).replace("where a stream was", "where JSON was"))
    assert facts_of(caught.value) == wanted


def test_a_good_answer_that_cant_be_read_is_told_with_its_excerpt() -> None:
    """What it lacks, and how it begins."""

    def parse(payload: Any) -> None:
        raise ValueError("data: is missing")

    answer = Answer(URL, 200, {"content-type": "application/json"}, b'{"a": 1}')
    with pytest.raises(NotLMStudio) as caught:
        read_answer(answer, parse, None)
    assert caught.value.facts == {
        "url": URL,
        "problem": "its answer can't be read: data: is missing",
        "status": 200,
        "content_type": "application/json",
        "excerpt": '{"a": 1}',
        "missing": False,
    }


@pytest.mark.parametrize(
    "mismatch",
    [
        TapeMismatch("POST", "/v1/x", reason="why", nearest="one", difference="- a\n+ b", recorded=("GET /a (one)",)),
        TapeMismatch("GET", "/v1/models", reason="all of the tape has been played"),
    ],
)
def test_our_own_servers_mismatch_comes_through_whole(mismatch: TapeMismatch) -> None:
    """All but the name of the tape, which is the server's own business."""
    error = refusal(not_on_tape(mismatch), url=URL, status=404, content_type="application/json")
    assert isinstance(error, TapeMismatch)
    assert error.facts == mismatch.facts


def test_a_mismatch_with_nothing_in_it_is_still_one() -> None:
    """Nor does one with other things in its place break anything."""
    for more in ("", ', "difference": 7, "recorded": {"a": 1}, "nearest": null, "method": 3'):
        body = b'{"error": {"message": "m", "type": "tape_mismatch"%b}}' % more.encode()
        error = refusal(body, url=URL, status=404, content_type="application/json")
        assert isinstance(error, TapeMismatch)
        assert (error.nearest, error.difference, error.recorded) == (None, "", ())


@pytest.mark.parametrize("excerpt", [199, 200, 201, 5000])
def test_an_excerpt_has_two_hundred_characters_at_most(excerpt: int) -> None:
    """The start of what came; a message that a server wrote is not cut so short."""
    page = refusal(b"x" * excerpt, url=URL, status=200, content_type=None)
    assert isinstance(page, NotLMStudio)
    assert page.excerpt == "x" * min(excerpt, 200)
    said = refusal(b"x" * excerpt, url=URL, status=500, content_type=None)
    assert isinstance(said, ServerError)
    assert said.message == "x" * excerpt


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ('{"error": "model x is not there"}', 404, ModelNotFound),
        ('{"message": "model x is not there"}', 404, ModelNotFound),
        ('{"detail": "no model routes"}', 404, NotLMStudio),
        ('{"error": {"detail": "no model routes"}}', 404, NotLMStudio),
        ("no model routes", 404, NotLMStudio),
        ('{"error": null, "message": "boom"}', 200, ServerError),
        ('{"message": "hello"}', 200, NotLMStudio),
        ('{"message": "boom"}', 400, ServerError),
        ("boom", 400, ServerError),
    ],
)
def test_words_count_where_an_api_says_them(body: str, status: int, error: type[Phi4Error]) -> None:
    """A missing model is told from a missing route by who speaks: an API, or the framework below it."""
    found = refusal(body.encode(), url=URL, status=status, content_type=None)
    assert type(found) is error
    assert getattr(found, "message", "boom") in ("boom", "model x is not there")


@pytest.mark.parametrize("status", [300, 399])
def test_a_redirect_is_one_whatever_its_body(status: int) -> None:
    """An object in it is no good answer either."""
    with pytest.raises(NotLMStudio) as caught:
        read_json(b'{"data": []}', url=URL, status=status, content_type="application/json")
    assert caught.value.facts["problem"] == f"it redirects (HTTP {status}) where JSON was asked for"
    assert caught.value.facts["url"] == URL


def test_a_page_with_status_400_is_no_redirect() -> None:
    """It is told as a page."""
    error = refusal(b"<html>no</html>", url=URL, status=400, content_type="text/html")
    assert error.facts["problem"] == "a web page came (HTTP 400) where JSON was asked for"


def test_a_body_of_no_stated_type_is_told_so() -> None:
    """In these words."""
    error = refusal(b"hello", url=URL, status=200, content_type=None)
    assert error.facts["problem"] == "a body of no stated type came (HTTP 200) where JSON was asked for"


@pytest.mark.parametrize("cut", [False, True])
def test_a_refusal_of_which_more_was_to_come_says_so(cut: bool) -> None:
    """And only such a one does."""
    with pytest.raises(ServerError) as caught:
        read_answer(Answer(URL, 500, {}, b"busy", cut=cut), dict, "m")
    assert caught.value.message == ("busy [cut: more was to come]" if cut else "busy")
    with pytest.raises(ServerError) as caught:
        read_json(b"busy", url=URL, status=500, content_type=None)
    assert caught.value.message == "busy"


def test_where_something_else_answered_its_address_is_told() -> None:
    """The one that was asked."""
    with pytest.raises(NotLMStudio) as caught:
        read_answer(Answer(URL, 200, {}, b"<html>"), dict, "m")
    assert caught.value.url == URL


def test_an_excerpt_is_cut_in_every_place() -> None:
    """Of an answer that can't be read, bytes that are no text in it; of a message about an endpoint that is missing."""

    def parse(payload: Any) -> None:
        raise ValueError("no")

    with pytest.raises(NotLMStudio) as caught:
        read_answer(Answer(URL, 200, {}, b'{"a": "' + b"\xff" * 300 + b'"}'), parse, None)
    assert caught.value.excerpt == '{"a": "' + "\ufffd" * 193
    missing = refusal(b"x" * 300, url=URL, status=404, content_type=None)
    assert missing.facts["excerpt"] == "x" * 200


@pytest.mark.parametrize("length", [LOOKED_AT - 99, LOOKED_AT + 100, LOOKED_AT + 101])
def test_a_message_is_whole_or_says_how_long_it_was(length: int) -> None:
    """The limit leaves room for the words that say that more was to come."""
    error = failure({"error": "x" * length}, url=URL, status=500)
    assert isinstance(error, ServerError)
    whole = length <= LOOKED_AT + 100
    assert error.message == ("x" * length if whole else f"{'x' * LOOKED_AT} [cut: {length:,} characters came]")


def test_counts_of_one_digit_are_counts() -> None:
    """A context of eight tokens is small, and is one."""
    error = failure({"error": "request (9 tokens) exceeds the available context size (8 tokens)"}, url=URL, status=400)
    assert isinstance(error, ContextOverflow)
    assert (error.needed, error.limit) == (9, 8)
