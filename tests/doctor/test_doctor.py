"""`doctor`: a healthy world raises nothing, and every planted fault is found, on both faces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lmstudio.faces import Face
from lmstudio.world import World
from support import run_child

from phi4_http import Finding, InvalidRequest, LMStudio, Machine
from phi4_http.doctor.machine import this_machine

KEY = "microsoft/phi-4-reasoning-plus"
HERE = Machine("Linux", memory=64 * 2**30, localhost=("127.0.0.1",))


@pytest.fixture
def healthy(world: World) -> World:
    """A world that has the model, loaded long enough."""
    with world.state() as state:
        state["models"].append(
            {**state["models"][0], "modelKey": KEY, "path": "microsoft/phi-4-reasoning-plus.gguf", "sizeBytes": 9 << 30}
        )
    world.put(KEY, context=16_384)
    return world


def found(face: Face, machine: Machine = HERE, **options: Any) -> dict[str, Finding]:
    """The last finding of each name."""
    return {one.name: one for one in face.events("doctor", machine=machine, **options)}


def states(findings: dict[str, Finding], *which: str) -> set[str]:
    """The names of the findings in one of these states."""
    return {name for name, one in findings.items() if one.state in which}


def test_a_healthy_world_raises_nothing(face: Face, healthy: World) -> None:
    """Every look is made, none is bad, none is even worth a note; only what can't be known is unknown."""
    findings = found(face)
    assert states(findings, "bad", "note", "plan") == set()
    assert states(findings, "unknown") == {"prompt"}
    looks = {"address", "token", "server", "lms", "model", "loaded", "context", "copies", "template", "thought"}
    assert {*looks, "prompt", "answer"} == set(findings)
    assert all(one.looked_at and one.found for one in findings.values())
    assert findings["thought"].found == "in the text, between tags"


def _without_model(world: World) -> None:
    with world.state() as state:
        state["models"] = [model for model in state["models"] if model["modelKey"] != KEY]
        state["loaded"] = []


def _unloaded(world: World) -> None:
    with world.state() as state:
        state["loaded"] = []


def _reloaded(context: int) -> Callable[[World], None]:
    def plant(world: World) -> None:
        _unloaded(world)
        world.put(KEY, context=context)

    return plant


def _too_large(world: World) -> None:
    _unloaded(world)
    with world.state() as state:
        state["knobs"]["guardrails"] = True


def _other_port(world: World) -> None:
    with world.state() as state:
        state["server"]["port"] = 4321


def _no_lms_of_ours(world: World) -> None:
    with open(world.lms, "w", encoding="utf-8") as file:
        file.write("#!/bin/sh\necho license management 4.2\n")


def knob(**knobs: Any) -> Callable[[World], None]:
    """Plants by turning a knob of the world."""
    return lambda world: world.set(**knobs)


def _stopped(world: World) -> None:
    with world.state() as state:
        state["server"]["running"] = False


