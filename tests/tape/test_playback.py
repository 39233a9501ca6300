"""How an exchange is played: the bytes never change, only where they are cut, when they are due, and how they end."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phi4_http.tape.exchange import End, Exchange, Piece
from phi4_http.tape.playback import AS_RECORDED, AT_ONCE, Playback, equal_sizes, random_sizes, recut

from .support import exchange, exchanges

sizes = st.none() | st.integers(1, 50)
seeds = st.none() | st.integers(0, 2**32)


@given(exchanges(), sizes, seeds)
@example(exchange(pieces=[]), 1, None)
def test_cutting_anew_never_changes_a_byte(made: Exchange, size: int | None, seed: int | None) -> None:
    """However a body is cut anew, its bytes are the same, no piece is empty, and no piece is too large."""
    pieces = list(Playback(recut=size, seed=seed).pieces(made))
    assert b"".join(piece.data for piece in pieces) == made.body
    assert all(piece.data for piece in pieces)
    most = size or (64 if seed is not None else max((cut.size for cut in made.cuts), default=0))
    assert all(len(piece.data) <= most for piece in pieces)
    if size and seed is None:
        assert all(len(piece.data) == size for piece in pieces[:-1])


@given(exchanges(), sizes, seeds)
def test_no_piece_comes_before_its_last_byte(made: Exchange, size: int | None, seed: int | None) -> None:
    """A piece cut anew is due when its last byte came, and times never decrease."""
    due = [piece.at for piece in made.pieces() for _ in piece.data]
    start = 0
    for piece in Playback(recut=size, seed=seed).pieces(made):
        start += len(piece.data)
        assert piece.at == due[start - 1]
    assert due == sorted(due)


@given(exchanges(), st.integers(0, 500), sizes, seeds)
def test_a_failure_comes_after_so_many_bytes(made: Exchange, bound: int, size: int | None, seed: int | None) -> None:
    """With `fail_after` exactly so many bytes come, then the connection breaks; a shorter body ends as it did."""
    playback = Playback(fail_after=bound, recut=size, seed=seed)
    assert b"".join(piece.data for piece in playback.pieces(made)) == made.body[:bound]
    assert playback.size(made) == min(bound, len(made.body))
    assert playback.end(made) is (End.CUT if bound < len(made.body) else made.end)


def test_a_seed_is_the_same_every_time() -> None:
    """A seed gives the same cuts each time, and another seed others."""
    one, same, other = (list(itertools.islice(random_sizes(seed, 64), 20)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_speed_scales_every_time() -> None:
    """At ten times the speed all is due after a tenth of the time; without waiting, at once."""
    made = exchange(pieces=[(1.0, b"a"), (2.0, b"b")], seconds=0.5)
    assert [piece.at for piece in Playback(speed=10).pieces(made)] == [0.1, 0.2]
    assert [piece.at for piece in AS_RECORDED.pieces(made)] == [1.0, 2.0]
    assert [piece.at for piece in AT_ONCE.pieces(made)] == [0.0, 0.0]
    assert Playback(speed=2).due(made.response.seconds) == 0.25


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"speed": 0}, "speed must be above 0"),
        ({"speed": -1}, "speed must be above 0"),
        ({"speed": float("nan")}, "speed must be above 0"),
        ({"speed": float("inf")}, "speed must be above 0"),
        ({"recut": 0}, "recut must be at least 1"),
        ({"fail_after": -1}, "fail_after must be at least 0"),
    ],
)
def test_options_without_sense_are_refused(options: Any, problem: str) -> None:
    """An option that makes no sense is an error where it is given, not where it is used."""
    with pytest.raises(ValueError, match=problem):
        Playback(**options)


@pytest.mark.parametrize(
    ("pieces", "size"), [([b"x" * 400_000], 1), ([b"x"] * 400_000, 400_000), ([b"xx"] * 200_000, 3)]
)
def test_cutting_anew_is_linear(pieces: list[bytes], size: int) -> None:
    """One huge piece into bytes and single bytes into one huge piece both take time linear in the bytes."""
    began = time.process_time()
    made = list(recut((Piece(0.0, data) for data in pieces), equal_sizes(size)))
    assert sum(len(piece.data) for piece in made) == 400_000
    assert time.process_time() - began < 5
