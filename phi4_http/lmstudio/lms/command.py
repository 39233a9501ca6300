"""Find LM Studio's command `lms`, and run it once: to its end, or read bit by bit while it goes on.

The command has no time limit of its own, asks questions when it is unsure, colours what it thinks a terminal reads,
and wraps errors at the width of a window. So every run has a limit, nothing to read from, no colours and a very wide
window; and it is a process group of its own, so that a time-out, a cancelled task or Ctrl-C can end it with whatever
it has started. It is ended with SIGINT first, which it takes as "cancel the load", and killed soon after. (LM Studio
itself, which the command starts when it is not up, detaches from that group and lives on.)
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from ...errors import LmsFailed, LmsNotFound, LmsTimeout
from ...flow import Completed, Lms

log: logging.Logger = logging.getLogger("phi4_http")

_NAME = "lms.exe" if sys.platform == "win32" else "lms"

_ENVIRONMENT = {
    "FORCE_COLOR": "0",  # its colour library heeds this, not NO_COLOR
    "COLUMNS": "1000",  # errors come in boxes, whose line breaks vanish when they are wrapped
    "LC_ALL": "C",  # numbers come in the locale's spelling
}

_LOOK_SECONDS = 0.05
"""How often a run looks whether it is over, or is to be stopped. On Windows, Ctrl-C does not end a longer wait."""

_GRACE_SECONDS = 1.0
"""What a run may take to cancel its load after SIGINT, and its output to end after its own end."""


# --- where it is -----------------------------------------------------------------------------------------------


def find_lms(path: str | os.PathLike[str] | None = None) -> str:
    """The path of `lms`: the one given, or the one on PATH, or the one in LM Studio's own folders.

    Raises LmsNotFound, with all the places tried.
    """
    if path is not None:
        given = os.path.expanduser(os.fspath(path))
        places: list[str] = [given]
        found = shutil.which(given)  # for a path with a directory in it, this looks nowhere else
    else:
        places = ["PATH", *map(str, lms_places(Path.home(), os.environ))]
        found = shutil.which(_NAME) or next(filter(None, map(shutil.which, places[1:])), None)
    if not found:
        raise LmsNotFound(tuple(places), given=path is not None)
    return found


def lms_places(home: Path, environment: Mapping[str, str]) -> list[Path]:
    """Where LM Studio keeps `lms`, newest layout first; of an app that has never run, inside the app itself.

    `~/.lmstudio-home-pointer` holds the path of LM Studio's folder where it is not the usual one (its SDK's source).
    """
    homes = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        pointed = (home / ".lmstudio-home-pointer").read_text(encoding="utf-8").strip()
        if pointed and Path(pointed) not in homes:
            homes.insert(0, Path(pointed))
    places = [folder / "bin" / _NAME for folder in homes]
    if sys.platform == "win32":
        roots = [(environment.get("LOCALAPPDATA"), "Programs"), (environment.get("PROGRAMFILES"), "")]
        apps = [Path(root, below, "LM Studio", "resources") for root, below in roots if root]
    else:
        apps = [Path("/Applications/LM Studio.app/Contents/Resources")] if sys.platform == "darwin" else []
    return places + [app / "app" / ".webpack" / _NAME for app in apps]


# --- one run ---------------------------------------------------------------------------------------------------


class Running:
    """A run of `lms` that goes on: what it prints on stdout is read bit by bit, as the body of a response is.

    Raises LmsNotFound and LmsFailed, for a file that can't be run, when it is made. Whoever makes it closes it.
    """

    def __init__(self, step: Lms, path: str | os.PathLike[str] | None = None) -> None:
        command = [find_lms(path), *step.arguments]
        log.debug("lms %s", " ".join(step.arguments))
        self._step = step
        self._deadline = time.monotonic() + step.timeout
        self._ended: float | None = None
        self._process = _started(command, step.arguments)
        self._output = _Output(self._process)

    @property
    def completed(self) -> Completed:
        """The run, once it is over."""
        code, output = self._process.poll(), self._output
        return Completed(
            self._step.arguments, -signal.SIGINT if code is None else code, output.text("stdout"), output.text("stderr")
        )

    def _look(self, seconds: float) -> list[str] | None:
        """What has come on stdout, waited for as long as that; None at the end. Raises LmsTimeout."""
        pieces = self._output.take(seconds)
        if pieces or self._output.news:
            return pieces
        if self._process.poll() is None:
            if time.monotonic() > self._deadline:
                raise LmsTimeout(self._step.arguments, self._step.timeout)
            return []
        # LM Studio, started by this very command, may hold the pipes for as long as it lives.
        self._ended = self._ended or time.monotonic()
        return [] if self._output.open and time.monotonic() < self._ended + _GRACE_SECONDS else None

    def read(self) -> list[str] | None:
        """What comes next on stdout; None when the run is over. Raises LmsTimeout."""
        return self.read_within(None)

    def read_within(self, seconds: float | None) -> list[str] | None:
        """As `read`, for so many seconds at most."""
        until = None if seconds is None else time.monotonic() + seconds
        while not (found := self._look(_LOOK_SECONDS)):
            if found is None or (until is not None and time.monotonic() >= until):
                break
        return found

    def close(self) -> None:
        """End the run, and all that it started, if it is not over: kindly at first, so that a load is cancelled."""
        if self._process.poll() is not None:
            return
        try:
            if _interrupted(self._process):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_GRACE_SECONDS)
        finally:  # also for whoever presses Ctrl-C once more
            _kill(self._process)


class AsyncRunning(Running):
    """As `Running`, awaited."""

    async def read(self) -> list[str] | None:  # type: ignore[override]  # the other face
        """As there."""
        return await self.read_within(None)

    async def read_within(self, seconds: float | None) -> list[str] | None:  # type: ignore[override]  # the other face
        """As there."""
        until = None if seconds is None else time.monotonic() + seconds
        while not (found := self._look(0)):
            if found is None or (until is not None and time.monotonic() >= until):
                break
            await asyncio.sleep(_LOOK_SECONDS / 2)
        return found

    async def aclose(self) -> None:
        """As `close`; a cancelled task goes on when the process is gone."""
        if self._process.poll() is not None:
            return
        try:
            until = time.monotonic() + (_GRACE_SECONDS if _interrupted(self._process) else 0)
            while self._process.poll() is None and time.monotonic() < until:  # noqa: ASYNC110  # a process sets no event
                await asyncio.sleep(_LOOK_SECONDS / 2)
        finally:  # also for what cancels more than once
            _kill(self._process)


def run_lms(step: Lms, path: str | os.PathLike[str] | None = None) -> Completed:
    """Run `lms` with the arguments of the step, and wait for its end, whatever its exit code.

    Raises LmsNotFound, LmsTimeout after the step's time limit, and LmsFailed for a file that can't be run.
    """
    running = Running(step, path)
    try:
        while running.read() is not None:
            pass
    finally:
        running.close()
    return running.completed


async def arun_lms(step: Lms, path: str | os.PathLike[str] | None = None) -> Completed:
    """As `run_lms`, awaited."""
    running = AsyncRunning(step, path)
    try:
        while await running.read() is not None:
            pass
    finally:
        await running.aclose()
    return running.completed


def _started(command: list[str], arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """A process in a group of its own."""
    options: dict[str, object] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    try:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | _ENVIRONMENT,
            **options,  # type: ignore[call-overload]  # the two systems take different ones
        )
    except OSError as error:
        raise LmsFailed(arguments, -1, f"{command[0]} can't be run: {error}") from error
    return process


def _interrupted(process: subprocess.Popen[bytes]) -> bool:
    """Ask a process to end. Whether that can be asked here."""
    if sys.platform == "win32":
        return False
    # macOS says EPERM for a group of which only a zombie is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGINT)
    return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    if sys.platform == "win32":
        tree = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
        subprocess.run(tree, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Output:
    """Both streams of a process, read by a thread each, so that neither can fill up and block it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._pieces: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()
        self._texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._open = set(self._texts)
        self.news: bool = False
        """Whether anything had come, of either, when it was last looked."""
        for name in self._texts:
            pipe: IO[bytes] = getattr(process, name)
            threading.Thread(target=self._read, args=(name, pipe), name=f"lms {name}", daemon=True).start()

    @property
    def open(self) -> bool:
        """Whether more may come."""
        return bool(self._open)

    def text(self, name: str) -> str:
        """What has come of that stream."""
        return "".join(self._texts[name])

    def take(self, seconds: float) -> list[str]:
        """What has come of stdout; of both, one piece is waited for, if none is there."""
        told: list[str] = []
        self.news = False
        try:
            while True:
                name, text = self._pieces.get(timeout=seconds) if seconds else self._pieces.get_nowait()
                self.news, seconds = True, 0
                if text is None:
                    self._open.discard(name)
                elif text:
                    self._texts[name].append(text)
                    if name == "stdout":
                        told.append(text)
        except queue.Empty:
            return told

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with contextlib.suppress(OSError, ValueError), pipe:
            while piece := os.read(pipe.fileno(), 1 << 16):
                self._pieces.put((name, decoder.decode(piece)))
        self._pieces.put((name, None))