FAULTS: dict[str, tuple[Callable[[World], None], set[str]]] = {
    "the server does not answer": (_stopped, {"address"}),
    "a token is wanted": (knob(token="secret"), {"token"}),
    "the model is not there": (_without_model, {"model"}),
    "the model is not loaded": (_unloaded, {"loaded"}),
    "it is loaded with too short a context": (_reloaded(4096), {"context"}),
    "it is loaded twice": (lambda world: world.put(KEY, context=16_384), {"copies"}),
    "the memory does not hold it": (_too_large, {"loaded", "memory"}),
    "lms shows what another LM Studio has": (knob(server_is_another=True), {"lms", "loaded"}),
    "lms speaks to another port": (_other_port, {"lms"}),
    "lms is not LM Studio's": (_no_lms_of_ours, {"lms"}),
    "lms ps fails": (knob(ps_fails=True), {"lms"}),
    "the template ignores the system message": (knob(template="ignores"), {"template"}),
    "the template loses the user's words": (knob(template="loses the user"), {"template"}),
    "no thought comes": (knob(reply={"content": "Yes."}), {"thought"}),
    "no answer comes": (knob(reply={"content": ""}), {"answer"}),
    "the engine crashes": (knob(chat_fails=True), {"answer"}),
    "another server renders another prompt": (knob(llama_cpp=True, template="misspells"), {"prompt"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(face: Face, healthy: World, fault: str) -> None:
    """By the look that is about it, with what to do, and by no other."""
    plant, names = FAULTS[fault]
    plant(healthy)
    findings = found(face)
    assert states(findings, "bad") == names
    assert all(findings[name].advice for name in names)


ODD: dict[str, tuple[Callable[[World], None], str, str]] = {
    "LM Studio 0.3": (knob(v0_3=True), "server", "LM Studio 0.3"),
    "the built-in prompt": (knob(template="built in"), "template", "puts in the trained prompt itself"),
    "no opener": (knob(reply={"content": "so</think>Yes."}), "thought", "swallowed"),
    "a longer context than it was trained for": (_reloaded(65_536), "context", "65,536"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_is_a_note(face: Face, healthy: World, case: str) -> None:
    """It is said, and does not stand in the way."""
    plant, name, words = ODD[case]
    plant(healthy)
    findings = found(face)
    assert states(findings, "bad") == set()
    assert findings[name].state == "note"
    assert words in findings[name].found


def test_a_thought_in_a_field_is_told(face: Face, healthy: World) -> None:
    """Of its own, which is as good as tags."""
    healthy.set(reply={"reasoning_content": "so", "content": "Yes."})
    assert found(face)["thought"].found == "in a field of its own"


def test_of_another_server_it_says_what_cannot_be_known(face: Face, healthy: World) -> None:
    """And compares the prompt as that server renders it, letter for letter."""
    healthy.set(llama_cpp=True)
    findings = found(face)
    assert states(findings, "bad") == set()
    assert "can't be known" in findings["server"].found
    assert findings["context"].state == "unknown"
    assert findings["prompt"].found == "letter for letter as known (own turn)"
    assert "lms" not in findings


def test_without_lms_the_rest_is_looked_at(no_lms: Face, healthy: World) -> None:
    """What it alone could tell is unknown."""
    findings = found(no_lms)
    assert (states(findings, "bad"), states(findings, "note")) == (set(), {"lms"})


@pytest.mark.parametrize(
    ("machine", "name"),
    [(Machine(wsl=True), "machine"), (Machine(container=True), "machine"), (Machine(proxies={"http": "x:1"}), "proxy")],
)
def test_what_the_machine_says_is_told(face: Face, healthy: World, machine: Machine, name: str) -> None:
    """WSL, a container, a proxy: none of them stands in the way of a server that answers."""
    findings = found(face, machine)
    assert name in findings
    assert states(findings, "bad") == set()


def test_localhost_that_is_ipv6_first_is_a_note() -> None:
    """LM Studio listens on IPv4 only. A proxy's password is not shown."""
    machine = Machine(localhost=("::1", "127.0.0.1"), proxies={"http": "http://me:secret@proxy:1"})
    with LMStudio("http://localhost:9", lms="/nowhere/lms") as studio:
        findings = {one.name: one for one in studio.doctor(machine=machine)}
    assert findings["localhost"].state == "note"
    assert "secret" not in findings["proxy"].found


def test_nothing_is_generated_or_changed_where_the_model_is_not_loaded(face: Face, healthy: World) -> None:
    """A request would load it."""
    _unloaded(healthy)
    found(face)
    assert healthy.requests("/v1/chat/completions") == []
    assert healthy.loaded == []
    assert ["--estimate-only" in call for call in healthy.calls("load")] == [True]


def test_fix_starts_the_server_and_loads_the_model(face: Face, healthy: World) -> None:
    """Each after it was said; then it is looked at again, and nothing is left to mend."""
    _stopped(healthy)
    _unloaded(healthy)
    healthy.put("llama-3.2-1b-instruct")
    events = face.events("doctor", machine=HERE, fix=True)
    assert [one.name for one in events if one.state == "plan"] == ["address", "loaded"]
    assert states({one.name: one for one in events}, "bad") == set()
    assert healthy.loaded == ["llama-3.2-1b-instruct", KEY]


def test_fix_changes_nothing_that_is_somebody_elses(face: Face, healthy: World) -> None:
    """A copy too many and a context too short are said; no model is unloaded for them."""
    _reloaded(4096)(healthy)
    healthy.put(KEY, context=4096)
    before = healthy.loaded
    findings = found(face, fix=True)
    assert states(findings, "bad") == {"context", "copies"}
    assert healthy.loaded == before
    assert healthy.calls("unload") == []


def test_what_fix_could_not_mend_is_told(face: Face, healthy: World) -> None:
    """The load that fails says why."""
    _unloaded(healthy)
    healthy.set(guardrails=True)
    assert "loaded" in states(found(face, fix=True), "bad")


def test_fix_that_cannot_start_the_server_says_so(face: Face, healthy: World) -> None:
    """Another program has the port."""
    _stopped(healthy)
    healthy.set(port_in_use=True)
    assert "could not be started" in found(face, fix=True)["address"].found


def test_a_context_length_that_is_none_is_refused(healthy: World) -> None:
    """Before anything is looked at."""
    with LMStudio(healthy.url) as studio, pytest.raises(InvalidRequest, match="context_length"):
        studio.doctor(context_length=0)


def test_the_command_ends_with_15_where_something_is_to_be_mended(healthy: World) -> None:
    """And with 0 where nothing is; as objects or as lines."""
    line = ("doctor", "--url", healthy.url, "--lms", healthy.lms)
    ran = run_child(*line, "--json")
    assert (ran.code, {one["type"] for one in ran.objects}) == (0, {"finding"})
    _unloaded(healthy)
    ran = run_child(*line)
    assert ran.code == 15
    assert f"BAD   {KEY}: not-loaded" in ran.out
    assert ran.err == "to be mended: loaded\n"


def test_the_first_object_comes_where_nobody_listens(unused_port: int) -> None:
    """A finding, no error."""
    ran = run_child("doctor", "--json", "--url", f"http://127.0.0.1:{unused_port}", "--lms", "/nowhere/lms")
    assert ran.code == 15
    assert {one["type"] for one in ran.objects} == {"finding"}


def test_this_machine_can_be_looked_at() -> None:
    """Whatever it is."""
    assert this_machine().system
