"""The shipped tapes: unchanged where recorded, as the script makes them where composed, and all in the index."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pytest
from tools import compose_fixtures

from phi4_http.errors import TapeError
from phi4_http.phi4.facts import SYSTEM_PROMPT
from phi4_http.tape.check import check_tape
from phi4_http.tape.exchange import End, Exchange
from phi4_http.tape.format import load_tape
from phi4_http.tape.shipped import shipped

RECORDED = load_tape(shipped("llama_cpp"))
COMPOSED = load_tape(shipped("phi4"))
RECORDED_BYTES = 109_454
RECORDED_SHA256 = "fd26e535c09487b2d6d219aa05518d4c0b06b97da95b98bedb259a804ddd675b"
BY_NAME = {one.name: one for one in (*RECORDED, *COMPOSED)}


def test_no_recorded_byte_has_changed() -> None:
    """The recorded bodies, in their order, are the bytes that were captured: 25 of them, 109,454 bytes."""
    checksum = hashlib.sha256(b"".join(one.body for one in RECORDED))
    assert len(RECORDED) == 25
    assert sum(one.content.size for one in RECORDED) == RECORDED_BYTES
    assert checksum.hexdigest() == RECORDED_SHA256


def test_recorded_exchanges_name_their_server() -> None:
    """What is recorded says of what, what is composed says after what."""
    assert all(one.origin.kind == "recorded" and "llama" in one.origin.server for one in RECORDED)
    assert all(one.origin.kind == "composed" and one.origin.source for one in COMPOSED)
    assert all(one.origin.note for one in (*RECORDED, *COMPOSED))


def test_the_composed_tape_is_what_the_script_makes(tmp_path: Path) -> None:
    """Composing again gives the very files that are there, and the index."""
    compose_fixtures.main(tmp_path)
    for folder in ("phi4", "."):
        made = {file.name: file.read_bytes() for file in (tmp_path / folder).iterdir() if file.is_file()}
        there = {name: (shipped() / folder / name).read_bytes() for name in made}
        assert made == there
    assert {file.name for file in (tmp_path / "phi4").iterdir()} == {file.name for file in shipped("phi4").iterdir()}


def test_composing_removes_what_it_no_longer_makes(tmp_path: Path) -> None:
    """An exchange that the script does not make any more goes from the folder."""
    (tmp_path / "phi4").mkdir()
    (tmp_path / "phi4" / "old.json").write_text("{}")
    compose_fixtures.main(tmp_path)
    assert not (tmp_path / "phi4" / "old.json").exists()


def test_the_index_has_a_line_for_each_exchange() -> None:
    """The index page names every exchange once, with its kind and what it shows."""
    lines = (shipped() / "README.md").read_text(encoding="utf-8").splitlines()
    for one in (*RECORDED, *COMPOSED):
        (line,) = [line for line in lines if line.startswith(f"| `{one.name}` |")]
        assert f"| {one.origin.kind} |" in line
        assert one.origin.note.replace("<", "&lt;") in line


@pytest.mark.parametrize("folder", ["llama_cpp", "phi4"])
def test_the_shipped_tapes_are_good(folder: str) -> None:
    """A check finds nothing wrong with them."""
    assert list(check_tape(shipped(folder))) == []


def test_a_tape_that_is_not_shipped_is_named() -> None:
    """Asking for a tape that does not come with the library is an error with its name."""
    with pytest.raises(TapeError, match="no such tape comes with"):
        shipped("gpt")


def test_requests_of_one_tape_are_all_different() -> None:
    """Every composed exchange can be asked for by its content: no two have the same request."""
    asked = [json.dumps([one.request.method, one.request.path, one.request.body], sort_keys=True) for one in COMPOSED]
    assert len(set(asked)) == len(asked)


def events(one: Exchange) -> list[str]:
    """The data of the events of a stream, without what was cut."""
    return [line[6:] for line in one.body.decode().split("\n") if line.startswith("data: ")]


def deltas(one: Exchange, *fields: str) -> str:
    """The text that a stream says in these fields of its deltas."""
    chunks = [json.loads(data) for data in events(one) if data != "[DONE]"]
    all_deltas = [choice["delta"] for chunk in chunks for choice in chunk.get("choices", ())]
    return "".join(delta.get(field) or "" for delta in all_deltas for field in fields)


def test_the_replies_of_the_demo_read_like_the_models() -> None:
    """The three replies take their time, think in steps, and end as they should."""
    good, swallowed, endless = (BY_NAME[name] for name in ("well-formed", "opener-swallowed", "thought-never-closes"))
    for one in (good, swallowed, endless):
        assert one.request.body["messages"][0] == {"role": "system", "content": SYSTEM_PROMPT}
        assert 0.7 < one.cuts[0].at < 0.9
        assert 8 < one.cuts[-1].at < 20
        pieces = len(one.cuts)
        assert 18 < pieces / (one.cuts[-1].at - one.cuts[0].at) < 30
    assert deltas(good, "content").startswith("<think>")
    assert deltas(good, "content").count("</think>") == 1
    assert "<think>" not in deltas(swallowed, "content")
    assert "</think>" in deltas(swallowed, "content")
    assert "</think>" not in deltas(endless, "content")
    assert '"finish_reason":"length"' in events(endless)[-3]
    assert [events(one)[-1] for one in (good, swallowed, endless)] == ["[DONE]"] * 3


def test_tags_come_in_pieces() -> None:
    """In the composed streams tags are split over deltas, as they are in real ones."""
    chunks = [json.loads(data) for data in events(BY_NAME["well-formed"])[:-1]]
    said = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert not any("<think>" in text for text in said)


def test_a_stream_is_cut_inside_characters() -> None:
    """One composed stream has pieces that end inside a character, a tag and an event."""
    pieces = [piece.data for piece in BY_NAME["cut-anywhere"].pieces()]
    assert any(not piece.endswith(b"\n\n") for piece in pieces)
    assert any(b"think" in one[-4:] + other[:4] for one, other in itertools.pairwise(pieces))
    with pytest.raises(UnicodeDecodeError):
        [piece.decode() for piece in pieces]


@pytest.mark.parametrize(
    ("name", "end"),
    [("end-inside-a-chunk", End.CUT_INSIDE_CHUNK), ("connection-reset", End.RESET), ("stalled", End.STALLED)],
)
def test_bad_ends_are_on_the_tape(name: str, end: End) -> None:
    """The composed bad ends are marked as what they are."""
    assert BY_NAME[name].end is end
    assert 'finish_reason":"' not in BY_NAME[name].body.decode()
