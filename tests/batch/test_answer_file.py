"""The file of answers: what a killed run, a full disk, another run or a stranger leaves there."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from examples import FEW
from hypothesis import given
from hypothesis import strategies as st

from phi4_http import BatchAnswer, BatchQuestion, InvalidRequest, Outcome, Reply, ServerError
from phi4_http.batch.answered import encode_line, line_of
from phi4_http.batch.answers import AnswerFile

ASKED = [BatchQuestion(f"q{number}", f"prompt {number}", place=f"line {number}") for number in range(4)]


def line(number: int, *, failed: bool = False, solution: str = "ö") -> dict[str, Any]:
    """The line of an answer."""
    outcome = Outcome.SERVER_ERROR if failed else Outcome.COMPLETE
    reply = Reply(outcome, "thought", True, solution, solution)
    return line_of(BatchAnswer(ASKED[number], reply, ServerError("broke") if failed else None))


@FEW
@given(cut=st.integers(0, 400), solution=st.text(st.characters(), max_size=20))
def test_a_half_written_last_line_is_mended(tmp_path_factory: pytest.TempPathFactory, cut: int, solution: str) -> None:
    """Wherever it was cut: whole lines stay, its question is asked again, what comes then is on a line of its own."""
    path = tmp_path_factory.mktemp("mended") / "out"
    whole, last = encode_line(line(0)), encode_line(line(1, solution=solution))
    cut = min(cut, len(last))
    path.write_bytes(whole + last[:cut])
    file = AnswerFile(path)
    left = [question.id for question in file.todo(ASKED)]
    assert left == (["q2", "q3"] if cut >= len(last) - 1 else ["q1", "q2", "q3"])
    file.append(line(2))
    file.close()
    found = [json.loads(one)["id"] for one in path.read_bytes().splitlines()]
    assert found == (["q0", "q1", "q2"] if cut >= len(last) - 1 else ["q0", "q2"])


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    """The second one, until the first has ended; nothing is left beside the file."""
    first = AnswerFile(tmp_path / "out")
    with pytest.raises(InvalidRequest, match="is being written by another run"):
        AnswerFile(tmp_path / "out")
    first.close()
    AnswerFile(tmp_path / "out").close()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("text", ["hello\n", '{"id":1}\n', "[1]\n", '{"id":true,"outcome":1,"error":1,"question":1}\n'])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    """And told, with the line."""
    path = tmp_path / "out"
    path.write_bytes(encode_line(line(0)) + text.encode())
    before = path.read_bytes()
    with pytest.raises(InvalidRequest, match="line 2 is no answer of a batch"):
        AnswerFile(path)
    assert path.read_bytes() == before


def test_answers_to_other_questions_are_told(tmp_path: Path) -> None:
    """A line that was changed since does not get the old one's answer."""
    path = tmp_path / "out"
    path.write_bytes(encode_line(line(0)))
    file = AnswerFile(path)
    changed = BatchQuestion("q0", "another", place="line 7")
    with pytest.raises(InvalidRequest, match="line 7 has the id 'q0', under which another is answered"):
        file.todo([changed])
    file.close()


def test_what_failed_is_kept_or_asked_again(tmp_path: Path) -> None:
    """With its error; to ask it again takes its line out."""
    path = tmp_path / "out"
    path.write_bytes(encode_line(line(0)) + encode_line(line(1, failed=True)))
    file = AnswerFile(path)
    assert ([question.id for question in file.todo(ASKED)], file.failed(ASKED)) == (["q2", "q3"], 1)
    file.close()
    file = AnswerFile(path, retry_failed=True)
    assert [question.id for question in file.todo(ASKED)] == ["q1", "q2", "q3"]
    assert path.read_bytes() == encode_line(line(0))
    file.append(line(1))
    file.close()
    assert path.read_bytes() == encode_line(line(0)) + encode_line(line(1))


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, and what was there before is there."""
    file = AnswerFile(tmp_path / "out")
    file.append(line(0))
    write = os.write
    calls: list[int] = []

    def full(handle: int, data: bytes) -> int:
        calls.append(handle)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[:20])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(InvalidRequest, match="can't be written: No space left"):
            file.append(line(1))
    assert (tmp_path / "out").read_bytes() == encode_line(line(0))
    file.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is open can't be removed there")
def test_a_file_that_is_taken_away_is_told(tmp_path: Path) -> None:
    """Nothing is written where nobody will find it."""
    file = AnswerFile(tmp_path / "out")
    (tmp_path / "out").unlink()
    with pytest.raises(InvalidRequest, match="removed or replaced"):
        file.append(line(0))
    file.close()


@pytest.mark.parametrize("name", [".", "none/out"])
def test_what_can_be_no_file_of_answers_is_told(tmp_path: Path, name: str) -> None:
    """A folder; a file in a folder that is not there."""
    with pytest.raises(InvalidRequest, match=r"no regular file|can't be made"):
        AnswerFile(tmp_path / name)


def test_half_a_character_is_written_as_an_escape() -> None:
    """No answer is lost since UTF-8 can't hold it."""
    assert json.loads(encode_line(line(0, solution="\ud83e")))["solution"] == "\ud83e"
