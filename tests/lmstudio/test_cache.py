"""The just-in-time cache: one load for many callers, room made, nothing busy disturbed. On both faces."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from lmstudio.faces import Face
from lmstudio.test_lifecycle import GPT, LLAMA, NOMIC, QWEN
from lmstudio.world import TESTS, World
from phi4_http.client.aio import AsyncLMStudio
from phi4_http.client.blocking import LMStudio
from phi4_http.client.manager import AsyncModelManager, ModelManager
from phi4_http.errors import (
    ContextTooShort,
    DoesNotFit,
    InvalidRequest,
    LoadFailed,
    ModelBusy,
    ModelNotFound,
    UnsupportedSetting,
)
from phi4_http.lmstudio.config import LoadConfig
from phi4_http.lmstudio.lease import Leases
from phi4_http.server import address

LONG = LoadConfig(context_length=8192)


# --- one instance, taken or loaded


def test_a_model_is_loaded_once_and_then_taken(face: Face, world: World) -> None:
    """The first call loads, with the usual time to live; the second takes what is there."""
    manager = face.manager()
    first = manager.get(LLAMA, LONG)
    assert (first.identifier, first.context_length, first.ttl) == (LLAMA, 8192, 300.0)
    assert manager.get(LLAMA, LONG).identifier == LLAMA
    assert manager.get(LLAMA).identifier == LLAMA
    assert len(world.calls("load")) == 1


def test_what_others_have_loaded_is_taken(face: Face, world: World) -> None:
    """An instance that has what is asked for is used, whoever loaded it, under whatever name."""
    world.put(LLAMA, "somebodys", context=8192)
    assert face.manager().get(LLAMA, LONG).identifier == "somebodys"
    assert world.calls("load") == []


def test_the_key_may_be_inexact(face: Face, world: World) -> None:
    """The lock, the list and the instance go by the real key."""
    assert face.manager().get("gpt-oss-20b").model == GPT
    assert world.loaded == [GPT]


def test_an_unknown_key_is_told(face: Face) -> None:
    """As for a load."""
    with pytest.raises(ModelNotFound, match=LLAMA):
        face.manager().get("lama-3.2-1b")


def test_a_shorter_one_that_is_idle_is_reloaded(face: Face, world: World) -> None:
    """Two copies would take twice the memory: the short one goes first."""
    world.put(LLAMA)
    assert face.manager().get(LLAMA, LONG).context_length == 8192
    assert world.loaded == [LLAMA]


def test_a_named_one_is_loaded_beside_others(face: Face, world: World) -> None:
    """A name of one's own asks for an instance of one's own."""
    world.put(LLAMA)
    assert face.manager().get(LLAMA, LoadConfig(identifier="mine", context_length=8192)).identifier == "mine"
    assert world.loaded == [LLAMA, "mine"]


def test_a_busy_one_is_waited_for(face: Face, world: World) -> None:
    """Too short, but at work: when it is idle, it is reloaded, and not before."""
    world.put(LLAMA, status="generating", queued=1, busy_looks=4)
    assert face.manager().get(LLAMA, LONG).context_length == 8192
    assert len(world.calls("unload")) == 1


def test_a_busy_one_is_never_unloaded(face: Face, world: World) -> None:
    """After the wait, the error says what it is doing; it is still there."""
    world.put(LLAMA, status="generating", queued=2)
    with pytest.raises(ModelBusy) as caught:
        face.manager(patience=0.2).get(LLAMA, LONG)
    assert (caught.value.identifier, caught.value.status, caught.value.queued) == (LLAMA, "generating", 2)
    assert caught.value.waited >= 0.2
    assert (world.loaded, world.calls("unload")) == ([LLAMA], [])


def test_a_context_that_is_cut_is_told_and_can_be_ejected(face: Face, world: World) -> None:
    """The model is loaded all the same, so it counts as the manager's."""
    world.set(cut_context=4096)
    manager = face.manager()
    with pytest.raises(ContextTooShort):
        manager.get(LLAMA, LONG)
    assert [one.identifier for one in manager.eject_all()] == [LLAMA]
    assert world.loaded == []


# --- LM Studio's clock


