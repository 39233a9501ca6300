"""Which tape a name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from phi4_http.tape.shipped import TAPES, exchange_file, shipped, tape_folder


def test_every_shipped_tape_is_named() -> None:
    """The list and the folders say the same."""
    assert {folder.name for folder in shipped().iterdir() if folder.is_dir()} == set(TAPES)


def test_a_folder_that_is_there_comes_before_a_shipped_tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name alone is a shipped tape, where no folder has it; a path is never one."""
    monkeypatch.chdir(tmp_path)
    assert tape_folder("phi4") == shipped("phi4")
    assert tape_folder(tmp_path / "phi4") == tmp_path / "phi4"
    assert tape_folder("tapes/phi4") == Path("tapes/phi4")
    assert tape_folder("other") == Path("other")
    (tmp_path / "phi4").mkdir()
    assert tape_folder("phi4") == Path("phi4")


def test_an_exchange_is_found_by_path_or_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `.json` or without; a name alone, or after its tape's, is one that comes along."""
    monkeypatch.chdir(tmp_path)
    there = shipped("phi4") / "well-formed.json"
    assert exchange_file("well-formed") == exchange_file("phi4/well-formed.json") == there
    assert exchange_file(there.with_suffix("")) == there
    for name in ("nothing", "llama_cpp/well-formed", "elsewhere/well-formed"):
        assert exchange_file(name) == Path(f"{name}.json")
    (tmp_path / "well-formed.json").touch()
    assert exchange_file("well-formed") == Path("well-formed.json")
