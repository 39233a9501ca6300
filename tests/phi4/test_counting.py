"""How many tokens a prompt has: bounds that cost nothing and hold, and every source of exact counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Face, Recording

from phi4 import standin
from phi4.histories import Message, chats
from phi4.standin import CHAT, MODEL, StandIn
from phi4_http.errors import ContextOverflow, InvalidRequest, ServerError
from phi4_http.flow import Answer, Flow, Http, run
from phi4_http.phi4.conversation import build_messages
from phi4_http.phi4.counting import (
    FRAME_TOKENS,
    TEMPLATE_TOKENS,
    Count,
    FirstThatCan,
    LlamaCpp,
    OneToken,
    Own,
    Vllm,
    bound,
    one_token,
    sensible,
)
from phi4_http.server import Server

SERVER = Server("http://x")
HELLO: list[Message] = [{"role": "user", "content": "Is it late?"}]
LONG = [{"role": "user", "content": "q" * 900}, {"role": "assistant", "content": "a" * 900}] * 2
PATTERNS = st.sampled_from([standin.APART, standin.TOGETHER])
TEXTS = st.text(max_size=60) | st.text(st.sampled_from("\n\r\t :.,<>|é日🧠\u00a0\x00a1"), max_size=60)


# --- bounds -----------------------------------------------------------------------------------------------------------


@given(TEXTS, PATTERNS)
def test_a_text_never_has_more_tokens_than_bytes(text: str, pattern: str) -> None:
    """The fact that every bound stands on, for a real byte-level tokenizer."""
    assert standin.count(text, pattern) <= len(text.encode())


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), TEXTS), min_size=1, max_size=5),
    PATTERNS,
)
def test_the_bound_is_one_for_every_template(turns: list[tuple[str, str]], pattern: str) -> None:
    """No template makes more tokens of any text than the bound and what may stand around it."""
    messages: list[Message] = [{"role": "user", "content": "x"}, *({"role": r, "content": c} for r, c in turns)]
    most = bound(messages) + FRAME_TOKENS + TEMPLATE_TOKENS
    for template in (*standin.KNOWN.values(), standin.merged_blank, standin.user_lost, standin.unknown):
        assert standin.count(template(messages), pattern) <= most


@given(chats())
def test_tool_calls_are_within_the_bound(messages: list[Message]) -> None:
    """Written as JSON, with every character that isn't ASCII escaped, they take no more."""
    assert standin.count(standin.own_turn(messages)) <= bound(messages) + FRAME_TOKENS


@pytest.mark.parametrize(
    "content", ["é日🧠", [{"type": "text", "text": "é"}, {"type": "text", "text": "日🧠"}], None, [], "\ud800"]
)
def test_the_bound_takes_any_content(content: Any) -> None:
    """Parts count like the text they hold; a lone surrogate breaks nothing."""
    text = "" if not content else content if isinstance(content, str) else "é日🧠"
    expected = len(text.encode("utf-8", "replace")) + 3 + len("user")
    assert bound([{"role": "user", "content": content}]) == expected


def test_bounds_add_up() -> None:
    """The bound of two messages is the sum of theirs."""
    assert bound([*LONG, *HELLO]) == bound(LONG) + bound(HELLO)
    assert bound([]) == 0


@pytest.mark.parametrize(
    "tokens", [0, -3, None, True, 1.0, "9", 10**9, bound(HELLO) + FRAME_TOKENS + TEMPLATE_TOKENS + 3]
)
def test_what_cannot_be_a_count_is_not_sensible(tokens: Any) -> None:
    """Nothing, less than nothing, no whole number, more than the text has bytes."""
    assert not sensible(tokens, HELLO)


def test_what_can_be_a_count_is_sensible() -> None:
    """From one token a message to a token a byte."""
    assert sensible(1, HELLO)
    assert sensible(bound(HELLO) + FRAME_TOKENS + TEMPLATE_TOKENS, HELLO)
    assert sensible(2, [{"role": "system", "content": "x" * 99}, *HELLO, *HELLO])


