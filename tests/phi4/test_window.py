"""Which part of a history goes out: `window.fit` driven by hand, with toy tokenizers and with a real one."""

from __future__ import annotations

import functools
import itertools
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phi4 import standin
from phi4.histories import Message, open_chats
from phi4_http.errors import ContextOverflow
from phi4_http.flow import Flow, Step, run
from phi4_http.phi4.counting import FRAME_TOKENS, TEMPLATE_TOKENS, Count, Counter, FirstThatCan, Own, bound
from phi4_http.phi4.known import digests, learn
from phi4_http.phi4.window import LARGEST_RESERVE, Reserve, Window, fit, reserve, turns
from phi4_http.server import Histories

AROUND = FRAME_TOKENS + TEMPLATE_TOKENS
Counting = Callable[[Sequence[Message]], Any]


# --- what a window is, read slowly ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chat:
    """Messages taken apart: head, whole turns, newest; and every window onto them."""

    head: tuple[Message, ...]
    past: tuple[tuple[Message, ...], ...]
    newest: tuple[Message, ...]

    @property
    def windows(self) -> list[tuple[Message, ...]]:
        """Every window that may be, the longest first: none opens on anything but a user's message."""
        return [self.window(start) for start in range(len(self.past) + 1) if self.may_open(start)]

    def window(self, start: int) -> tuple[Message, ...]:
        """Head, the turns from `start` on, newest."""
        return (*self.head, *(message for turn in self.past[start:] for message in turn), *self.newest)

    def may_open(self, start: int) -> bool:
        return start == len(self.past) or self.past[start][0]["role"] == "user"


def taken_apart(messages: Sequence[Message]) -> Chat:
    """A turn is a user's message and all that follows it up to the next one."""
    head = tuple(messages[:1]) if messages[0]["role"] == "system" else ()
    rest = messages[len(head) :]
    starts = [at for at, message in enumerate(rest) if at == 0 or message["role"] == "user"]
    *past, newest = (tuple(rest[at:end]) for at, end in itertools.pairwise([*starts, len(rest)]))
    return Chat(head, tuple(past), newest)


def longest_that_fits(chat: Chat, count: Counting, limit: int, room: Reserve) -> tuple[Message, ...] | None:
    """By trying one after the other."""
    for window in chat.windows:
        if count(window) <= limit - (room.wanted if window != chat.windows[-1] else room.least):
            return window
    return None


@dataclass
class Asked:
    """A counter that keeps what it was asked."""

    function: Counting
    times: int = 0

    def __call__(self, messages: Sequence[Message]) -> Any:
        self.times += 1
        assert self.times < 30, "no history of a test takes so many counts"
        return self.function(messages)


def refuse(step: Step) -> Any:
    """Nothing is sent here."""
    raise AssertionError(f"{step} was sent")


def fitted(messages: Sequence[Message], **arguments: Any) -> Window:
    """The longest window, with no server."""
    return run(fit(messages, **{"histories": Histories(), "window": "longest", **arguments}), refuse)


def remembering(chat: Chat, sent: Sequence[Message], tokens: Any, beside: int = 0) -> Histories:
    """What is remembered once a server has counted this request, whose window began at the turn it begins with."""
    histories, whole = Histories(), [*chat.head, *(message for turn in chat.past for message in turn)]
    learn(histories, sent, tokens, beside=beside)
    first = next((message for message in sent if message["role"] != "system"), None)
    for digest, message in zip(digests(whole), whole, strict=True):
        if message is first:
            histories.note_start(digest)
    return histories


def check_is_window(chat: Chat, window: Window) -> None:
    """System first, newest last, whole turns, none opened on an answer, and what was sent and dropped is all."""
    assert window.messages in chat.windows
    sent = window.messages[len(chat.head) :]
    assert [*window.dropped, *sent] == [*(message for turn in chat.past for message in turn), *chat.newest]


