"""What a server does with the system message, seen from four requests of one token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Face

from phi4 import standin
from phi4.standin import APART, CHAT, TOGETHER, StandIn, Template
from phi4_http.errors import ServerError
from phi4_http.flow import Answer, Http, run
from phi4_http.phi4.facts import SYSTEM_PROMPT
from phi4_http.phi4.template import Probe, probe
from phi4_http.server import Server

SEEN: dict[str, tuple[Template, str, bool, str]] = {
    "own turn": (standin.own_turn, "used", True, "send"),
    "built-in": (standin.built_in, "ignored", True, "omit"),
    "dropped": (standin.dropped, "ignored", True, "omit"),
    "merged": (standin.merged, "merged", True, "send"),
    "merged, blank line": (standin.merged_blank, "merged", True, "send"),
    "merged, nothing": (standin.merged_nothing, "merged", True, "send"),
    "built-in and merged": (standin.built_in_and_merged, "merged", True, "omit"),
    "unknown": (standin.unknown, "used", True, "send"),
    "user lost": (standin.user_lost, "used", False, "omit"),
    "in place": (
        lambda messages: (
            standin.own_turn(messages)
            if messages[0]["role"] == "system"
            else standin.own_turn([{"role": "system", "content": SYSTEM_PROMPT}, *messages])
        ),
        "replaced",
        True,
        "send",
    ),
}
"""Template, and what is to be seen of it: the system message, the user's words, and the advice."""


@pytest.mark.parametrize("pattern", [APART, TOGETHER], ids=["apart", "together"])
@pytest.mark.parametrize("name", SEEN)
def test_each_template_is_seen_for_what_it_does(face: Face, name: str, pattern: str) -> None:
    """In four requests of one token each, whatever the tokenizer does with line breaks."""
    template, system, kept, advice = SEEN[name]
    with StandIn(template=template, pattern=pattern) as server, face.phi(server.url) as phi:
        found = face.wait(phi.probe())
        assert (found.system, found.user_kept, found.advice) == (system, kept, advice)
        assert len(server.asked) == len(server.counting) == found.requests == 4
        prompts = [standin.count(template(body["messages"]), pattern) for body in server.counting]
        assert list(found.counts) == prompts


def test_a_model_is_probed_once(face: Face) -> None:
    """What was seen is kept, by model."""
    with StandIn() as server, face.phi(server.url) as phi:
        first = face.wait(phi.probe())
        assert face.wait(phi.probe()) is first
        assert len(server.counting) == 4
        face.wait(phi.probe("other"))
        assert [body["model"] for body in server.counting[4:]] == ["other"] * 4


@pytest.mark.parametrize("said", [None, 0, "12", True])
def test_a_server_that_does_not_count_is_not_judged(face: Face, said: Any) -> None:
    """Nothing is known, and the system message is sent."""
    with StandIn(says=lambda tokens: said) as server, face.phi(server.url) as phi:
        found = face.wait(phi.probe())
        assert (found.system, found.user_kept, found.advice) == (None, None, "send")
        assert found.counts == (None, None, None, None)


def test_a_refusal_is_raised_and_the_next_probe_asks_again(face: Face) -> None:
    """A server that fails has shown nothing."""
    failing = [True]
    with (
        StandIn(refuses=lambda path, body: "failed" if path == CHAT and failing else None) as server,
        face.phi(server.url) as phi,
    ):
        with pytest.raises(ServerError, match="the engine is gone"):
            face.wait(phi.probe())
        failing.clear()
        assert face.wait(phi.probe()).system == "used"


@pytest.mark.parametrize("name", SEEN)
def test_auto_sends_the_system_message_where_it_is_of_use(face: Face, name: str) -> None:
    """Sent where it is read; left out where it is ignored, or where the user's words would vanish."""
    template, _, _, advice = SEEN[name]
    with StandIn(template=template) as server, face.phi(server.url, system="auto") as phi:
        for number in range(2):
            assert face.ask(phi, f"Is it late? {number}", instructions="Be brief.").error is None
        assert len(server.counting) == 4
        for chat in server.chats:
            roles = [message["role"] for message in chat["messages"]]
            assert roles == (["system", "user"] if advice == "send" else ["user"])
            assert "Be brief." in chat["messages"][0]["content"]


def test_what_is_omitted_is_not_missed(face: Face) -> None:
    """Without the system message, a reply without a thought is nothing to remark on."""
    with StandIn(reply="It is.") as server, face.phi(server.url, system="omit") as phi:
        assert face.ask(phi, "Is it late?").reply.notes == ()


@given(st.lists(st.none() | st.integers(1, 60), min_size=4, max_size=4))
def test_any_counts_are_judged_without_failing(counts: list[int | None]) -> None:
    """Four numbers, or fewer: a verdict or none, and an advice that follows from it."""
    left = iter(counts)

    def perform(step: Any) -> Answer:
        assert isinstance(step, Http)
        body = f'{{"usage": {{"prompt_tokens": {next(left) or 0}}}}}'
        return Answer(step.path, 200, {"content-type": "application/json"}, body.encode())

    found: Probe = run(probe(Server(), "m"), perform)
    assert found.counts == tuple(counts)
    known = None not in counts
    assert (found.system is not None) == (found.user_kept is not None) == known
    if known:
        _, short, longer, more = counts
        assert found.user_kept == (more > short)  # type: ignore[operator]  # none of them is None
        assert (found.system == "ignored") == (longer <= short)  # type: ignore[operator]  # as above
    assert found.advice == ("omit" if found.system == "ignored" or found.user_kept is False else "send")
