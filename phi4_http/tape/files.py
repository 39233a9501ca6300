"""The files of a tape: their names, how they are opened, how their folder comes and goes.

A tape may be a stranger's. So a name stays in its folder, and only a regular file that lies there itself is opened:
a symbolic link could lead to any file, a pipe would never end, a device may be anything. The folder itself may be a
link.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import IO

from ..errors import TapeError

STREAM_SUFFIX, BODY_SUFFIX = ".sse", ".body"
PART_SUFFIX = ".part"
"""What a file that is still being written ends with. Left over, it tells of an interrupted recording."""

_NAME = re.compile(r"[^/\\:*?\"<>|\x00-\x1f.][^/\\:*?\"<>|\x00-\x1f]*")
_READ_ONLY = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


_TRIES = 100
"""How often a folder is made anew that somebody takes away."""
_KINDS = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def exchange_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The JSON files of a folder, in order. Raises `TapeError` where there is no such folder."""
    try:
        found = [file for file in Path(folder).iterdir() if file.suffix == ".json" and not file.name.startswith(".")]
    except (OSError, ValueError) as error:
        raise TapeError(str(folder), f"no tape there ({_reason(error)})") from error
    return sorted(found, key=lambda file: by_number(file.stem))


def by_number(name: str) -> list[tuple[bool, int, str]]:
    """A sort key that takes runs of digits by their value, and before other characters."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(False, int(part), part) if part.isdecimal() else (True, 0, part) for part in parts]


def body_file(file: Path) -> Path:
    """The body beside the JSON file of an exchange. Raises `TapeError` where there is none, or two."""
    found = [body for suffix in (STREAM_SUFFIX, BODY_SUFFIX) if os.path.lexists(body := file.with_suffix(suffix))]
    if len(found) != 1:
        problem = "both are there" if found else "neither is there"
        raise TapeError(str(file), f"its body is {file.stem}{STREAM_SUFFIX} or {file.stem}{BODY_SUFFIX}, and {problem}")
    return found[0]


def files_of(folder: Path, name: str) -> list[Path]:
    """All the files that an exchange of this name may have, its JSON first."""
    return [folder / f"{name}{suffix}" for suffix in (".json", STREAM_SUFFIX, BODY_SUFFIX)]


def check_name(folder: str | os.PathLike[str], name: str) -> None:
    """Raises `TapeError` where a name can't be that of an exchange in this folder."""
    if not _NAME.fullmatch(name):
        raise TapeError(str(folder), f"{name!r} can't be the name of an exchange")


def opened(file: Path) -> IO[bytes]:
    """A file of a tape, to be read. Raises `TapeError`, before anything is read, where it is no regular file."""
    try:
        # Looked at first, since opening alone may do something to a device, and Windows has no O_NOFOLLOW.
        _must_be_regular(file, os.lstat(file).st_mode)
        descriptor = os.open(file, _READ_ONLY)
    except (OSError, ValueError) as error:
        raise TapeError(str(file), f"can't be read ({_reason(error)})") from error
    try:
        _must_be_regular(file, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _must_be_regular(file: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = _KINDS.get(stat.S_IFMT(mode), "a device")
    raise TapeError(str(file), f"is {kind}; a tape has regular files only")


def make_folder(folder: Path) -> list[Path]:
    """Make a folder where it isn't there; returns what was made, the innermost first. Raises `TapeError`."""
    missing = []
    with writing(folder):
        for place in (folder, *folder.parents):
            if os.path.lexists(place):
                break
            missing.append(place)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise TapeError(str(folder), "is not a folder") from error
    return missing


def created(file: Path, *, exclusive: bool = True) -> tuple[IO[bytes], list[Path]]:
    """A new file, to be written, and the folders that were made for it, the innermost first.

    Raises FileExistsError where it is `exclusive` and there already, `TapeError` where it can't be.
    """
    for _ in range(_TRIES):
        made = make_folder(file.parent)
        # Another recorder may take away the folder, which it had made and found no use for.
        with writing(file.parent), contextlib.suppress(FileNotFoundError):
            return open(file, "xb" if exclusive else "wb"), made
    raise TapeError(str(file.parent), "can't be written (it is taken away again and again)")


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of these folders that are empty, the innermost first."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def try_folder(folder: Path) -> None:
    """Raises `TapeError` where nothing can be written into a folder. Leaves nothing behind."""
    place = folder / f".try-{os.getpid()}-{os.urandom(4).hex()}{PART_SUFFIX}"
    file, made = created(place)
    with writing(folder):
        file.close()
        place.unlink()
    remove_empty(made)


@contextlib.contextmanager
def writing(folder: Path) -> Generator[None, None, None]:
    """Turns the system's errors into `TapeError`; that a file is there already is the caller's own affair."""
    try:
        yield
    except FileExistsError:
        raise
    except (OSError, ValueError) as error:
        raise TapeError(str(folder), f"can't be written ({_reason(error)})") from error


def _reason(error: Exception) -> object:
    return getattr(error, "strerror", None) or error
