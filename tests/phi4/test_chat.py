"""A conversation over HTTP: what each ending leaves in it, what of it goes out, and what it has learned."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest
from examples import FEW
from hypothesis import given
from hypothesis import strategies as st
from support import FACES, Face, Recording, delta, playing, sse, usage

from phi4 import standin
from phi4.histories import Message, chats
from phi4.standin import CHAT, MODEL, RAW, StandIn, Trouble
from phi4_http.errors import ContextOverflow, Phi4Error, ServerError
from phi4_http.events import Outcome, Reply, Revised, Solution, Thinking
from phi4_http.phi4.conversation import Conversation, build_messages
from phi4_http.phi4.facts import SYSTEM_PROMPT

BEFORE: list[Message] = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "No."}]
NEXT = "And now?"


def said(prompt: str, answer: str) -> list[Message]:
    """A turn, as it is kept."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def ask(face: Face, chat: Any, prompt: str = NEXT, **options: Any) -> Reply | Phi4Error:
    """One turn; its error where it fails."""
    try:
        reply: Reply = face.wait(chat.ask(prompt, **options))
    except Phi4Error as error:
        return error
    return reply


# --- what an ending leaves --------------------------------------------------------------------------------------------

ENDINGS: dict[str, tuple[dict[str, Any], dict[str, Any], Outcome, str | None]] = {
    "complete": ({}, {}, Outcome.COMPLETE, "The answer is 4."),
    "no thought": ({"reply": "It is 4."}, {}, Outcome.COMPLETE, "It is 4."),
    "forced": ({"reply": "<think>I never"}, {"on_unclosed": "answer"}, Outcome.COMPLETE, "So it is 4."),
    "truncated": ({"reply": "<think>I</think>It is 4."}, {"max_tokens": 4}, Outcome.SOLUTION_TRUNCATED, "I"),
    "unclosed": ({"reply": "<think>I never"}, {}, Outcome.THOUGHT_UNCLOSED, None),
    "unclosed at the limit": ({}, {"max_tokens": 3}, Outcome.THOUGHT_UNCLOSED, None),
    "empty": ({"reply": "<think>I</think>"}, {}, Outcome.EMPTY, None),
    "nothing": ({"reply": ""}, {}, Outcome.OVERFLOW, None),
    "only in the field": ({"reply": "<think>It is 4.", "split_field": True}, {}, Outcome.EMPTY, None),
}
"""What the server does and what is asked; the outcome, and the answer that is kept."""
TROUBLES: dict[Trouble, Outcome] = {
    "failed": Outcome.SERVER_ERROR,
    "loading": Outcome.SERVER_ERROR,
    "html": Outcome.NOT_LM_STUDIO,
    "missing": Outcome.NOT_LM_STUDIO,
    "overflow": Outcome.OVERFLOW,
    "silent": Outcome.OVERFLOW,
    "cut": Outcome.CUT,
    "reset": Outcome.CUT,
    "framed": Outcome.SERVER_ERROR,
    "unreadable": Outcome.CUT,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_a_reply_leaves_in_the_history(face: Face, ending: str) -> None:
    """Prompt and solution where there is one, whole or cut by the limit; else nothing; the next turn goes on so."""
    server_options, options, outcome, answer = ENDINGS[ending]
    with StandIn(**server_options) as server, face.phi(server.url) as phi:
        chat = phi.chat(BEFORE)
        ended = ask(face, chat, **options)
        reply = ended.partial if isinstance(ended, Phi4Error) else ended
        assert reply is not None
        assert reply.outcome is outcome
        kept = [*BEFORE, *(said(NEXT, answer) if answer is not None else [])]
        assert list(chat.history) == kept
        ask(face, chat, "Why?")
        assert server.chats[-1]["messages"] == build_messages("Why?", history=kept)


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("part", [CHAT, RAW])
def test_a_turn_that_fails_leaves_the_history_as_it_was(face: Face, trouble: Trouble, part: str) -> None:
    """However it fails, in its first part or in its second; and the chat goes on."""
    failing = [True]
    with (
        StandIn(
            reply="<think>I never",
            refuses=lambda path, body: trouble if failing and path == part and body.get("stream") else None,
        ) as server,
        face.phi(server.url) as phi,
    ):
        chat = phi.chat(BEFORE)
        ended = ask(face, chat, on_unclosed="answer")
        if part == RAW and trouble not in ("cut", "reset", "framed", "unreadable"):
            assert isinstance(ended, Reply)
            assert ended.outcome is Outcome.THOUGHT_UNCLOSED  # its answer never began, so the thought stands
        else:
            assert isinstance(ended, Phi4Error)
            assert ended.partial is not None
            assert ended.partial.outcome is TROUBLES[trouble]
        assert list(chat.history) == BEFORE
        failing.clear()
        ask(face, chat, on_unclosed="answer")
        assert list(chat.history) == [*BEFORE, *said(NEXT, "So it is 4.")]


def test_a_turn_that_never_reached_the_server_leaves_nothing(face: Face, unused_port: int) -> None:
    """Nobody there: the history is as before."""
    with face.phi(f"http://127.0.0.1:{unused_port}", model=MODEL) as phi:
        chat = phi.chat(BEFORE)
        error = ask(face, chat)
        assert isinstance(error, Phi4Error)
        assert list(chat.history) == BEFORE


@pytest.mark.parametrize("part", [CHAT, RAW])
def test_a_turn_that_is_left_leaves_nothing(face: Face, part: str) -> None:
    """Left in the thought, or in the answer of a thought that was ended: cancelled, and forgotten."""
    with (
        StandIn(reply=f"<think>{'I never ' * 20}", holds=lambda path, body: bool(body.get("stream"))) as server,
        face.phi(server.url) as phi,
    ):
        chat = phi.chat(BEFORE)
        stream = chat.stream(NEXT, **({"thinking_budget": 3} if part == RAW else {}))
        with face.entered(stream) as reply:
            for event in face.events(reply):
                if isinstance(event, Solution if part == RAW else Thinking):
                    break
        assert server.wait_left(*([CHAT, RAW] if part == RAW else [CHAT]))
        assert stream.result.outcome is Outcome.CANCELLED
        assert list(chat.history) == BEFORE


def test_a_turn_is_in_the_history_once_the_block_is_left(face: Face) -> None:
    """Not before, and not twice."""
    with StandIn() as server, face.phi(server.url) as phi:
        chat = phi.chat()
        stream = chat.stream(NEXT)
        assert chat.history == ()
        with face.entered(stream) as reply:
            for _ in face.events(reply):
                assert chat.history == ()
        assert list(chat.history) == said(NEXT, "The answer is 4.")
        face._leave(stream)
        assert len(chat.history) == 2


def test_tool_calls_are_kept_with_their_answer(face: Face) -> None:
    """As the next request has to send them."""
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    stream = sse(delta("<think>I look.</think>"), delta(tool_calls=[call]), delta(finish="tool_calls"), usage(9, 4))
    with face.phi(playing(stream), model="phi") as phi:
        chat = phi.chat()
        ask(face, chat)
        kept = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
        assert list(chat.history) == [
            {"role": "user", "content": NEXT},
            {"role": "assistant", "content": "", "tool_calls": [kept]},
        ]


# --- what goes out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        {"reply": "<think>SECRET</think>It is 4."},
        {"reply": "SECRET</think>It is 4."},
        {"reply": "<think>SECRET</think>SECRET</think>It is 4."},
        {"reply": "<think>SECRET</think>It is 4.", "split_field": True},
        {"reply": f"<think>{'SECRET ' * 9}", "answer": "It is 4."},
    ],
    ids=["thought", "swallowed", "closed twice", "field", "forced"],
)
def test_thoughts_are_never_sent_back(face: Face, script: dict[str, Any]) -> None:
    """Of what the model has said, only the solutions; however its thought came."""
    with StandIn(**script) as server, face.phi(server.url) as phi:
        chat = phi.chat()
        for number in range(3):
            reply = ask(face, chat, f"And now {number}?", thinking_budget=7, on_unclosed="answer")
            assert isinstance(reply, Reply)
            assert "SECRET" in (reply.thought or "")
        for body in server.chats:
            assert "SECRET" not in json.dumps(body)
        assert [message["content"] for message in chat.history if message["role"] == "assistant"] == ["It is 4."] * 3


