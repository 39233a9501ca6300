"""What was found out of servers, kept in a folder from one run to the next.

A file for each server and model, replaced whole or not at all. A folder that can't be read or written is no error:
then nothing is kept. What is older than a week is not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WEEK = 7 * 24 * 3600.0
"""Seconds after which a finding is looked for anew."""


class Folder:
    """A folder of findings."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)

    def _file(self, key: Sequence[str]) -> Path:
        return self.path / f"{hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()[:32]}.json"

    def load(self, key: Sequence[str]) -> Mapping[str, Any]:
        """What is kept under this key; empty where there is nothing, or it is too old."""
        try:
            with self._file(key).open("rb") as file:
                held = json.loads(file.read(1 << 20))
            if held["key"] == list(key) and 0 <= time.time() - held["time"] < WEEK and isinstance(held["found"], dict):
                return dict(held["found"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return {}

    def save(self, key: Sequence[str], value: Mapping[str, Any]) -> None:
        """Keep this, or nothing where it is empty."""
        import tempfile  # which takes a millisecond, and is needed once a week

        file = self._file(key)
        with contextlib.suppress(OSError, ValueError):
            if not value:
                file.unlink(missing_ok=True)
                return
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=self.path, prefix=".", suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as opened:
                    json.dump({"key": list(key), "time": time.time(), "found": dict(value)}, opened)
                os.replace(name, file)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise


def user_folder() -> Path | None:
    """The user's own folder for such things, of this program; None where there is none."""
    home: Path | None = None
    with contextlib.suppress(RuntimeError):
        home = Path.home()
    if sys.platform == "win32":
        told = os.environ.get("LOCALAPPDATA")
        base = Path(told) if told else home and home / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = home and home / "Library" / "Caches"
    else:
        told = os.environ.get("XDG_CACHE_HOME")
        base = Path(told) if told and os.path.isabs(told) else home and home / ".cache"
    return base / "phi4_http" if base else None
