"""Every fact of a refusal: what its error knows, letter for letter, for one answer of each kind.

Composed after LM Studio's published error texts, FastAPI's and llama.cpp's; the table is `cases/refusals.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phi4_http import errors
from phi4_http.errors import NotLMStudio, Phi4Error, ServerError, TapeMismatch
from phi4_http.flow import Answer
from phi4_http.tape.server import not_on_tape
from phi4_http.wire.refusals import read_answer, refusal

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