def test_what_does_not_fit_is_reported_and_kept(face: Face) -> None:
    """The server never sees a prompt that is too long; the history stays whole; `dropped` and what was sent are it."""
    with StandIn(context_length=900) as server, face.phi(server.url, reserve=200) as phi:
        chat = phi.chat()
        dropped: list[int] = []
        for number in range(12):
            before = chat.history
            reply = ask(face, chat, f"{number}: {'and then ' * 9}?")
            assert isinstance(reply, Reply)
            system, *sent, newest = server.chats[-1]["messages"]
            assert system["content"] == SYSTEM_PROMPT
            assert newest["content"].startswith(f"{number}:")
            assert [*reply.dropped, *sent] == list(before)
            assert standin.count(standin.own_turn(server.chats[-1]["messages"])) <= 900 - 200
            assert not sent or sent[0]["role"] == "user"
            dropped.append(len(reply.dropped))
        assert len(chat.history) == 24
        assert dropped == sorted(dropped)
        assert 0 == dropped[1] < dropped[-1] < 22


def test_the_context_is_as_long_as_the_model_is_loaded(face: Face) -> None:
    """Not as long as it could be: the server lists 32,768, and is loaded with 900."""
    history = [message for number in range(10) for message in said(f"{number}{'?' * 200}", "No.")]
    with StandIn(context_length=900) as server, face.phi(server.url) as phi:
        assert face.wait(phi.context_length()) == 900
        reply = face.ask(phi, NEXT, history=history).reply
        assert reply.outcome is Outcome.COMPLETE
        assert reply.dropped
        assert len(server.chats) == 1


