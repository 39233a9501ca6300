"""How a window moves over a chat that grows: seldom, no further than it has to, and at next to no cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phi4 import standin
from phi4.histories import Message, open_chats
from phi4.simulation import mean, past_the_end, play
from phi4.test_window import (
    PARTS,
    ROOMS,
    SENSELESS,
    TEMPLATES,
    TOYS,
    Asked,
    Chat,
    Counting,
    Toy,
    by_template,
    check_is_window,
    limit_at,
    of_bytes,
    refuse,
    said_by,
    taken_apart,
)
from phi4_http.errors import ContextOverflow
from phi4_http.flow import Flow, run
from phi4_http.phi4.counting import FRAME_TOKENS, TEMPLATE_TOKENS, Count, Own, bound
from phi4_http.phi4.known import learn
from phi4_http.phi4.window import KEPT_SHARE, Reserve, Window, fit, turns
from phi4_http.server import Histories

AROUND = FRAME_TOKENS + TEMPLATE_TOKENS
Usage = Callable[[int], Any]


def steadied(messages: Sequence[Message], histories: Histories, **arguments: Any) -> Window:
    """The window, with no server."""
    return run(fit(messages, histories=histories, **arguments), refuse)


def requests_of(chat: list[Message]) -> Iterator[list[Message]]:
    """The prompts of a chat as it grows, each up to a user's message or the last result of an answer's calls."""
    head = 1 if chat[0]["role"] == "system" else 0
    for end in range(head + 1, len(chat) + 1):
        role, then = chat[end - 1]["role"], chat[end]["role"] if end < len(chat) else None
        if role == "user" or (role == "tool" and then != "tool" and end - head > 2):
            yield chat[:end]


def start_of(chat: Chat, window: Window) -> int:
    """The number of the turn that a window begins with."""
    return len(turns(window.dropped))


def follow(
    chat: list[Message],
    count: Counting,
    limit: int,
    room: Reserve,
    *,
    histories: Histories | None = None,
    usage: Usage = int,
    counter: Counting | None = None,
    right: bool = True,
) -> list[tuple[int, int]]:
    """Every prompt of a chat; what is promised of each window. Returns where each began, and how often it counted."""
    histories = histories if histories is not None else Histories()
    began: list[tuple[int, int]] = []
    before = 0
    for messages in requests_of(chat):
        seen, asked = taken_apart(messages), Asked(counter or count)
        alone = count(seen.windows[-1])
        overflow: ContextOverflow | None = None
        try:
            window = steadied(messages, histories, limit=limit, room=room, counter=Own(asked))
        except ContextOverflow as error:
            overflow = error
        if overflow is not None:
            assert overflow.needed is not None
            assert not right or limit - room.least < overflow.needed <= alone
            continue
        check_is_window(seen, window)
        start, tokens = start_of(seen, window), count(window.messages)
        last = len(seen.past)
        assert start >= before or not right
        if right:
            check_right(seen, window, count, limit, room, max(before, 0 if seen.may_open(0) else 1))
            again = steadied(messages, histories, limit=limit, room=room, counter=Own(count))
            assert (again.messages, again.dropped) == (window.messages, window.dropped)
        assert asked.times <= math.ceil(math.log2(last + 1)) + 2
        learn(histories, window.messages, usage(tokens))
        began.append((start, asked.times))
        before = start
    return began


def check_right(chat: Chat, window: Window, count: Counting, limit: int, room: Reserve, kept: int) -> None:
    """All that is promised of a window after one that began at `kept`, where counts are right."""
    start, last, tokens = start_of(chat, window), len(chat.past), count(window.messages)
    assert window.tokens in (None, tokens)
    assert window.at_most is not None
    assert tokens <= window.at_most
    assert tokens <= limit - (room.least if start == last else room.wanted)
    if start != kept:
        assert count(chat.window(kept)) > limit - (room.least if kept == last else room.wanted)
        alone = count(chat.windows[-1])
        if start != last:
            assert tokens - alone <= KEPT_SHARE * (limit - room.wanted - alone)


@given(open_chats(40), TOYS, ROOMS, PARTS, st.integers(-2, 2), st.booleans())
@settings(deadline=None, max_examples=500)
def test_a_window_moves_only_when_it_must(
    chat: list[Message], toy: Toy, room: Reserve, part: int, off: int, tells: bool
) -> None:
    """With any additive tokenizer: it fits, never moves back, moves only where it would not fit, and then leaves room;
    the same history anew has the same start. Whether or not the server tells what each prompt took."""
    limit, histories = limit_at(taken_apart(chat), toy, room, part, off), Histories()
    follow(chat, toy, limit, room, histories=histories, usage=int if tells else lambda tokens: None)
    assert not histories.doubted


@given(TEMPLATES, open_chats(40), ROOMS, PARTS, st.booleans())
@settings(deadline=None, max_examples=500)
def test_so_it_does_with_a_real_tokenizer_and_any_template(
    template: standin.Template, chat: list[Message], room: Reserve, part: int, tells: bool
) -> None:
    """The same with byte pairs merged, and the system message wherever a template puts it."""
    count = by_template(template)
    limit = limit_at(taken_apart(chat), count, room, part, 0)
    follow(chat, count, limit, room, usage=int if tells else lambda tokens: None)


@given(open_chats(30), open_chats(30), TOYS, ROOMS, PARTS)
@settings(deadline=None, max_examples=300)
def test_two_histories_do_not_disturb_each_other(
    one: list[Message], other: list[Message], toy: Toy, room: Reserve, part: int
) -> None:
    """Of two chats with no message in common, each has the windows that it has alone."""
    limit = limit_at(taken_apart(one), toy, room, part, 0)
    other = [{**message, "content": f"other {message.get('content')}"} for message in other]
    shared = Histories()
    follow(other, toy, limit, room, histories=shared)
    assert follow(one, toy, limit, room, histories=shared) == follow(one, toy, limit, room)


@given(open_chats(30), TOYS, ROOMS, st.integers(1, 6000), st.lists(st.sampled_from(SENSELESS), min_size=1, max_size=5))
@settings(deadline=None, max_examples=500)
def test_senseless_counts_leave_the_windows_of_the_bounds(
    chat: list[Message], toy: Toy, room: Reserve, limit: int, says: list[Any]
) -> None:
    """0, less than nothing, absurd, no number, by replies and by a counter: as with no counts at all."""
    limit += room.least + 1
    scripts = itertools.cycle(says), itertools.cycle(says)
    with_them = follow(
        chat,
        toy,
        limit,
        room,
        usage=lambda tokens: next(scripts[0]),
        counter=lambda window: next(scripts[1]),
        right=False,
    )
    without = follow(chat, toy, limit, room, usage=lambda tokens: None, counter=lambda window: None, right=False)
    assert with_them == without


@given(open_chats(30), TOYS, ROOMS, PARTS, st.lists(st.integers(0, 3000), min_size=1, max_size=5))
@settings(deadline=None, max_examples=500)
def test_where_the_bound_of_all_fits_no_count_can_change_that(
    chat: list[Message], toy: Toy, room: Reserve, part: int, says: list[int]
) -> None:
    """Wrong ones that could be right: all goes out, and all fits."""
    script = itertools.cycle(says)
    histories, limit = Histories(), bound(chat) + AROUND + room.wanted
    for messages in requests_of(chat):
        window = steadied(messages, histories, limit=limit, room=room, counter=Own(lambda window: next(script)))
        assert window.messages == taken_apart(messages).windows[0]
        learn(histories, window.messages, next(script))


def cached(count: Counting) -> Usage:
    """A server that says how many tokens were new to it."""
    full = [0]

    def new(tokens: int) -> int:
        full[0], grown = tokens, tokens - full[0]
        return max(grown, 0)

    return new


@given(open_chats(40), ROOMS, PARTS)
@example(said_by(("user", "aa"), ("user", "")), Reserve(0, 0), 27)  # wrong first after a move
@settings(deadline=None, max_examples=300)
def test_a_server_that_counts_only_what_was_new_does_no_harm(chat: list[Message], room: Reserve, part: int) -> None:
    """Its counts fall at the second prompt, and from then on it is asked."""
    opened = said_by(("system", "s" * 900), ("user", "q"), ("assistant", "a"), ("user", "q"))
    chat = [*opened, *(message for message in chat if message["role"] != "system")]
    limit = limit_at(taken_apart(chat), of_bytes, room, part, 0)
    follow(chat, of_bytes, limit, room, usage=cached(of_bytes))


# --- cases that a person can read -------------------------------------------------------------------------------------


def long_chat(number: int) -> list[Message]:
    """A chat of so many turns, 100 tokens each in `of_bytes`, and a newest message."""
    pairs = [("user", "q" * 41), ("assistant", "a" * 40)] * number
    messages = said_by(("system", "s"), *pairs, ("user", "now"))
    return [{**message, "content": f"{message['content']}{at:03}"} for at, message in enumerate(messages)]


def test_a_new_start_leaves_half_of_the_room() -> None:
    """Twenty turns, then one more at a time: the start stays for as long as it fits, and jumps then."""
    room, histories, starts = Reserve(50, 50), Histories(), []
    for number in range(20, 60):
        window = steadied(long_chat(number), histories, limit=2050, room=room, counter=Own(of_bytes))
        starts.append(len(window.dropped) // 2)
    moves = [other - one for one, other in itertools.pairwise([0, *starts]) if other != one]
    assert len(moves) == 4
    assert all(9 <= turns_dropped <= 14 for turns_dropped in moves)


def test_calls_and_results_stay_with_the_message_that_began_their_turn() -> None:
    """Where the newest messages are the results of tools, the whole turn is the newest, or does not fit."""
    call: Message = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}
    result: Message = {"role": "tool", "content": "r" * 100, "tool_call_id": "1"}
    newest: list[Message] = [{"role": "user", "content": "look"}, call, result, call, result, result]
    messages = [*long_chat(5)[:-1], *newest]
    alone = of_bytes([messages[0], *newest])
    for limit in range(alone - 50, of_bytes(messages) + 50):
        if limit < alone:
            with pytest.raises(ContextOverflow) as caught:
                steadied(messages, Histories(), limit=limit, room=Reserve(0, 0), counter=Own(of_bytes))
            assert caught.value.needed == alone
        else:
            window = steadied(messages, Histories(), limit=limit, room=Reserve(0, 0), counter=Own(of_bytes))
            assert list(window.messages[-6:]) == newest
            assert [message["role"] for message in window.messages].count("tool") == 3


@pytest.mark.parametrize("size", range(300, 1100, 100))
@pytest.mark.parametrize("density", [1, 4])
@pytest.mark.parametrize("number", range(1, 10))
def test_a_newest_turn_of_any_size_takes_few_counts(size: int, density: int, number: int) -> None:
    """It goes out with turns before it, alone where it takes more than the room beside a history, or is refused."""
    messages = [*long_chat(number)[:-1], {"role": "user", "content": "n" * size * density}]
    seen, asked, room = taken_apart(messages), Asked(lambda window: of_bytes(window) // density), Reserve(500, 100)
    try:
        window = steadied(messages, Histories(), limit=1000, room=room, counter=Own(asked))
    except ContextOverflow:
        assert asked.function(seen.windows[-1]) > 900
    else:
        check_right(seen, window, asked.function, 1000, room, 0)
    assert asked.times <= 5


def test_a_start_is_forgotten_with_another_context() -> None:
    """After `clear`, more of the history goes out again."""
    histories, room = Histories(), Reserve(0, 0)
    short = steadied(long_chat(20), histories, limit=1000, room=room, counter=Own(of_bytes))
    same = steadied(long_chat(20), histories, limit=3000, room=room, counter=Own(of_bytes))
    histories.clear()
    whole = steadied(long_chat(20), histories, limit=3000, room=room, counter=Own(of_bytes))
    assert (len(short.dropped), len(same.dropped), len(whole.dropped)) == (len(same.dropped), len(short.dropped), 0)
    assert short.dropped


def test_what_is_needed_is_said_as_far_as_it_is_known() -> None:
    """Exactly where it was counted; else at least so much, where a server only refuses."""

    class Refuses:
        def count(self, messages: Sequence[Message]) -> Flow[Count]:
            return Count(None, 1, too_long=True)
            yield

    messages = said_by(("system", "s"), ("user", "n" * 3000))
    for counter, needed, says in ((Own(of_bytes), of_bytes(messages), "take 3,"), (Refuses(), 1001, "at least 1,001")):
        with pytest.raises(ContextOverflow) as caught:
            steadied(messages, Histories(), limit=1000, room=Reserve(90, 50), counter=counter)
        assert caught.value.needed == needed
        assert says in caught.value.message
        assert "50 of 1,000 are kept for the reply" in caught.value.message


# --- what it costs ----------------------------------------------------------------------------------------------------

SMALL, DEFAULT = Reserve(90, 90), Reserve(2048, 512)


@pytest.mark.parametrize("room", [SMALL, DEFAULT], ids=["small", "default"])
@pytest.mark.parametrize("thought", [0, 600])
def test_a_long_chat_costs_little_more_than_its_own_requests(room: Reserve, thought: int) -> None:
    """Fifty turns of some 172 tokens in a context of 4,096, whose server tells what each prompt took."""
    played = play("steady", room=room, thought=thought)
    past = past_the_end(played)
    assert len(past) > 25
    assert mean([turn.generating for turn in past]) <= 1.3
    assert mean([turn.generating for turn in played[: -len(past)]]) <= 1.15
    assert mean([turn.anew for turn in past]) <= 350
    assert mean([turn.prompt for turn in past]) >= 0.6 * (4096 - room.wanted)


@pytest.mark.parametrize("room", [SMALL, DEFAULT], ids=["small", "default"])
def test_where_counting_is_free_no_turn_counts_twice(room: Reserve) -> None:
    """And none runs the model but for its reply."""
    played = play("steady", room=room, free=True)
    assert max(turn.counts for turn in played) == 1
    assert {turn.generating for turn in played} == {1}


def test_the_longest_window_costs_the_servers_cache() -> None:
    """What `steady` is there for: every turn past the end is processed anew, and counted several times."""
    past = past_the_end(play("longest", room=DEFAULT, turns=20))
    assert mean([turn.generating for turn in past]) > 3
    assert mean([turn.anew for turn in past]) > 2048
