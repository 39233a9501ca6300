"""The flows of layer 1 driven by hand: no process, no server, and what hardly ever happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from lmstudio import backend
from phi4_http.errors import (
    AuthError,
    InvalidRequest,
    LmsFailed,
    LmsNotFound,
    LmsTimeout,
    LoadFailed,
    ModelBusy,
    NotLMStudio,
    Phi4Error,
    ServerUnreachable,
)
from phi4_http.flow import Answer, Close, Completed, Flow, Http, Lms, Read, Sleep, Start, Step
from phi4_http.flow import run as run_flow
from phi4_http.lmstudio.cache import ModelCache
from phi4_http.lmstudio.config import LoadConfig
from phi4_http.lmstudio.inventory import downloaded, listed
from phi4_http.lmstudio.lease import Leases
from phi4_http.lmstudio.lifecycle import estimate, load
from phi4_http.lmstudio.lms.server import server_status, server_stop
from phi4_http.lmstudio.memory import Limits
from phi4_http.lmstudio.unload import unload_all
from phi4_http.server import Server

HERE = Server("http://127.0.0.1:1234")
KEY = "llama-3.2-1b-instruct"
OTHER = "qwen2.5-7b-instruct"

Say = Callable[[Step], Any]
"""The result of a step, or the error to raise."""


class Ended(NamedTuple):
    """A run of `lms` that has ended."""

    completed: Completed


class Script:
    """Answers the steps of a flow: by `lms` subcommand or by path, each answer once, the last one for ever.

    Where nothing else is said of it, the server lists as loaded what `lms ps` listed last.
    """

    def __init__(self, **answers: list[Any]) -> None:
        self._answers = {name.replace("_", "/"): list(said) for name, said in answers.items()}
        self.asked: list[str] = []
        self._v0: Any = ServerUnreachable(HERE.url, "refused")

    def __call__(self, step: Step) -> Any:
        if isinstance(step, Sleep | Read | Close):
            return None
        if isinstance(step, Start):
            return Ended(self(step.run))
        assert isinstance(step, Lms | Http)
        name = step.arguments[0] if isinstance(step, Lms) else step.path.rpartition("/api")[2]
        self.asked.append(name)
        usual = {"--version": [Completed((), 0, "CLI commit: 07b7252\n", "")], "/v0/models": [self._v0]}
        said = self._answers.get(name) or usual.get(name) or [ServerUnreachable(HERE.url, "refused")]
        answer = said.pop(0) if len(said) > 1 else said[0]
        if isinstance(answer, Phi4Error):
            raise answer
        if name == "ps" and isinstance(answer, list):
            loaded = [
                {
                    "id": one["identifier"],
                    "state": "loaded",
                    "loaded_context_length": one.get("contextLength"),
                    "max_context_length": one["maxContextLength"],
                }
                for one in answer
                if not one.get("deviceIdentifier")
            ]
            models = [{"id": one["modelKey"], "max_context_length": one["maxContextLength"]} for one in LS]
            self._v0 = {"data": [*({**model, "state": "not-loaded"} for model in models), *loaded]}
        if isinstance(step, Lms):
            return answer if isinstance(answer, Completed) else Completed(step.arguments, 0, json.dumps(answer), "")
        return Answer(HERE.url + step.path, 200, {}, json.dumps(answer).encode())


STATE = backend.fresh()
LS = STATE["models"]


def ps(*names: tuple[str, str], **fields: Any) -> list[dict[str, Any]]:
    """The output of `lms ps` for instances given as (identifier, key)."""
    return [backend.shown(STATE, backend.instance(STATE, key, name) | fields) for name, key in names]


def drive(flow: Flow[Any], script: Script) -> Any:
    return run_flow(flow, script)


FAILED = Completed(("load",), 1, "", "Error: Boom\n")
DONE = Completed(("load",), 0, "", "")


def test_the_steps_of_a_load_are_few(caplog: pytest.LogCaptureFixture) -> None:
    """List, state and the server's view of it, load, both again; and nothing to warn of."""
    script = Script(ls=[LS], ps=[[], ps((KEY, KEY))], load=[DONE])
    assert drive(load(HERE, KEY), script).identifier == KEY
    assert script.asked == ["ls", "ps", "/v0/models", "load", "ps", "/v0/models"]
    assert caplog.text == ""


def test_a_context_above_the_longest_is_refused_before_the_act() -> None:
    """The list tells the longest; neither a load nor an estimate is asked for."""
    for flow in (load, estimate):
        script = Script(ls=[LS], ps=[[]])
        with pytest.raises(InvalidRequest, match="from 1 to 131,072 tokens"):
            drive(flow(HERE, KEY, LoadConfig(context_length=131_073)), script)
        assert "load" not in script.asked


