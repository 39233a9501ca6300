"""Saved conversations: a JSON file of messages, read, appended and written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest


def load(path: Path, *, missing_is_empty: bool = False) -> list[dict[str, Any]]:
    """The messages of a file. Raises InvalidRequest, with the file's name, where it holds none."""
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing_is_empty:
            return []
        raise InvalidRequest(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InvalidRequest(f'{path} is no list of messages: it takes [{{"role": …, "content": …}}, …]')
    return messages


def save(path: Path, messages: Sequence[Mapping[str, Any]]) -> None:
    """Write messages to a file in one go: a crash leaves the old one. Who may read it stays as it was; a new one is the
    writer's own. Raises InvalidRequest."""
    path = path.resolve()  # the file that a link names, not the link
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(list(messages), file, ensure_ascii=False, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                shutil.copymode(path, name)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InvalidRequest(f"{path} can't be written: {error.strerror}") from None
