"""A lock among processes, threads and tasks: the operating system's own, on a file of this user's.

`fcntl.flock`, or `msvcrt.locking` on Windows. It is gone when its holder dies, at once, so nothing here looks at ages.
A file is never unlinked: who waits for it would hold the lock of another file than who comes next. A file that is no
regular one (a FIFO, on which an open would hang; a link to somebody else's file) is refused. A folder that can't be
written is a warning: the lock then holds within this process alone.

The folder lies in the user's home, whatever `TMPDIR` or `XDG_CACHE_HOME` say: a service and a desktop of one user may
have others. A child that is forked inherits open files and so their locks: it closes its copies, which takes nothing
from the parent, and holds nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import sys
import weakref
from pathlib import Path

from ..errors import InvalidRequest
from ..saved import lock_now

if sys.platform != "win32":
    import fcntl

log: logging.Logger = logging.getLogger("phi4_http")


def lock_folder() -> Path | None:
    """Where this user's locks are; None where the user has no home."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    caches = {"win32": ("AppData", "Local"), "darwin": ("Library", "Caches")}.get(sys.platform, (".cache",))
    return home.joinpath(*caches, "phi4_http", "locks")


def digest(name: str) -> str:
    """A name of a file for any text."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:24]


class FileLock:
    """One holder's side of a lock. `acquire` never waits: ask again later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        self._alone = False

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be at its end
            self.release()

    @property
    def held(self) -> bool:
        """Whether it is held through this object."""
        return self._handle is not None or self._alone

    def acquire(self) -> bool:
        """Whether the lock is held now. Raises InvalidRequest where something else than a file has its name."""
        if self.held:
            return False
        try:
            handle = _opened(self.path)
        except OSError as error:
            return self._acquire_alone(error)
        try:
            if not lock_now(handle):
                os.close(handle)
                return False
        except OSError as error:  # a file system without locks
            os.close(handle)
            return self._acquire_alone(error)
        self._handle = handle
        _inherited.add(self)
        return True

    def _acquire_alone(self, error: OSError) -> bool:
        mine = object()
        if _alone.setdefault(self.path, mine) is not mine:
            return False
        self._alone = True
        if self.path.parent not in _told:
            _told.add(self.path.parent)
            log.warning("no locks in %s (%s): other processes are not waited for", self.path.parent, error)
        return True

    def release(self) -> None:
        """Give the lock back, if it is held."""
        handle, self._handle = self._handle, None
        if handle is not None:
            if sys.platform != "win32":  # a child that was forked may have it open for a moment longer
                with contextlib.suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)
        if self._alone:
            self._alone = False
            _alone.pop(self.path, None)

    def known(self) -> bool:
        """Whether somebody has ever had it."""
        return self.path in _alone or os.path.lexists(self.path)

    def used(self) -> float:
        """When it was last `touch`ed, in seconds since the epoch; 0 where nobody can tell."""
        try:
            return os.stat(self.path).st_mtime
        except OSError:
            return 0.0

    def touch(self) -> None:
        """Note the time, for whoever asks for it."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _forget(self) -> None:
        """In a child: close the copy, without unlocking what is the parent's."""
        handle, self._handle = self._handle, None
        self._alone = False
        if handle is not None:
            os.close(handle)


def _opened(path: Path) -> int:
    """The file, made where it is not there. Raises InvalidRequest for what is no regular file, and never waits."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        _check(path, os.lstat(path))
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(path, flags, 0o600)
    try:
        _check(path, os.fstat(handle))
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise InvalidRequest(f"{path} is no regular file, and so no lock can be made there: remove it")


# What holds of the process, and so can't belong to any object: which files a fork hands on, and which locks are held
# without a file.
_inherited: weakref.WeakSet[FileLock] = weakref.WeakSet()
_alone: dict[Path, object] = {}
_told: set[Path] = set()


def _forked() -> None:
    _alone.clear()
    for lock in list(_inherited):
        lock._forget()
    _inherited.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