def test_the_first_fault_is_told_where_looking_fails_too() -> None:
    """A load that failed, and then a look that fails: the load's own error is what helps."""
    script = Script(ls=[LS], ps=[[], LmsTimeout(("ps",), 90)], load=[FAILED])
    with pytest.raises(LoadFailed, match="Boom"):
        drive(load(HERE, KEY), script)


def test_a_look_that_fails_after_a_load_is_told() -> None:
    """A load that nobody can confirm is no success."""
    script = Script(ls=[LS], ps=[[], LmsTimeout(("ps",), 90)], load=[DONE])
    with pytest.raises(LmsTimeout):
        drive(load(HERE, KEY), script)


def test_a_failed_load_unloads_nothing_of_others() -> None:
    """Somebody has taken the name for another model meanwhile: that is the reason of the failure, and stays."""
    script = Script(ls=[LS], ps=[[], ps((KEY, OTHER))], load=[FAILED])
    with pytest.raises(LoadFailed, match="Boom"):
        drive(load(HERE, KEY), script)
    assert "unload" not in script.asked


def test_a_success_with_nothing_to_show_is_a_failure() -> None:
    """Exit code 0, and no instance."""
    script = Script(ls=[LS], ps=[[]], load=[DONE])
    with pytest.raises(LoadFailed, match="no instance"):
        drive(load(HERE, KEY), script)


def test_a_server_that_wants_a_token_is_told_before_a_load() -> None:
    """The command needs no token; but nobody could see whether it is this server's LM Studio that it has loaded in."""
    wants = AuthError("An LM Studio API token is required", status=401)
    script = Script(ls=[LS], ps=[[], ps((KEY, KEY))], load=[DONE], _v0_models=[wants])
    with pytest.raises(AuthError):
        drive(load(HERE, KEY), script)
    assert "load" not in script.asked


def test_a_length_that_nobody_tells_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Asked for, and not to be read back: the log says so."""
    (one,) = ps((KEY, KEY))
    del one["contextLength"]
    script = Script(ls=[LS], ps=[[], [one]], load=[DONE])
    assert drive(load(HERE, KEY, LoadConfig(context_length=8192)), script).context_length is None
    assert "does not tell its context length" in caplog.text


def test_a_setting_that_did_not_take_is_an_error() -> None:
    """Fewer slots than asked for is not what was asked for."""
    script = Script(ls=[LS], ps=[[], ps((KEY, KEY), parallel=1)], load=[DONE])
    with pytest.raises(LoadFailed, match="another parallel"):
        drive(load(HERE, KEY, LoadConfig(parallel=4)), script)


def test_rest_alone_that_is_not_there_is_told() -> None:
    """Where no other way was allowed, the missing one is the error."""
    absent = {"error": "Unexpected endpoint or method. (GET /api/v1/models)"}
    with pytest.raises(NotLMStudio):
        drive(load(HERE, KEY, LoadConfig(context_length=1), ways=["rest"]), Script(_v1_models=[absent]))


def test_lms_alone_that_cant_get_there_is_told() -> None:
    """`lms` speaks no https: as the only way it is refused."""
    with pytest.raises(InvalidRequest, match="bare host name"):
        drive(load(Server("https://box"), KEY, ways=["lms"]), Script())


def test_an_error_that_is_no_absence_stops_the_search() -> None:
    """A way that is there and fails: no other one is tried behind its back."""
    script = Script(ls=[Completed(("ls",), 1, "", "Error: Boom\n")])
    with pytest.raises(LmsFailed):
        drive(load(HERE, KEY), script)
    assert script.asked == ["ls", "--version"]


def test_sizes_are_no_condition_for_a_list() -> None:
    """`lms ls` fails: the server's list is there all the same."""
    v0 = {"data": [{"id": KEY, "state": "loaded"}]}
    for fault in (LmsNotFound(("PATH",)), LmsFailed(("ls",), 1, "Boom")):
        (model,) = drive(downloaded(HERE), Script(_v0_models=[v0], ls=[fault]))
        assert (model.id, model.loaded, model.size_bytes) == (KEY, True, None)


def test_models_that_only_one_list_has_are_kept() -> None:
    """v0 lists a second copy under a name that `lms ls` does not know."""
    v0 = {"data": [{"id": KEY, "state": "loaded"}, {"id": f"{KEY}:2", "state": "loaded"}]}
    models = drive(downloaded(HERE), Script(_v0_models=[v0], ls=[LS]))
    assert [model.size_bytes for model in models] == [1_321_082_528, None]


