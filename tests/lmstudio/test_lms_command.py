"""One run of `lms`: found, limited in time, and never left behind. Real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmstudio.world import World
from phi4_http.errors import LmsFailed, LmsNotFound, LmsTimeout
from phi4_http.flow import Completed, Lms
from phi4_http.lmstudio.lms.command import AsyncRunning, Running, arun_lms, find_lms, lms_places, run_lms

Run = Callable[[Lms, str], Completed]


def blocking(step: Lms, path: str) -> Completed:
    return run_lms(step, path)


def awaited(step: Lms, path: str) -> Completed:
    return asyncio.run(arun_lms(step, path))


@pytest.fixture(params=[blocking, awaited])
def run(request: pytest.FixtureRequest) -> Run:
    """Both ways to run it."""
    chosen: Run = request.param
    return chosen


def script(folder: Path, text: str) -> str:
    """A command that does what a piece of Python says."""
    path = folder / "command"
    path.write_text(f"#!{sys.executable} -IS\nimport os, signal, subprocess, sys, time\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def until(what: Callable[[], Any]) -> Any:
    """What it gives as soon as it gives something."""
    for _ in range(1000):
        if found := what():
            return found
        time.sleep(0.01)
    raise AssertionError("it never came")


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        if Path("/proc").exists():
            return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# --- finding


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with no LM Studio in it, and a PATH with no `lms`."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    return tmp_path


def test_lms_on_path_is_taken_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the person's own PATH has wins over LM Studio's folders."""
    executable(home / ".lmstudio" / "bin" / "lms")
    mine = executable(home / "mine" / "lms")
    monkeypatch.setenv("PATH", str(mine.parent))
    assert find_lms() == str(mine)


@pytest.mark.parametrize("folder", [".lmstudio", ".cache/lm-studio"])
def test_lms_in_its_own_folders_is_found(home: Path, folder: str) -> None:
    """Both the folder of today's releases and that of older ones are looked into."""
    there = executable(home / folder / "bin" / "lms")
    assert find_lms() == str(there)


def test_lms_where_the_home_pointer_leads_is_found(home: Path) -> None:
    """A LM Studio whose folder was moved leaves a file that says where to."""
    there = executable(home / "elsewhere" / "bin" / "lms")
    (home / ".lmstudio-home-pointer").write_text(f"{home / 'elsewhere'}\n", encoding="utf-8")
    assert find_lms() == str(there)


def test_missing_lms_names_all_places(home: Path) -> None:
    """Who has no `lms` learns where it was looked for."""
    (home / ".lmstudio-home-pointer").write_bytes(b"\xff")  # not even text
    with pytest.raises(LmsNotFound) as caught:
        find_lms()
    assert caught.value.tried[0] == "PATH"
    assert str(home / ".lmstudio" / "bin" / "lms") in str(caught.value)
    assert str(home / ".cache" / "lm-studio" / "bin" / "lms") in str(caught.value)


def test_a_given_path_is_the_only_one_tried(home: Path) -> None:
    """An explicit path that is wrong is not made good by another `lms`, nor by a file that can't be run."""
    executable(home / ".lmstudio" / "bin" / "lms")
    (home / "lms").write_text("not a command", encoding="utf-8")
    with pytest.raises(LmsNotFound) as caught:
        find_lms(home / "lms")
    assert caught.value.tried == (str(home / "lms"),)


def test_windows_looks_for_an_exe_in_its_own_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows it is `lms.exe`, in the same folders, or in the app itself."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("phi4_http.lmstudio.lms.command._NAME", "lms.exe")
    home = Path("C:/Users/me")
    places = [
        place.as_posix() for place in lms_places(home, {"LOCALAPPDATA": "C:/Local", "PROGRAMFILES": "C:/Programs"})
    ]
    assert places == [
        "C:/Users/me/.lmstudio/bin/lms.exe",
        "C:/Users/me/.cache/lm-studio/bin/lms.exe",
        "C:/Local/Programs/LM Studio/resources/app/.webpack/lms.exe",
        "C:/Programs/LM Studio/resources/app/.webpack/lms.exe",
    ]


def test_macos_looks_into_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that was never started has put no `lms` anywhere else yet."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "LM Studio.app" in str(lms_places(Path("/Users/me"), {})[-1])


# --- running


def test_both_streams_and_the_exit_code_come_back(run: Run, tmp_path: Path) -> None:
    """A failure is a result here: who called knows what it means."""
    path = script(tmp_path, "print('out'); print('err', file=sys.stderr); sys.exit(3)")
    done = run(Lms(("a", "b"), 30), path)
    assert (done.arguments, done.exit_code, done.stdout, done.stderr) == (("a", "b"), 3, "out\n", "err\n")


def test_the_command_runs_without_terminal_colours_and_locale(run: Run, tmp_path: Path) -> None:
    """Nothing to read, no colours, very wide, and numbers in plain spelling."""
    names = ("FORCE_COLOR", "COLUMNS", "LC_ALL")
    path = script(
        tmp_path, f"print([os.environ[name] for name in {names}], repr(sys.stdin.read()), os.getpgrp() == os.getpid())"
    )
    assert run(Lms((), 30), path).stdout == "['0', '1000', 'C'] '' True\n"


