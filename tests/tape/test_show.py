"""What a tape holds, as text: the table, the time line, and the list of what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4_http.cli.text import aligned
from phi4_http.errors import TapeError
from phi4_http.tape.check import Problem, check_tape
from phi4_http.tape.exchange import Exchange
from phi4_http.tape.format import load_tape, write_exchange
from phi4_http.tape.show import NUMBERS, table, time_line

from .support import SECRET, chunk, edit, exchange, exchanges, stream


def test_a_table_has_a_line_for_each_exchange() -> None:
    """The table has its columns, numbers to the right."""
    made = [
        exchange("a", method="GET", path="/v1/models", seconds=0.25, pieces=[(0.5, b"x" * 1234)]),
        stream(3, name="long-name"),
    ]
    assert list(aligned(table(made), NUMBERS)) == [
        "NAME       REQUEST                    STATUS  BYTES  PIECES  SECONDS  END    FROM",
        "a          GET /v1/models                200  1,234       1    0.500  clean  composed",
        "long-name  POST /v1/chat/completions     200    599       4    0.000  clean  composed",
    ]


def test_a_time_line_shows_when_bytes_came() -> None:
    """The chart has a bar for each stretch of time, a dot where nothing came; the pauses and pieces are told."""
    pieces = [
        (1.0, b": hi\n\n"),
        (2.0, chunk("one")),
        (2.1, chunk("two") + chunk(" three")),
        (4.0, b"data: [DONE]\n\n"),
    ]
    lines = list(time_line(exchange(seconds=0.5, pieces=pieces), width=16, pieces=3))
    assert lines[0] == "hello: POST /v1/chat/completions -> 200, 599 bytes, ends clean"
    assert lines[1] == "  composed: a test"
    assert lines[2] == "  0.000 s  4.000 s"
    assert lines[3] == "  ····▁···█······▁"
    assert lines[4] == (
        "  head at 0.500 s, first piece at 1.000 s, usual pause 1000.0 ms, longest 1900.0 ms, after 2.100 s"
    )
    assert [line.split() for line in lines[5:8]] == [
        ["0", "1.000", "s", "6", "B", ":", "hi⏎⏎"],
        ["1", "2.000", "s", "192", "B", "one"],
        ["2", "2.100", "s", "387", "B", "two", "three"],
    ]
    assert lines[8:] == ["  … and 1 more pieces"]


@given(exchanges(), st.integers(1, 100), st.integers(0, 5))
def test_any_exchange_can_be_shown(made: Exchange, width: int, pieces: int) -> None:
    """Whatever is on a tape can be shown, and the chart has the width that was asked for."""
    lines = list(time_line(made, width=width, pieces=pieces))
    chart = lines[4] if made.origin.note else lines[3]
    assert len(chart) == width + 2
    assert all("\n" not in line for line in lines[-pieces:])
    assert len(table([made])) == 2


def test_an_exchange_without_a_body_can_be_shown() -> None:
    """Where no body came, that is what is told."""
    assert list(time_line(exchange(pieces=[])))[-1] == "  head at 0.000 s, no body"


def test_a_check_tells_everything(tmp_path: Path) -> None:
    """All that is wrong with a tape is told, not only the first thing, each with its file."""
    for name in ("a", "b", "c", "d", "good"):
        write_exchange(tmp_path, exchange(name))
    edit(tmp_path / "a.json", lambda data: data["response"].update(status="200"))
    (tmp_path / "b.sse").unlink()
    edit(tmp_path / "c.json", lambda data: data["origin"].update(note=f"with {SECRET}"))
    (tmp_path / "d.sse").rename(tmp_path / "d.body")
    (tmp_path / ".0001-x.body.part").touch()
    (tmp_path / "orphan.sse").touch()
    problems = list(check_tape(tmp_path))
    assert [(Path(one.file).name, one.field, one.harmless) for one in problems] == [
        ("a.json", "response.status", False),
        ("b.json", None, False),
        ("c.json", None, False),
        ("d.body", None, True),
        (".0001-x.body.part", None, True),
        ("orphan.sse", None, True),
    ]
    told = "\n".join(map(str, problems))
    for text in (
        "not a whole number",
        "neither is there",
        "looks like a secret: sk-lm-…",
        "should end with .sse",
        "left over",
    ):
        assert text in told
    assert SECRET not in told


def test_a_check_of_nothing_says_so(tmp_path: Path) -> None:
    """An empty folder is no tape, and a folder that is not there is an error."""
    assert list(check_tape(tmp_path)) == [Problem(str(tmp_path), "there is no exchange in it")]
    with pytest.raises(TapeError, match="no tape there"):
        list(check_tape(tmp_path / "nothing"))


def test_a_good_tape_has_no_problems(tmp_path: Path) -> None:
    """Nothing is said of a tape that is good."""
    write_exchange(tmp_path, stream(5))
    assert len(load_tape(tmp_path)) == 1
    assert list(check_tape(tmp_path)) == []
