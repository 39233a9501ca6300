"""Saved conversations: a JSON file of messages, read, appended and written whole or not at all.

Whoever reads one to write it again holds its lock from the one to the other, so that nothing that another process adds
meanwhile is lost. The lock is the operating system's own, on a file beside it: gone when its holder dies, at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
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
        handle, name = _made_beside(path)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                os.chmod(name, stat.S_IMODE(path.stat().st_mode))
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} can't be written: {getattr(error, 'strerror', None) or error}") from None


def _made_beside(path: Path) -> tuple[int, str]:
    """A new file that nobody else can read, open for writing, and its name."""
    import tempfile  # which takes two milliseconds, and only a history needs it

    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")


def check_writable(path: Path) -> None:
    """Raises InvalidRequest where a history could not be saved there: before a model works for it."""
    path = path.resolve()
    try:
        if path.exists():
            with open(path, "ab"):
                pass
        handle, name = _made_beside(path)
        os.close(handle)
        os.unlink(name)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} can't be written: {getattr(error, 'strerror', None) or error}") from None


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], object]) -> Generator[None, None, None]:
    """The history is this process's alone. `waiting` is called once, where another one has it.

    Raises InvalidRequest where no lock can be made beside it.
    """
    path = path.resolve()
    beside = path.with_name(f".{path.name}.lock")
    try:
        held = _acquire(beside, waiting)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{beside} can't be made: {getattr(error, 'strerror', None) or error}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no file that is open: the next holder finds it
            os.unlink(beside)
        os.close(held)


def _acquire(beside: Path, waiting: Callable[[], object]) -> int:
    """The lock's file, open and locked."""
    told = False
    while True:
        handle = os.open(beside, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(handle)
            # Who had it before may have removed the file that is locked here.
            if os.path.exists(beside) and os.path.samestat(os.fstat(handle), os.stat(beside)):
                return handle
        except BlockingIOError:
            if not told:
                waiting()
                told = True
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(_PAUSE)


_PAUSE = 0.05

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        """Lock it now, or raise BlockingIOError."""
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error

else:
    import fcntl

    def _lock(handle: int) -> None:
        """Lock it now, or raise BlockingIOError."""
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
