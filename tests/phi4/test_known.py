"""What is remembered of earlier prompts: digests, what is learned and what is not, and what it tells of a window."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4 import standin
from phi4.histories import Message, open_chats
from phi4_http.phi4.conversation import build_messages
from phi4_http.phi4.counting import FRAME_TOKENS, TEMPLATE_TOKENS, bound
from phi4_http.phi4.known import Counted, Remembered, digests, learn
from phi4_http.server import Histories, Written

BEFORE: list[Message] = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "No."}]
SENT = build_messages("And now?", history=BEFORE)
YES: Message = {"role": "assistant", "content": "Yes, it is."}
LATER = [*SENT, YES, {"role": "user", "content": "Why?"}]


def counted(histories: Histories, messages: Sequence[Message], beside: int = 0) -> int | None:
    """What is remembered of exactly these messages."""
    return histories.count(digests(messages, beside=beside)[-1])


# --- digests ----------------------------------------------------------------------------------------------------------


@given(open_chats())
@settings(deadline=None, max_examples=200)
def test_a_digest_is_that_of_the_messages_up_to_there(messages: list[Message]) -> None:
    """Each is what the digest of the shorter list ends with; the order of a message's fields is no matter."""
    found = digests(messages)
    for number in range(1, len(messages) + 1):
        turned = [dict(reversed(list(message.items()))) for message in messages[:number]]
        assert digests(turned)[-1] == found[number - 1]
    assert len(set(found)) == len(messages)


@given(open_chats(6), open_chats(6))
@settings(deadline=None, max_examples=200)
def test_other_messages_have_another_digest(one: list[Message], other: list[Message]) -> None:
    """Also where the same text is cut into messages at another place, and with other things beside."""
    assert (digests(one)[-1] == digests(other)[-1]) == (one == other)
    assert digests(one) != digests(one, beside=1)
    whole: list[Message] = [{"role": "user", "content": "ab"}]
    assert digests(whole)[-1] != digests([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])[-1]


def test_anything_that_can_be_sent_has_a_digest() -> None:
    """A lone surrogate, parts, numbers that are none."""
    odd: list[Message] = [{"role": "user", "content": "\ud800"}, {"role": "user", "content": [{"x": float("nan")}]}]
    assert len(digests(odd)) == 2


def test_digests_are_linear_in_the_history() -> None:
    """Four times the history takes about four times as long, not sixteen times."""
    small: list[Message] = [{"role": "user", "content": "why " * 500}] * 500
    seconds = []
    for messages in (small, small * 4):
        began = time.process_time()
        digests(messages)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 10 * max(seconds[0], 0.002)


# --- what is learned --------------------------------------------------------------------------------------------------

MOST = bound(SENT) + FRAME_TOKENS + TEMPLATE_TOKENS + 2 * len(SENT)


@pytest.mark.parametrize("tokens", [0, -5, 2, None, True, "300", 300.0, float("nan"), 10**9, MOST + 1])
def test_what_cannot_be_a_count_is_not_remembered(tokens: Any) -> None:
    """Nothing, fewer than there are messages, more than there are bytes, no whole number."""
    histories = Histories()
    learn(histories, SENT, tokens, answer=YES, answer_tokens=9)
    assert vars(histories) == vars(Histories())


@pytest.mark.parametrize("tokens", [3, 300, MOST])
def test_what_can_be_a_count_is_remembered(tokens: int) -> None:
    """For these messages, and with what was beside them."""
    histories = Histories()
    learn(histories, SENT, tokens)
    assert counted(histories, SENT) == tokens
    assert counted(histories, SENT, beside=1) is None
    assert counted(histories, SENT[1:]) is None
    learn(histories, SENT, 500, beside=900)
    assert (counted(histories, SENT), counted(histories, SENT, beside=900)) == (tokens, 500)
    histories.clear()
    assert vars(histories) == vars(Histories())


@pytest.mark.parametrize(("tokens", "believed"), [(299, False), (300, True), (310, True)])
def test_a_server_whose_count_falls_is_not_believed_again(tokens: int, believed: bool) -> None:
    """More messages, fewer tokens: it counts only what was new to it. What it said first is still used."""
    histories = Histories()
    learn(histories, SENT, 300)
    learn(histories, LATER, tokens)
    assert counted(histories, LATER) == (tokens if believed else None)
    other = build_messages("Another chat may well be shorter.")
    learn(histories, other, 290)
    assert counted(histories, other) == (290 if believed else None)
    assert counted(histories, SENT) == 300


