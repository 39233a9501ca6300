"""The server started, stopped and asked, on both faces."""

from __future__ import annotations

from typing import Any

import pytest

from lmstudio.faces import Face
from lmstudio.world import World
from phi4_http.errors import InvalidRequest, LmsFailed, LmsNotFound, ServerUnreachable
from phi4_http.flow import Answer, Completed, Http, Lms
from phi4_http.lmstudio.lms.server import ServerStatus, server_start, server_status, server_stop
from phi4_http.server import Server

REMOTE = Server("http://box:1234")


@pytest.fixture
def off(world: World) -> World:
    """The server is not running."""
    with world.state() as state:
        state["server"]["running"] = False
    return world


def test_start_is_read_back(face: Face, off: World) -> None:
    """Started on the port of the client's address, and waited for until it answers there."""
    assert face.call("server_start") == ServerStatus(True, off.port)
    assert off.calls("server") == [["server", "start", "--port", str(off.port)]]
    assert face.call("server_status") == ServerStatus(True, off.port)


def test_start_of_a_running_server_is_no_error(face: Face, world: World) -> None:
    """Asked twice, it runs."""
    assert face.call("server_start", world.port).running
    assert face.call("server_start", world.port).running


def test_start_on_another_port_is_told(face: Face, off: World) -> None:
    """The command's own word counts where this client looks at another port."""
    assert face.call("server_start", 4321) == ServerStatus(True, 4321)


@pytest.mark.parametrize("port", [0, -1, 65536, 1.5, True, "1234"])
def test_a_port_out_of_range_is_refused(port: Any, face: Face, world: World) -> None:
    """`lms` takes port 0, and LM Studio then refuses it: here the range is told before anything runs."""
    with pytest.raises(InvalidRequest, match="from 1 to 65535"):
        face.call("server_start", port)
    assert world.calls("server") == []


@pytest.mark.parametrize(
    ("knob", "says"), [("port_in_use", "EADDRINUSE"), ("never_answers", "Failed to verify the server is running")]
)
def test_a_server_that_does_not_start_is_told(knob: str, says: str, face: Face, off: World) -> None:
    """The command's own words."""
    off.set(**{knob: True})
    with pytest.raises(LmsFailed, match=says):
        face.call("server_start")


def test_a_success_that_is_none_is_found_out(face: Face, off: World) -> None:
    """`lms` says that it runs, and nobody answers: read back, it does not."""
    off.set(says_so_only=True)
    with pytest.raises(ServerUnreachable, match="does not answer here"):
        face.call("server_start", wait=0.5)


def test_stop_is_read_back(face: Face, world: World) -> None:
    """After a stop nobody answers; a second stop is no error, though the command exits with 1."""
    assert face.call("server_stop") == ServerStatus(False, world.port)
    assert face.call("server_stop") == ServerStatus(False, world.port)
    assert face.call("server_status") == ServerStatus(False, world.port)


@pytest.mark.parametrize("knob", ["unstoppable", "busy_server"])
def test_a_stop_that_did_nothing_is_told(knob: str, face: Face, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "Stopped" or "not running", and it still answers: a busy server is taken for a stopped one by the command."""
    monkeypatch.setattr("phi4_http.lmstudio.lms.server._STOP_SECONDS", 0.3)
    world.set(**{knob: True})
    with pytest.raises(LmsFailed, match="still answers"):
        face.call("server_stop")


def test_a_busy_server_runs(face: Face, world: World) -> None:
    """The command's greeting waits 500 ms only; the one here counts more."""
    world.set(busy_server=True)
    assert face.call("server_status").running


def test_a_server_older_than_the_greeting_runs(face: Face, world: World) -> None:
    """An unknown path is answered in LM Studio's own words: that is an answer too."""
    world.set(no_greeting=True)
    assert face.call("server_status").running


def test_status_needs_no_lms(no_lms: Face, off: World) -> None:
    """Without the command, the address alone tells."""
    assert no_lms.call("server_status") == ServerStatus(False, off.port)
    with pytest.raises(LmsNotFound):
        no_lms.call("server_start")


def test_another_machines_server_is_out_of_reach() -> None:
    """`lms server` has no `--host`: start and stop are refused, and status asks over HTTP alone."""
    for flow in (server_start(REMOTE), server_stop(REMOTE)):
        with pytest.raises(InvalidRequest, match="another machine"):
            next(flow)
    flow = server_status(REMOTE)
    assert isinstance(next(flow), Http)
    with pytest.raises(StopIteration) as end:
        flow.throw(ServerUnreachable("http://box:1234", "refused"))
    assert end.value.value == ServerStatus(False, 1234)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"lmstudio": false}'])
def test_another_program_at_the_address_is_no_lm_studio(body: bytes) -> None:
    """What answers without LM Studio's greeting does not count; a server on another port, that `lms` knows, does."""
    flow = server_status(Server("http://127.0.0.1:1234"))
    next(flow)
    step = flow.send(Answer("http://127.0.0.1:1234/lmstudio-greeting", 200, {}, body))
    assert isinstance(step, Lms)
    with pytest.raises(StopIteration) as end:
        flow.send(Completed(step.arguments, 0, '{"running":true,"port":4321}\n', ""))
    assert end.value.value == ServerStatus(True, 4321)


def test_a_status_that_cant_be_read_is_told() -> None:
    """JSON of another shape is an error, not a server that is off."""
    flow = server_status(Server("https://localhost"))
    next(flow)
    step = flow.throw(ServerUnreachable("https://localhost", "refused"))
    assert isinstance(step, Lms)
    with pytest.raises(LmsFailed, match="can't be read"):
        flow.send(Completed(step.arguments, 0, "[]\n", ""))