# --- each source, over HTTP -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", ["", "llama.cpp", "vllm"])
@pytest.mark.parametrize("template", [standin.own_turn, standin.merged, standin.built_in, standin.unknown])
def test_every_source_counts_what_the_server_makes(face: Face, free: Any, template: standin.Template) -> None:
    """The count is that of the whole rendered prompt; only the one-token kind is a request to the model."""
    messages = build_messages("Is it late?", history=LONG, instructions="Be brief.")
    with (
        StandIn(template=template, free=free, native=not free) as server,
        face.phi(server.url, instructions="Be brief.") as phi,
    ):
        counted = face.wait(phi.count("Is it late?", history=LONG))
        assert counted.tokens == standin.count(template(messages))
        assert counted.requests == len(server.counting) == (0 if free else 1)
        assert (counted.context_length, counted.model) == (4096, MODEL)


def test_one_token_is_asked_for_and_no_stream(face: Face) -> None:
    """The request that counts is as small as can be, and has the messages that would go out."""
    with StandIn() as server, face.phi(server.url) as phi:
        face.wait(phi.count("Is it late?"))
        (body,) = server.counting
    assert body == {
        "model": MODEL,
        "messages": build_messages("Is it late?"),
        "max_tokens": 1,
        "temperature": 0,
    }


def test_an_own_counter_is_used_alone(face: Face) -> None:
    """A caller's function is asked, and no server."""
    with StandIn() as server, face.phi(server.url, counter=lambda messages: 100 + len(messages)) as phi:
        counted = face.wait(phi.count("Is it late?", history=LONG))
        assert (counted.tokens, counted.requests) == (106, 0)
        assert server.asked == []


def test_an_own_counter_of_several_steps_is_driven(face: Face) -> None:
    """A counter may be a flow that asks the server what it likes."""

    class Asks:
        def count(self, messages: Sequence[Message]) -> Flow[Count]:
            answer = yield Http("GET", "/v1/models")
            return Count(len(answer.body), 7)

    with StandIn() as server, face.phi(server.url, counter=Asks()) as phi:
        counted = face.wait(phi.count("Is it late?"))
        assert counted.requests == 7
        assert counted.tokens is not None
        assert server.seen[-1] == "GET /v1/models"


def test_a_source_that_cannot_count_is_not_asked_again(face: Face) -> None:
    """A server of another kind is asked once for each endpoint that it has not, then counted with one token."""
    with StandIn(native=False) as server, face.phi(server.url) as phi:
        for _ in range(3):
            assert face.wait(phi.count("Is it late?")).tokens == standin.count(
                standin.own_turn(build_messages("Is it late?"))
            )
        paths = [path for path, _ in server.asked]
    assert paths == ["/apply-template", "/tokenize", CHAT, CHAT, CHAT]


def test_lm_studio_is_not_asked_for_what_it_has_not(face: Face) -> None:
    """Its log would show an error for each."""
    with StandIn() as server, face.phi(server.url) as phi:
        face.wait(phi.count("Is it late?"))
        assert [path for path, _ in server.asked] == [CHAT]


@pytest.mark.parametrize("said", [0, -1, 10**9, None, "12", 3.5, True])
def test_a_server_that_says_nonsense_does_not_count(face: Face, said: Any) -> None:
    """No count is better than a wrong one."""
    with StandIn(says=lambda tokens: said) as server, face.phi(server.url) as phi:
        counted = face.wait(phi.count("Is it late?"))
        assert (counted.tokens, counted.requests) == (None, 1)


def test_a_prompt_that_does_not_fit_is_counted_by_its_refusal(face: Face) -> None:
    """The server's own number of what it would have needed."""
    with StandIn(context_length=400) as server, face.phi(server.url) as phi:
        counted = face.wait(phi.count("Is it late?", history=LONG))
        assert counted.tokens == standin.count(standin.own_turn(build_messages("Is it late?", history=LONG)))
        assert counted.tokens > counted.context_length


def test_a_prompt_too_long_to_count_is_said_to_be(face: Face) -> None:
    """A server that refuses without a number: an overflow that needs at least one token more than there are."""
    server = Recording(
        {
            "/api/v0/models": {"data": [{"id": MODEL, "state": "loaded", "loaded_context_length": 512}]},
            CHAT: (400, {"error": {"message": "Context size has been exceeded"}}),
        }
    )
    with face.phi(server) as phi, pytest.raises(ContextOverflow) as caught:
        face.wait(phi.count("Is it late?"))
    assert (caught.value.needed, caught.value.limit) == (513, 512)