@pytest.mark.parametrize("free", ["llama.cpp", "vllm"])
def test_other_servers_tell_their_context_in_the_list_of_models(face: Face, free: Any) -> None:
    """And count for nothing: the same window, with no request of one token."""
    history = [message for number in range(10) for message in said(f"{number}{'?' * 200}", "No.")]
    windows = []
    for native in (True, False):
        with (
            StandIn(context_length=900, native=native, free="" if native else free) as server,
            face.phi(server.url) as phi,
        ):
            reply = face.ask(phi, NEXT, history=history).reply
            windows.append((server.chats[0]["messages"], reply.dropped))
            assert (len(server.counting) == 0) == (not native)
    assert windows[0] == windows[1]
    assert windows[0][1]


def test_a_model_that_is_not_loaded_yet_is_loaded_by_a_small_request(face: Face) -> None:
    """Only then is it known how much fits; the time to live goes with the request that loads."""
    history = [message for number in range(10) for message in said(f"{number}{'?' * 200}", "No.")]
    with StandIn(context_length=900, loaded=False) as server, face.phi(server.url) as phi:
        reply = face.ask(phi, NEXT, history=history, ttl=60).reply
        assert reply.outcome is Outcome.COMPLETE
        assert reply.dropped
        first = server.counting[0]
        assert first["messages"] == [{"role": "user", "content": NEXT}]
        assert first["ttl"] == 60