def test_with_fewer_tools_a_count_may_fall() -> None:
    """That is no reason to doubt the server."""
    histories = Histories()
    learn(histories, SENT, 600, beside=900)
    learn(histories, LATER, 320)
    assert counted(histories, LATER) == 320


@pytest.mark.parametrize("tokens", [0, -1, None, True, "12"])
def test_a_senseless_count_of_an_answer_is_not_remembered(tokens: Any) -> None:
    """The prompt's own count is."""
    histories = Histories()
    learn(histories, SENT, 300, answer=YES, answer_tokens=tokens)
    assert counted(histories, SENT) == 300
    assert histories.answer(digests([*SENT, YES])[-1]) is None


def test_of_what_was_written_the_thought_takes_its_share() -> None:
    """By its bytes; what is left may be wrong by a half, and without a thought by a twentieth."""
    histories = Histories()
    learn(histories, SENT, 300, answer=YES, answer_tokens=100)
    assert histories.answer(digests([*SENT, YES])[-1]) == Written(100, 13)
    learn(histories, SENT, 300, answer=YES, answer_tokens=100, thought="t" * 3 * bound([YES]))
    assert histories.answer(digests([*SENT, YES])[-1]) == Written(25, 20)


def test_what_is_used_is_forgotten_last() -> None:
    """So many are remembered; one that is noted again counts as new."""
    histories = Histories()
    for number in range(4096):
        histories.note_start(b"%d" % number)
    histories.note_start(b"0")
    histories.note_start(b"new")
    assert (histories.began(b"0"), histories.began(b"1"), histories.began(b"2")) == (True, False, True)


# --- what it tells ----------------------------------------------------------------------------------------------------


@given(open_chats(), st.lists(st.booleans(), min_size=60, max_size=60), st.integers(0, 40))
@settings(deadline=None, max_examples=500)
def test_what_is_remembered_holds_for_every_window(messages: list[Message], known: list[bool], part: int) -> None:
    """Whichever prompts were counted, with a real tokenizer, from whichever starts: no window is outside the bounds."""
    head = [message for message in messages[:1] if message["role"] == "system"]
    rest = messages[len(head) :]
    begins = [at for at, message in enumerate(rest) if at == 0 or message["role"] == "user"]

    def tokens(begin: int, end: int) -> int:
        return standin.count(standin.own_turn([*head, *rest[begin:end]]))

    flags = iter(known)
    chains = []
    for begin in begins[:3]:
        ends = [end for end in range(begin + 1, len(rest) + 1) if next(flags, False)]
        if ends:
            counts = tuple((end, tokens(begin, end)) for end in ends)
            chains.append(Counted(begin, counts, counts[-1]))
    remembered = Remembered(begins, [bound([message]) for message in rest], chains)
    kept = part * (len(begins) - 1) // 40
    exact = tokens(begins[kept], len(rest))
    remembered.compare(kept, exact, exact)
    for start, begin in enumerate(begins):
        assert remembered.at_least[start] <= tokens(begin, len(rest)) <= remembered.at_most[start]
        assert remembered.exact(start) in (None, tokens(begin, len(rest)))


def test_counts_with_one_start_tell_what_a_shorter_window_takes() -> None:
    """Three counted turns: what stays after the first is known up to the user's messages at its ends."""
    sizes = [60, 400] * 3 + [60]
    chain = Counted(0, ((1, 320), (3, 420), (5, 520), (7, 620)), (7, 620))
    remembered = Remembered([0, 2, 4, 6], sizes, [chain])
    remembered.compare(0, 620, 620)
    assert remembered.at_most[1:] == [580, 480, 380]
    assert remembered.at_least[1:] == [460, 360, 260]


def test_counts_that_contradict_the_last_one_are_left_out() -> None:
    """More tokens between two prompts than bytes, or fewer than none."""
    remembered = Remembered([0, 2], [10, 10, 10], [Counted(0, ((1, 900), (2, 300), (3, 305)), (3, 305))])
    remembered.compare(0, 305, 305)
    assert remembered.at_most == [305, 305]
    assert remembered.at_least == [305, 285]
