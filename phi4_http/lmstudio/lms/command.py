"""Find LM Studio's command `lms`, and run it once: one implementation, which the async face runs in a thread.

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
import functools
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
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
        raise LmsNotFound(tuple(places))
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


def run_lms(step: Lms, path: str | os.PathLike[str] | None = None, *, stop: threading.Event | None = None) -> Completed:
    """Run `lms` with the arguments of the step, and wait for its end, whatever its exit code. `stop` ends it early.

    Raises LmsNotFound, LmsTimeout after the step's time limit, and LmsFailed for a file that can't be run.
    """
    command = [find_lms(path), *step.arguments]
    stop = stop or threading.Event()
    tell = step.on_output
    deadline = time.monotonic() + step.timeout
    if stop.is_set():  # before a thread was free for it
        return Completed(step.arguments, -signal.SIGINT, "", "")
    log.debug("lms %s", " ".join(step.arguments))
    with _process(command, step.arguments) as process:
        output = _Output(process)
        while output.open or process.poll() is None:
            if output.open:
                output.wait(_LOOK_SECONDS, tell)
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_SECONDS)
            if process.poll() is not None:
                # LM Studio, started by this very command, may hold the pipes for as long as it lives.
                output.drain(_GRACE_SECONDS, tell)
                break
            if stop.is_set():
                break
            if time.monotonic() > deadline:
                raise LmsTimeout(step.arguments, step.timeout)
    return Completed(step.arguments, process.returncode, output.text("stdout"), output.text("stderr"))


async def arun_lms(step: Lms, path: str | os.PathLike[str] | None = None) -> Completed:
    """As `run_lms`, in a thread. A cancelled caller goes on when the process is gone."""
    loop = asyncio.get_running_loop()
    on_output = step.on_output
    if on_output is not None:
        step = step._replace(on_output=lambda text: loop.call_soon_threadsafe(on_output, text))
    stop = threading.Event()
    running = loop.run_in_executor(None, functools.partial(run_lms, step, path, stop=stop))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        running.add_done_callback(lambda future: future.cancelled() or future.exception())  # nobody else will ask
        while not running.done():  # some cancel more than once (anyio's scopes, until they are left)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        raise


@contextlib.contextmanager
def _process(command: list[str], arguments: tuple[str, ...]) -> Generator[subprocess.Popen[bytes], None, None]:
    """A process in a group of its own. However the block is left, it is gone then, and its group with it."""
    options: dict[str, object] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | _ENVIRONMENT,
            **options,  # type: ignore[call-overload]  # the two systems take different ones
        )
    except OSError as error:
        raise LmsFailed(arguments, -1, f"{command[0]} can't be run: {error}") from error
    try:
        yield process
    finally:
        if process.poll() is None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: kindly at first."""
    if sys.platform == "win32":
        tree = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
        subprocess.run(tree, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        process.kill()
    else:
        # macOS says EPERM for a group of which only a zombie is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            try:
                os.killpg(process.pid, signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE_SECONDS)
            finally:  # also for whoever presses Ctrl-C once more
                os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Output:
    """Both streams of a process, read by a thread each, so that neither can fill up and block it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._pieces: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()
        self._texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._open = set(self._texts)
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

    def wait(self, seconds: float, tell: Callable[[str], object] | None) -> None:
        """Take one piece, if one comes in that time. `tell` hears what is of stdout."""
        try:
            name, text = self._pieces.get(timeout=seconds)
        except queue.Empty:
            return
        if text is None:
            self._open.discard(name)
        else:
            self._texts[name].append(text)
            if tell and name == "stdout":
                tell(text)

    def drain(self, seconds: float, tell: Callable[[str], object] | None) -> None:
        """Take what is left, for so long at most."""
        deadline = time.monotonic() + seconds
        while self._open and time.monotonic() < deadline:
            self.wait(_LOOK_SECONDS, tell)

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with contextlib.suppress(OSError, ValueError), pipe:
            while piece := os.read(pipe.fileno(), 1 << 16):
                self._pieces.put((name, decoder.decode(piece)))
        self._pieces.put((name, None))
