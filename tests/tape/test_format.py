"""Tapes as files: what is written is read again, and what can't be read says where and why."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from examples import FEW
from hypothesis import example, given
from hypothesis import strategies as st

from phi4_http import tape
from phi4_http.errors import TapeError
from phi4_http.tape.exchange import Cut, End, Exchange, InMemory, OnDisk, RecordedRequest
from phi4_http.tape.files import exchange_files
from phi4_http.tape.format import ExchangeWriter, load_exchange, load_tape, write_exchange

from .support import ORIGIN, edit, exchange, exchanges, facts, stream


@given(exchanges())
@example(exchange(body={"text": "\ud800 a lone surrogate", "cuts": [[1, 2]]}))
@example(exchange(body='{"a": 1, "a": 2}'))
@example(exchange(pieces=[]))
def test_what_is_written_is_read(made: Exchange) -> None:
    """Any exchange that can be written reads as it was, byte for byte and cut for cut."""
    with tempfile.TemporaryDirectory() as folder:
        read = load_exchange(write_exchange(folder, made))
        assert read.name == made.name
        assert facts(read) == facts(made)
        assert list(read.pieces()) == list(made.pieces())


@FEW
@given(exchanges(), st.sampled_from([None, 0, 4]), st.booleans())
def test_any_layout_is_read(made: Exchange, indent: int | None, cuts_first: bool) -> None:
    """The layout of the JSON and the order of its members don't count: people's editors have their own."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_exchange(folder, made)
        data = json.loads(file.read_text(encoding="utf-8"))
        if cuts_first:
            data = dict(reversed(data.items()))
        file.write_text(json.dumps(data, indent=indent), encoding="utf-8")
        assert facts(load_exchange(file)) == facts(made)


@FEW
@given(exchanges())
def test_writing_is_deterministic(made: Exchange) -> None:
    """The same exchange gives the same files, so that a diff shows what changed."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        write_exchange(one, made)
        write_exchange(two, load_exchange(Path(one, f"{made.name}.json")))
        contents = [{file.name: file.read_bytes() for file in Path(folder).iterdir()} for folder in (one, two)]
        assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"", None),
        (b'{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        (b"[]", []),
        (b"plain text", "plain text"),
        (b'"a JSON text"', '"a JSON text"'),
        (b"null", "null"),
        (b'{"a": 1, "a": 2}', '{"a": 1, "a": 2}'),
        (b'{"a": NaN}', '{"a": NaN}'),
        (b'{"a": 1e999}', '{"a": 1e999}'),
        (b"[" * 100_000, "[" * 100_000),
        (b"\xff\x00", b"\xff\x00"),
    ],
)
def test_a_request_body_is_json_or_text_or_bytes(data: bytes, body: Any) -> None:
    """A body is kept as a JSON value only where nothing of it is lost."""
    assert RecordedRequest.from_bytes("POST", "/", data).body == body


def test_exchanges_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Digits in names count by their value, and hidden files are no exchanges."""
    for name in ("10-c", "2-b", "2-a", "b", "a10", "a9"):
        write_exchange(tmp_path, exchange(name))
    (tmp_path / ".2-x.json").write_text("{}")
    assert [one.name for one in load_tape(tmp_path)] == ["2-a", "2-b", "10-c", "a9", "a10", "b"]


def test_an_exchange_is_replaced_whole(tmp_path: Path) -> None:
    """Writing an exchange again replaces both its files, also where the body changes its kind."""
    write_exchange(tmp_path, exchange())
    write_exchange(tmp_path, exchange(pieces=[(0.0, b"{}")], headers=(("Content-Type", "application/json"),)))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hello.body", "hello.json"]
    assert load_exchange(tmp_path / "hello.json").body == b"{}"


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\\b", "a:b", "nul\x00"])
def test_a_name_that_can_be_no_file_is_refused(tmp_path: Path, name: str) -> None:
    """A name that would leave the folder, hide, or not exist everywhere is refused before anything is written."""
    with pytest.raises(TapeError, match="can't be the name"):
        write_exchange(tmp_path / "new", exchange(name))
    assert not (tmp_path / "new").exists()


def test_until_it_is_committed_an_exchange_does_not_exist(tmp_path: Path) -> None:
    """A tape that is being recorded is valid at every moment, and a discarded exchange leaves nothing."""
    writer = ExchangeWriter(tmp_path, "one")
    writer.add(0.0, b"data: 1\n\n")
    assert load_tape(tmp_path) == ()
    with pytest.raises(FileExistsError):
        ExchangeWriter(tmp_path, "one")
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """An exchange whose body can't be read is not half written."""
    write_exchange(tmp_path / "from", exchange())
    broken = load_exchange(tmp_path / "from" / "hello.json")
    (tmp_path / "from" / "hello.sse").write_bytes(b"short")
    with pytest.raises(TapeError, match="changed since it was loaded"):
        write_exchange(tmp_path / "to", broken)
    assert list((tmp_path / "to").iterdir()) == []


