"""What is a loop, and what is not: long thoughts that go on, lists, tables and code."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable

import pytest
from ends import ENDS
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cut_by

from phi4_http.reply.loops import LoopDetector

REPEATS = 6
WORDS = re.findall(
    r"\w+",
    "the of a number train speed which then we have that it is not so but if case sum "
    "two find value left right because check again wait answer equation side time "
    "hours distance first second both same x y equals plus ",
)


def first_loop(text: str, repeats: int = REPEATS, size: int = 50) -> int | None:
    """After how many characters the loop is noticed; None where it never is."""
    detector = LoopDetector(repeats)
    for at in range(0, len(text), size):
        if detector.feed(text[at : at + size]):
            return at + size
    return None


LOOPS = {
    "no sentence end": "and so on, " * 5_000,
    "one word": "no " * 5_000,
    "no space": "等等" * 5_000,
    "a counter": "".join(f"Step {n}. So it is. " for n in range(2_000)),
    "a counter of many": "".join(f"Step {n} of 9000. So it is. " for n in range(2_000)),
    "a counter down a list": "".join(f"{n}. Check it.\n" for n in range(2_000)),
    "short sentences": "Wait. Is it? No. Let me see. " * 400,
    "a long phrase": f"{' '.join(f'word{chr(97 + n % 26)}{chr(97 + n // 26)}' for n in range(100))}, " * 50,
    "a sentence": "Let me look at the question again. " * 10,
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_noticed(name: str) -> None:
    """With sentences or without, and where it counts; some 800 words are enough, or ten times the phrase."""
    text = "I begin with the first train, which leaves at noon. " + LOOPS[name]
    found = first_loop(text)
    assert found is not None
    assert found < 12_000


def chat_like(seed: int, words: int) -> str:
    """Prose of few words, in sentences of many lengths."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + draw.choice(["", "", "", "", ",", ".", "\n"]) for _ in range(words))


SOUND: dict[str, Callable[[], str]] = {
    "a numbered list": lambda: "".join(f"{n}. {' '.join(chat_like(n, 6).split())}\n" for n in range(1_000)),
    "a table of numbers": lambda: "".join(f"| {n} | {n * n % 97} | {n * 31 % 89} |\n" for n in range(1_000)),
    "a table of yes and no": lambda: "".join(
        f"| {n} | {' | '.join('yes' if n * k % 7 < 3 and n % (k + 2) else 'no' for k in range(1, 9))} |\n"
        for n in random.Random(1).sample(range(5_000), 500)
    ),
    "a calculation for each case": lambda: "".join(
        f"For n = {n} the sum is {n * (n + 1) // 2}, not a square.\n" for n in range(1, 500)
    ),
    "the numbers in order": lambda: ", ".join(map(str, (n for n in range(2, 9_000) if all(n % d for d in (2, 3, 5))))),
    "digits": lambda: ", ".join(str(random.Random(n).randrange(2)) for n in range(3_000)),
    "code": lambda: "".join(
        f"    if x == {n * n % 101}:\n        return values[{n * 7 % 53}] + {n * 3 % 31}\n" for n in range(300)
    ),
    "rows of data": lambda: "".join(f'{{"id": {n * 7919 % 10007}, "ok": true}},\n' for n in range(1_000)),
    "few words": lambda: chat_like(7, 20_000),
    "wait, many times": lambda: "".join(f"Wait. {chat_like(n, 9)}. Hmm. " for n in range(500)),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_thought_is_no_loop(name: str) -> None:
    """Forms that repeat, with something new in each."""
    assert first_loop(SOUND[name]()) is None


@pytest.mark.parametrize("name", ENDS)
def test_no_shipped_thought_is_a_loop(name: str) -> None:
    """Nor the solution."""
    assert first_loop(ENDS[name].thought or "") is None
    assert first_loop(ENDS[name].solution) is None


@given(st.sampled_from(sorted(LOOPS)), st.integers(0, 40), st.binary(max_size=25))
@settings(deadline=None, max_examples=60)
def test_a_loop_is_noticed_at_the_same_place_however_it_is_cut(name: str, offset: int, cuts: bytes) -> None:
    """With the piece in which it would be noticed character by character."""
    text = LOOPS[name][offset:9_000]
    detector, where = LoopDetector(REPEATS), None
    for at, character in enumerate(text):
        if detector.feed(character):
            where = at + 1
            break
    again, at = LoopDetector(REPEATS), 0
    for piece in cut_by(cuts, text):
        at += len(piece)
        if again.feed(piece):
            assert where is not None
            # The last word of a piece is not certain to have ended, and is counted with the next.
            assert where <= at
            return
        assert where is None or at < where + 40
    assert where is None or at < where + 40


def size_of(value: object, seen: set[int]) -> int:
    """Bytes that an object holds, with what is inside."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    inner = list(vars(value).values()) if hasattr(value, "__dict__") else []
    if isinstance(value, dict):
        inner += [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set)) or type(value).__name__ == "deque":
        inner += list(value)  # type: ignore[call-overload]  # any of these
    return sys.getsizeof(value) + sum(size_of(held, seen) for held in inner)


@pytest.mark.parametrize("text", [chat_like(3, 60_000), "a b c d, " * 40_000, "x" * 300_000], ids=["", "loop", "word"])
def test_little_is_remembered_of_a_long_thought(text: str) -> None:
    """Whether it has sentences or none."""
    detector = LoopDetector(REPEATS)
    for at in range(0, len(text), 7):
        detector.feed(text[at : at + 7])
    assert size_of(detector, set()) < 300_000
