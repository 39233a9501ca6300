"""Nobody's reply is cut: leases, busy instances, what is somebody else's, and what LM Studio will not give. On both
faces, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import SOURCE

from lmstudio.faces import Face
from lmstudio.test_cache import run_threads
from lmstudio.test_lifecycle import LLAMA, QWEN
from lmstudio.world import World
from phi4_http.client.aio import AsyncLMStudio, AsyncPhi4
from phi4_http.client.blocking import LMStudio, Phi4
from phi4_http.client.manager import AsyncModelManager, ModelManager
from phi4_http.errors import ContextTooShort, InvalidRequest, LmsTimeout, LoadFailed, ModelBusy, ServerError
from phi4_http.flow import Http, Lms
from phi4_http.lmstudio import unloading
from phi4_http.lmstudio.config import LoadConfig
from phi4_http.lmstudio.lease import Leases, until
from phi4_http.lmstudio.memory import Memory
from phi4_http.running import work_at
from phi4_http.server import address

LONG = LoadConfig(context_length=8192)


def is_leased(world: World, identifier: str = LLAMA) -> bool:
    """Whether anybody has a lease on it."""
    return Leases(address(world.url)).taken(identifier)


def unloads(world: World) -> int:
    """How often anybody asked for an unload."""
    return len(world.calls("unload")) + len(world.requests("/api/v1/models/unload"))


# --- a lease


def test_what_is_used_is_not_evicted(face: Face, world: World) -> None:
    """There is room for one, and that one is in use: whoever wants another waits, and is told; afterwards it goes."""
    manager = face.manager(max_models=1, patience=0.2)
    with manager.use(LLAMA, LONG) as instance:
        assert (instance.identifier, instance.context_length) == (LLAMA, 8192)
        with pytest.raises(ModelBusy, match="in use by this process"):
            manager.get(QWEN)
        assert world.loaded == [LLAMA]
    manager.get(QWEN)
    assert world.loaded == [QWEN]


def test_what_is_used_is_not_reloaded(face: Face, world: World) -> None:
    """Nor by another manager, which wants it longer; the lease is held by many at once, and gone with the last."""
    manager, other = face.manager(), face.manager(patience=0.2)
    with manager.use(LLAMA), manager.use(LLAMA), pytest.raises(ModelBusy):
        other.get(LLAMA, LONG)
    assert unloads(world) == 0
    assert face.manager().get(LLAMA, LONG).context_length == 8192


def test_a_block_that_fails_gives_the_lease_back(face: Face, world: World) -> None:
    """However it is left."""
    manager = face.manager()

    def fail() -> None:
        with manager.use(LLAMA):
            assert is_leased(world)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not is_leased(world)


def test_a_load_that_fails_leaves_no_lease(face: Face, world: World) -> None:
    """Entering raises what `get` raises."""
    world.set(crash=True)
    with pytest.raises(LoadFailed), face.manager().use(LLAMA):
        pass
    assert not is_leased(world)


def test_what_went_before_the_lease_was_there_is_loaded_again(
    face: Face, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the lease somebody unloads it: the block has one that is there."""
    take, times = Leases.take, iter([True, False])

    def taken(self: Leases, identifier: str) -> Any:
        if next(times):
            with world.state() as state:
                state["loaded"].clear()
        return take(self, identifier)

    world.put(LLAMA)
    monkeypatch.setattr(Leases, "take", taken)
    with face.manager().use(LLAMA) as instance:
        assert world.loaded == [instance.identifier]


def test_a_lease_is_for_one_block_at_a_time(world: World) -> None:
    """Held already, it is not entered again; given back, it can be."""
    with LMStudio(world.url, lms=world.lms) as studio:
        one = ModelManager(studio).use(LLAMA)
        with one:
            with pytest.raises(InvalidRequest, match="held"):
                one.__enter__()
            assert is_leased(world)
        with one:
            assert is_leased(world)
        assert not is_leased(world)


HOLDER = """
import sys
from phi4_http import LMStudio, ModelManager
with LMStudio(sys.argv[1], lms=sys.argv[2]) as studio:
    with ModelManager(studio).use(sys.argv[3]) as instance:
        print(instance.identifier, flush=True)
        sys.stdin.read()
"""


