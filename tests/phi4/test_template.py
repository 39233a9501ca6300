"""The raw prompt of a chat: the server's template found by counts, or refused; nothing wrong is ever continued."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from support import Face, Heard

from phi4 import standin
from phi4.histories import Message, chats
from phi4.standin import ANSWER, CHAT, RAW, StandIn, Template, rendered_turn
from phi4_http.errors import CannotContinue
from phi4_http.events import Outcome, Usage
from phi4_http.phi4.conversation import build_messages
from phi4_http.phi4.facts import SYSTEM_PROMPT
from phi4_http.phi4.template import renderings

TALK: list[Message] = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "No."}]
APART = standin.APART


def forced(face: Face, phi: Any, prompt: str = "And now?", **options: Any) -> Heard:
    """A question whose thought is ended for the model."""
    return face.ask(phi, prompt, thinking_budget=1, **options)


def prompt_continued(server: StandIn) -> str:
    """The chat's prompt, of what the last continuation was sent with."""
    text: str = server.completions[-1]["prompt"]
    before, thought, _ = text.rpartition("<think>")
    assert thought, "the continuation has no thought"
    return before


# --- every template ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", standin.KNOWN)
@pytest.mark.parametrize("instructions", [None, "Be brief."])
def test_each_template_is_found_and_continued_letter_for_letter(
    face: Face, name: str, instructions: str | None
) -> None:
    """The prompt that goes on is the very text that the server made of the chat."""
    with StandIn(template=standin.KNOWN[name]) as server, face.phi(server.url, instructions=instructions) as phi:
        heard = forced(face, phi, history=TALK)
        assert heard.error is None
        assert heard.reply.forced is not None
        assert heard.reply.forced.template == name
        assert prompt_continued(server) == standin.KNOWN[name](server.chats[0]["messages"])


@pytest.mark.parametrize(("between", "name"), [("\n", "line"), ("\n\n", "blank line"), ("", "nothing")])
@pytest.mark.parametrize("built_in", [False, True])
def test_what_stands_between_merged_texts_is_found(face: Face, between: str, name: str, built_in: bool) -> None:
    """A line break, two, or none, where the tokenizer tells them apart."""
    merged = standin.merging(between)

    def template(messages: Sequence[Message]) -> str:
        return (rendered_turn("system", SYSTEM_PROMPT) if built_in else "") + merged(messages)

    with StandIn(template=template) as server, face.phi(server.url) as phi:
        reply = forced(face, phi, history=TALK).reply
        assert reply.forced is not None
        assert reply.forced.template == f"{'built-in, and ' if built_in else ''}merged, {name} between"
        assert prompt_continued(server) == template(server.chats[0]["messages"])


def test_without_a_system_message_the_prompt_is_the_users_alone(face: Face) -> None:
    """Left out by the caller: no template puts it back but the server's own."""
    for template in (standin.own_turn, standin.built_in):
        with StandIn(template=template) as server, face.phi(server.url, system="omit") as phi:
            assert forced(face, phi, history=TALK).error is None
            assert prompt_continued(server) == template(server.chats[0]["messages"])


# --- refused rather than wrong ----------------------------------------------------------------------------------------


def refused(face: Face, template: Template, pattern: str = APART, **options: Any) -> CannotContinue:
    """The error of a rescue that is refused; nothing was continued, and the thought is all there."""
    with StandIn(template=template, pattern=pattern) as server, face.phi(server.url) as phi:
        heard = forced(face, phi, **options)
        assert server.completions == []
    assert isinstance(heard.error, CannotContinue)
    assert heard.reply.outcome is Outcome.THOUGHT_UNCLOSED
    assert (heard.reply.thought, heard.reply.forced) == ("I", None)
    return heard.error


def chat_ml(messages: Sequence[Message]) -> str:
    """The usual format of other models: a line break after the role, and after each turn."""
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"


def with_date(messages: Sequence[Message]) -> str:
    """The model's own format, and something more."""
    return rendered_turn("system", "Today is Monday.") + standin.own_turn(messages)


@pytest.mark.parametrize("template", [standin.unknown, chat_ml, with_date, standin.user_lost])
def test_an_unknown_template_is_refused(face: Face, template: Template) -> None:
    """With what it counts, and what every known one would."""
    error = refused(face, template, history=TALK)
    messages = build_messages("And now?", history=TALK)
    assert error.chat_tokens == standin.count(template(messages))
    assert error.template_tokens == {name: standin.count(text) for name, text in renderings(messages).items()}
    assert error.chat_tokens not in error.template_tokens.values()
    assert str(error.chat_tokens) in str(error)