def test_where_nobody_tells_the_context_it_is_learned_from_the_refusal(face: Face) -> None:
    """All is sent, then, once more, what fits; the next question is fitted at once."""
    history = [message for number in range(10) for message in said(f"{number}{'?' * 200}", "No.")]
    with StandIn(context_length=900, native=False) as server, face.phi(server.url) as phi:
        reply = face.ask(phi, NEXT, history=history).reply
        assert (reply.outcome, len(server.chats)) == (Outcome.COMPLETE, 2)
        assert server.chats[0]["messages"] == build_messages(NEXT, history=history)
        assert reply.dropped
        assert len(reply.dropped) + len(server.chats[1]["messages"]) == len(history) + 2
        assert face.wait(phi.context_length()) == 900
        again = face.ask(phi, NEXT, history=history).reply
        assert (again.dropped, len(server.chats)) == (reply.dropped, 3)


@pytest.mark.parametrize("framed", [False, True])
def test_a_context_that_shrank_is_learned_from_the_refusal(face: Face, framed: bool) -> None:
    """A model that was loaded anew with less: before the stream or in its first event, the question is fitted and
    sent once more; a second refusal is the caller's."""
    history = [message for number in range(10) for message in said(f"{number}{'?' * 200}", "No.")]
    with StandIn(context_length=4000) as server, face.phi(server.url, reserve=100) as phi:
        assert face.ask(phi, NEXT, history=history).reply.dropped == ()
        server.context_length = 900
        server.overflows_in_stream = framed
        reply = face.ask(phi, NEXT, history=history).reply
        assert reply.outcome is Outcome.COMPLETE
        assert reply.dropped
        assert [len(body["messages"]) for body in server.chats][:2] == [22, 22]
        assert len(server.chats) == 3


def test_a_stated_context_is_kept_to(face: Face) -> None:
    """On a server that tells none; with one that was stated too long, the refusal counts more."""
    history = [message for number in range(10) for message in said(f"{number}{'?' * 200}", "No.")]
    for stated, times in ((900, 1), (9000, 2)):
        with (
            StandIn(context_length=900, native=False) as server,
            face.phi(server.url, context_length=stated, reserve=100) as phi,
        ):
            assert face.wait(phi.context_length()) == stated
            reply = face.ask(phi, NEXT, history=history).reply
            assert reply.outcome is Outcome.COMPLETE
            assert reply.dropped
            assert len(server.chats) == times
            assert face.wait(phi.context_length()) == 900


def test_a_newest_message_that_does_not_fit_is_refused_before_it_is_sent(face: Face) -> None:
    """Counted, and never streamed; the history is as before."""
    with StandIn(context_length=900) as server, face.phi(server.url) as phi:
        chat = phi.chat(BEFORE)
        error = ask(face, chat, "why " * 900)
        assert isinstance(error, ContextOverflow)
        assert error.limit == 900
        assert error.needed is not None
        assert error.needed > 900
        assert server.chats == []
        assert list(chat.history) == BEFORE


@pytest.mark.parametrize(
    "template", [*standin.KNOWN.values(), standin.merged, standin.unknown], ids=range(len(standin.KNOWN) + 2)
)
def test_no_template_makes_a_prompt_that_does_not_fit(face: Face, template: standin.Template) -> None:
    """Where the server puts a prompt of its own beside the caller's, that is counted as well."""
    with StandIn(context_length=1100, template=template) as server, face.phi(server.url, reserve=100) as phi:
        chat = phi.chat()
        for number in range(8):
            reply = ask(face, chat, f"{number}: {'and then ' * 12}?")
            assert isinstance(reply, Reply)
            assert standin.count(template(server.chats[-1]["messages"])) <= 1000


@given(st.sampled_from([700, 1000, 2500, 4096]), st.lists(chats(5), min_size=1, max_size=3), st.booleans())
@FEW
def test_any_history_fits_over_http(context: int, histories: list[list[Message]], free: bool) -> None:
    """The whole way, on both faces: the server takes every prompt, or it is refused before it is sent."""
    options: dict[str, Any] = {"native": False, "free": "llama.cpp"} if free else {}
    with StandIn(context_length=context, **options) as server:
        for make in FACES.values():
            face = make()
            with contextlib.closing(face), face.phi(server.url) as phi:
                for history in histories:
                    heard = face.ask(phi, NEXT, history=history)
                    assert heard.error is None or heard.error.partial is None
        for body in server.chats:
            assert standin.count(standin.own_turn(body["messages"])) <= context