def test_lms_lists_where_no_server_answers() -> None:
    """Names are had from `lms ls` alone."""
    assert len(drive(listed(HERE), Script(ls=[LS]))) == 5


def test_unload_all_leaves_other_machines_alone() -> None:
    """What LM Link lends is not this machine's to unload, nor is what went by itself an error."""
    lent = ps(("lent", KEY))[0] | {"deviceIdentifier": "laptop"}
    script = Script(ps=[[lent, *ps((KEY, KEY))], [lent]], unload=[DONE])
    assert drive(unload_all(HERE), script) == ()
    assert "unload" not in script.asked


def test_status_without_server_and_command() -> None:
    """Nobody to ask: it does not run, as far as anybody can tell."""
    assert not drive(server_status(HERE), Script(server=[LmsNotFound(("PATH",))])).running


def test_a_stop_that_fails_is_told() -> None:
    """Another failure than "not running" is an error."""
    with pytest.raises(LmsFailed, match="Boom"):
        drive(server_stop(HERE), Script(server=[Completed(("server", "stop"), 1, "", "Error: Boom\n")]))


# --- the cache


def cache(clock: Callable[[], float] = lambda: 0.0, **limits: Any) -> ModelCache:
    return ModelCache(HERE, Limits(**limits), clock=clock)


def test_an_abandoned_get_holds_no_lock() -> None:
    """Closed at whatever step, it holds nothing, and the next one gets its turn."""
    lock = Leases(HERE.address).loading(KEY)
    for steps in range(8):
        one = cache()
        script = Script(ls=[LS], ps=[[]], load=[DONE])
        flow = one.get(KEY)
        step = next(flow)
        for _ in range(steps):
            try:
                result = script(step)
            except Phi4Error as error:
                step = flow.throw(error)
            else:
                step = flow.send(result)
        flow.close()
        assert lock.acquire()
        lock.release()
        assert drive(one.get(KEY), Script(ls=[LS], ps=[[], [], [], ps((KEY, KEY))], load=[DONE])).identifier == KEY


def test_a_busy_one_that_goes_by_itself_is_waited_for_no_longer() -> None:
    """Its time was over while it was waited for: nothing is unloaded."""
    busy = ps((KEY, KEY), status="generating")
    long = [one | {"contextLength": 8192} for one in ps((KEY, KEY))]
    script = Script(ls=[LS], ps=[busy, busy, [], [], long], load=[DONE])
    assert drive(cache().get(KEY, LoadConfig(context_length=8192)), script).context_length == 8192
    assert "unload" not in script.asked


def test_no_patience_means_no_wait() -> None:
    """With a patience of 0 a busy one is told at once."""
    script = Script(ls=[LS], ps=[ps((KEY, KEY), status="generating")])
    with pytest.raises(ModelBusy) as caught:
        drive(cache(patience=0).get(KEY, LoadConfig(context_length=8192)), script)
    assert caught.value.waited == 0


def test_room_that_comes_by_itself_is_taken() -> None:
    """What was to be evicted has been unloaded meanwhile: nothing else has to go."""
    one = cache(max_models=1)
    drive(one.get(OTHER), Script(ls=[LS], ps=[[], [], ps((OTHER, OTHER))], load=[DONE]))
    there = ps((OTHER, OTHER))
    script = Script(ls=[LS], ps=[there, there, [], [], ps((KEY, KEY))], load=[DONE])
    assert drive(one.get(KEY), script).identifier == KEY
    assert "unload" not in script.asked


@pytest.mark.parametrize(("key", "config"), [("-y", LoadConfig()), (KEY, LoadConfig(gpu="max", flash_attention=True))])
def test_what_cant_be_asked_for_is_refused_before_the_first_step(key: str, config: LoadConfig) -> None:
    """No step, no lock: not even where an instance is there already."""
    for flow in (cache().get(key, config), load(HERE, key, config)):
        with pytest.raises(InvalidRequest):
            next(flow)


def test_what_the_model_cant_have_unloads_nothing() -> None:
    """A context above the model's longest is refused before the loaded instance is given up for it."""
    script = Script(ls=[LS], ps=[ps((KEY, KEY))])
    with pytest.raises(InvalidRequest, match="from 1 to 131,072 tokens"):
        drive(cache().get(KEY, LoadConfig(context_length=131_073)), script)
    assert "unload" not in script.asked