@pytest.mark.parametrize("template", [standin.merged, standin.merged_blank, standin.merged_nothing])
def test_templates_that_count_alike_are_refused(face: Face, template: Template) -> None:
    """A tokenizer that makes one token of any line breaks can't tell which stand there."""
    error = refused(face, template, standin.TOGETHER)
    assert list(error.template_tokens.values()).count(error.chat_tokens) > 1


def test_a_template_that_counts_alike_by_chance_is_found_out(face: Face) -> None:
    """Instructions of as many tokens as a turn takes more: the merged chat counts as the built-in prompt does."""
    own_size = standin.count(rendered_turn("system", SYSTEM_PROMPT))
    for words in range(1, 40):
        messages = build_messages("And now?", instructions="a" * words)
        merged = standin.count(standin.merged(messages))
        if merged == own_size + standin.count(rendered_turn("user", "And now?") + ANSWER):
            break
    else:
        pytest.fail("no instructions make the two count alike")
    with StandIn(template=standin.merged) as server, face.phi(server.url, instructions="a" * words) as phi:
        reply = forced(face, phi).reply
        assert reply.forced is not None
        assert reply.forced.template == "merged, line between"
        assert prompt_continued(server) == standin.merged(server.chats[0]["messages"])


def test_a_turn_that_costs_more_is_found_out_though_the_first_chat_does_not_show_it(face: Face) -> None:
    """A template with one token less in front and one more for each later turn agrees on a short chat alone."""

    def odd(messages: Sequence[Message]) -> str:
        texts = [rendered_turn(message["role"], message["content"]) for message in messages]
        return "<|im_end|>" * (len(texts) // 3) + "".join(texts) + ANSWER

    refused(face, odd)


def test_what_was_found_without_instructions_is_not_taken_for_another_template(face: Face) -> None:
    """The model's prompt alone makes the own turn and the built-in one the same text: the right name is kept."""
    with StandIn(template=standin.built_in) as server, face.phi(server.url) as phi:
        first = forced(face, phi).reply.forced
        assert first is not None
        assert first.template == "built-in instead"
        assert forced(face, phi, instructions="Be brief.").error is None
        assert prompt_continued(server) == standin.built_in(server.chats[-1]["messages"])
        assert "Be brief." not in server.completions[-1]["prompt"]


@pytest.mark.parametrize("said", [None, 0, "12", True])
def test_a_server_that_does_not_count_is_refused_at_once(face: Face, said: Any) -> None:
    """With no count of the chat there is nothing to compare: no template is tried."""
    with StandIn(says=lambda tokens: said, says_streaming=None) as server, face.phi(server.url) as phi:
        heard = forced(face, phi)
        assert isinstance(heard.error, CannotContinue)
        assert (heard.error.chat_tokens, heard.error.template_tokens) == (None, {})
        assert len(server.counting) == 1
        assert server.completions == []


TOOLS = ({"type": "function", "function": {"name": "look", "parameters": {}}},)
EXCHANGE: list[Message] = [
    {"role": "user", "content": "Look."},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "function": {"name": "look", "arguments": "{}"}}],
    },
    {"role": "tool", "content": "Dark.", "tool_call_id": "1"},
    {"role": "assistant", "content": "It is dark."},
]


@pytest.mark.parametrize("options", [{"tools": TOOLS}, {"history": EXCHANGE}], ids=["tools", "exchange"])
def test_a_known_template_is_not_trusted_with_tools(face: Face, options: Mapping[str, Any]) -> None:
    """How a template writes tools is not known: what was found for plain chats is checked again, and refused."""
    with StandIn() as server, face.phi(server.url) as phi:
        assert forced(face, phi).error is None
        assert isinstance(forced(face, phi, **options).error, CannotContinue)
        assert len(server.completions) == 1
        assert forced(face, phi).error is None


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_the_template_is_looked_for_once_for_each_model(face: Face) -> None:
    """Four requests of one token the first time; later ones only count their own prompt."""
    with StandIn() as server, face.phi(server.url) as phi:
        costs = []
        for number in range(3):
            reply = forced(face, phi, f"And now {number}?").reply
            assert reply.forced is not None
            costs.append((reply.forced.requests, len(server.counting)))
        other = forced(face, phi, model="other").reply
        assert other.forced is not None
        assert other.forced.requests == 4
    assert costs == [(4, 4), (1, 5), (1, 6)]
    assert "POST /apply-template" not in server.seen  # LM Studio has none


