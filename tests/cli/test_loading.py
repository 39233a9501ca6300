"""The commands that load and unload, as child processes, over the stand-ins of `lms` and of LM Studio's server."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest
from lmstudio.world import World
from support import Ran, run_child

from phi4_http import LMStudio, LoadConfig, ModelBusy, ModelManager
from phi4_http.lmstudio.lease import Leases
from phi4_http.server import address

QWEN = "qwen2.5-7b-instruct"
PHI = "microsoft/phi-4-reasoning-plus"


def run(world: World, *arguments: str) -> Ran:
    """One command against this world."""
    return run_child(*arguments, "--url", world.url, "--lms", world.lms)


@pytest.fixture
def with_phi(world: World) -> World:
    """The world, with Phi-4-reasoning-plus downloaded and not loaded."""
    with world.state() as state:
        model = dict(state["models"][0])
        names = {"modelKey": PHI, "path": f"{PHI}.gguf", "displayName": "Phi", "indexedModelIdentifier": f"{PHI}.gguf"}
        state["models"].append({**model, **names, "maxContextLength": 32768})
    return world


def test_load_ps_and_unload_play_together(world: World) -> None:
    """What is loaded is named on stdout, listed with its context, and gone when it is unloaded."""
    loaded = run(world, "load", QWEN, "--context-length", "8192", "--gpu", "max", "--ttl", "60")
    assert (loaded.code, loaded.out) == (0, f"{QWEN}\n")
    assert "8,192" in loaded.err
    listed = run(world, "ps")
    assert listed.code == 0
    assert QWEN in listed.out
    assert "8,192" in listed.out
    assert "60 s" in listed.out
    assert run(world, "unload", QWEN).out == f"{QWEN}\n"
    assert world.loaded == []
    assert run(world, "ps").err == "nothing is loaded\n"


def test_json_has_an_object_a_line(world: World) -> None:
    """Progress while it loads, then the instance; the same of `ps` and `unload`."""
    *progress, loaded = run(world, "load", QWEN, "--context-length", "8192", "--json").objects
    assert progress
    assert {one["type"] for one in progress} == {"loading"}
    assert [one["share"] for one in progress] == [None, 0.25, 0.75, 1.0]
    assert (loaded["type"], loaded["identifier"], loaded["context_length"]) == ("loaded", QWEN, 8192)
    (listed,) = run(world, "ps", "--json").objects
    assert (listed["type"], listed["model"], listed["model_type"]) == ("instance", QWEN, "llm")
    (gone,) = run(world, "unload", "--all", "--json").objects
    assert (gone["type"], gone["identifier"]) == ("unloaded", QWEN)


def test_a_shorter_context_than_asked_for_has_its_own_exit_code(world: World) -> None:
    """6, with both numbers; on request it is no error."""
    world.set(cut_context=2048)
    ran = run(world, "load", QWEN, "--context-length", "8192", "--json")
    error = ran.objects[-1]
    assert (ran.code, error["error"], error["needed"], error["limit"]) == (6, "ContextTooShort", 8192, 2048)
    assert run(world, "unload", "--all").code == 0
    assert run(world, "load", QWEN, "--context-length", "8192", "--allow-shorter").code == 0


def test_an_unknown_identifier_and_an_unknown_key_are_not_found(world: World) -> None:
    """5, with what is there: `lms` itself would end with 0, and load what comes nearest."""
    unloaded = run(world, "unload", "nope")
    assert unloaded.code == 5
    loaded = run(world, "load", "qwen2.5-7b")
    assert loaded.code == 5
    assert QWEN in loaded.err
    assert world.calls("load") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("load", QWEN, "--context-length", "0"),
        ("load", QWEN, "--gpu", "1.5"),
        ("load", QWEN, "--context-length", "99999999"),
        ("unload",),
        ("unload", QWEN, "--all"),
        ("server", "status", "--port", "1"),
    ],
)
def test_wrong_usage_changes_nothing(world: World, arguments: tuple[str, ...]) -> None:
    """2, one line, and nothing was run that loads or unloads."""
    ran = run(world, *arguments)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert world.calls("load") + world.calls("unload") == []


def test_without_lms_what_only_lms_can_do_says_where_it_was_looked_for(world: World) -> None:
    """13, and the place."""
    ran = run_child("estimate", QWEN, "--url", world.url, "--lms", "/nowhere/lms")
    assert ran.code == 13
    assert "/nowhere/lms" in ran.err


def test_an_estimate_says_sizes_and_whether_it_fits(world: World) -> None:
    """In GiB for people, in bytes for scripts."""
    ran = run(world, "estimate", QWEN, "--json")
    (guess,) = ran.objects
    assert guess["total_bytes"] >= guess["gpu_bytes"] > 0
    assert ran.code == (0 if guess["fits"] else 6)
    assert "GiB" in run(world, "estimate", QWEN).out


def test_the_server_can_be_looked_at(world: World) -> None:
    """Running, and on which port."""
    ran = run(world, "server", "status")
    assert (ran.code, ran.out) == (0, f"running on port {world.port}\n")


def test_ask_loads_the_model_just_in_time_with_its_whole_context(with_phi: World) -> None:
    """Where it is not loaded and nothing else was asked for; the answer comes in the same command."""
    ran = run(with_phi, "ask", "Is 391 a prime number?")
    assert (ran.code, ran.out) == (0, "Yes.\n")
    assert with_phi.loaded == [PHI]
    with with_phi.state() as state:
        assert state["loaded"][0]["contextLength"] == 32768


def test_ask_takes_a_loaded_model_as_it_is(with_phi: World) -> None:
    """No load, whatever its context, unless another one is asked for: then it is loaded anew."""
    with_phi.put(PHI, context=4096)
    assert run(with_phi, "ask", "Is 391 a prime number?").code == 0
    assert with_phi.calls("load") == []
    assert run(with_phi, "ask", "Is 391 a prime number?", "--context-length", "8192").code == 0
    assert with_phi.loaded == [PHI]
    with with_phi.state() as state:
        assert state["loaded"][0]["contextLength"] == 8192


@pytest.mark.parametrize(
    ("there", "model"),
    [
        (PHI, ("-m", PHI)),
        ("somebodys", ("-m", "somebodys")),
        ("somebodys", ("-m", PHI, "--context-length", "8192")),
        (None, ("--context-length", "8192")),
    ],
)
def test_ask_holds_its_model_for_as_long_as_the_reply_runs(
    there: str | None, model: tuple[str, ...], with_phi: World
) -> None:
    """One that was named, and one that was loaded or taken for it: no manager of this user unloads it meanwhile."""
    name = there or PHI
    if there:
        with_phi.put(PHI, there, context=8192)
    with_phi.set(reply_seconds=1.5)
    leases, ran = Leases(address(with_phi.url)), list[Ran]()
    asking = threading.Thread(target=lambda: ran.append(run(with_phi, "ask", "x", *model)))
    asking.start()
    while not with_phi.requests("/v1/chat/completions"):
        time.sleep(0.01)
    assert leases.taken(name)
    with LMStudio(with_phi.url, lms=with_phi.lms) as studio, pytest.raises(ModelBusy, match="another process"):
        ModelManager(studio, patience=0.1).get(PHI, LoadConfig(context_length=16384))
    asking.join()
    assert ran[0].code == 0
    assert not leases.taken(name)


def test_ask_takes_what_there_is_where_nothing_was_asked_for(with_phi: World) -> None:
    """A context that LM Studio cuts is no error of somebody who named none: it is said, and asked."""
    with_phi.set(cut_context=4096)
    for said in ("4,096 tokens, of 32,768", ""):
        ran = run(with_phi, "ask", "Is 391 a prime number?")
        assert (ran.code, ran.out) == (0, "Yes.\n")
        assert said in ran.err
    with_phi.set(cut_context=2048)
    assert run(with_phi, "ask", "Is 391 a prime number?", "--context-length", "8192").code == 6


def test_a_load_of_a_loaded_model_says_what_it_has_not_set(world: World) -> None:
    """6 for another time to live; a word for what nobody can read."""
    world.put(QWEN, context=4096)
    ran = run(world, "load", QWEN, "--ttl", "60")
    assert (ran.code, "another ttl" in ran.err) == (6, True)
    ran = run(world, "load", QWEN, "--gpu", "max")
    assert (ran.code, "does not tell its gpu" in ran.err) == (0, True)


@pytest.mark.parametrize("line", [("load", QWEN), ("ask", "x", "--no-stdin", "-m", QWEN, "--context-length", "4096")])
def test_an_interrupted_load_says_what_became_of_it(line: tuple[str, ...], world: World) -> None:
    """Ctrl-C cancels the load; one line says that nothing is loaded."""
    world.set(load_seconds=600)
    command = [sys.executable, "-m", "phi4_http", *line, "--url", world.url, "--lms", world.lms]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 60
    while True:
        with world.state() as state:
            if state["pending"]:
                break
        assert time.monotonic() < until
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err.count("\n")) == (130, 1)
    assert f"interrupted: {QWEN} is not loaded" in err
    assert world.loaded == []


def test_a_server_on_another_port_is_not_the_one_named(world: World, unused_port: int) -> None:
    """`lms` knows one that runs; nobody answers at the address: 3."""
    ran = run_child("server", "status", "--url", f"http://127.0.0.1:{unused_port}", "--lms", world.lms)
    assert (ran.code, ran.out) == (
        3,
        f"running on port {world.port}, and nobody answers at http://127.0.0.1:{unused_port}\n",
    )


def test_ask_says_a_context_that_is_too_long_before_it_asks(with_phi: World) -> None:
    """2, with the model's longest; no question was sent."""
    ran = run(with_phi, "ask", "Is 391 a prime number?", "--context-length", "50000")
    assert ran.code == 2
    assert "32,768" in ran.err
    assert with_phi.requests("/v1/chat/completions") == []


