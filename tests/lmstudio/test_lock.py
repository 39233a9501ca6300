"""The lock file: one holder, never for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from phi4_http.lmstudio import lock
from phi4_http.lmstudio.lock import FileLock, lock_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the lock is."""
    return tmp_path / "a.lock"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that nobody touches is stale at the second look."""
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.0)


def test_one_holds_the_others_dont(path: Path) -> None:
    """Held once, free again after its release."""
    first, second = FileLock(path), FileLock(path)
    assert first.acquire()
    assert not second.acquire()
    assert not first.acquire()
    first.release()
    assert second.acquire()
    second.release()
    assert not path.exists()


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


@pytest.mark.usefixtures("soon")
def test_a_dead_holders_lock_is_taken_over(path: Path) -> None:
    """A process that was killed leaves its file: once that is old, the next one has the lock."""
    code = "import sys, os; from pathlib import Path; from phi4_http.lmstudio.lock import FileLock; "
    code += "print(FileLock(Path(sys.argv[1])).acquire()); sys.stdout.flush(); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (9, "True\n")
    mine = FileLock(path)
    assert looks(mine) == [False, False, True]  # watched, claimed, and looked at again before it counts
    mine.release()
    assert not path.exists()


def looks(one: FileLock) -> list[bool]:
    """Whether it was held, look by look, up to three."""
    found: list[bool] = []
    while not any(found) and len(found) < 3:
        found.append(one.acquire())
        time.sleep(0.002)
    return found


def test_of_two_that_take_over_the_last_one_has_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find the file stale; each claims it, and the claim that came last is what the file says."""
    path.write_text("somebody who is gone")
    first, second = FileLock(path), FileLock(path)
    monkeypatch.setattr(FileLock, "_is_stale", lambda self: True)
    assert not first.acquire()
    assert not second.acquire()
    assert not first.acquire()
    assert second.acquire()
    first.release()
    assert path.exists()
    second.release()
    assert not path.exists()


def test_a_file_that_changes_is_not_stale(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder at work touches the file, and who watches it starts anew, whatever the time that the file tells."""
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.0)
    path.write_text("somebody")
    mine = FileLock(path)
    for age in range(5):
        os.utime(path, (age, age))
        assert not mine.acquire()


def test_a_holder_touches_its_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it holds the lock."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    mine = FileLock(path)
    assert mine.acquire()
    for _ in range(2):
        os.utime(path, (1, 1))
        while path.stat().st_mtime == 1:
            time.sleep(0.01)
    mine.release()


def test_a_holder_whose_lock_was_taken_leaves_it_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was suspended, the file may be another's: it is neither touched nor removed."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    mine = FileLock(path)
    assert mine.acquire()
    path.write_text("another")
    os.utime(path, (1, 1))
    (beat,) = [thread for thread in threading.enumerate() if thread.name == "phi4_http lock"]
    beat.join()
    assert path.stat().st_mtime == 1
    mine.release()
    assert path.read_text() == "another"


def test_a_folder_that_cant_be_written_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The lock is a help, not a condition: the log says that there is none."""
    mine = FileLock(tmp_path / "nowhere" / "a.lock")
    assert mine.acquire()
    mine.release()
    assert "going on without" in caplog.text


def test_the_file_is_one_for_each_name() -> None:
    """Server and key make the name; nothing of them can leave the folder."""
    one = lock_path("http://127.0.0.1:1234", "a/b")
    assert one == lock_path("http://127.0.0.1:1234", "a/b")
    assert len({one, lock_path("http://127.0.0.1:1234", "../b"), lock_path("http://127.0.0.1:1234a", "/b")}) == 3
    assert one.name.startswith("phi4_http-")
    assert lock_path("x", folder=Path("/y")).parent == Path("/y")


@pytest.mark.parametrize(("writable", "held"), [(True, False), (False, True)])
def test_a_permission_that_is_missing_is_transient_or_not(
    writable: bool, held: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses a file that is just being removed: wait. A folder that can't be written will not change."""

    def refuse(*arguments: object) -> int:
        raise PermissionError

    mine = FileLock(path)
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "access", lambda *arguments: writable)
    assert mine.acquire() is held
    mine.release()