def test_a_count_that_fails_is_an_error(face: Face) -> None:
    """The server's failure is raised, and not taken for a count."""
    with (
        StandIn(refuses=lambda path, body: "failed") as server,
        face.phi(server.url) as phi,
        pytest.raises(ServerError, match="the engine is gone"),
    ):
        face.wait(phi.count("Is it late?"))


def test_nothing_to_count_is_refused(face: Face) -> None:
    """Neither prompt nor history."""
    with StandIn() as server, face.phi(server.url) as phi:
        with pytest.raises(InvalidRequest):
            face.wait(phi.count())
        with pytest.raises(InvalidRequest):
            face.wait(phi.chat().count())
        assert server.seen == []


def test_what_is_counted_is_what_would_be_sent(face: Face) -> None:
    """With the instructions of this chat, and without the system message where it is left out."""
    with StandIn() as server, face.phi(server.url, system="omit") as phi:
        chat = phi.chat(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], instructions="Brief."
        )
        face.wait(chat.count())
        face.wait(phi.count("Is it late?", instructions="Brief."))
        sent = [body["messages"] for body in server.counting]
    assert sent == [
        [{"role": "user", "content": "Brief.\n\na"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "Brief.\n\nIs it late?"}],
    ]
    with StandIn() as server, face.phi(server.url) as phi:
        chat = phi.chat([{"role": "user", "content": "a"}], instructions="Brief.", model="other")
        face.wait(chat.count())
        (body,) = server.counting
    assert body["messages"][0] == build_messages("x", instructions="Brief.")[0]
    assert body["model"] == "other"


# --- by hand ----------------------------------------------------------------------------------------------------------


def answering(*answers: tuple[int, Any]) -> Callable[[Any], Answer]:
    """What performs steps: these answers, one after the other."""
    left = iter(answers)

    def perform(step: Any) -> Answer:
        status, body = next(left)
        return Answer("http://x" + step.path, status, {"content-type": "application/json"}, json.dumps(body).encode())

    return perform


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"usage": None},
        {"usage": []},
        {"usage": {}},
        {"usage": {"prompt_tokens": None}},
        {"usage": {"prompt_tokens": "9"}},
        {"usage": {"prompt_tokens": True}},
        {"usage": {"prompt_tokens": 0}},
    ],
)
def test_an_answer_without_a_count_is_none(body: Mapping[str, Any]) -> None:
    """It cost a request all the same."""
    assert run(OneToken(SERVER, "m").count(HELLO), answering((200, body))) == Count(None, 1)


@pytest.mark.parametrize(
    ("message", "tokens"),
    [
        (
            "Input does not fit in context length. It has 900 tokens, but the context length only supports 512 tokens.",
            900,
        ),
        ("Context size has been exceeded", None),
        ("Reached context length of 512 tokens with model", None),
    ],
)
def test_an_overflow_is_a_count_as_far_as_it_says_one(message: str, tokens: int | None) -> None:
    """The number that is needed, or only that it is too many."""
    flow = one_token(SERVER, "/v1/completions", {"model": "m", "prompt": "x"})
    assert run(flow, answering((400, {"error": {"message": message}}))) == Count(tokens, 1, too_long=True)


@pytest.mark.parametrize(
    ("source", "answers"),
    [
        (LlamaCpp(Server(), "m"), [(200, {"prompt": "p"}), (200, {"tokens": [1, 2, 3]})]),
        (Vllm(Server(), "m"), [(200, {"count": 3})]),
        (Own(lambda messages: 3), []),
    ],
)
def test_free_sources_cost_no_request(source: Any, answers: list[tuple[int, Any]]) -> None:
    """Their counts make no model run."""
    assert run(source.count(HELLO), answering(*answers)) == Count(3)


