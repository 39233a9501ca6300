"""The two drivers of flows."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from support import Face, Recording

from phi4_http.errors import ModelNotFound, Phi4Error, ServerUnreachable
from phi4_http.flow import Answer, Flow, Http, Lms, Sleep, Step, arun, ready, run

Perform = Callable[[Step], Any]
Drive = Callable[[Flow[Any], Perform], Any]


def drive_async(flow: Flow[Any], perform: Perform) -> Any:
    async def step(step: Step) -> Any:
        await asyncio.sleep(0)
        return perform(step)

    return asyncio.run(arun(flow, step))


each_driver = pytest.mark.parametrize("drive", [run, drive_async], ids=["run", "arun"])


def numbers(count: int) -> Flow[list[Any]]:
    results = []
    for number in range(count):
        results.append((yield Sleep(number)))
    return results


@each_driver
@pytest.mark.parametrize("count", [0, 1, 3])
def test_each_step_gets_its_result_and_the_flow_its_value(drive: Drive, count: int) -> None:
    """In order, one after the other, none at all included."""
    performed: list[Step] = []

    def perform(step: Step) -> int:
        performed.append(step)
        return len(performed)

    assert drive(numbers(count), perform) == list(range(1, count + 1))
    assert performed == [Sleep(number) for number in range(count)]


@each_driver
def test_a_flow_of_no_steps_is_its_value(drive: Drive) -> None:
    """`ready` performs nothing."""
    assert drive(ready(7), lambda step: pytest.fail("a step was performed")) == 7


@each_driver
def test_an_error_of_a_step_can_be_handled_where_it_was_asked_for(drive: Drive) -> None:
    """It is thrown in at the `yield`, and the flow may go on."""
    error = ServerUnreachable("http://x", "gone")

    def flow() -> Flow[Any]:
        try:
            yield Sleep(1)
        except ServerUnreachable as caught:
            return (caught, (yield Sleep(2)))

    def perform(step: Step) -> str:
        if step == Sleep(1):
            raise error
        return "went on"

    assert drive(flow(), perform) == (error, "went on")


@each_driver
def test_a_flow_that_answers_an_error_with_its_end_has_a_value(drive: Drive) -> None:
    """An error in the last step is no matter for the driver."""

    def flow() -> Flow[str]:
        try:
            yield Sleep(1)
        except Phi4Error:
            return "handled"
        return "not raised"

    def perform(step: Step) -> None:
        raise ModelNotFound("x")

    assert drive(flow(), perform) == "handled"


@each_driver
@pytest.mark.parametrize("error", [ModelNotFound("x"), ZeroDivisionError(), KeyboardInterrupt()])
def test_an_error_that_nobody_handles_comes_out_and_the_flow_is_closed(drive: Drive, error: BaseException) -> None:
    """As the very same object, and what the flow has to clean up is cleaned up."""
    cleaned = []

    def flow() -> Flow[None]:
        try:
            yield Sleep(1)
        finally:
            cleaned.append(True)

    def perform(step: Step) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        drive(flow(), perform)
    assert caught.value is error
    assert cleaned == [True]


@each_driver
def test_only_this_librarys_errors_are_thrown_into_a_flow(drive: Drive) -> None:
    """A bug in a step can't be swallowed by a flow that catches too much."""

    def flow() -> Flow[str]:
        try:
            yield Sleep(1)
        except Exception:
            return "swallowed"
        return ""

    def perform(step: Step) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        drive(flow(), perform)


@each_driver
def test_an_error_of_the_flow_itself_comes_out(drive: Drive) -> None:
    """Before its first step and after it."""

    def flow(steps: int) -> Flow[None]:
        for _ in range(steps):
            yield Sleep(1)
        raise ModelNotFound("x")

    for steps in (0, 1):
        with pytest.raises(ModelNotFound):
            drive(flow(steps), lambda step: None)


def test_a_cancelled_flow_is_closed() -> None:
    """Cancelling the task that awaits a step cleans up the flow."""
    cleaned = []

    def flow() -> Flow[None]:
        try:
            yield Sleep(1)
        finally:
            cleaned.append(True)

    async def main() -> None:
        task = asyncio.ensure_future(arun(flow(), lambda step: asyncio.Event().wait()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert cleaned == [True]


def test_a_step_is_a_value() -> None:
    """Steps compare by what they ask for, so that a test can say what it expects."""
    assert Http("GET", "/x") == Http("GET", "/x", None, None, False)
    assert Lms(("ps",), 5.0) != Lms(("ls",), 5.0)
    assert Answer("http://x", 200, {}, b'{"a": 1}').json() == {"a": 1}
    with pytest.raises(ValueError, match="Expecting"):
        Answer("http://x", 200, {}, b"").json()


def test_both_drivers_are_the_same_but_for_the_waiting() -> None:
    """The code of `arun` is that of `run`, with `await` in one place."""
    one, other = (inspect.getsource(driver).split('"""')[2] for driver in (run, arun))
    assert other.replace("await ", "") == one


# --- steps of a client ------------------------------------------------------------------------------------------------


def test_a_client_performs_a_request_and_hands_over_the_whole_answer(face: Face) -> None:
    """Any status is an answer; header names are in lower case."""
    server = Recording({"/x": (418, {"a": 1})})
    with face.studio(server) as client:
        answer = face.wait(client._perform(Http("POST", "/x", {"b": 2})))
    assert (answer.status, answer.json(), answer.url) == (418, {"a": 1}, "http://127.0.0.1:1234/x")
    assert answer.headers["content-type"] == "application/json"
    assert server.body == {"b": 2}
    assert server.requests[0].headers["content-type"] == "application/json"


def test_a_step_may_have_a_time_limit_of_its_own(face: Face) -> None:
    """It goes before the client's."""
    server = Recording()
    with face.studio(server) as client:
        face.wait(client._perform(Http("GET", "/x", timeout=7.0)))
        face.wait(client._perform(Http("GET", "/x", timeout=8.0, slow=True)))
    assert [request.extensions["timeout"]["read"] for request in server.requests] == [7.0, 8.0]


def test_a_client_sleeps(face: Face) -> None:
    """A sleep has no result."""
    with face.studio(Recording()) as client:
        assert face.wait(client._perform(Sleep(0.0))) is None


def test_a_client_refuses_what_is_no_step_of_its_own(face: Face) -> None:
    """A bug of a flow is not sent anywhere."""
    with face.studio(Recording()) as client, pytest.raises(TypeError, match="not a step"):
        face.wait(client._perform("GET /x"))


def test_a_client_runs_a_flow_of_ones_own(face: Face) -> None:
    """`run` is for any flow."""

    def flow() -> Flow[int]:
        first = yield Http("GET", "/a")
        second = yield Http("GET", "/b")
        return int(first.status + second.status)

    with face.studio(Recording({"/b": (404, {})})) as client:
        assert face.wait(client._run(flow())) == 604