def test_much_output_on_both_streams_blocks_nothing(run: Run, tmp_path: Path) -> None:
    """Neither pipe can fill up while the other one is read; characters cut by a read come back whole."""
    path = script(tmp_path, "for stream in (sys.stderr, sys.stdout) * 3: stream.buffer.write('é⠙'.encode() * 100_000)")
    done = run(Lms((), 30), path)
    assert done.stdout == done.stderr == "é⠙" * 300_000


def test_bytes_that_are_no_text_come_as_replacement(run: Run, tmp_path: Path) -> None:
    """Output in another encoding is no crash."""
    assert run(Lms((), 30), script(tmp_path, "sys.stdout.buffer.write(b'a\\xffb')")).stdout == "a\ufffdb"


def test_a_file_that_cant_be_run_is_a_failure(run: Run, tmp_path: Path) -> None:
    """A broken installation is told as such."""
    path = tmp_path / "lms"
    path.write_bytes(b"\x00\x01")
    path.chmod(0o755)
    with pytest.raises(LmsFailed, match="can't be run"):
        run(Lms(("ps",), 30), str(path))


def test_a_service_that_holds_the_pipes_keeps_nobody_waiting(run: Run, world: World) -> None:
    """LM Studio, started by `lms ps` itself, has its streams open for as long as it lives."""
    world.set(service_starts=True)
    done = run(Lms(("ps", "--json"), 30), world.lms)
    assert (done.exit_code, done.stdout) == (0, "[]\n")


def test_a_hang_is_ended_with_all_that_it_started(run: Run, world: World) -> None:
    """After the time limit neither the command, which ignores SIGINT, nor its child is left."""
    world.set(hang=["ps"])
    with pytest.raises(LmsTimeout) as caught:
        run(Lms(("ps", "--json"), 0.5), world.lms)
    assert (caught.value.arguments, caught.value.seconds) == (("ps", "--json"), 0.5)
    with world.state() as state:
        pids = [state["calls"][0]["pid"], state["child"]]
    assert until(lambda: all(map(gone, pids)))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_output_is_read_while_it_comes(asynchronous: bool, tmp_path: Path) -> None:
    """Each piece comes before the command ends: here it must be answered for the command to end at all."""
    flag = tmp_path / "heard"
    text = f"print('now', flush=True)\nwhile not os.path.exists({str(flag)!r}): time.sleep(0.01)\nprint('then')"
    path, told = script(tmp_path, text), []

    async def awaited() -> Completed:
        running = AsyncRunning(Lms((), 30), path)
        while (pieces := await running.read()) is not None:
            told.extend(pieces)
            flag.touch()
        await running.aclose()
        return running.completed

    def blocking() -> Completed:
        running = Running(Lms((), 30), path)
        while (pieces := running.read()) is not None:
            told.extend(pieces)
            flag.touch()
        running.close()
        return running.completed

    done = asyncio.run(awaited()) if asynchronous else blocking()
    assert "".join(told) == done.stdout == "now\nthen\n"


def test_a_read_with_a_limit_goes_on_later(tmp_path: Path) -> None:
    """Nothing yet is an empty list, and the run goes on."""
    running = Running(Lms((), 30), script(tmp_path, "time.sleep(0.3); print('late')"))
    assert running.read_within(0.01) == []
    assert running.read() == ["late\n"]
    assert running.read() is None
    running.close()


def test_a_cancelled_task_ends_the_run_before_it_goes_on(world: World) -> None:
    """When the cancelled task is over, so are the command and its child."""
    world.set(hang=["load"])

    async def main() -> None:
        task = asyncio.create_task(arun_lms(Lms(("load", "x"), 600), world.lms))
        await asyncio.to_thread(until, lambda: world_child(world))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    with world.state() as state:
        assert gone(state["calls"][0]["pid"])
        assert until(lambda: gone(state["child"]))


def world_child(world: World) -> Any:
    with world.state() as state:
        return state.get("child")


INTERRUPTED = """
import sys
from phi4_http.flow import Lms
from phi4_http.lmstudio.lms.command import run_lms
try:
    run_lms(Lms(("load", "llama-3.2-1b-instruct", "-y"), 600), sys.argv[1])
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("deaf", [False, True])
def test_ctrl_c_ends_the_run(deaf: bool, world: World) -> None:
    """Ctrl-C reaches the caller alone, which ends the load: kindly, so that it is cancelled, or else by force."""
    world.set(load_seconds=600, children=True, deaf=deaf)
    caller = subprocess.Popen([sys.executable, "-c", INTERRUPTED, world.lms], start_new_session=True)
    child = until(lambda: world_child(world))
    with world.state() as state:
        command = state["calls"][0]["pid"]
    os.kill(caller.pid, signal.SIGINT)
    assert caller.wait() == 130
    assert until(lambda: gone(command) and gone(child))
    with world.state() as state:
        assert state["pending"] == []
