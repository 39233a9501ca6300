"""What is made of a request and of a reply's events: pure, with no server."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from examples import MANY
from hypothesis import given
from hypothesis import strategies as st
from strategies import glued_and_chunked

from phi4_http import InvalidRequest, ThinkSplitter
from phi4_http.errors import (
    AuthError,
    CannotContinue,
    ContextOverflow,
    ContextTooShort,
    DoesNotFit,
    EmptyReply,
    LmsFailed,
    ModelBusy,
    ModelLoading,
    ModelNotFound,
    NotLMStudio,
    Phi4Error,
    ServerError,
    ServerUnreachable,
    StreamCut,
    TapeMismatch,
)
from phi4_http.events import Finished, Outcome, Reply, Solution, Thinking, Thought, Usage
from phi4_http.proxy.answer import Sorter, Streamed, Tagged, Whole, usage_of
from phi4_http.proxy.gate import Gate, token_of, with_lengths
from phi4_http.proxy.refused import refusal_of
from phi4_http.proxy.repair import EFFORTS, Asked, Reasoning, Repair, asked
from phi4_http.wire.listings import parse_v0_models

from .support import MESSAGES, read_stream, read_whole

PHI = "microsoft/phi-4-reasoning-plus"


def request(repair: Repair | None = None, headers: Any = None, **fields: Any) -> Asked | None:
    body = {"model": PHI, "messages": MESSAGES, **fields}
    return asked(json.dumps(body).encode(), headers or {}, repair or Repair())


def parameters(headers: Any = None, **fields: Any) -> dict[str, Any]:
    found = request(headers=headers, **fields)
    assert found is not None
    return found.parameters


# --- in ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["phi-4", "gpt-4o", "phi-4-reasoning", "", None, 7])
def test_another_model_is_not_for_us(model: Any) -> None:
    """Only Phi-4-reasoning-plus is repaired, whatever its build, unless a pattern says more."""
    assert request(model=model) is None
    assert request(model="unsloth/Phi-4-reasoning-plus-GGUF@q4") is not None
    if isinstance(model, str) and model:
        assert request(Repair(models=".*"), model=model) is not None


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'"x"'])
def test_what_nobody_can_read_passes_as_it_is(body: bytes) -> None:
    """The server behind says what is wrong with it."""
    assert asked(body, {}, Repair(models=".")) is None


def test_what_clients_always_send_is_understood() -> None:
    """Nulls, empty lists and OpenAI's bookkeeping say nothing; `max_tokens` has a newer name; the rest goes out."""
    found = parameters(
        temperature=0.2,
        max_tokens=None,
        max_completion_tokens=500,
        tools=[],
        stop=[],
        response_format={"type": "text"},
        user="me",
        metadata={"a": "b"},
        n=1,
        logprobs=False,
        stream_options={"include_usage": False},
        repetition_penalty=1.1,
    )
    assert found == {"temperature": 0.2, "max_tokens": 500, "extra": {"repetition_penalty": 1.1}}


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True},
        {"messages": []},
        {"messages": "x"},
        {"reasoning_effort": "huge"},
        {"thinking_budget": "many"},
    ],
)
def test_what_can_not_be_given_is_refused(fields: dict[str, Any]) -> None:
    """In words, before anything is sent."""
    with pytest.raises(InvalidRequest):
        request(**fields)


@pytest.mark.parametrize("settings", [{"reasoning": "x"}, {"closer": "x"}, {"keepalive": -1.0}, {"models": "("}])
def test_settings_that_can_not_be_are_refused(settings: dict[str, Any]) -> None:
    """When they are made."""
    with pytest.raises(InvalidRequest):
        Repair(**settings)


def test_the_effort_is_a_budget() -> None:
    """A header stands above a field, a number above a word, and a high effort ends no thought."""
    assert parameters(reasoning_effort="low") == {"thinking_budget": EFFORTS["low"]}
    assert parameters(reasoning_effort="high") == {}
    assert parameters(reasoning_effort="low", thinking_budget=7) == {"thinking_budget": 7}
    assert parameters({"x-thinking-budget": "9"}, thinking_budget=7) == {"thinking_budget": 9}
    assert parameters({"x-reasoning-effort": "medium"}) == {"thinking_budget": EFFORTS["medium"]}


# --- out --------------------------------------------------------------------------------------------------------------