# --- what it has learned ----------------------------------------------------------------------------------------------


def test_the_count_of_the_last_reply_saves_the_next_one(face: Face) -> None:
    """A chat whose bound does not fit is counted by its own replies; without those, by a request now and then."""
    with StandIn() as server, face.phi(server.url) as phi:
        chat = phi.chat()
        for number in range(6):
            ask(face, chat, f"{number}: {'and then ' * 25}?")
        assert len(server.chats) == 6
        assert server.counting == []
    with StandIn(says_streaming=None) as server, face.phi(server.url) as phi:
        chat = phi.chat()
        for number in range(6):
            ask(face, chat, f"{number}: {'and then ' * 25}?")
        assert 1 <= len(server.counting) < 6


@pytest.mark.parametrize("wrong", [lambda tokens: 0, lambda tokens: 1, lambda tokens: None, lambda tokens: "9"])
def test_a_reply_that_counts_nonsense_does_not_make_the_next_prompt_too_long(
    face: Face, wrong: Callable[[int], object]
) -> None:
    """0, fewer than there are messages, no number: the prompts still fit."""
    with StandIn(context_length=900, says_streaming=wrong) as server, face.phi(server.url, reserve=200) as phi:
        check_fits(face, phi.chat(), server)


def test_a_server_that_counts_only_what_was_new_is_seen_through(face: Face) -> None:
    """A count that falls while the chat grows is not believed; the one from before is."""
    full = [0]

    def new_ones(tokens: int) -> int:
        new = tokens - full[0]
        full[0] = tokens
        return new

    with StandIn(context_length=900, says_streaming=new_ones) as server, face.phi(server.url, reserve=200) as phi:
        check_fits(face, phi.chat(), server)


def check_fits(face: Face, chat: Any, server: StandIn) -> None:
    """Twelve turns, all of which the server takes, none longer than agreed."""
    for number in range(12):
        assert isinstance(ask(face, chat, f"{number}: {'and then ' * 9}?"), Reply)
        assert standin.count(standin.own_turn(server.chats[-1]["messages"])) <= 700


def test_after_a_swallowed_opener_the_next_thought_is_thought_from_its_first_character(face: Face) -> None:
    """Once met, it is assumed: nothing is shown as solution first. Clearing the chat does not forget it."""
    with StandIn(reply="I reason.</think>The answer is 4.") as server, face.phi(server.url) as phi:
        chat = phi.chat()
        kinds = []
        for _ in range(3):
            events = face.read(chat.stream(NEXT)).events
            kinds.append((type(events[0]), any(isinstance(event, Revised) for event in events)))
            chat.clear()
        assert kinds == [(Solution, True), (Thinking, False), (Thinking, False)]
        assert face.read(phi.stream(NEXT)).reply.revisions == 1


def test_a_reply_without_a_thought_is_remarked_on_once(face: Face) -> None:
    """In a chat; each question of its own is told anew, and a thought is nothing to remark on."""
    with StandIn(reply="It is 4.") as server, face.phi(server.url) as phi:
        chat = phi.chat()
        notes = [face.wait(chat.ask(NEXT)).notes for _ in range(3)]
        assert [len(each) for each in notes] == [1, 0, 0]
        assert "no thought" in notes[0][0]
        assert [len(face.ask(phi, NEXT).reply.notes) for _ in range(2)] == [1, 1]
    with StandIn() as server, face.phi(server.url) as phi:
        assert face.ask(phi, NEXT).reply.notes == ()


def test_clearing_forgets_what_was_said(face: Face) -> None:
    """The next turn is the first."""
    with StandIn() as server, face.phi(server.url) as phi:
        chat = phi.chat(BEFORE)
        ask(face, chat)
        chat.clear()
        assert chat.history == ()
        ask(face, chat, "Why?")
        assert server.chats[-1]["messages"] == build_messages("Why?")
        assert list(chat.history) == said("Why?", "The answer is 4.")


