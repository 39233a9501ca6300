"""How a reply ended, from what was seen of it: what is raised, in the words that the caller reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4_http.errors import EmptyReply, NotLMStudio, ServerUnreachable, SilentOverflow, StreamCut
from phi4_http.events import Outcome
from phi4_http.reply.outcome import Seen, conclude, notes

URL = "http://x/v1"
NOTHING = Seen(
    thought=None,
    thought_closed=False,
    solution="",
    from_field=False,
    called=False,
    finish_reason=None,
    usage=None,
    data=False,
    delta=False,
    done=False,
    unreadable=None,
    unread="",
    url=URL,
    signed=False,
    awaits_answer=False,
    expects_thought=False,
    further=0,
)
LATE = ServerUnreachable(URL, "nothing came for 9 s", timed_out=True, limit="idle")


def seen(**facts: Any) -> Seen:
    return NOTHING._replace(**facts)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (
            {"unread": ": ping\n\n: ping\n"},
            "it ended before any event that says something; what came is ': ping : ping'",
        ),
        (
            {"unread": ":" + "x" * 100},
            f"it ended before any event that says something; what came is {':' + 'x' * 79!r}",
        ),
        ({"data": True, "unreadable": "{" * 100}, f"it ended inside a chunk, at {'{' * 80!r}"),
        ({"data": True}, "the stream ended"),
        ({"data": True, "unread": "hello"}, "the stream ended"),
        ({"data": True, "done": True, "signed": True}, "[DONE] came"),
        (
            {"data": True, "done": True},
            "[DONE] came (another request may have ended it, as llama-cpp-python does by default)",
        ),
    ],
)
def test_a_reply_that_was_cut_says_where(facts: dict[str, Any], reason: str) -> None:
    """Only what was observed, and no more than 80 characters of what came."""
    outcome, error = conclude(seen(**facts), None, None)
    assert outcome is Outcome.CUT
    assert isinstance(error, StreamCut)
    assert error.reason == reason


def test_a_200_with_nothing_behind_it_is_told_so() -> None:
    """It is what servers do whose context is full."""
    outcome, error = conclude(NOTHING, None, None)
    assert outcome is Outcome.OVERFLOW
    assert isinstance(error, SilentOverflow)
    assert error.reason == "the server answered 200 and sent nothing"


@pytest.mark.parametrize("fault", [None, StreamCut("reset")])
@pytest.mark.parametrize("unread", ["hello", "hello\n", "hello\ndata: x", ": a\nhello\n", "DATA", "ide", "x" * 201])
def test_what_is_no_stream_of_events_is_another_servers(unread: str, fault: StreamCut | None) -> None:
    """However it ended: the address, the status and the start of what came are facts of the error."""
    outcome, error = conclude(seen(unread=unread), None, fault)
    assert outcome is Outcome.NOT_LM_STUDIO
    assert isinstance(error, NotLMStudio)
    assert error.facts == {
        "url": URL,
        "problem": "what came is no stream of events",
        "status": 200,
        "content_type": None,
        "excerpt": unread[:200],
        "missing": False,
    }


LINES = st.sampled_from(["", ":", ": ping", "data", "data:", "data: a b", "event: x", "id: 1", "retry: 9", "id"])
BEGINNINGS = [name[:length] for name in ("data:", "event:", "id:", "retry:") for length in range(1, len(name) + 1)]


@given(st.lists(LINES, max_size=4), st.sampled_from(["", *BEGINNINGS]))
def test_a_stream_that_stops_in_any_field_is_a_stream(lines: list[str], last: str) -> None:
    """Comments, fields, blank lines and half a name at the end are never called another server's."""
    unread = "\n".join([*lines, last])
    outcome, error = conclude(seen(unread=unread), None, StreamCut("reset") if unread else None)
    assert outcome is (Outcome.CUT if unread else Outcome.OVERFLOW)
    assert not isinstance(error, NotLMStudio)


def test_where_a_limit_ended_the_wait_the_limit_is_told() -> None:
    """Not that what had come by then was no stream."""
    assert conclude(seen(unread="hello"), None, LATE) == (Outcome.UNREACHABLE, LATE)


@pytest.mark.parametrize("text", [{"solution": "b"}, {"thought": "a"}, {"called": True}])
@pytest.mark.parametrize("more", [{}, {"awaits_answer": True}, {"awaits_answer": True, "finish_reason": "length"}])
def test_a_limit_after_text_has_cut_a_reply(text: dict[str, Any], more: dict[str, Any]) -> None:
    """Thought, solution or a tool call, also where the answer to a thought that was ended is waited for."""
    outcome, error = conclude(seen(data=True, **text, **more), None, LATE)
    assert outcome is Outcome.CUT
    assert isinstance(error, StreamCut)
    assert error.reason == LATE.reason


def test_an_answer_that_never_came_is_no_good_end() -> None:
    """The finish reason was the thought's own; with no fault, it stands."""
    waiting = seen(data=True, thought="a", finish_reason="length", awaits_answer=True)
    reset = StreamCut("reset")
    assert conclude(waiting, None, reset) == (Outcome.CUT, reset)
    assert conclude(waiting, None, None) == (Outcome.THOUGHT_UNCLOSED, None)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"delta": True}, "and no text"),
        ({"thought": "abc", "from_field": True}, "and all 3 characters came in a field that holds no answer"),
        (
            {"thought": "x" * 1000, "thought_closed": True},
            "and all 1,000 characters came as thought, closed, with nothing after it",
        ),
    ],
)
def test_an_empty_reply_says_where_its_text_is(facts: dict[str, Any], why: str) -> None:
    """None, in a field, or in the thought."""
    outcome, error = conclude(seen(data=True, finish_reason="stop", **facts), None, None)
    assert outcome is Outcome.EMPTY
    assert isinstance(error, EmptyReply)
    assert error.reason == f"finish reason 'stop', {why}"


def test_what_is_odd_about_a_reply_is_noted() -> None:
    """A thought that is missing, with both reasons and what to do; answers that were not read."""
    odd = seen(solution="b", finish_reason="stop", expects_thought=True, further=1)
    without, beside = notes(odd, Outcome.COMPLETE)
    assert "drops the system prompt, or its engine prints the tags as empty text, and the thought" in without
    assert without.endswith("`probe()` tells.")
    assert beside == "The server sent one more answer beside this one (`n`): only the first was read."
    assert notes(odd._replace(further=2, called=True), Outcome.COMPLETE) == (
        "The server sent 2 more answers beside this one (`n`): only the first was read.",
    )
