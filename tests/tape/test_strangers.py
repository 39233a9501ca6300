"""A tape is data from a stranger: nothing in it crashes, hangs, leaves its folder or reads another file."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import run_child

from phi4_http.errors import TapeError, TapeMismatch
from phi4_http.tape.check import check_tape
from phi4_http.tape.exchange import Exchange, RecordedRequest
from phi4_http.tape.format import load_exchange, load_tape, write_exchange
from phi4_http.tape.matching import Match, Selection
from phi4_http.tape.shipped import exchange_file
from phi4_http.tape.show import table, time_line
from phi4_http.tape.tape import Tape

from .support import exchange, exchanges, stream

HUGE = int("9" * 400)


def use(folder: Path) -> None:
    """Everything that is done with a tape. Raises what it raises."""
    list(check_tape(folder))
    tape = load_tape(folder)
    table(tape)
    for one in tape:
        list(time_line(one, pieces=3))
        b"".join(piece.data for piece in one.pieces())
    with contextlib.suppress(TapeMismatch):
        Selection(tape, Match(ignore=("*.a", "seed"))).take(RecordedRequest("POST", "/", {"n": 1}))
    with httpx.Client(transport=Tape(folder, match=Match(method=False, path=False, body=False)).replay()) as client:
        for _ in tape:
            with contextlib.suppress(httpx.TransportError), client.stream("POST", "http://tape/x") as response:
                list(response.iter_raw())


def nested(depth: int) -> str:
    """An array in an array in an array."""
    return "[" * depth + "]" * depth


BROKEN: dict[str, tuple[str, str]] = {
    "a cut at a huge time": ("[0.0, 9]", f"[{HUGE}, 9]"),
    "a cut of a huge size": ("[0.0, 9]", f"[0.0, {HUGE}]"),
    "a cut of a hugely negative size": ("[0.0, 9]", f"[0.0, -{HUGE}]"),
    "a cut at no number": ("[0.0, 9]", "[NaN, 9]"),
    "a cut at infinity": ("[0.0, 9]", "[1e999, 9]"),
    "a number of 5000 digits": ("[0.0, 9]", f"[0.0, {'9' * 5000}]"),
    "a nested cut": ("[0.0, 9]", nested(100_000)),
    "a less nested cut": ("[0.0, 9]", nested(900)),
    "nested cuts in another layout": ('"cuts": [\n', '"cuts":\n[' + nested(900) + ",\n"),
    "a huge status": ('"status": 200', f'"status": {HUGE}'),
    "a huge time of the head": ('"seconds": 0.0', f'"seconds": {HUGE}'),
    "a head at infinity": ('"seconds": 0.0', '"seconds": 1e999'),
    "a head at no time": ('"seconds": 0.0', '"seconds": NaN'),
    "a head before the request": ('"seconds": 0.0', '"seconds": -1'),
    "a head later than any clock": ('"seconds": 0.0', '"seconds": 1e300'),
    "a nested header": ('"Content-Type: text/event-stream"', nested(900)),
    "a nested body": ('"path": "/v1/chat/completions"', f'"path": "/", "body": {nested(900)}'),
    "base64 with letters of another kind": ('"path": "/v1/chat/completions"', '"path": "/", "body_base64": "é"'),
    "a huge version": ('"format": 1', f'"format": {HUGE}'),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tape_says_which_file_and_where(tmp_path: Path, name: str) -> None:
    """In one sentence, and not as a crash of Python."""
    file = write_exchange(tmp_path, exchange())
    old, new = BROKEN[name]
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(TapeError) as caught:
        load_exchange(file)
    assert caught.value.file == str(file)
    assert len(str(caught.value)) < 400
    (problem,) = check_tape(tmp_path)
    assert problem.file == str(file)


@pytest.mark.parametrize(
    "command", ["tape show {}", "tape check {}", "tape cat {}/hello", "serve {}", "models --replay {}"]
)
@pytest.mark.parametrize("name", ["a cut at a huge time", "a nested cut"])
def test_no_command_crashes_on_it(tmp_path: Path, command: str, name: str) -> None:
    """Exit 14, with the file and the field."""
    file = write_exchange(tmp_path, exchange())
    file.write_text(file.read_text(encoding="utf-8").replace(*BROKEN[name]), encoding="utf-8")
    ran = run_child(*command.format(tmp_path).split())
    assert ran.code == 14
    assert "hello.json: cuts[0]: " in ran.err + ran.out
    assert "Traceback" not in ran.err


ANYTHING: st.SearchStrategy[Any] = st.one_of(
    # As texts, since what is drawn is changed in its turn.
    st.sampled_from(
        [
            "null",
            "true",
            "-1",
            f"{HUGE}",
            f"-{HUGE}",
            "1e308",
            "NaN",
            "Infinity",
            '""',
            '"\\ud800"',
            '"\\u0000"',
            "[]",
            "{}",
        ]
    ).map(json.loads),
    st.sampled_from([nested(50), nested(500), '{"a": {"b": []}}']).map(json.loads),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
)


def places(value: Any) -> list[Callable[[Any], None]]:
    """A way to put something in the place of each part of a JSON value."""
    found: list[Callable[[Any], None]] = []
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        found.append(functools.partial(value.__setitem__, key))
        if isinstance(item, dict | list):
            found += places(item)
    return found


@given(exchanges(), st.data())
def test_any_json_is_a_tape_or_an_error(made: Exchange, data: st.DataObject) -> None:
    """Whatever stands in the place of a field, the tape can be used, or says what is wrong; nothing else happens."""
    with tempfile.TemporaryDirectory() as name:
        file = write_exchange(name, made)
        value = json.loads(file.read_text(encoding="utf-8"))
        for _ in range(data.draw(st.integers(1, 3))):
            data.draw(st.sampled_from(places(value)))(data.draw(ANYTHING))
        file.write_text(json.dumps(value, indent=data.draw(st.sampled_from([None, 2]))), encoding="utf-8")
        with contextlib.suppress(TapeError):
            use(Path(name))


@given(st.binary(max_size=20), st.floats(0, 1), st.floats(0, 0.2), st.sampled_from([".json", ".sse"]))
@example(b"", 0.0, 0.0, ".json")
def test_any_bytes_are_a_tape_or_an_error(new: bytes, at: float, much: float, suffix: str) -> None:
    """Whatever bytes stand anywhere in a file."""
    with tempfile.TemporaryDirectory() as name:
        write_exchange(name, stream(3, body={"messages": [{"role": "user", "content": "hi"}]}))
        file = Path(name, f"long{suffix}")
        was = file.read_bytes()
        start = int(len(was) * at)
        file.write_bytes(was[:start] + new + was[start + int(len(was) * much) :])
        with contextlib.suppress(TapeError):
            use(Path(name))


# --- files that are none ----------------------------------------------------------------------------------------------


def _pipe(place: Path, _: Path) -> None:
    os.mkfifo(place)


def _link(place: Path, outside: Path) -> None:
    place.symlink_to(outside)


def _dangling(place: Path, outside: Path) -> None:
    place.symlink_to(outside / "nothing")


def _device(place: Path, _: Path) -> None:
    place.symlink_to("/dev/zero")


def _folder(place: Path, _: Path) -> None:
    place.mkdir()


def _socket(place: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))


@pytest.mark.skipif(os.name == "nt", reason="Windows has other files")
@pytest.mark.parametrize("suffix", [".json", ".sse"])
@pytest.mark.parametrize("make", [_pipe, _link, _dangling, _device, _folder, _socket])
def test_only_regular_files_are_read(make: Callable[[Path, Path], None], suffix: str) -> None:
    """A link out of the tape, a pipe, a device: refused before anything is read, by name."""
    with tempfile.TemporaryDirectory() as name:  # a socket's path has to be short
        folder, outside = Path(name, "t"), Path(name, "outside")
        outside.write_bytes(b"data: 1\n\ndata: [DONE]\n\n")
        file = write_exchange(folder, exchange())
        place = file.with_suffix(suffix)
        place.unlink()
        make(place, outside)
        with pytest.raises(TapeError, match="regular files only") as caught:
            load_exchange(file)
        assert caught.value.file == str(place)
        assert [problem.file for problem in check_tape(folder)] == [str(place)]


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps open files from being replaced")
def test_a_body_that_becomes_a_link_is_not_played(tmp_path: Path) -> None:
    """Nor is one that was a file when the tape was loaded."""
    loaded = load_exchange(write_exchange(tmp_path / "t", exchange()))
    (tmp_path / "secret").write_bytes(b"x" * 100)
    (tmp_path / "t" / "hello.sse").unlink()
    (tmp_path / "t" / "hello.sse").symlink_to(tmp_path / "secret")
    with pytest.raises(TapeError, match="symbolic link"):
        list(loaded.pieces())


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_the_folder_may_be_a_link(tmp_path: Path) -> None:
    """Only what is in it may not."""
    write_exchange(tmp_path / "t", exchange())
    (tmp_path / "link").symlink_to(tmp_path / "t")
    assert load_tape(tmp_path / "link")[0].body == exchange().body


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/..", "phi4/..", "a/.hidden", "a/b\\c", "phi4/a:b", "a/b\x00"])
def test_a_name_of_an_exchange_is_a_name(name: str) -> None:
    """What is none is refused, and no other file is looked for."""
    with pytest.raises(TapeError, match="can't be the name"):
        exchange_file(name)