def test_models_are_listed_with_state_context_and_size(with_phi: World) -> None:
    """A table for people, an object a line for scripts; sizes come from the native v1 list."""
    with_phi.put(PHI, context=4096)
    assert "4,096 / 32,768" in run(with_phi, "models").out
    models = {one["id"]: one for one in run(with_phi, "models", "--json").objects}
    assert (models[PHI]["state"], models[PHI]["loaded_context_length"]) == ("loaded", 4096)
    assert models[PHI]["size_bytes"] > 0
    assert models[QWEN]["state"] == "not-loaded"


def test_what_cannot_be_loaded_beforehand_is_loaded_by_the_request(with_phi: World) -> None:
    """An old server without `lms`: the request loads it, which is said; with a context asked for, that is an error."""
    with_phi.set(v0_3=True)
    ask = ("ask", "Is 391 a prime number?", "--url", with_phi.url, "--lms", "/nowhere/lms")
    ran = run_child(*ask)
    assert (ran.code, ran.out) == (0, "Yes.\n")
    assert "is loaded by the request itself" in ran.err
    assert run_child(*ask, "--context-length", "8192").code == 13


def test_nothing_to_unload_is_said(world: World) -> None:
    """It is no error; in JSON there is no line."""
    ran = run(world, "unload", "--all")
    assert (ran.code, ran.out, ran.err) == (0, "", "nothing was loaded\n")
    assert run(world, "ps", "--json").out == ""


def test_a_port_goes_with_a_start(world: World) -> None:
    """Where nothing is started, it is wrong usage."""
    assert run(world, "server", "status", "--port", "1234").code == 2
    assert run(world, "server", "start").out == f"running on port {world.port}\n"
    assert run(world, "server", "status", "--json").objects == [{"type": "server", "running": True, "port": world.port}]
