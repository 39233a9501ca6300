"""Saved conversations: a JSON file of messages, read, appended and written whole or not at all.

Whoever reads one to write it again holds its lock from the one to the other, so that nothing that another process adds
meanwhile is lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..saved import made_beside, replacing


def load(path: Path, *, missing_is_empty: bool = False) -> list[dict[str, Any]]:
    """The messages of a file. Raises InvalidRequest, with the file's name, where it holds none."""
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing_is_empty:
            return []
        raise InvalidRequest(f"{path}: there is no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InvalidRequest(f'{path} is no list of messages: it takes [{{"role": …, "content": …}}, …]')
    return messages


def save(path: Path, messages: Sequence[Mapping[str, Any]]) -> None:
    """Write messages to a file. Raises InvalidRequest."""
    write(path, json.dumps(list(messages), ensure_ascii=False, indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file in one go: a crash leaves the old one. Who may read it stays as it was; a new one is the writer's
    own. Raises InvalidRequest."""
    path = path.resolve()  # the file that a link names, not the link
    try:
        with replacing(path) as file:
            file.write(text)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} can't be written: {getattr(error, 'strerror', None) or error}") from None


def check_writable(path: Path) -> None:
    """Raises InvalidRequest where a history could not be saved there: before a model works for it."""
    path = path.resolve()
    try:
        if path.exists():
            with open(path, "ab"):
                pass
        handle, name = made_beside(path)
        os.close(handle)
        os.unlink(name)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} can't be written: {getattr(error, 'strerror', None) or error}") from None
