"""The lock: one holder among threads, tasks and processes; gone with its holder, at once."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from support import SOURCE

from phi4_http.errors import InvalidRequest
from phi4_http.lmstudio import lock
from phi4_http.lmstudio.lease import Leases
from phi4_http.lmstudio.lock import FileLock, lock_folder
from phi4_http.server import address

NAME = "qwen2.5-7b-instruct"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the lock is: in a folder that is not there yet."""
    return tmp_path / "locks" / "a"


def test_one_holds_the_others_dont(path: Path) -> None:
    """Held once, free again after its release; the file stays, for whoever waits has it open."""
    first, second = FileLock(path), FileLock(path)
    assert first.acquire()
    assert not second.acquire()
    assert not first.acquire()
    first.release()
    assert second.acquire()
    second.release()
    assert path.exists()


def test_many_threads_never_hold_at_once(path: Path) -> None:
    """Twenty threads, one after the other."""
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        mine = FileLock(path)
        while not mine.acquire():
            time.sleep(0.001)
        inside.append(number)
        most.append(len(inside))
        time.sleep(0.002)
        inside.remove(number)
        mine.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20


HOLDER = """
import sys
from pathlib import Path
from phi4_http.lmstudio.lock import FileLock
mine = FileLock(Path(sys.argv[1]))
print(mine.acquire(), flush=True)
sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its stdin ends."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": SOURCE}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def test_another_process_excludes_and_a_killed_one_does_not(path: Path) -> None:
    """SIGKILL runs no line of the holder: the operating system gives the lock back, and nothing is waited for."""
    process, mine = holder(path), FileLock(path)
    assert not mine.acquire()
    process.kill()
    process.communicate()
    assert mine.acquire()
    mine.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_holds_nothing_and_takes_nothing(path: Path) -> None:
    """It leaves the block of its parent, which holds on; and it outlives its parent's lock without keeping it."""
    mine = FileLock(path)
    assert mine.acquire()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        held = mine.held
        mine.release()
        os.write(write, b"held" if held else b"none")
        time.sleep(600)
    try:
        assert os.read(read, 4) == b"none"
        other = FileLock(path)
        assert not other.acquire()
        mine.release()
        assert other.acquire()
        other.release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "socket"])
def test_what_is_no_regular_file_is_refused(kind: str, path: Path, tmp_path: Path) -> None:
    """A FIFO at the name would hang an open, a link would lead to somebody else's file: neither is opened."""
    path.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    with pytest.raises(InvalidRequest, match="no regular file"):
        FileLock(path).acquire()
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cant_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The lock then holds within the process; the log says so once."""
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a"
    first, second = FileLock(path), FileLock(path)
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
    assert caplog.text.count("no locks in") == 1


def test_a_file_system_without_locks_is_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some network file systems have none."""

    def refuse(handle: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "lock_now", refuse)
    mine = FileLock(path)
    assert mine.acquire()
    mine.release()
    assert "No locks available" in caplog.text


def test_the_folder_is_the_users_whatever_tmpdir_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A service and a shell of one user have other temporary folders, and the same home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    before = lock_folder()
    for name in ("TMPDIR", "TEMP", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "other"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert lock_folder() == before
    assert before is not None
    assert before.is_relative_to(tmp_path)


def test_a_user_without_a_home_has_locks_within_the_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is written anywhere else instead."""

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    lease = Leases("x").take(NAME)
    assert lease is not None
    assert Leases("x").taken(NAME)
    lease.release()
    assert "no locks in" in caplog.text


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://localhost:1234", "http://127.0.0.1:1234", True),
        ("http://LOCALHOST:1234", "http://[::1]:1234", True),
        ("http://127.0.0.1", "http://localhost:80", True),
        ("http://gpu.lan:1234", "http://GPU.lan.:1234/", True),
        ("http://127.0.0.1:1234", "http://127.0.0.1:1235", False),
        ("http://gpu.lan:1234", "http://127.0.0.1:1234", False),
        ("http://gpu.lan/a", "http://gpu.lan/b", False),
    ],
)
def test_one_lm_studio_has_one_address(one: str, other: str, same: bool) -> None:
    """However it is written, and another port is another one."""
    assert (address(one) == address(other)) is same


# --- leases


def test_every_lease_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Several at a time; while there is one the instance is taken; files are used again."""
    leases, others = Leases("x", tmp_path), Leases("x", tmp_path)
    assert not leases.taken(NAME)
    held = [leases.take(NAME), others.take(NAME)]
    for lease in held:
        assert lease is not None
        assert leases.taken(NAME)
        assert not leases.taken("another")
        lease.release()
    assert not others.taken(NAME)
    assert leases.take(NAME) is not None
    assert len(list(tmp_path.glob("*/lease-*"))) == 2


def test_behind_a_gate_no_lease_is_taken(tmp_path: Path) -> None:
    """Who unloads holds it from the last look to the end."""
    leases = Leases("x", tmp_path)
    gate = leases.gate(NAME)
    assert gate.acquire()
    assert Leases("x", tmp_path).take(NAME) is None
    gate.release()
    assert Leases("x", tmp_path).take(NAME) is not None


def test_a_lease_that_nobody_holds_any_more_is_none(tmp_path: Path) -> None:
    """A block that was never left, of an object that is gone."""
    leases = Leases("x", tmp_path)
    lease = leases.take(NAME)
    assert leases.taken(NAME)
    del lease
    assert not leases.taken(NAME)
    assert leases.used(NAME) > 0