def test_a_count_that_the_reply_brings_is_not_asked_for(face: Face) -> None:
    """Where the stream went to its end, the server has said what the prompt takes."""
    with StandIn(reply="<think>I never") as server, face.phi(server.url, on_unclosed="answer") as phi:
        for requests in (4, 0):
            reply = face.ask(phi, "And now?").reply
            assert reply.forced is not None
            assert reply.forced.requests == requests


def test_a_server_that_tells_its_prompt_is_believed(face: Face) -> None:
    """`/apply-template` has it letter for letter, whatever the template, and its tokens are counted for nothing."""
    for template in (standin.unknown, standin.user_lost, standin.merged):
        with StandIn(template=template, free="llama.cpp", native=False) as server, face.phi(server.url) as phi:
            reply = forced(face, phi, history=TALK).reply
            assert reply.forced is not None
            assert (reply.forced.template, reply.forced.requests) == ("server", 0)
            assert reply.forced.usage[0] == Usage(standin.count(template(server.chats[0]["messages"])))
            assert prompt_continued(server) == template(server.chats[0]["messages"])
            assert {path for path, body in server.asked if not body.get("stream")} == {"/apply-template", "/tokenize"}


def test_a_server_that_tells_its_prompt_is_told_of_the_tools(face: Face) -> None:
    """They are part of it."""
    with StandIn(free="llama.cpp", native=False) as server, face.phi(server.url) as phi:
        assert forced(face, phi, tools=TOOLS).error is None
        (chat,) = server.chats
        assert prompt_continued(server) == server.rendered(chat)
        assert "look" in prompt_continued(server)
        assert "tools" not in server.completions[0]


def test_the_requests_that_find_a_template_are_small(face: Face) -> None:
    """One token each; none of them a stream."""
    with StandIn(template=standin.dropped) as server, face.phi(server.url) as phi:
        assert forced(face, phi).error is None
        found = [
            (path, body["max_tokens"]) for path, body in server.asked if path in (CHAT, RAW) and "stream" not in body
        ]
    assert {tokens for _, tokens in found} == {1}
    assert len(found) == 3 + len({*renderings(build_messages("And now?")).values()})


# --- pure -------------------------------------------------------------------------------------------------------------


@given(chats(6))
def test_renderings_are_what_the_templates_make(messages: list[Message]) -> None:
    """Of any chat of texts, letter for letter."""
    texts = [message for message in messages if message["role"] != "tool" and isinstance(message["content"], str)]
    made = renderings(texts)
    system = texts[0]["role"] == "system" and texts[0]["content"]
    assert made["own turn"] == standin.own_turn(texts if system else standin.split_system(texts)[1])
    assert made["built-in instead"] == standin.built_in(texts)
    assert made["ignored"] == standin.dropped(texts)
    rest = standin.split_system(texts)[1]
    mergeable = bool(system) and rest[0]["role"] == "user"
    assert ("merged, line between" in made) == mergeable
    if mergeable:
        assert made["merged, line between"] == standin.merged(texts)
        assert made["merged, blank line between"] == standin.merged_blank(texts)
        assert made["built-in, and merged, nothing between"] == standin.built_in_and_merged(texts)


def test_a_turn_is_written_as_the_model_was_trained() -> None:
    """No line break between turns (the published format)."""
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert renderings(messages)["own turn"] == (
        "<|im_start|>system<|im_sep|>s<|im_end|><|im_start|>user<|im_sep|>u<|im_end|><|im_start|>assistant<|im_sep|>"
    )


def test_every_name_is_a_prompt_of_its_own() -> None:
    """Where instructions are given, no two templates make the same text."""
    made = renderings(build_messages("And now?", history=TALK, instructions="Be brief."))
    assert len({*made.values()}) == len(made) == 9
    assert all(re.fullmatch(r".*<\|im_start\|>assistant<\|im_sep\|>", text, re.DOTALL) for text in made.values())