# --- the caller's things ----------------------------------------------------------------------------------------------


def test_the_callers_history_is_never_changed(face: Face) -> None:
    """Neither the list nor its messages, nor what is in those; a turn is added to the chat's own."""
    history: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "<think>x</think>b", "reasoning_content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
        {"role": "tool", "content": "c", "tool_call_id": "1"},
    ]
    before = copy.deepcopy(history)
    with StandIn(context_length=700) as server, face.phi(server.url) as phi:
        chat = phi.chat(history)
        for _ in range(3):
            ask(face, chat)
        face.ask(phi, NEXT, history=history)
        face.wait(phi.count(history=history))
    assert history == before
    assert list(chat.history[:5]) == before
    assert len(chat.history) == 11


def test_any_iterable_is_a_history(face: Face) -> None:
    """One that can be read only once, too."""

    def messages() -> Iterator[Mapping[str, Any]]:
        yield from BEFORE

    with StandIn() as server, face.phi(server.url) as phi:
        ask(face, phi.chat(messages()))
        face.ask(phi, NEXT, history=messages())
        assert [body["messages"] for body in server.chats] == [build_messages(NEXT, history=BEFORE)] * 2


def test_the_models_sampling_goes_out_unless_another_is_given(face: Face) -> None:
    """A parameter that is None is one that was not given, as the command line has them."""
    with StandIn() as server, face.phi(server.url, top_k=40) as phi:
        face.ask(phi, NEXT, temperature=None, top_k=None, top_p=0.5)
        (body,) = server.chats
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.8, 0.5, 40)


def test_further_fields_of_a_phi4_go_out_with_every_question(face: Face) -> None:
    """Also one whose name is nearly a known one: in `extra` it is meant."""
    with StandIn() as server, face.phi(server.url, extra={"min_tokens": 3}) as phi:
        face.ask(phi, NEXT)
        assert server.chats[0]["min_tokens"] == 3


def test_tools_are_counted_with_the_prompt(face: Face) -> None:
    """A chat that is long with them is shortened for them, also where the turn before had none."""
    tools = [{"type": "function", "function": {"name": "look", "description": "d" * 1200}}]
    with StandIn(context_length=2000) as server, face.phi(server.url, reserve=100) as phi:
        chat = phi.chat()
        for number in range(6):
            ask(face, chat, f"{number}: {'and then ' * 20}?")
        ask(face, chat, tools=tools)
        assert len(server.chats) == 7
        assert standin.count(server.rendered(server.chats[-1])) <= 1900
        assert all(body["tools"] == tools for body in server.counting if body["messages"][-1]["content"] == NEXT)


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_its_line_in_the_table(outcome: Outcome) -> None:
    """A turn is kept whole, or not at all."""
    conversation = Conversation(BEFORE)
    conversation.record([{"role": "user", "content": NEXT}], Reply(outcome, "t", True, "s", "r"))
    kept = outcome in (Outcome.COMPLETE, Outcome.SOLUTION_TRUNCATED)
    assert conversation.history == [*BEFORE, *(said(NEXT, "s") if kept else [])]


def test_an_error_of_counting_is_the_callers_to_see(face: Face) -> None:
    """A server that fails while the window is looked for: its error, and nothing streamed."""
    server = Recording(
        {
            "/api/v0/models": {"data": [{"id": MODEL, "state": "loaded", "loaded_context_length": 900}]},
            CHAT: (500, {"error": {"message": "the engine is gone"}}),
        }
    )
    assert isinstance(server, httpx.MockTransport)
    with face.phi(server, model=MODEL) as phi:
        heard = face.ask(phi, "why " * 500)
    assert isinstance(heard.error, ServerError)
    assert [json.loads(request.content).get("stream") for request in server.requests if request.content] == [None]