def check_is_the_longest(
    messages: Sequence[Message],
    count: Counting,
    limit: int,
    room: Reserve,
    known: Histories | None = None,
    beside: int = 0,
    by: Callable[[Asked], Counter] = Own,
) -> None:
    """All that is promised of a window whose counts are right."""
    chat, asked = taken_apart(messages), Asked(count)
    expected = longest_that_fits(chat, count, limit, room)
    arguments: dict[str, Any] = {"limit": limit, "room": room, "counter": by(asked), "beside": beside}
    arguments["histories"] = Histories() if known is None else known
    if expected is None:
        with pytest.raises(ContextOverflow) as caught:
            fitted(messages, **arguments)
        assert caught.value.limit == limit
        assert caught.value.needed is not None
        assert limit - room.least < caught.value.needed <= count(chat.windows[-1])
    else:
        window = fitted(messages, **arguments)
        check_is_window(chat, window)
        assert window.messages == expected
        assert window.tokens in (None, count(window.messages))
    whole, free = chat.windows[0], limit - (room.wanted if chat.past else room.least)
    if bound(whole) + AROUND + beside <= free and len(chat.windows) > 1:
        assert asked.times == 0
    assert asked.times <= math.ceil(math.log2(len(chat.past) + 1)) + 1


# --- tokenizers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy:
    """An additive byte-level tokenizer: of each message any number of tokens, up to its bytes and the turn's own."""

    seed: int
    frame: int
    ignores_system: bool

    def __call__(self, messages: Sequence[Message]) -> int:
        return self.frame + sum(map(self.cost, messages))

    def cost(self, message: Message) -> int:
        if message["role"] == "system" and self.ignores_system:
            return 0
        most, how = bound([message]), self.seed % 8
        if how < 2:
            return 1 if how else most
        if how < 5:
            return max(1, most // how)
        return 1 + zlib.crc32(repr(message).encode(), self.seed) % most


TOYS = st.builds(
    Toy,
    st.integers(0, 2**16),
    st.sampled_from([0, 3, FRAME_TOKENS, AROUND - 1, AROUND]) | st.integers(0, AROUND),
    st.booleans(),
)
ROOMS = st.builds(lambda wanted, part: Reserve(wanted, wanted * part // 8), st.integers(0, 600), st.integers(0, 8))
PARTS = st.integers(0, 40)
"""How much of what is there fits, in fortieths; and of which turns an earlier count is known."""


def limit_at(chat: Chat, count: Counting, room: Reserve, part: int, off: int) -> int:
    """A limit near where something changes: a window that just fits, or does not by one token."""
    windows = chat.windows
    tokens: int = count(windows[part * (len(windows) - 1) // 40])
    return max(1, tokens + room.wanted + off)


@functools.lru_cache(maxsize=4096)
def _between(text: str) -> int:
    return standin.count(text)


_SPECIAL = re.compile("(" + "|".join(map(re.escape, standin.SPECIAL)) + ")")


def quick_count(text: str) -> int:
    """Tokens of a text, by the real tokenizer, the parts between special tokens counted apart and remembered."""
    parts = [part for part in _SPECIAL.split(text) if part]
    return sum(1 if part in standin.SPECIAL else _between(part) for part in parts)


def by_template(template: standin.Template) -> Counting:
    """The real tokenizer's count of what a template makes."""
    return lambda messages: quick_count(template(messages))


# --- properties -------------------------------------------------------------------------------------------------------


@given(open_chats(), TOYS, ROOMS, PARTS, st.integers(-2, 2))
def test_the_longest_window_that_fits_goes_out(
    messages: list[Message], toy: Toy, room: Reserve, part: int, off: int
) -> None:
    """With any additive tokenizer, it is the longest suffix of whole turns that fits, in few counts or none."""
    check_is_the_longest(messages, toy, limit_at(taken_apart(messages), toy, room, part, off), room)


@given(open_chats(), TOYS, ROOMS, st.integers(1, 4000))
def test_any_limit_is_kept(messages: list[Message], toy: Toy, room: Reserve, limit: int) -> None:
    """Limits that have nothing to do with the history: smaller than the reserve, or larger than everything."""
    check_is_the_longest(messages, toy, limit, room)


@given(open_chats(), TOYS, ROOMS, PARTS, PARTS, PARTS)
def test_an_earlier_count_changes_nothing_but_the_number_of_counts(
    messages: list[Message], toy: Toy, room: Reserve, part: int, first: int, last: int
) -> None:
    """A count of any stretch of the same turns is used, and the same window goes out."""
    chat = taken_apart(messages)
    known = an_earlier_count(chat, toy, first, last)
    limit = limit_at(chat, toy, room, part, 0)
    check_is_the_longest(messages, toy, limit, room, known)


def an_earlier_count(
    chat: Chat, count: Counting, first: int, last: int, beside: int = 0, said: Any = "right"
) -> Histories | None:
    """What the server said of an earlier request of this chat: the turns from one to another, and a user's message."""
    opening = [start for start in range(len(chat.past)) if chat.may_open(start)]
    if not opening:
        return None
    start, end = sorted(opening[place * (len(opening) - 1) // 40] for place in (first, last))
    sent = (*chat.head, *(message for turn in chat.past[start:end] for message in turn), chat.past[end][0])
    return remembering(chat, sent, count(sent) if said == "right" else said, beside)


@given(open_chats(), TOYS, ROOMS, PARTS, st.integers(1, 900), PARTS)
def test_tools_that_an_earlier_request_did_not_have_are_counted(
    messages: list[Message], toy: Toy, room: Reserve, part: int, tools: int, earlier: int
) -> None:
    """What stands beside the messages now is not in a count from before."""
    chat = taken_apart(messages)

    def with_tools(window: Sequence[Message]) -> int:
        return toy(window) + tools

    limit = limit_at(chat, with_tools, room, part, 0)
    for known in (an_earlier_count(chat, toy, 0, earlier), an_earlier_count(chat, with_tools, 0, earlier, tools)):
        check_is_the_longest(messages, with_tools, limit, room, known, beside=tools)


TEMPLATES = st.sampled_from(
    [*standin.KNOWN.values(), standin.merged, standin.merged_blank, standin.user_lost, standin.unknown]
)


@given(TEMPLATES, open_chats(), ROOMS, PARTS, st.integers(-2, 2), st.none() | PARTS)
def test_a_real_tokenizer_and_any_template_fit(
    template: standin.Template, messages: list[Message], room: Reserve, part: int, off: int, earlier: int | None
) -> None:
    """The same with byte pairs merged, and the system message wherever a template puts it."""
    chat, count = taken_apart(messages), by_template(template)
    known = an_earlier_count(chat, count, 0, earlier) if earlier is not None else None
    check_is_the_longest(messages, count, limit_at(chat, count, room, part, off), room, known)


@given(open_chats())
def test_the_quick_count_is_the_tokenizers(messages: list[Message]) -> None:
    """What the properties count by is what the tokenizer says of the whole prompt."""
    for template in (standin.own_turn, standin.unknown):
        assert quick_count(template(messages)) == standin.count(template(messages))


SENSELESS = (0, -1, -(10**9), 10**9, None, True, False, "12", 1.5, float("nan"), [12])


@given(open_chats(), ROOMS, st.integers(1, 6000), st.sampled_from(SENSELESS), st.booleans())
def test_a_count_that_makes_no_sense_is_not_believed(
    messages: list[Message], room: Reserve, limit: int, said: Any, behind_others: bool
) -> None:
    """0, less than nothing, absurd, no number: the window is as long as the bound allows, or the newest alone."""
    limit += room.least + 1  # that much is needed whatever the counts are
    chat, asked = taken_apart(messages), Asked(lambda window: said)
    counter = FirstThatCan([Own(asked)]) if behind_others else Own(asked)
    window = fitted(messages, limit=limit, room=room, counter=counter)
    check_is_window(chat, window)
    fits_by_bound = [
        each
        for each in chat.windows
        if bound(each) + AROUND <= limit - (room.wanted if each != chat.windows[-1] else room.least)
    ]
    assert window.messages == (fits_by_bound or chat.windows)[0 if fits_by_bound else -1]
    assert window.tokens is None
    assert asked.times <= 1


@given(
    open_chats(),
    TOYS,
    ROOMS,
    PARTS,
    st.lists(st.sampled_from([0, -1, 10**9, None, True, "right"]), min_size=1, max_size=6),
)
def test_a_counter_that_fails_now_and_then_still_leaves_a_window_that_fits(
    messages: list[Message], toy: Toy, room: Reserve, part: int, says: list[Any]
) -> None:
    """Right counts are used, up to the first that isn't."""
    chat = taken_apart(messages)
    limit = limit_at(chat, toy, room, part, 0)
    script = iter(says)

    def unsure(window: Sequence[Message]) -> Any:
        said = next(script, "right")
        return toy(window) if said == "right" else said

    window = fitted(messages, limit=limit, room=room, counter=Own(unsure))
    check_is_window(chat, window)
    if window.messages != chat.windows[-1]:
        assert toy(window.messages) <= limit - room.wanted


@given(open_chats(), TOYS, ROOMS, st.integers(1, 6000), st.sampled_from([0, -5, 10**9, True, None, "12"]))
def test_an_earlier_count_that_makes_no_sense_is_not_believed(
    messages: list[Message], toy: Toy, room: Reserve, limit: int, said: Any
) -> None:
    """A server that says 0, or anything absurd, of a request does not make the next one too long."""
    chat = taken_apart(messages)
    known = an_earlier_count(chat, toy, 0, 40, said=said)
    check_is_the_longest(messages, toy, limit, room, known)


@given(open_chats(), TOYS, ROOMS, PARTS, st.binary(max_size=9), st.integers(1, 3000))
def test_a_count_of_another_chat_is_not_used(
    messages: list[Message], toy: Toy, room: Reserve, part: int, other: bytes, tokens: int
) -> None:
    """Instructions changed, a history edited: what was counted then says nothing now."""
    chat = taken_apart(messages)
    foreign = ({"role": "system", "content": f"other {other!r}"}, {"role": "user", "content": f"other {other!r}"})
    for sent in (foreign, foreign[1:]):
        known = Histories()
        learn(known, sent, tokens)
        check_is_the_longest(messages, toy, limit_at(chat, toy, room, part, 0), room, known)


# --- cases that a person can read -------------------------------------------------------------------------------------


def said_by(*pairs: tuple[str, str]) -> list[Message]:
    """Messages by role and text."""
    return [{"role": role, "content": content} for role, content in pairs]


LONG = said_by(("system", "s"), *([("user", "q" * 500), ("assistant", "a" * 500)] * 16), ("user", "now"))


def of_bytes(messages: Sequence[Message]) -> int:
    """A tokenizer that makes a token of every byte."""
    return bound(messages)


@pytest.mark.parametrize("limit", range(1300, 17_500, 700))
def test_seventeen_turns_take_at_most_six_counts(limit: int) -> None:
    """⌈log2(17)⌉ + 1, wherever the window starts."""
    asked = Asked(of_bytes)
    fitted(LONG, limit=limit, room=Reserve(0, 0), counter=Own(asked))
    assert asked.times <= 6


def test_where_the_bound_fits_nothing_is_asked() -> None:
    """One token less of context, and it is counted."""
    limit = bound(LONG) + AROUND
    for less, times in ((0, 0), (1, 1)):
        asked = Asked(of_bytes)
        window = fitted(LONG, limit=limit - less, room=Reserve(0, 0), counter=Own(asked))
        assert window.messages == tuple(LONG)
        assert asked.times == times


def test_the_next_turn_of_a_counted_chat_is_not_counted_again() -> None:
    """The last reply's count, and the bound of what came since, are enough."""
    asked = Asked(of_bytes)
    sent = (*LONG[:-2], {"role": "user", "content": "before"})
    now = [*sent, *said_by(("assistant", "yes"), ("user", "now"))]
    known = Histories()
    learn(known, sent, of_bytes(sent))
    window = fitted(now, limit=of_bytes(now), room=Reserve(0, 0), counter=Own(asked), histories=known)
    assert (window.messages, window.dropped, asked.times) == (tuple(now), (), 0)


def test_a_history_that_begins_with_an_answer_never_opens_on_it() -> None:
    """The answer without its question is dropped, also where everything would fit."""
    messages = said_by(("assistant", "a"), ("tool", "t"), ("user", "q"), ("assistant", "b"), ("user", "now"))
    window = fitted(messages, limit=100_000, room=Reserve(0, 0), counter=Own(of_bytes))
    assert window.messages == tuple(messages[2:])
    assert window.dropped == tuple(messages[:2])


def test_a_tool_exchange_stays_whole() -> None:
    """Question, call, result and answer are one turn: all of it goes, or none."""
    call: Message = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}
    result: Message = {"role": "tool", "content": "r" * 200, "tool_call_id": "1"}
    exchange: list[Message] = [{"role": "user", "content": "q"}, call, result, {"role": "assistant", "content": "a"}]
    messages: list[Message] = [*exchange, *exchange, {"role": "user", "content": "now"}]
    for limit in range(10, bound(messages) + 1):
        window = fitted(messages, limit=limit, room=Reserve(0, 0), counter=Own(of_bytes))
        assert [message["role"] for message in window.messages].count("tool") == len(window.messages) // 4


def test_messages_that_alone_do_not_fit_are_refused_before_anything_is_sent() -> None:
    """The error holds what is needed and what there is, and says what is kept for the reply."""
    messages = said_by(("system", "s" * 100), ("user", "q"), ("assistant", "a"), ("user", "n" * 100))
    alone = of_bytes([messages[0], messages[-1]])
    with pytest.raises(ContextOverflow) as caught:
        fitted(messages, limit=alone + 49, room=Reserve(90, 50), counter=Own(of_bytes))
    assert (caught.value.needed, caught.value.limit) == (alone, alone + 49)
    assert f"take {alone} tokens, and 50 of {alone + 49} are kept for the reply" in caught.value.message
    window = fitted(messages, limit=alone + 50, room=Reserve(90, 50), counter=Own(of_bytes))
    assert window.messages == (messages[0], messages[-1])


def test_a_shorter_prompt_with_more_tokens_is_not_believed() -> None:
    """Counts that fall while the prompt grows: the longest window with a believable one goes out."""
    seen: list[int] = []

    def falling(window: Sequence[Message]) -> int:
        seen.append(len(window))
        return of_bytes(window) if len(seen) == 1 else 5

    limit = of_bytes(LONG) - 900
    window = fitted(LONG, limit=limit, room=Reserve(0, 0), counter=Own(falling))
    assert len(seen) == 2
    assert len(window.messages) == seen[0] < seen[1]
    assert of_bytes(window.messages) <= limit


@given(open_chats(), TOYS, ROOMS, PARTS, st.integers(-2, 2), st.sampled_from(["needed", "nothing", "nonsense"]))
def test_a_server_that_refuses_to_count_what_does_not_fit(
    messages: list[Message], toy: Toy, room: Reserve, part: int, off: int, says: str
) -> None:
    """That a prompt was too long is as good as a count, whether or not it says by how much."""
    limit = limit_at(taken_apart(messages), toy, room, part, off)

    class Refuses:
        def __init__(self, asked: Asked) -> None:
            self.asked = asked

        def count(self, window: Sequence[Message]) -> Flow[Count]:
            tokens = self.asked(window)
            if tokens <= limit:
                return Count(tokens, 1)
            return Count({"needed": tokens, "nothing": None, "nonsense": 10**9}[says], 1, too_long=True)
            yield

    check_is_the_longest(messages, toy, limit, room, by=Refuses)


def test_turns_begin_where_the_user_speaks() -> None:
    """All messages, in their order; each group but the first opens on the user."""
    messages = said_by(("tool", "0"), ("user", "1"), ("user", "2"), ("assistant", "3"), ("tool", "4"), ("user", "5"))
    assert [[message["content"] for message in turn] for turn in turns(messages)] == [
        ["0"],
        ["1"],
        ["2", "3", "4"],
        ["5"],
    ]
    assert turns([]) == []


def test_the_cost_of_counting_is_told() -> None:
    """Requests that a counter made add up."""

    class Costly:
        def count(self, messages: Sequence[Message]) -> Flow[Count]:
            return Count(of_bytes(messages), 3)
            yield

    asked = Asked(of_bytes)
    fitted(LONG, limit=9000, room=Reserve(0, 0), counter=Own(asked))
    assert fitted(LONG, limit=9000, room=Reserve(0, 0), counter=Costly()).requests == 3 * asked.times > 0


# --- the reserve ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 200_000), st.none() | st.integers(0, 200_000), st.none() | st.just(-1) | st.integers(1, 200_000))
@example(limit=4096, wanted=None, max_tokens=None)
def test_the_reserve_keeps_its_rule(limit: int, wanted: int | None, max_tokens: int | None) -> None:
    """A caller's own is kept as it is; the default is half the context, an eighth beside the newest message alone,
    never more than 16,384 tokens, never more than the reply may have."""
    room = reserve(limit, wanted, max_tokens)
    if wanted is not None:
        assert room == Reserve(wanted, wanted)
        return
    assert 0 <= room.least <= room.wanted <= LARGEST_RESERVE == 16_384
    assert room.wanted <= limit / 2
    assert room.least <= limit / 8
    most = 16_384 if max_tokens in (None, -1) else min(16_384, max_tokens or 0)
    assert room.wanted == min(most, limit // 2)
    assert room.least == min(most, limit // 8)


def test_the_default_reserve_gives_way_to_the_newest_message_and_a_callers_own_does_not() -> None:
    """A message that leaves an eighth of the context goes out alone; with a reserve of half it is refused."""
    limit = 4000
    messages = said_by(("user", "q"), ("assistant", "a"), ("user", "n" * 3000))
    window = fitted(messages, limit=limit, room=reserve(limit), counter=Own(of_bytes))
    assert window.messages == (messages[-1],)
    with pytest.raises(ContextOverflow):
        fitted(messages, limit=limit, room=reserve(limit, wanted=limit // 2), counter=Own(of_bytes))
