"""Recorders: several on one tape, and folders that are none."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import child_environment

from phi4_http.errors import TapeError
from phi4_http.tape.format import load_tape
from phi4_http.tape.recorder import Recorder, Recording

from .support import EVENT_STREAM


def begin(recorder: Recorder, said: str) -> Recording:
    """A request goes out, and the head of its answer has come."""
    recording = recorder.begin("POST", "/v1/chat", (), said.encode())
    recording.head(200, EVENT_STREAM)
    return recording


def keep(recorder: Recorder, said: str) -> None:
    """One exchange, whole."""
    recording = begin(recorder, said)
    recording.piece(f"data: {said}\n\n".encode())
    recording.end()


def said(folder: Path) -> list[str]:
    """What was asked on a tape; each is answered with itself."""
    tape = load_tape(folder)
    assert [one.body.decode() for one in tape] == [f"data: {one.request.body}\n\n" for one in tape]
    return sorted(one.request.body for one in tape)


def test_two_recorders_in_turns_lose_nothing(tmp_path: Path) -> None:
    """A name that the other has taken is not taken again, whether it is written or whole."""
    one, two = Recorder(tmp_path), Recorder(tmp_path)
    first = begin(one, "a")
    keep(two, "b")
    first.piece(b"data: a\n\n")
    first.end()
    keep(two, "c")
    keep(one, "d")
    assert said(tmp_path) == ["a", "b", "c", "d"]


def test_recorders_in_threads_lose_nothing(tmp_path: Path) -> None:
    """Eight recorders, each with twenty exchanges, at once."""

    def record(number: int) -> None:
        recorder = Recorder(tmp_path)
        for index in range(20):
            keep(recorder, f"{number}-{index}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(record, range(8)))
    assert said(tmp_path) == sorted(f"{number}-{index}" for number in range(8) for index in range(20))


def test_recorders_in_processes_lose_nothing(tmp_path: Path) -> None:
    """Three processes that record at once."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom phi4_http.tape.recorder import Recorder\n"
        "recorder = Recorder(Path(sys.argv[1]))\nprint(flush=True)\nsys.stdin.read(1)\n"
        "for index in range(20):\n"
        "    said = f'{sys.argv[2]}-{index}'\n"
        "    recording = recorder.begin('POST', '/v1/chat', (), said.encode())\n"
        "    recording.head(200, [('Content-Type', 'text/event-stream')])\n"
        "    recording.piece(f'data: {said}\\n\\n'.encode())\n"
        "    recording.end()\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "t"), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
        )
        for number in range(3)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    for child in children:
        child.communicate(b"go")
    assert [child.returncode for child in children] == [0, 0, 0]
    assert said(tmp_path / "t") == sorted(f"{number}-{index}" for number in range(3) for index in range(20))


def test_recording_anew_takes_only_what_was_there(tmp_path: Path) -> None:
    """What another recorder has put in the place of an old exchange meanwhile is not old; the old names are used."""
    keep(Recorder(tmp_path), "old")
    one, two = Recorder(tmp_path, anew=True), Recorder(tmp_path, anew=True)
    keep(one, "a")
    keep(two, "b")
    keep(one, "c")
    assert said(tmp_path) == ["a", "b", "c"]
    assert sorted(file.name for file in tmp_path.glob("*.json"))[0] == "0001-post-v1-chat.json"


def test_what_a_dead_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """A name whose writer died is left out."""
    tmp_path.joinpath(".0001-post-v1-chat.body.part").write_bytes(b"")
    keep(Recorder(tmp_path), "a")
    assert said(tmp_path) == ["a"]


@pytest.mark.parametrize("place", ["file", "file/x", "/proc/x", "/dev/null/x", "a\x00b", "x" * 300])
def test_a_folder_that_can_be_none_is_told_at_once(tmp_path: Path, place: str) -> None:
    """Before anything is sent, with its name; and nothing hangs."""
    (tmp_path / "file").write_text("a question")
    with pytest.raises(TapeError) as caught:
        Recorder(tmp_path / place)
    assert caught.value.file == str(tmp_path / place)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_was_not_recorded_leaves_no_folder(tmp_path: Path) -> None:
    """Nor those above it that were made for it; a folder that was there stays."""
    recorder = Recorder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    one, two = begin(recorder, "1"), begin(recorder, "2")
    one.discard()
    two.discard()
    assert list(tmp_path.iterdir()) == []
    begin(Recorder(tmp_path), "1").discard()
    assert tmp_path.is_dir()