def test_what_its_time_to_live_has_ended_is_loaded_again(face: Face, world: World) -> None:
    """The manager remembers it, LM Studio has unloaded it: the state counts."""
    manager = face.manager()
    manager.get(LLAMA)
    with world.state() as state:
        state["loaded"].clear()
    assert manager.get(LLAMA).identifier == LLAMA
    assert len(world.calls("load")) == 2


def test_a_real_time_to_live_runs_out(face: Face, world: World) -> None:
    """After an idle second it is gone, and the next call loads it again."""
    manager = face.manager(ttl=1)
    manager.get(LLAMA)
    with world.state() as state:
        state["loaded"][0]["used"] -= 2
    assert world.loaded == []
    manager.get(LLAMA)
    assert len(world.calls("load")) == 2


@pytest.mark.parametrize(
    ("ttl", "config", "expected"), [(None, None, None), (60, None, 60.0), (60, 5, 5.0), (None, 5, 5.0)]
)
def test_every_load_has_a_time_to_live_unless_told_otherwise(
    ttl: int | None, config: int | None, expected: float | None, face: Face
) -> None:
    """The config's own wins over the manager's, and None means for ever."""
    assert face.manager(ttl=ttl).get(LLAMA, LoadConfig(ttl=config)).ttl == expected


def test_rest_sets_no_time_to_live_and_the_log_says_so(no_lms: Face, caplog: pytest.LogCaptureFixture) -> None:
    """The manager's own wish may be left out where nothing can set it; the caller's may not."""
    assert no_lms.manager().get(LLAMA, LONG).context_length == 8192
    assert "stays loaded until it is ejected" in caplog.text
    with pytest.raises(UnsupportedSetting):
        no_lms.manager(ways=["rest"]).get(QWEN, LoadConfig(ttl=60))


# --- room


def test_the_least_recently_used_goes_first(face: Face, world: World) -> None:
    """Of two, the one that was asked for longer ago makes room for the third."""
    manager = face.manager(max_models=2)
    for key in (LLAMA, QWEN, LLAMA, GPT):
        manager.get(key)
    assert world.loaded == [LLAMA, GPT]


def test_use_by_others_counts_as_use(face: Face, world: World) -> None:
    """LM Studio knows when an instance answered last: one that answers is not the least used."""
    manager = face.manager(max_models=2)
    manager.get(LLAMA)
    manager.get(QWEN)
    with world.state() as state:
        state["loaded"][0]["lastUsedTime"] = int((time.time() + 60) * 1000)
    manager.get(GPT)
    assert world.loaded == [LLAMA, GPT]


def test_only_its_own_are_evicted(face: Face, world: World) -> None:
    """What others have loaded does not count and does not go."""
    world.put(NOMIC)
    manager = face.manager(max_models=1)
    manager.get(LLAMA)
    manager.get(QWEN)
    assert world.loaded == [NOMIC, QWEN]


def test_a_busy_one_is_not_evicted_while_another_is_idle(face: Face, world: World) -> None:
    """The least recently used works: the other one goes."""
    manager = face.manager(max_models=2)
    manager.get(LLAMA)
    manager.get(QWEN)
    with world.state() as state:
        state["loaded"][0].update(status="generating", queued=0)
    manager.get(GPT)
    assert world.loaded == [LLAMA, GPT]


def test_where_all_are_busy_it_is_told(face: Face, world: World) -> None:
    """No room, and none to be made: nothing is unloaded, nothing loaded."""
    manager = face.manager(max_models=1, patience=0.1)
    manager.get(LLAMA)
    with world.state() as state:
        state["loaded"][0].update(status="processingPrompt", queued=0)
    with pytest.raises(ModelBusy, match="processingPrompt"):
        manager.get(QWEN)
    assert world.loaded == [LLAMA]


GIB = 1024**3


def test_memory_is_kept_to_by_estimate(face: Face, world: World) -> None:
    """By LM Studio's own estimates, 1.5 and 4.7 GiB: both fit in 7, a third one of 11.7 in 12 only alone."""
    manager = face.manager(memory_limit=7 * GIB)
    manager.get(LLAMA)
    manager.get(QWEN)
    assert world.loaded == [LLAMA, QWEN]
    manager = face.manager(memory_limit=12 * GIB)
    manager.eject(LLAMA)
    manager.eject(QWEN)
    manager.get(LLAMA)
    manager.get(GPT)
    assert world.loaded == [GPT]


