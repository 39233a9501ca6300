"""Files that are written whole or not at all, and kept by one process at a time.

The lock is the operating system's own, on a file beside the one that is kept: gone when its holder dies, at once.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO

from .errors import InvalidRequest

_PAUSE = 0.05


def made_beside(path: Path) -> tuple[int, str]:
    """A new file that nobody else can read, open for writing, and its name."""
    import tempfile  # which takes two milliseconds

    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Generator[IO[str], None, None]:
    """What is written in the block takes the file's place at its end; a crash leaves the old one. Who may read it stays
    as it was; a new one is the writer's own. Raises OSError."""
    handle, name = made_beside(path)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(name, stat.S_IMODE(path.stat().st_mode))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], object]) -> Generator[None, None, None]:
    """The file is this process's alone. `waiting` is called once, where another one has it; what it raises ends the
    wait.

    Raises InvalidRequest where no lock can be made beside it.
    """
    path = path.resolve()
    beside = path.with_name(f".{path.name}.lock")
    try:
        held = _acquire(beside, waiting)
    except InvalidRequest:  # which is a ValueError too
        raise
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
            if lock_now(handle):
                # Who had it before may have removed the file that is locked here.
                if os.path.exists(beside) and os.path.samestat(os.fstat(handle), os.stat(beside)):
                    return handle
            elif not told:
                told = True
                waiting()
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(_PAUSE)


if sys.platform == "win32":
    import msvcrt

    def lock_now(handle: int) -> bool:
        """Whether an open file is locked now. Raises OSError where its file system has no locks."""
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def lock_now(handle: int) -> bool:
        """Whether an open file is locked now. Raises OSError where its file system has no locks."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
