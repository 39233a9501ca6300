"""A lock among processes, and threads and tasks too: a file that only one of them can create.

Nothing but `O_EXCL`, so that one piece of code serves Linux, macOS and Windows. The holder touches the file now and
then. Who waits watches it: a file that does not change for a while belongs to nobody who lives, and is taken over by
writing another name into it (no clock is compared with another's, so a machine that slept is no matter). Two that do
so at once find out when they look again: the name that is in it then has the lock. What a file can't exclude (a holder
that was suspended alone, a folder that can't be written) the reader of LM Studio's state must expect anyway, so
nothing here is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
import time
import uuid
from pathlib import Path

log: logging.Logger = logging.getLogger("phi4_http")

BEAT_SECONDS = 2.0
"""How often the holder touches its file."""

STALE_SECONDS = 15.0
"""After how long without a touch, watched, a file is nobody's. A machine under load may miss a few beats."""


def lock_path(*names: str, folder: Path | None = None) -> Path:
    """The file for these names, in the system's folder for temporary files; another one for each user."""
    user = str(os.getuid()) if hasattr(os, "getuid") else ""  # nobody can take over what another user has left there
    digest = hashlib.sha256("\0".join((user, *names)).encode("utf-8", "surrogatepass")).hexdigest()
    return (folder or Path(tempfile.gettempdir())) / f"phi4_http-{digest[:16]}.lock"


class FileLock:
    """One holder's side of a lock. `acquire` never waits: ask again later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = uuid.uuid4().hex
        self._seen: tuple[str, int] | None = None
        self._since = 0.0
        self._claimed = False
        self._released = threading.Event()

    def acquire(self) -> bool:
        """Whether the lock is held now."""
        try:
            held = self._create() or self._take_over()
        except OSError as error:
            log.warning("no lock at %s (%s): going on without", self._path, error)
            return True
        if held:
            self._released.clear()
            threading.Thread(target=self._beat, name="phi4_http lock", daemon=True).start()
        return held

    def release(self) -> None:
        """Give the lock back, if it is still this one's."""
        self._released.set()
        self._claimed = False
        with contextlib.suppress(OSError):
            if self._holder() == self._name:
                self._path.unlink()

    def _create(self) -> bool:
        try:
            file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        except PermissionError:
            # Windows says so of a file that is being removed just now.
            if os.access(self._path.parent, os.W_OK):
                return False
            raise
        with os.fdopen(file, "w") as created:
            created.write(self._name)
        return True

    def _take_over(self) -> bool:
        """Claim a stale file at one call; have it at the next, if no other claim came after."""
        try:
            if self._claimed:
                self._claimed = False
                return self._holder() == self._name
            if self._is_stale():
                log.warning("taking over the lock %s: its holder is gone", self._path)
                self._claim()
                self._claimed = True
        except (FileNotFoundError, PermissionError):
            # It was released just now; or, on Windows, somebody has it open.
            return False
        return False

    def _is_stale(self) -> bool:
        now = time.monotonic()
        seen = (self._holder(), self._path.stat().st_mtime_ns)
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since > STALE_SECONDS

    def _claim(self) -> None:
        claim = self._path.with_suffix(f".{self._name}")
        claim.write_text(self._name)
        try:
            os.replace(claim, self._path)
        finally:
            claim.unlink(missing_ok=True)

    def _holder(self) -> str:
        return self._path.read_text()

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if self._holder() != self._name:
                    return
                os.utime(self._path)