@pytest.mark.parametrize(
    ("source", "answers"),
    [
        (LlamaCpp(Server(), "m"), [(404, {"detail": "Not Found"})]),
        (LlamaCpp(Server(), "m"), [(200, {"error": "Unexpected endpoint or method. (POST /apply-template)"})]),
        (LlamaCpp(Server(), "m"), [(200, {"prompt": None})]),
        (LlamaCpp(Server(), "m"), [(200, {"prompt": "p"}), (500, {"error": {"message": "no"}})]),
        (LlamaCpp(Server(), "m"), [(200, {"prompt": "p"}), (200, {"tokens": 3})]),
        (Vllm(Server(), "m"), [(200, {"tokens": [1, 2]})]),
        (Vllm(Server(), "m"), [(200, {"count": True})]),
        (Vllm(Server(), "m"), [(404, {"detail": "Not Found"})]),
    ],
)
def test_a_server_of_another_kind_does_not_count(source: Any, answers: list[tuple[int, Any]]) -> None:
    """None, and no error."""
    assert run(source.count(HELLO), answering(*answers)) == Count(None)


class Says:
    """A source that says what it is told to, after one step that others may come between."""

    def __init__(self, tokens: Any) -> None:
        self.tokens = tokens
        self.times = 0

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        self.times += 1
        yield Http("GET", "/")
        return Count(self.tokens, 1)


def named(name: str, kind: type[Says]) -> type[Says]:
    """A source of another kind, which sources are told apart by."""
    return type(name, (kind,), {})


@pytest.mark.parametrize("useless", [None, 0, 10**9, True])
def test_the_first_that_can_count_is_kept(useless: Any) -> None:
    """Those before it are asked twice; what all of it cost is told."""
    never, able, spare = Says(useless), named("Able", Says)(5), named("Spare", Says)(6)
    counter = FirstThatCan([never, able, spare])
    perform = answering(*[(200, {})] * 9)
    assert run(counter.count(HELLO), perform) == Count(5, 2)
    assert run(counter.count(HELLO), perform) == Count(5, 2)
    assert run(counter.count(HELLO), perform) == Count(5, 1)
    assert (never.times, able.times, spare.times) == (2, 3, 0)


def test_one_odd_count_does_not_end_exact_counting() -> None:
    """The source that said 0 once is asked again, and believed."""
    source = Says(0)
    counter = FirstThatCan([source])
    perform = answering(*[(200, {})] * 9)
    assert run(counter.count(HELLO), perform) == Count(None, 1)
    source.tokens = 5
    for _ in range(3):
        assert run(counter.count(HELLO), perform) == Count(5, 1)


@pytest.mark.parametrize("said", [None, 0, 10**9])
def test_a_prompt_too_long_to_count_leaves_its_source_able(said: Any) -> None:
    """A server that refuses one prompt without a number may count the next."""

    class Refuses(Says):
        def count(self, messages: Sequence[Message]) -> Flow[Count]:
            count = yield from super().count(messages)
            return Count(count.tokens, 1, too_long=True)

    source = Refuses(said)
    counter = FirstThatCan([source])
    perform = answering(*[(200, {})] * 9)
    for _ in range(2):
        assert run(counter.count(HELLO), perform) == Count(None, 1, too_long=True)
    assert source.times == 2


def test_where_nobody_can_count_there_is_no_count() -> None:
    """And nobody is asked a third time."""
    first, second = Says(None), named("Second", Says)(0)
    counter = FirstThatCan([first, second])
    perform = answering(*[(200, {})] * 9)
    for requests in (2, 2, 0):
        assert run(counter.count(HELLO), perform) == Count(None, requests)
    assert (first.times, second.times) == (2, 2)


def test_two_tasks_that_ask_at_once_do_not_take_out_a_good_source() -> None:
    """Each finds that the first can't count; the second is still there for both."""
    never, able = Says(None), named("Able", Says)(5)
    counter = FirstThatCan([never, able])
    one, other = counter.count(HELLO), counter.count(HELLO)
    for flow in (one, other):
        next(flow)
    for flow in (one, other):
        flow.send(None)
    for flow in (one, other):
        with pytest.raises(StopIteration) as end:
            flow.send(None)
        assert end.value.value == Count(5, 2)
    assert (never.times, able.times) == (2, 2)


def test_an_own_counter_that_raises_is_heard(face: Face) -> None:
    """A bug in the caller's function is not swallowed."""

    def broken(messages: Sequence[Message]) -> int:
        raise ZeroDivisionError

    server = Recording({"/api/v0/models": {"data": [{"id": MODEL, "state": "loaded", "loaded_context_length": 512}]}})
    assert isinstance(server, httpx.MockTransport)
    with face.phi(server, counter=broken) as phi, pytest.raises(ZeroDivisionError):
        face.wait(phi.count("Is it late?"))