@MANY
@given(
    pieces=glued_and_chunked(), closer=st.sampled_from(["last", "first"]), opener=st.sampled_from(["auto", "assumed"])
)
def test_nothing_is_ever_said_in_the_wrong_place(
    pieces: list[str], closer: Literal["last", "first"], opener: Literal["auto", "assumed"]
) -> None:
    """Whatever the text and its cuts: thought and content, each added up, are the splitter's, and nothing is taken
    back."""
    splitter, sorter = ThinkSplitter(closer=closer, opener=opener), Sorter(closer)
    events = [event for piece in pieces for event in splitter.feed(piece)] + splitter.close()
    said = [piece for event in events for piece in sorter.feed(event)] + sorter.release()
    assert "".join(text for kind, text in said if kind == "thought") == (splitter.thought or "")
    assert "".join(text for kind, text in said if kind == "content") == splitter.solution


@MANY
@given(pieces=glued_and_chunked())
def test_between_tags_a_plain_reader_finds_the_thought(pieces: list[str]) -> None:
    """Whoever cuts at the first closing tag has the whole thought before it, and the solution after."""
    tagged, thought = Tagged(), "".join(pieces)
    text = "".join(tagged.feed(("thought", piece)) for piece in pieces if piece) + tagged.feed(("content", "solution"))
    if not thought:
        assert text == "solution"
        return
    assert text.startswith("<think>")
    inside, _, after = text.removeprefix("<think>").partition("</think>")
    assert after == "\n\nsolution"
    assert inside.replace("&lt;", "<") == thought.replace("&lt;", "<")
    assert "<\\think>" not in inside


def test_words_stream_as_soon_as_they_are_certain() -> None:
    """The thought at once; the content at the end, or word by word where the first closing tag counts."""
    for closer, early in (("last", []), ("first", [("content", "b")])):
        sorter = Sorter(closer)  # type: ignore[arg-type]  # one of the two
        assert sorter.feed(Solution("preamble")) == []
        assert sorter.feed(Thinking("a")) == [("content", "preamble"), ("thought", "a")]
        assert sorter.feed(Thought("a", True)) == []
        assert sorter.feed(Solution("b")) == early


def reply(**fields: Any) -> Reply:
    made: dict[str, Any] = {
        "outcome": Outcome.COMPLETE,
        "thought": "abc",
        "thought_closed": True,
        "solution": "d",
        "raw": "",
        "finish_reason": "stop",
        "usage": Usage(1, 8),
    }
    return Reply(**{**made, **fields})


ASKED = Asked("m", [], {}, True, True)


@pytest.mark.parametrize(
    ("reasoning", "thought", "content"),
    [("field", "abc", "d"), ("drop", "", "d"), ("tags", "", "<think>abc</think>\n\nd")],
)
def test_the_thought_goes_where_it_is_to_go(reasoning: Reasoning, thought: str, content: str) -> None:
    """In its field, between tags, or nowhere: streamed and whole the same."""
    for kind, read in ((Streamed, read_stream), (Whole, read_whole)):
        answer = kind(ASKED, Repair(reasoning=reasoning), id="i", created=1)
        events = (Thinking("abc"), Thought("abc", True), Solution("d"), Finished(reply()))
        data = b"".join([answer.feed(event) for event in events])
        got = read(200, (data + answer.close().data).decode())
        assert (got.thought, got.content, got.succeeded) == (thought, content, True)


def test_a_thought_that_ended_by_itself_with_no_answer_is_an_error() -> None:
    """A finish reason of `stop` would look like an answer that is empty."""
    for finish, told in (("stop", True), ("length", False)):
        ended = reply(outcome=Outcome.THOUGHT_UNCLOSED, thought_closed=False, solution="", finish_reason=finish)
        for kind in (Streamed, Whole):
            answer = kind(ASKED, Repair(), id="i", created=1)
            data = answer.feed(Thinking("abc")) + answer.feed(Finished(ended))
            end = answer.close(begun=bool(data))
            assert (b"thought_unclosed" in end.data) == told
            assert (b"[DONE]" in end.data) == (not told and kind is Streamed)