@contextlib.contextmanager
def holder(world: World) -> Iterator[subprocess.Popen[str]]:
    """Another process of this user with a lease, which has written the address in another way."""
    command = [sys.executable, "-c", HOLDER, world.url.replace("127.0.0.1", "localhost"), world.lms, LLAMA]
    environment = {**os.environ, "PYTHONPATH": SOURCE, "TMPDIR": str(world.folder)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{LLAMA}\n"
        yield process
        process.kill()


def test_another_process_holds_it_until_it_dies(face: Face, world: World) -> None:
    """Its lease counts here; killed, with no line of its own run, it holds nothing, at once."""
    manager = face.manager(patience=0.2)
    with holder(world) as process:
        with pytest.raises(ModelBusy, match="in use by another process"):
            manager.get(LLAMA, LONG)
        assert unloads(world) == 0
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert manager.get(LLAMA, LONG).context_length == 8192


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_owns_nothing_of_its_parents(world: World) -> None:
    """It leaves both blocks of its parent: neither the lease nor the model is gone by that."""
    with LMStudio(world.url, lms=world.lms) as studio, ModelManager(studio) as manager, manager.use(LLAMA):
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                manager.use(LLAMA).__exit__(None, None, None)
                code = 0 if manager.eject_all() == () else 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert is_leased(world)
        assert world.loaded == [LLAMA]


def test_threads_and_tasks_hold_it_together(world: World) -> None:
    """Twenty of each with room for one of two models: none sees its own go while it is used."""
    missing: list[str] = []

    def see(key: str) -> None:
        time.sleep(0.01)
        if key not in world.loaded:
            missing.append(key)

    def thread(studio: LMStudio, manager: ModelManager, key: str) -> None:
        with manager.use(key):
            see(key)

    async def tasks() -> None:
        async with AsyncLMStudio(world.url, lms=world.lms) as studio:
            manager = AsyncModelManager(studio, max_models=1)

            async def task(key: str) -> None:
                async with manager.use(key):
                    await asyncio.to_thread(see, key)

            await asyncio.gather(*(task((LLAMA, QWEN)[number % 2]) for number in range(10)))

    with LMStudio(world.url, lms=world.lms) as studio:
        manager = ModelManager(studio, max_models=1)
        keys = iter([LLAMA, QWEN] * 5)
        run_threads(10, lambda: thread(studio, manager, next(keys)))
    asyncio.run(tasks())
    assert missing == []


# --- who is at work


def test_a_reply_to_this_process_is_not_cut(face: Face, world: World) -> None:
    """REST reports nothing of it, and it is another client that reads it."""
    world.set(reply_seconds=1.5)
    world.put(LLAMA)
    with LMStudio(world.url) as other:
        reading = threading.Thread(target=lambda: Phi4(other, model=LLAMA).ask("x"))
        reading.start()
        while not world.requests("/v1/chat/completions"):
            time.sleep(0.01)
        with pytest.raises(ModelBusy, match="in use by this process"):
            face.manager(ways=["rest"], patience=0.1).get(LLAMA, LONG)
        reading.join()
    assert not work_at(address(world.url)).busy(LLAMA)
    assert unloads(world) == 0


def test_a_stream_is_known_until_it_is_left(face: Face, world: World) -> None:
    """As work of this process, on both faces; one that was refused is none."""
    phi, work = face.phi(model=LLAMA), work_at(address(world.url))
    with phi.stream("x"):
        assert work.busy(LLAMA)
    assert not work.busy(LLAMA)
    world.set(chat_fails=True)
    with pytest.raises(ServerError):
        phi.ask("x")
    assert not work.busy(LLAMA)


def test_where_rest_cant_tell_lms_is_asked(face: Face, world: World) -> None:
    """`lms ps`, of that port, whatever the way of loading: a generating instance is not unloaded."""
    world.put(LLAMA, status="generating", queued=1)
    with pytest.raises(ModelBusy, match="generating, 1 queued"):
        face.manager(ways=["rest"], patience=0.1).get(LLAMA, LONG)
    assert unloads(world) == 0
    assert all(call[-2:] == ["--port", str(world.port)] for call in world.calls("ps"))
    assert world.calls("ps")


def test_where_nobody_tells_ones_own_goes_after_a_quiet_time(
    no_lms: Face, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before, where that is longer than one would wait."""
    manager = no_lms.manager(patience=5)
    manager.get(LLAMA)
    with pytest.raises(ModelBusy, match="nobody reports it"):
        manager.get(LLAMA, LONG)
    assert unloads(world) == 0
    monkeypatch.setattr(unloading, "QUIET_SECONDS", 0.3)
    assert manager.get(LLAMA, LONG).context_length == 8192


def test_a_request_of_ours_begins_the_quiet_time_anew(
    no_lms: Face, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever of this user had a lease on it, and whichever client asked."""
    manager = no_lms.manager(patience=0.05)
    manager.get(LLAMA)
    monkeypatch.setattr(unloading, "QUIET_SECONDS", 0.5)
    time.sleep(0.6)
    no_lms.phi(model=LLAMA).ask("x")
    with pytest.raises(ModelBusy):
        manager.eject(LLAMA)
    time.sleep(0.6)
    held = Leases(address(world.url)).take(LLAMA)  # as another process does
    assert held is not None
    held.release()
    with pytest.raises(ModelBusy):
        manager.eject(LLAMA)
    time.sleep(0.6)
    manager.eject(LLAMA)
    assert world.loaded == []


@pytest.mark.parametrize("call", ["get", "eject"])
def test_where_nobody_tells_what_is_not_ones_own_stays(call: str, no_lms: Face, world: World) -> None:
    """Neither reloaded nor ejected, at once: waiting would change nothing."""
    world.put(LLAMA)
    manager = no_lms.manager()
    with pytest.raises((ContextTooShort, ModelBusy)):
        manager.get(LLAMA, LONG) if call == "get" else manager.eject(LLAMA)
    assert (world.loaded, unloads(world)) == ([LLAMA], 0)


def test_an_old_lms_that_reports_no_status_is_nobody(face: Face, world: World) -> None:
    """It lists instances and not what they do."""
    world.set(old=True)
    world.put(LLAMA)
    with pytest.raises(ModelBusy, match="loaded by somebody else"):
        face.manager().eject(LLAMA)
    assert world.loaded == [LLAMA]


def test_an_lms_that_speaks_to_another_lm_studio_is_nobody(face: Face, world: World) -> None:
    """It lists an idle instance of the same name, and of one more: what it says of it does not count."""
    world.put(LLAMA)
    world.put(QWEN)
    world.set(server_is_another=True)
    with pytest.raises((ModelBusy, ContextTooShort)):
        face.manager().get(LLAMA, LONG)
    assert (world.loaded, unloads(world)) == ([LLAMA, QWEN], 0)


def test_an_eviction_over_rest_takes_what_is_idle(no_lms: Face, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the server's lists alone."""
    monkeypatch.setattr(unloading, "QUIET_SECONDS", 0.0)
    manager = no_lms.manager(max_models=1)
    manager.get(LLAMA)
    manager.get(QWEN)
    assert world.loaded == [QWEN]


# --- what is somebody else's


@pytest.mark.parametrize(("ttl", "name"), [(None, LLAMA), (90_000, LLAMA), (90_000, "somebodys")])
def test_somebody_elses_is_reloaded_as_theirs(ttl: int | None, name: str, face: Face, world: World) -> None:
    """Idle, and longer for somebody: with its own name and time to live, and not among what is ejected."""
    world.put(LLAMA, name, ttlMs=ttl)
    manager = face.manager()
    assert manager.get(LLAMA, LONG).context_length == 8192
    assert manager.eject_all() == ()
    with world.state() as state:
        (one,) = state["loaded"]
    assert (one["identifier"], one["ttlMs"], one["contextLength"]) == (name, ttl, 8192)


@pytest.mark.parametrize("config", [LoadConfig(context_length=8192, ttl=60), LoadConfig(flash_attention=True)])
def test_somebody_elses_that_could_not_stay_theirs_is_left(config: LoadConfig, face: Face, world: World) -> None:
    """Another time to live was asked for, or what only REST can set, which sets none."""
    world.put(LLAMA, ttlMs=90_000, config={"flash_attention": False})
    with pytest.raises((ContextTooShort, LoadFailed)):
        face.manager().get(LLAMA, config)
    assert (world.loaded, unloads(world)) == ([LLAMA], 0)


def test_somebody_elses_is_put_back_where_the_load_fails(face: Face, world: World) -> None:
    """Unloaded for a longer one that LM Studio refuses: theirs is there again as it was."""
    world.put(LLAMA, ttlMs=90_000)
    world.set(refuses_above=5000)
    with pytest.raises(LoadFailed):
        face.manager().get(LLAMA, LONG)
    with world.state() as state:
        (one,) = state["loaded"]
    assert (one["identifier"], one["ttlMs"], one["contextLength"]) == (LLAMA, 90_000, 4096)


# --- what was asked for


def test_a_cut_is_remembered(face: Face, world: World) -> None:
    """LM Studio gives 4,096 of 8,192 tokens: told each time, tried once; another wish is tried, and so is the same one
    when there is more room."""
    world.set(cut_context=4096)
    manager = face.manager()
    for _ in range(3):
        with pytest.raises(ContextTooShort) as caught:
            manager.get(LLAMA, LONG)
        assert (caught.value.needed, caught.value.limit) == (8192, 4096)
    assert (len(world.calls("load")), unloads(world)) == (1, 0)
    assert manager.get(LLAMA).context_length == 4096
    with pytest.raises(ContextTooShort):
        manager.get(LLAMA, LoadConfig(context_length=6000))
    assert len(world.calls("load")) == 2
    world.set(cut_context=10**6)
    manager.eject(LLAMA)
    assert manager.get(LLAMA, LONG).context_length == 8192


@pytest.mark.parametrize(
    ("first", "then", "loads"),
    [
        ({"gpu": "max"}, {"gpu": 1}, 1),
        ({"gpu": 0.5}, {"gpu": "max"}, 2),
        ({"ttl": 60}, {"ttl": 60}, 1),
        ({"ttl": 60}, {"ttl": 90}, 2),
        ({"ttl": 60}, {}, 1),
        ({}, {"ttl": 300}, 1),
    ],
)
def test_what_its_own_loads_asked_for_is_remembered(
    first: dict[str, Any], then: dict[str, Any], loads: int, face: Face, world: World
) -> None:
    """The GPU share, which nobody reports, and the time to live, which REST does not."""
    manager = face.manager()
    manager.get(LLAMA, LoadConfig(**first))
    instance = manager.get(LLAMA, LoadConfig(**then))
    assert instance.ttl == {**{"ttl": 300}, **first, **then}["ttl"]
    assert len(world.calls("load")) == loads


def test_what_nobody_reports_is_told_once(face: Face, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The GPU share of what others have loaded."""
    world.put(LLAMA)
    manager = face.manager()
    for _ in range(2):
        assert manager.get(LLAMA, LoadConfig(gpu="max")).identifier == LLAMA
    assert caplog.text.count(f"nobody reports whether {LLAMA} has the gpu asked for") == 1


# --- one load, few looks


def test_a_warm_get_is_one_request(face: Face, world: World) -> None:
    """No process is started for it."""
    manager = face.manager()
    manager.get(LLAMA, LONG)
    with world.state() as state:
        state["requests"].clear()
        state["calls"].clear()
    assert manager.get(LLAMA, LONG).identifier == LLAMA
    with world.state() as state:
        assert (len(state["requests"]), state["calls"]) == (1, [])


def test_twelve_threads_look_little_more_than_one(world: World) -> None:
    """They wait for the one that loads, and take what it has loaded."""
    with LMStudio(world.url, lms=world.lms) as studio:
        ModelManager(studio).get(QWEN)
        alone = len(world.calls("ps"))
        world.set(load_seconds=0.3)
        manager = ModelManager(studio)
        assert run_threads(12, lambda: manager.get(LLAMA, LONG).identifier) == [LLAMA] * 12
    assert len(world.calls("ps")) <= 2 * alone
    assert len(world.calls("load")) == 2


def test_a_look_that_is_older_than_a_load_does_not_forget_it() -> None:
    """It began before the instance was there, and ended after."""
    memory, before = Memory(), time.monotonic()
    memory.keep(LLAMA, LONG, 0, 0.0)
    memory.keep_only(set(), before)
    assert set(memory.own) == {LLAMA}
    memory.keep_only(set(), time.monotonic() + 1)
    assert not memory.own


def test_twelve_threads_share_a_failure(world: World) -> None:
    """Who waited for a load that failed is told so, and does not fail by himself eleven times."""
    world.set(crash=True, load_seconds=0.3)
    with LMStudio(world.url, lms=world.lms) as studio:
        manager = ModelManager(studio)

        def work() -> str:
            try:
                return manager.get(LLAMA).identifier
            except LoadFailed:
                return "failed"

        assert run_threads(12, work) == ["failed"] * 12
    assert len(world.calls("load")) < 4


def test_two_models_load_side_by_side(world: World) -> None:
    """Where no limit forbids it: both loads have begun before one of them ends."""
    world.set(load_seconds=600)
    with LMStudio(world.url, lms=world.lms) as studio:
        manager = ModelManager(studio)
        threads = [threading.Thread(target=manager.get, args=(key,), daemon=True) for key in (LLAMA, QWEN)]
        for thread in threads:
            thread.start()
        under_way: list[dict[str, Any]] = []
        while len(under_way) < 2:
            with world.state() as state:
                under_way = state["pending"]
                if len(under_way) == 2:  # they end now
                    state["knobs"].update(survives=True)
                    for job in under_way:
                        job["at"] = 0
            time.sleep(0.01)
        for job in under_way:
            os.kill(job["pid"], signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert sorted(world.loaded) == sorted([LLAMA, QWEN])


# --- time


def test_patience_is_time_and_not_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens between two pauses counts too."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    told: list[float] = []
    for pause in until(103.0, 1.0):
        told.append(pause)
        now[0] += 1.0  # a look, which is no pause
    assert len(told) == 4
    assert told[-1] == 0.0


def test_a_look_takes_no_longer_than_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step's own limit is cut to that; a step that fails is told to the flow."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def flow() -> Any:
        with contextlib.suppress(LmsTimeout):
            yield Lms(("ps",), 90.0)
        return (yield Http("GET", "/"))

    bounded = unloading.within(flow(), 30.0)
    assert next(bounded).timeout == 30.0  # type: ignore[union-attr]
    now[0] = 25.0
    assert bounded.throw(LmsTimeout(("ps",), 30.0)).timeout == 5.0  # type: ignore[union-attr]
    with pytest.raises(StopIteration) as end:
        bounded.send("answer")
    assert end.value.value == "answer"


def test_a_ps_that_hangs_does_not_outlast_patience(face: Face, world: World) -> None:
    """It is ended, and what it would have said is not guessed."""
    world.put(LLAMA, status="generating", queued=1)
    world.set(hang=["ps"])
    with pytest.raises((ModelBusy, LmsTimeout)):
        face.manager(patience=0.1, ways=["rest"]).eject(LLAMA)
    assert world.loaded == [LLAMA]


# --- a reply


def test_a_phi4_holds_its_model_for_as_long_as_a_reply_runs(face: Face, world: World) -> None:
    """Loaded as the config says, asked by its identifier, leased until the block is left, whole or streamed."""
    world.put(LLAMA, "somebodys", context=8192)
    phi = face.phi(model=LLAMA, manager=face.manager(), config=LONG)
    with phi.stream("x"):
        assert is_leased(world, "somebodys")
    assert not is_leased(world, "somebodys")
    assert phi.ask("x").solution == "Yes."
    assert not is_leased(world, "somebodys")
    assert {body["model"] for body in world.requests("/v1/chat/completions")} == {"somebodys"}


def test_a_refused_reply_gives_the_lease_back(face: Face, world: World) -> None:
    """Before a stream, and for one that is asked for while it is waited for."""
    world.set(chat_fails=True)
    phi = face.phi(model=LLAMA, manager=face.manager())
    with pytest.raises(ServerError):
        phi.ask("x")
    assert world.loaded == [LLAMA]
    assert not is_leased(world)


def wait_until_leased(world: World) -> None:
    while not is_leased(world):
        time.sleep(0.01)


def test_a_cancelled_reply_gives_the_lease_back(world: World) -> None:
    """A task that is cancelled while the server is silent."""
    world.set(reply_seconds=1.0)

    async def main() -> None:
        async with AsyncLMStudio(world.url, lms=world.lms) as studio:
            asking = asyncio.create_task(AsyncPhi4(studio, model=LLAMA, manager=AsyncModelManager(studio)).ask("x"))
            await asyncio.to_thread(wait_until_leased, world)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(main())
    assert not is_leased(world)


class Own:
    """A manager of somebody's own: whatever has `use`."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @contextlib.contextmanager
    def use(self, key: str, config: Any = None) -> Iterator[Any]:
        self.log.append(f"use {key} {config}")

        class Held:
            identifier = LLAMA

        yield Held()
        self.log.append("left")


def test_a_manager_is_whatever_has_use(world: World) -> None:
    """Given the model and the config; asked by what it gives."""
    manager = Own()
    with LMStudio(world.url) as studio:
        assert Phi4(studio, model="mine", manager=manager, config="long").ask("x").solution == "Yes."
    assert manager.log == ["use mine long", "left"]
    assert world.requests("/v1/chat/completions")[0]["model"] == LLAMA


def test_a_manager_of_the_other_kind_is_told(world: World) -> None:
    """Each client enters its own kind of block; a config needs a manager."""

    async def main() -> None:
        async with AsyncLMStudio(world.url) as studio:
            with pytest.raises(InvalidRequest, match="AsyncModelManager"):
                await AsyncPhi4(studio, model=LLAMA, manager=Own()).ask("x")

    asyncio.run(main())
    with pytest.raises(InvalidRequest, match="there is no manager"):
        Phi4(world.url, config=LONG)


def test_no_home_is_a_warning(
    face: Face, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A home that can't be written: leases hold within the process, and the log says that others don't see them."""
    (tmp_path / "home is a file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home is a file"))
    manager = face.manager(max_models=1, patience=0.1)
    with manager.use(LLAMA), pytest.raises(ModelBusy):
        manager.get(QWEN)
    assert "other processes are not waited for" in caplog.text
