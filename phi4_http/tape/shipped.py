"""Where the exchanges are that come with the package.

The wheel carries the repository's `fixtures/` as `phi4_http/fixtures/`; in a source checkout they are where they are.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import TapeError


def shipped(name: str = "") -> Path:
    """The folder of the shipped tapes, or the tape `name` in it (`"phi4"`, `"llama_cpp"`).

    Raises `TapeError` where it isn't there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "fixtures" / name, package.parent / "fixtures" / name):
        if folder.is_dir():
            return folder
    raise TapeError(str(package / "fixtures" / name), "no such tape comes with this installation")