def test_a_context_counts_in_the_estimate(face: Face, world: World) -> None:
    """The same model takes more with a longer context: 8.3 GiB with all of it."""
    with pytest.raises(DoesNotFit) as caught:
        face.manager(memory_limit=8 * GIB).get(LLAMA, LoadConfig(context_length=131072))
    assert caught.value.limit == 8 * GIB
    assert caught.value.needed is not None
    assert caught.value.needed > 8 * GIB
    assert world.loaded == []


def test_without_estimates_the_files_size_counts(no_lms: Face, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody but `lms` estimates: the log says that the number is too low."""
    with pytest.raises(DoesNotFit) as caught:
        no_lms.manager(memory_limit=4 * GIB).get(QWEN)
    assert caught.value.needed == 4_683_073_504
    assert "it will take more than that" in caplog.text


@pytest.mark.parametrize(
    "limits",
    [{"ttl": 0}, {"max_models": 0}, {"max_models": True}, {"memory_limit": 1.5}, {"patience": -1}, {"timeout": -0.1}],
)
def test_limits_out_of_range_are_refused(limits: Any, face: Face) -> None:
    """Before anything is loaded."""
    with pytest.raises(InvalidRequest):
        face.manager(**limits)


# --- ejecting


def test_eject_takes_a_name_or_a_model(face: Face, world: World) -> None:
    """An identifier means that instance; else a key means all of that model."""
    for name in (LLAMA, f"{LLAMA}:2", "other"):
        world.put(LLAMA, name)
    manager = face.manager()
    assert [one.identifier for one in manager.eject("other")] == ["other"]
    assert [one.identifier for one in manager.eject(LLAMA)] == [LLAMA]
    assert [one.identifier for one in manager.eject(LLAMA)] == [f"{LLAMA}:2"]
    with pytest.raises(ModelNotFound):
        manager.eject(LLAMA)


def test_eject_all_takes_its_own(face: Face, world: World) -> None:
    """What others have loaded stays, also where the manager has used it."""
    world.put(NOMIC)
    manager = face.manager()
    manager.get(NOMIC)
    manager.get(LLAMA)
    assert [one.identifier for one in manager.eject_all()] == [LLAMA]
    assert manager.eject_all() == ()
    assert world.loaded == [NOMIC]


def test_leaving_the_block_ejects(face: Face, world: World) -> None:
    """As a context manager, it leaves nothing of its own behind."""
    with face.manager() as manager:
        manager.get(LLAMA)
        assert world.loaded == [LLAMA]
    assert world.loaded == []


def test_what_cant_be_ejected_is_told_on_leaving(face: Face, world: World) -> None:
    """A busy one stays; the others go; its error is raised, but not over an error that is already on its way."""

    def leave(error: Exception | None) -> None:
        with face.manager(patience=0.1) as manager:
            manager.get(LLAMA)
            manager.get(QWEN)
            with world.state() as state:
                state["loaded"][0].update(status="generating", queued=0)
            if error:
                raise error

    with pytest.raises(ModelBusy):
        leave(None)
    assert world.loaded == [LLAMA]
    with world.state() as state:
        state["loaded"].clear()
    with pytest.raises(ZeroDivisionError):
        leave(ZeroDivisionError())


# --- many at once


def test_ten_threads_make_one_load(world: World) -> None:
    """One loads, nine take what it has loaded."""
    world.set(load_seconds=0.3)
    with LMStudio(world.url, lms=world.lms) as client:
        manager = ModelManager(client)
        assert run_threads(10, lambda: manager.get(LLAMA, LONG).identifier) == [LLAMA] * 10
    assert (world.loaded, len(world.calls("load"))) == ([LLAMA], 1)


def run_threads(count: int, work: Any) -> list[Any]:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_ten_managers_over_rest_make_one_load(world: World) -> None:
    """Each with its own manager, and a way that would make copies: one load."""
    world.set(load_seconds=0.3)

    def work() -> str:
        with LMStudio(world.url, lms=world.lms) as client:
            return ModelManager(client, ways=["rest"]).get(LLAMA, LONG).identifier

    assert run_threads(10, work) == [LLAMA] * 10
    assert (world.loaded, len(world.requests("/api/v1/models/load"))) == ([LLAMA], 1)


def test_ten_tasks_make_one_load(world: World) -> None:
    """One loads, nine take what it has loaded, and the event loop is free meanwhile."""
    world.set(load_seconds=0.3)
    turns = 0

    async def main() -> list[str]:
        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.01)

        async with AsyncLMStudio(world.url, lms=world.lms) as client:
            manager = AsyncModelManager(client)
            counting = asyncio.create_task(count())
            found = await asyncio.gather(*(manager.get(LLAMA, LONG) for _ in range(10)))
            counting.cancel()
            return [one.identifier for one in found]

    assert asyncio.run(main()) == [LLAMA] * 10
    assert (world.loaded, len(world.calls("load"))) == ([LLAMA], 1)
    assert turns > 10


PROCESS = """
import sys
from phi4_http.client.blocking import LMStudio
from phi4_http.lmstudio.config import LoadConfig
from phi4_http.client.manager import ModelManager
with LMStudio(sys.argv[1], lms=sys.argv[2]) as client:
    print(ModelManager(client).get(sys.argv[3], LoadConfig(context_length=8192)).identifier)
"""


def start_process(world: World, key: str = LLAMA) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, world.url, world.lms, key]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(TESTS.parent), "PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"]},
    )


def test_four_processes_make_one_load(world: World) -> None:
    """One loads, three wait for it."""
    world.set(load_seconds=0.5)
    processes = [start_process(world) for _ in range(4)]
    assert [process.communicate()[0] for process in processes] == [f"{LLAMA}\n"] * 4
    assert (world.loaded, len(world.calls("load"))) == ([LLAMA], 1)


def test_a_killed_process_blocks_nobody(world: World) -> None:
    """Its lock is gone with it, and the next caller loads at once."""
    world.set(load_seconds=600)
    process = start_process(world)
    while not world.calls("load"):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    with world.state() as state:
        command = state["calls"][-1]["pid"]
        state["knobs"].clear()
    end(command)
    with LMStudio(world.url, lms=world.lms) as client:
        assert ModelManager(client, timeout=5).get(LLAMA).identifier == LLAMA


def end(pid: int) -> None:
    subprocess.run(["kill", "-9", str(pid)], check=False)


def test_two_models_at_once_keep_to_the_limit(world: World) -> None:
    """Two threads ask for different models where one is allowed: one after the other, and one is left."""
    with LMStudio(world.url, lms=world.lms) as client:
        manager = ModelManager(client, max_models=1)
        keys = iter([LLAMA, QWEN])
        assert sorted(run_threads(2, lambda: manager.get(next(keys)).identifier)) == [LLAMA, QWEN]
    assert len(world.loaded) == 1


def test_a_lock_that_never_comes_free_is_told(face: Face, world: World) -> None:
    """Somebody else loads for longer than one would wait, and has written the address in another way."""
    lock = Leases(address(world.url.replace("127.0.0.1", "localhost"))).loading(LLAMA)
    assert lock.acquire()
    with pytest.raises(ModelBusy, match="loaded by somebody else"):
        face.manager(timeout=0.2).get(LLAMA)
    lock.release()
    assert face.manager().get(LLAMA).identifier == LLAMA


def test_a_failed_load_leaves_no_lock(face: Face, world: World) -> None:
    """The next call may try."""
    world.set(crash=True)
    manager = face.manager()
    with pytest.raises(LoadFailed):
        manager.get(LLAMA)
    world.set(crash=False)
    assert manager.get(LLAMA).identifier == LLAMA


def test_a_cancelled_get_leaves_no_lock(world: World) -> None:
    """A task that is cancelled in mid-load: the next one loads."""
    world.set(load_seconds=600)

    async def main() -> str:
        async with AsyncLMStudio(world.url, lms=world.lms) as client:
            manager = AsyncModelManager(client)
            task = asyncio.create_task(manager.get(LLAMA))
            await asyncio.to_thread(wait_for, world, "load")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            world.set(load_seconds=0.02)
            return (await manager.get(LLAMA)).identifier

    assert asyncio.run(main()) == LLAMA
    assert world.loaded == [LLAMA]


def wait_for(world: World, command: str) -> None:
    while not world.calls(command):
        time.sleep(0.01)


def test_both_faces_have_the_same_names() -> None:
    """What one can do the other can."""
    names = [[name for name in vars(kind) if not name.startswith("_")] for kind in (ModelManager, AsyncModelManager)]
    assert names[0] == names[1] == ["get", "use", "eject", "eject_all"]