def test_a_long_stream_stays_on_disk(tmp_path: Path) -> None:
    """Loading leaves body and cuts in their files, and two players can read them at once."""
    loaded = load_exchange(write_exchange(tmp_path, stream(50)))
    assert isinstance(loaded.content, OnDisk)
    assert not isinstance(loaded.content.cuts, tuple | list)
    one, two = loaded.pieces(), loaded.pieces()
    pairs = list(zip(one, two, strict=True))
    assert len(pairs) == 51
    assert all(a == b for a, b in pairs)


# --- what can't be read says where and why ---------------------------------------------------------------------------


def _set(*path: str | int, to: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return change


def _drop(*path: str) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        (_set("format", to=2), "format", "version 2"),
        (_set("format", to="1"), "format", "not a whole number"),
        (_set("format", to=True), "format", "not a whole number"),
        (_drop("format"), "format", "missing"),
        (_drop("origin"), "origin", "missing"),
        (_set("origin", to="recorded"), "origin", "not an object"),
        (_set("origin", "kind", to="invented"), "origin.kind", "neither 'recorded' nor 'composed'"),
        (_set("origin", "note", to=3), "origin.note", "not a text"),
        (_set("request", to=[]), "request", "not an object"),
        (_drop("request", "method"), "request.method", "missing"),
        (_set("request", "path", to="v1"), "request.path", "does not start with '/'"),
        (_set("request", "body_base64", to="!"), "request.body_base64", "not base64"),
        (_set("request", "boddy", to={}), "request.boddy", "not a field"),
        (_set("response", "status", to="200"), "response.status", "not a whole number but '200'"),
        (_set("response", "status", to=100), "response.status", "no status"),
        (_set("response", "seconds", to="soon"), "response.seconds", "not a number"),
        (_set("response", "headers", to={}), "response.headers", "not an array"),
        (_set("response", "headers", to=["Server"]), "response.headers[0]", "not 'Name: value'"),
        (_set("response", "headers", to=[1]), "response.headers[0]", "not 'Name: value'"),
        (_set("body", "bytes", to=1), "body.bytes", "1, but hello.sse has 23"),
        (_set("body", "sha256", to="0" * 64), "body.sha256", "does not fit hello.sse"),
        (_set("body", "end", to="fine"), "body.end", "none of clean, cut"),
        (_set("response", "headers", to=["A: b\r\nC: d"]), "response.headers[0]", "HTTP can't carry"),
        (_set("response", "headers", to=["A: ☃"]), "response.headers[0]", "HTTP can't carry"),
        (_set("cuts", to={}), "cuts", "not an array"),
        (_set("cuts", 0, to=[0.0]), "cuts[0]", "not [seconds, bytes]"),
        (_set("cuts", 1, to=[0.0, True]), "cuts[1]", "not [seconds, bytes]"),
        (_set("cuts", 1, to=[0.0, 1.5]), "cuts[1]", "not [seconds, bytes]"),
        (_set("cuts", 1, to=[-1.0, 14]), "cuts[1]", "is before"),
        (_set("cuts", 1, to=[0.0, 0]), "cuts[1]", "a piece of 0 bytes"),
        (_set("cuts", 1, to=[0.0, 15]), "cuts", "add up to 24 bytes, the body has 23"),
        (_set("colour", to="red"), "colour", "not a field"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, change: Callable[[Any], None], field: str, problem: str) -> None:
    """A tape with a bad field says which file, which field, and what about it."""
    file = write_exchange(tmp_path, exchange())
    edit(file, change)
    with pytest.raises(TapeError) as caught:
        load_tape(tmp_path)
    assert (caught.value.file, caught.value.field) == (str(file), field)
    assert problem in str(caught.value)
    assert str(file) in str(caught.value)
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[]", "is not an object"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_no_json_is_named(tmp_path: Path, text: bytes, problem: str) -> None:
    """A file that is no JSON object at all is named."""
    file = write_exchange(tmp_path, exchange())
    file.write_bytes(text)
    with pytest.raises(TapeError, match=problem) as caught:
        load_exchange(file)
    assert caught.value.file == str(file)


@pytest.mark.parametrize(
    ("old", "new", "field", "problem"),
    [
        (b"    [0.0, 9],\n", b"    [0.0, 9,\n", "cuts[0]", "is not [seconds, bytes]"),
        (b"    [0.0, 9],\n", b"    nine,\n", "cuts[0]", "is not [seconds, bytes]"),
        (b"\n  ]\n}\n", b"\n", None, "is not JSON"),
        (b"    [0.0, 14]\n  ]\n}\n", b"  ]\n}\n", "cuts", "add up to 9 bytes"),
        (b"  ]\n}\n", b"  ],\n}\n", None, "is not JSON"),
    ],
)
def test_bad_cuts_in_the_usual_layout_are_named(
    tmp_path: Path, old: bytes, new: bytes, field: str | None, problem: str
) -> None:
    """Cuts that stay in the file are checked as those that don't."""
    file = write_exchange(tmp_path, exchange())
    text = file.read_bytes()
    assert old in text
    file.write_bytes(text.replace(old, new))
    with pytest.raises(TapeError) as caught:
        load_exchange(file)
    assert caught.value.field == field
    assert problem in caught.value.problem


def test_a_body_that_changed_is_named(tmp_path: Path) -> None:
    """A body with converted line ends is found by its length, one with another letter by its checksum."""
    file = write_exchange(tmp_path, exchange())
    body = tmp_path / "hello.sse"
    was = body.read_bytes()
    body.write_bytes(was.replace(b"\n", b"\r\n"))
    with pytest.raises(TapeError, match=r"body\.bytes: 23, but hello\.sse has 27"):
        load_exchange(file)
    body.write_bytes(was.replace(b"1", b"2"))
    with pytest.raises(TapeError, match=r"body\.sha256"):
        load_exchange(file)


def test_an_edited_body_needs_no_checksum(tmp_path: Path) -> None:
    """Without bytes, checksum and cuts a body that was edited on purpose is one piece, which comes with the head."""
    file = write_exchange(tmp_path, exchange(seconds=0.5))
    (tmp_path / "hello.sse").write_bytes(b"data: edited\n\n")

    def forget(data: Any) -> None:
        del data["body"]["bytes"], data["body"]["sha256"], data["cuts"]

    edit(file, forget)
    assert load_exchange(file).cuts == (Cut(0.5, 14),)


def test_a_missing_body_is_named(tmp_path: Path) -> None:
    """An exchange has exactly one body file."""
    file = write_exchange(tmp_path, exchange())
    (tmp_path / "hello.body").write_bytes(b"")
    with pytest.raises(TapeError, match="both are there"):
        load_exchange(file)
    (tmp_path / "hello.body").unlink()
    (tmp_path / "hello.sse").unlink()
    with pytest.raises(TapeError, match="neither is there"):
        load_exchange(file)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """No folder and no readable file are errors with their names, not empty tapes."""
    with pytest.raises(TapeError, match="no tape there") as caught:
        exchange_files(tmp_path / "nothing")
    assert caught.value.file == str(tmp_path / "nothing")
    with pytest.raises(TapeError, match="can't be read"):
        load_exchange(tmp_path / "nothing.json")


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps open files from being replaced")
def test_a_body_that_shrinks_while_it_is_played_is_named(tmp_path: Path) -> None:
    """A body that loses bytes after it was loaded is an error of the tape, not a short reply."""
    loaded = load_exchange(write_exchange(tmp_path, exchange()))
    (tmp_path / "hello.sse").write_bytes(b"data: 1\n\n")
    with pytest.raises(TapeError, match="ends 14 bytes early"):
        list(loaded.pieces())


def test_cuts_in_memory_must_add_up() -> None:
    """An exchange can't be made with cuts that don't fit its body."""
    with pytest.raises(ValueError, match="add up to 3 bytes, the body has 2"):
        InMemory(b"ab", (Cut(0.0, 3),))
    with pytest.raises(ValueError, match="is before"):
        Exchange.of(
            "x",
            RecordedRequest("GET", "/"),
            exchange().response,
            b"ab",
            cuts=[(1.0, 1), (0.5, 1)],
            end=End.CLEAN,
            origin=ORIGIN,
        )


def test_the_documented_example_is_a_tape(tmp_path: Path) -> None:
    """The example on the page about the format is read, and the page names every field that is written."""
    page = (Path(tape.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
    text = page.partition("```json\n")[2].partition("```")[0]
    (tmp_path / "example.json").write_text(text, encoding="utf-8")
    (tmp_path / "example.sse").write_bytes(b"x" * 574)
    edit(tmp_path / "example.json", lambda data: data["body"].pop("sha256"))
    (example,) = load_tape(tmp_path)
    assert (example.response.seconds, len(example.cuts), example.end) == (0.798, 2, End.CLEAN)
    written = json.loads(write_exchange(tmp_path, exchange("all", body=b"\xff")).read_text(encoding="utf-8"))
    named = [f"{part}.{name}" for part in ("origin", "request", "response", "body") for name in written[part]]
    assert [name for name in ["format", "cuts", *named] if f"| `{name}`" not in page] == []
    assert [end for end in End if f"| `{end}` |" not in page] == []


def test_cuts_that_change_while_a_tape_is_open_are_an_error(tmp_path: Path) -> None:
    """They stay in their file until they are played: what is missing then is told, and what follows them."""
    file = write_exchange(tmp_path, stream(3))
    loaded, text = load_exchange(file), file.read_text(encoding="utf-8")
    file.write_text(text.removesuffix("  ]\n}\n"), encoding="utf-8")
    with pytest.raises(TapeError, match="ends inside the cuts"):
        list(loaded.cuts)
    file.write_text(text.removesuffix("  ]\n}\n") + '  ]\n, "more": []}\n', encoding="utf-8")
    with pytest.raises(TapeError, match="something stands after the cuts"):
        load_exchange(file)