def test_tokens_of_thought_are_the_servers_count_or_their_share() -> None:
    """None where the server told no tokens at all."""
    counted = Usage(1, 8, extra={"completion_tokens_details": {"reasoning_tokens": 2}})
    for usage, tokens in ((Usage(1, 8), 6), (counted, 2)):
        found = usage_of(reply(usage=usage))
        assert found is not None
        assert found["completion_tokens_details"] == {"reasoning_tokens": tokens}
        assert found["total_tokens"] == 9
    assert usage_of(reply(usage=None)) is None


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (InvalidRequest("no"), 400, "invalid_request", False),
        (ContextOverflow(9, 8), 400, "context_length_exceeded", False),
        (AuthError("no", status=401), 401, "invalid_api_key", False),
        (ModelNotFound("no"), 404, "model_not_found", False),
        (ModelLoading("no"), 503, "model_loading", True),
        (ModelBusy("m", 1.0), 503, "model_busy", True),
        (DoesNotFit("no"), 500, "load_failed", False),
        (ContextTooShort(9, 8, "m"), 500, "context_too_short", False),
        (LmsFailed(("load",), 1, "no"), 500, "lms_failed", False),
        (ServerError("no", status=200), 502, "server_error", False),
        (ServerError("no", status=422), 422, "server_error", False),
        (ServerUnreachable("u", "no"), 502, "upstream_unreachable", True),
        (ServerUnreachable("u", "no", timed_out=True), 504, "upstream_timeout", True),
        (NotLMStudio("u", "no"), 502, "upstream_not_lm_studio", False),
        (StreamCut("no"), 502, "stream_cut", True),
        (EmptyReply("no"), 502, "empty_reply", False),
        (CannotContinue("m", 1, {}), 502, "cannot_continue", False),
        (TapeMismatch("GET", "/"), 502, "not_on_tape", False),
        (Phi4Error(), 500, "unexpected", False),
    ],
)
def test_an_error_has_a_true_status_and_a_code(error: Phi4Error, status: int, code: str, retry: bool) -> None:
    """Every error that there is."""
    refusal = refusal_of(error)
    assert (refusal.status, refusal.body["error"]["code"], refusal.retry) == (status, code, retry)
    assert refusal.body["error"]["message"] == str(error)


# --- the gate, and lists ----------------------------------------------------------------------------------------------


def test_the_gate_lets_in_only_who_means_us() -> None:
    """Host, target, and the pages of other machines."""
    gate = Gate(frozenset({"studio.lan"}), frozenset({"https://chat.example"}))

    def code(target: str = "/v1/models", **headers: str) -> str | None:
        given = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
        found = gate.refuses(target, given, "127.0.0.1")
        return found and found[2]

    assert code() is None
    assert code(host="studio.lan:80") is None
    assert code(host="evil.example") == "host_not_allowed"
    assert code("//evil/x") == "bad_target"
    assert code(origin="https://evil.example") == "origin_not_allowed"
    for origin in ("https://chat.example", "http://localhost:3000", "app://obsidian.md", "null"):
        assert code(origin=origin) is None


@pytest.mark.parametrize(
    ("given", "token"),
    [("Bearer abc", "abc"), ("bearer  abc", "abc"), ("Basic abc", None), ("Bearer", None), ("", None)],
)
def test_the_callers_token_is_found(given: str, token: str | None) -> None:
    """A bearer's, and no other."""
    assert token_of([(b"authorization", given.encode())]) == token


def test_models_say_their_context() -> None:
    """Loaded, or as it is to be loaded, or the most that it can have; what the server says itself stays."""
    infos = parse_v0_models(
        {
            "data": [
                {"id": PHI, "state": "not-loaded", "max_context_length": 32768},
                {"id": "a", "state": "loaded", "max_context_length": 8192, "loaded_context_length": 4096},
            ]
        }
    )
    body = json.dumps({"object": "list", "data": [{"id": PHI}, {"id": "a", "state": "mine"}, {"id": "b"}]}).encode()
    phi, a, b = json.loads(with_lengths(body, infos, Repair(), 16384))["data"]
    assert phi == {"id": PHI, "context_length": 16384, "max_context_length": 32768, "state": "not-loaded"}
    assert a == {
        "id": "a",
        "state": "mine",
        "context_length": 4096,
        "loaded_context_length": 4096,
        "max_context_length": 8192,
    }
    assert b == {"id": "b"}
    assert with_lengths(b"no list", infos, Repair(), None) == b"no list"
