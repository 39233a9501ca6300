"""Where the exchanges are that come with the package, and which tape a name means.

The wheel carries the repository's `fixtures/` as `phi4_http/fixtures/`; in a source checkout they are where they are.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import TapeError
from .files import check_name

TAPES = ("phi4", "llama_cpp")
"""The tapes that come along."""


def shipped(name: str = "") -> Path:
    """The folder of the shipped tapes, or the tape `name` in it (`"phi4"`, `"llama_cpp"`).

    Raises `TapeError` where it isn't there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "fixtures" / name, package.parent / "fixtures" / name):
        if folder.is_dir():
            return folder
    raise TapeError(str(package / "fixtures" / name), "no such tape comes with this installation")


def tape_folder(name: str | os.PathLike[str]) -> Path:
    """The folder of a tape: the one of this path where there is one, else the shipped tape of this name, if it is."""
    folder = Path(name)
    return shipped(folder.name) if str(folder) in TAPES and not folder.exists() else folder


def exchange_file(name: str | os.PathLike[str]) -> Path:
    """The JSON file of an exchange: of this path, with or without `.json`, or one of this name on a shipped tape.

    Raises `TapeError` for a name that can't be that of an exchange.
    """
    path = Path(name)
    check_name(path.parent, path.name)
    path = path if path.suffix == ".json" else path.with_name(f"{path.name}.json")
    if path.exists():
        return path
    alone = str(path) == path.name
    places = [shipped(tape) for tape in TAPES] if alone else [tape_folder(path.parent)]
    return next((found for place in places if (found := place / path.name).exists()), path)
