"""Load, unload, estimate: through the command and over HTTP, on both faces, and all that may go wrong."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from lmstudio import backend
from lmstudio.conftest import FACES
from lmstudio.faces import Face
from lmstudio.world import World
from phi4_http.client.blocking import LMStudio
from phi4_http.errors import (
    AuthError,
    ContextTooShort,
    DoesNotFit,
    InvalidRequest,
    LmsFailed,
    LmsNotFound,
    LmsTimeout,
    LoadFailed,
    ModelNotFound,
    NotLMStudio,
    ServerError,
    ServerUnreachable,
    UnsupportedSetting,
)
from phi4_http.lmstudio.config import LoadConfig
from phi4_http.lmstudio.lifecycle import Loaded, load
from phi4_http.lmstudio.ways import Loading
from phi4_http.server import Server

LLAMA, QWEN, QWEN_1M, GPT = (
    "llama-3.2-1b-instruct",
    "qwen2.5-7b-instruct",
    "qwen2.5-7b-instruct-1m",
    "openai/gpt-oss-20b",
)
LONG = LoadConfig(context_length=8192)
NOMIC = "text-embedding-nomic-embed-text-v1.5"
LMS_ONLY, REST_ONLY, JIT_ONLY = {"ways": ["lms"]}, {"ways": ["rest"]}, {"ways": ["jit"]}


# --- load, by each way


def test_load_sets_all_that_was_asked_for(face: Face, world: World) -> None:
    """Through `lms`: path, context, GPU share, ttl, slots and name arrive, and the instance is read back."""
    one = face.call("load", GPT, LoadConfig(8192, 0.5, 600, 2, "mine"))
    assert (one.identifier, one.model, one.context_length, one.ttl, one.parallel) == ("mine", GPT, 8192, 600.0, 2)
    with world.state() as state:
        (real,) = state["loaded"]
    assert (real["contextLength"], real["gpu"], real["ttlMs"], real["parallel"]) == (8192, 0.5, 600_000, 2)


def test_load_is_seen_by_the_server_and_unload_too(face: Face, world: World) -> None:
    """Command and server show one state: a chat finds what was loaded, the list shows it, an unload ends it."""
    face.call("load", LLAMA, LONG)
    (model,) = [model for model in face.call("models") if model.id == LLAMA]
    assert (model.loaded, model.loaded_context_length) == (True, 8192)
    assert face.call("chat_completion", LLAMA, [{"role": "user", "content": "?"}]).choices[0].finish_reason == "stop"
    assert face.call("unload", LLAMA).identifier == LLAMA
    (model,) = [model for model in face.call("models") if model.id == LLAMA]
    assert model.loaded is False
    assert world.loaded == []


def test_load_over_rest_sets_what_rest_can(face: Face, world: World) -> None:
    """Over REST: context length and engine settings arrive, and the instance is read back."""
    config = LoadConfig(8192, flash_attention=True, eval_batch_size=256, offload_kv_cache_to_gpu=False)
    one = face.call("load", LLAMA, config, **REST_ONLY)
    assert (one.identifier, one.context_length, one.extra["flash_attention"]) == (LLAMA, 8192, True)
    body = {"context_length": 8192, "flash_attention": True, "eval_batch_size": 256, "offload_kv_cache_to_gpu": False}
    assert world.requests("/api/v1/models/load") == [{"model": LLAMA, **body}]


def test_load_just_in_time_sends_the_smallest_request(face: Face, world: World) -> None:
    """Just in time: one token of a chat, with the time to live, loads the model."""
    one = face.call("load", LLAMA, LoadConfig(ttl=60), **JIT_ONLY)
    assert (one.identifier, one.context_length) == (LLAMA, backend.DEFAULT_CONTEXT)
    (body,) = world.requests("/v1/chat/completions")
    assert (body["model"], body["ttl"], body["max_tokens"]) == (LLAMA, 60, 1)
    with world.state() as state:
        assert state["loaded"][0]["ttlMs"] == 60_000


def test_an_embedding_model_is_loaded_by_an_embedding(face: Face, world: World) -> None:
    """A chat would not do for a model that can't chat."""
    assert face.call("load", NOMIC, **JIT_ONLY).identifier == NOMIC
    assert world.requests("/v1/embeddings") == [{"model": NOMIC, "input": "."}]


def test_without_lms_the_next_way_is_taken(no_lms: Face, world: World) -> None:
    """A container has no `lms`: REST loads then."""
    assert no_lms.call("load", LLAMA, LONG).context_length == 8192
    assert len(world.requests("/api/v1/models/load")) == 1


def test_on_an_old_server_without_lms_a_request_loads(no_lms: Face, world: World) -> None:
    """0.3 answers REST paths with 200 and "Unexpected endpoint": that means not there, and the next way is taken."""
    world.set(v0_3=True)
    assert no_lms.call("load", LLAMA, LoadConfig(ttl=60)).identifier == LLAMA
    assert world.requests("/api/v1/models/load") == []
    assert len(world.requests("/v1/chat/completions")) == 1


def test_a_setting_that_no_way_there_can_set_is_refused(no_lms: Face, world: World) -> None:
    """On 0.3 without `lms`, nothing can set a context length; it is not dropped."""
    world.set(v0_3=True)
    with pytest.raises(UnsupportedSetting) as caught:
        no_lms.call("load", LLAMA, LONG)
    assert (caught.value.settings, caught.value.way, caught.value.able) == (("context_length",), "jit", ("lms", "rest"))
    assert world.loaded == []


def test_missing_lms_says_what_it_is_needed_for(no_lms: Face) -> None:
    """A GPU share is `lms`'s alone to set: without it, the error says so, and where it was looked for."""
    with pytest.raises(LmsNotFound) as caught:
        no_lms.call("load", LLAMA, LoadConfig(gpu="max"))
    assert caught.value.needed_for == ("gpu",)
    assert "PATH" in str(caught.value)


def test_the_order_of_ways_can_be_chosen(face: Face, world: World) -> None:
    """Where REST comes first, `lms` is not run at all."""
    face.call("load", LLAMA, ways=["rest", "lms"])
    with world.state() as state:
        assert state["calls"] == []


def test_load_names_a_remote_server(world: World) -> None:
    """For another machine, `lms` is told host and port."""
    server = Server(f"http://127.0.0.2:{world.port}")
    server.local = False  # as if that address were another machine's
    with LMStudio(world.url, lms=world.lms) as client:
        assert client._run(load(server, LLAMA, LoadConfig(gpu="off"))).identifier == LLAMA
    for command in ("ls", "ps", "load"):
        assert all(call[-4:] == ["--host", "127.0.0.2", "--port", str(world.port)] for call in world.calls(command))


def test_an_lms_that_reaches_nobody_is_passed_over(face: Face, world: World) -> None:
    """Where the command can't start LM Studio, the server that runs is still asked."""
    world.set(service_down=True)
    assert face.call("load", LLAMA).identifier == LLAMA
    assert len(world.requests("/api/v1/models/load")) == 1


def test_progress_is_told(face: Face) -> None:
    """The percentages that `lms load` draws come as shares, rising to 1."""
    *shares, end = face.events("loading", LLAMA)
    assert shares == [Loading(LLAMA, "lms", share) for share in (None, 0.25, 0.75, 1.0)]
    assert (end.instance.identifier, end.found, end.unread) == (LLAMA, False, ())
    assert face.events("loading", LLAMA) == [Loaded(end.instance, found=True)]


def test_unknown_progress_is_unknown(face: Face) -> None:
    """REST tells nothing of a load until it is over: no share is made up."""
    begin, end = face.events("loading", LLAMA, **REST_ONLY)
    assert (begin, end.instance.identifier) == (Loading(LLAMA, "rest", None), LLAMA)


def test_a_load_starts_no_server(face: Face, world: World) -> None:
    """Nobody at the address is an error: what `lms` could start or reach by itself is not the server that was named."""
    with world.state() as state:
        state["server"]["running"] = False
    with pytest.raises(ServerUnreachable):
        face.call("load", LLAMA)
    assert (world.loaded, world.calls("load")) == ([], [])


# --- which model


def test_the_exact_key_wins_over_longer_ones(face: Face, world: World) -> None:
    """A key that is the beginning of another one means itself; `lms` would ask, or take what was loaded last."""
    face.call("load", QWEN_1M)
    face.call("load", QWEN)
    assert world.loaded == [QWEN_1M, QWEN]


@pytest.mark.parametrize("asked", ["gpt-oss-20b", "OpenAI/GPT-OSS-20B", "GPT-OSS-20b"])
def test_a_unique_match_is_taken_and_reported(asked: str, face: Face, caplog: pytest.LogCaptureFixture) -> None:
    """Other letters, no publisher: the only model it can mean is taken, and the log says so."""
    with caplog.at_level(logging.WARNING, "phi4_http"):
        assert face.call("load", asked).model == GPT
    assert f"no model has the key '{asked}': taking '{GPT}'" in caplog.text


@pytest.mark.parametrize("asked", ["gpt", "gpt-oss-2b", "q", "qwen-instruct", "instruct", "llama-3.2-1b-instruct:2"])
def test_what_lms_would_guess_is_not_loaded(asked: str, face: Face, world: World) -> None:
    """`lms load -y` takes any model whose letters occur in that order; here that is an error with the closest keys."""
    with pytest.raises(ModelNotFound) as caught:
        face.call("load", asked)
    assert caught.value.model == asked
    assert set(caught.value.available) <= {model["modelKey"] for model in backend.fresh()["models"]}
    assert (world.loaded, world.calls("load")) == ([], [])


def test_the_closest_keys_come_first(face: Face) -> None:
    """A typo is answered with what was meant."""
    with pytest.raises(ModelNotFound, match=LLAMA) as caught:
        face.call("load", "lama-3.2-1b-instruct")
    assert caught.value.available[0] == LLAMA


def test_an_ambiguous_name_is_refused(face: Face, world: World) -> None:
    """Two publishers' models of one name: neither is taken, both are named."""
    with world.state() as state:
        model = backend.model_of(state, GPT)
        assert model is not None
        state["models"].append(model | {"modelKey": "unsloth/gpt-oss-20b", "path": "unsloth/x.gguf"})
    with pytest.raises(ModelNotFound) as caught:
        face.call("load", "gpt-oss-20b")
    assert caught.value.available == (GPT, "unsloth/gpt-oss-20b")


def test_a_model_of_another_machine_is_not_taken(face: Face, world: World) -> None:
    """What LM Link lends is on another machine: the local one of the key is loaded, by `--local`."""
    with world.state() as state:
        model = backend.model_of(state, LLAMA)
        assert model is not None
        state["models"].insert(0, model | {"deviceIdentifier": "laptop"})
    face.call("load", LLAMA)
    assert "--local" in world.calls("load")[0]


def test_the_path_is_what_lms_is_given(face: Face, world: World) -> None:
    """`--exact` compares paths: with a key it would find nothing, without it, too much."""
    face.call("load", LLAMA)
    (call,) = world.calls("load")
    assert call[1] == "--exact"
    assert call[2].endswith("Llama-3.2-1B-Instruct-Q8_0.gguf")


def share_path(world: World) -> None:
    """Two keys for one file: `--exact` could not tell them apart."""
    with world.state() as state:
        model = backend.model_of(state, QWEN)
        assert model is not None
        state["models"].append(model | {"modelKey": "same-file"})


def test_where_paths_are_shared_the_key_is_given(face: Face, world: World) -> None:
    """Then the key goes to `lms`'s search, where an exact one wins."""
    share_path(world)
    assert face.call("load", QWEN).model == QWEN
    assert world.calls("load")[0][1:3] == [QWEN, "-y"]


def test_another_model_loaded_by_the_search_is_unloaded_again(face: Face, world: World) -> None:
    """A key that vanished between list and load makes `lms` load what is next best: that is seen and undone."""
    share_path(world)
    world.set(deleted_meanwhile=QWEN)
    with pytest.raises(LoadFailed, match=f"{QWEN_1M} was loaded in place of {QWEN}"):
        face.call("load", QWEN)
    assert world.loaded == []


@pytest.mark.parametrize("key", ["-y", "--host", "", "  ", "a\x00b", "a\nb", "a\x1b[2J"])
def test_no_key_becomes_an_option(key: str, face: Face, world: World) -> None:
    """What a command would read as an option, or can't print, is refused before anything runs."""
    for name in ("load", "estimate"):
        with pytest.raises(InvalidRequest):
            face.call(name, key)
    with pytest.raises(InvalidRequest):
        face.call("unload", key, **LMS_ONLY)
    with world.state() as state:
        assert (state["calls"], state["requests"]) == ([], [])


# --- what is there already


def test_a_loaded_model_is_taken_as_it_is(face: Face, world: World) -> None:
    """Loading again makes no second copy: `key:2` would take the memory twice."""
    world.put(LLAMA, context=8192)
    assert face.call("load", LLAMA, LoadConfig(context_length=4096)).context_length == 8192
    assert (world.loaded, world.calls("load")) == ([LLAMA], [])


def test_a_copy_is_made_under_a_name_of_its_own(face: Face, world: World) -> None:
    """Who wants two instances names the second one."""
    face.call("load", LLAMA)
    face.call("load", LLAMA, LoadConfig(identifier="other"))
    face.call("load", LLAMA, LoadConfig(identifier="other"))
    assert world.loaded == [LLAMA, "other"]


def test_a_loaded_model_with_a_shorter_context_is_an_error(face: Face, world: World) -> None:
    """Both numbers are told, and nothing is loaded beside it."""
    world.put(LLAMA)
    with pytest.raises(ContextTooShort) as caught:
        face.call("load", LLAMA, LONG)
    assert (caught.value.needed, caught.value.limit, caught.value.identifier) == (8192, 4096, LLAMA)
    assert world.loaded == [LLAMA]


def test_a_loaded_model_with_other_settings_is_an_error(face: Face, world: World) -> None:
    """Fewer slots than asked for is a difference too."""
    world.put(LLAMA, parallel=1)
    with pytest.raises(LoadFailed, match="loaded with another parallel"):
        face.call("load", LLAMA, LoadConfig(context_length=4096, parallel=4))


@pytest.mark.parametrize("ttl", [None, 600_000])
def test_another_time_to_live_is_an_error(ttl: int | None, face: Face, world: World) -> None:
    """Of a loaded model, nothing can set it: it is not dropped in silence, whichever way looks."""
    world.put(LLAMA, ttlMs=ttl)
    for ways in (None, ["jit", "lms"]):
        with pytest.raises(LoadFailed, match="loaded with another ttl"):
            face.call("load", LLAMA, LoadConfig(ttl=60), ways=ways)
    world.put(QWEN, ttlMs=60_000)
    assert face.call("load", QWEN, LoadConfig(ttl=60)).ttl == 60


def test_what_nobody_tells_is_said_to_be_unknown(
    face: Face, world: World, no_lms: Face, caplog: pytest.LogCaptureFixture
) -> None:
    """The GPU share of a loaded model is in no list; its time to live is `lms`'s alone to tell."""
    world.put(LLAMA)
    (end,) = face.events("loading", LLAMA, LoadConfig(gpu="max"))
    assert (end.found, end.unread) == (True, ("gpu",))
    assert "nobody tells its gpu" in caplog.text
    (end,) = no_lms.events("loading", LLAMA, LoadConfig(ttl=60), **JIT_ONLY)
    assert end.unread == ("ttl",)


def test_what_one_way_does_not_tell_another_does(face: Face, world: World) -> None:
    """Flash attention is in the REST list alone."""
    face.call("load", LLAMA, LoadConfig(flash_attention=False), ways=["rest"])
    with pytest.raises(LoadFailed, match="another flash_attention"):
        face.call("load", LLAMA, LoadConfig(flash_attention=True))


def test_where_no_way_sets_it_all_each_ones_are_listed(face: Face) -> None:
    """Who asks for too much at once learns what goes with what."""
    with pytest.raises(UnsupportedSetting, match=r"context_length: lms, rest; gpu: lms; flash_attention: rest"):
        face.call("load", LLAMA, LoadConfig(8192, "max", flash_attention=True))


# --- variants

Q8 = f"{GPT}@q8_0"


def with_variant(world: World) -> None:
    """The model has a second build, which is not the selected one."""
    with world.state() as state:
        model = backend.model_of(state, GPT)
        assert model is not None
        model["variants"] = [f"{GPT}@mxfp4", Q8]


@pytest.mark.parametrize("ways", [None, REST_ONLY["ways"], JIT_ONLY["ways"]])
def test_a_variant_is_loaded_by_each_way_that_can(ways: Any, face: Face, world: World) -> None:
    """`lms load` knows keys alone, so the next way is taken; what is loaded is the variant."""
    with_variant(world)
    assert face.call("load", Q8, ways=ways).model == GPT
    with world.state() as state:
        assert [one["variant"] for one in state["loaded"]] == [Q8]
    assert world.calls("load") == []


def test_the_selected_variant_is_what_the_key_loads(face: Face, world: World) -> None:
    """`lms` can load that one."""
    with_variant(world)
    assert face.call("load", f"{GPT}@mxfp4").model == GPT
    assert len(world.calls("load")) == 1


def test_another_variant_is_not_taken_for_it(face: Face, world: World) -> None:
    """A loaded one is another model; where only `lms` may be used, it is said why that can't load it."""
    with_variant(world)
    with pytest.raises(LmsFailed, match="alone, not"):
        face.call("load", Q8, **LMS_ONLY)
    world.put(GPT)
    with pytest.raises(LoadFailed, match="another variant"):
        face.call("load", Q8, ways=["rest", "lms"])


def test_a_name_that_another_model_has_is_refused(face: Face, world: World) -> None:
    """Requests for the name would go to the wrong model."""
    world.put(QWEN, LLAMA)
    with pytest.raises(LoadFailed, match=f"'{LLAMA}' is taken by an instance of {QWEN}"):
        face.call("load", LLAMA)
    with pytest.raises(LoadFailed, match="is taken by"):
        face.call("load", GPT, LoadConfig(identifier=LLAMA))


def test_a_load_that_loses_a_race_takes_the_winners(face: Face, world: World) -> None:
    """Somebody else loads it between look and load: the name is refused, and what has it is taken."""
    world.set(rival=8192)
    assert face.call("load", LLAMA, LONG).context_length == 8192
    assert world.loaded == [LLAMA]


def test_a_winners_that_is_too_short_is_told(face: Face, world: World) -> None:
    """What the rival loaded is read back as strictly as what one loads oneself."""
    world.set(rival=4096)
    with pytest.raises(ContextTooShort):
        face.call("load", LLAMA, LONG)
    assert world.loaded == [LLAMA]


def test_twins_of_a_race_over_rest_are_one_in_the_end(face: Face, world: World) -> None:
    """REST takes no names, so a second copy can be made at once with another: it is unloaded, the first one taken."""
    world.set(rival=8192)
    assert face.call("load", LLAMA, LONG, **REST_ONLY).identifier == LLAMA
    assert world.loaded == [LLAMA]


def test_a_twin_that_is_too_short_is_not_taken(face: Face, world: World) -> None:
    """Then there are two, since both were asked for, with their own lengths."""
    world.set(rival=4096)
    assert face.call("load", LLAMA, LONG, **REST_ONLY).context_length == 8192
    assert world.loaded == [LLAMA, f"{LLAMA}:2"]


# --- what is read back


@pytest.mark.parametrize("ways", [LMS_ONLY, REST_ONLY])
def test_a_context_cut_by_the_backend_is_an_error(ways: Any, face: Face, world: World) -> None:
    """Exit code 0 and "loaded successfully" say nothing about the length: it is read back, and both numbers told."""
    world.set(cut_context=4096)
    with pytest.raises(ContextTooShort) as caught:
        face.call("load", LLAMA, LoadConfig(context_length=32768), **ways)
    assert (caught.value.needed, caught.value.limit) == (32768, 4096)
    assert world.loaded == [LLAMA]


def test_a_cut_context_is_a_warning_on_request(face: Face, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Who can live with less gets the instance, and its real length."""
    world.set(cut_context=4096)
    with caplog.at_level(logging.WARNING, "phi4_http"):
        one = face.call("load", LLAMA, LoadConfig(context_length=32768), allow_shorter=True)
    assert one.context_length == 4096
    assert "less than the context_length asked for" in caplog.text
    assert face.call("load", LLAMA, LoadConfig(context_length=32768), allow_shorter=True) == one


def test_the_servers_own_length_counts_where_it_is_shorter(face: Face, world: World) -> None:
    """`lms ps` says what was asked for where the server knows better."""
    world.set(server_sees=2048)
    with pytest.raises(ContextTooShort) as caught:
        face.call("load", LLAMA, LONG)
    assert caught.value.limit == 2048


def test_another_lm_studio_behind_the_address_is_found_out(face: Face, world: World) -> None:
    """`lms` loads into this machine's LM Studio: where the server's list stays empty, it is another one."""
    world.set(server_is_another=True)
    with pytest.raises(LoadFailed, match="it is another LM Studio"):
        face.call("load", LLAMA)


def test_an_old_lms_without_the_newer_fields_will_do(face: Face, world: World) -> None:
    """No status, queue or device: the load is read back all the same; unknown is None, not idle."""
    world.set(old=True)
    one = face.call("load", LLAMA, LONG)
    assert (one.context_length, one.status, one.busy) == (8192, None, None)


def test_an_option_that_an_old_lms_lacks_is_refused(face: Face, world: World) -> None:
    """`--parallel` is newer than some: the setting is not dropped."""
    world.set(old=True)
    with pytest.raises(UnsupportedSetting) as caught:
        face.call("load", LLAMA, LoadConfig(parallel=2))
    assert caught.value.settings == ("parallel",)
    assert "this release has no --parallel" in str(caught.value)


# --- what goes wrong


def test_a_crash_in_mid_load_is_told(face: Face, world: World) -> None:
    """The connection to LM Studio breaks: its words are the message, and nothing is loaded."""
    world.set(crash=True)
    with pytest.raises(LoadFailed, match="WebSocket connection closed"):
        face.call("load", LLAMA)
    assert world.loaded == []


def test_no_room_is_told_by_every_way(face: Face, world: World) -> None:
    """LM Studio's guardrails refuse a load: it does not fit."""
    world.set(guardrails=True)
    for ways in (LMS_ONLY, REST_ONLY, JIT_ONLY):
        with pytest.raises(DoesNotFit, match="insufficient system resources"):
            face.call("load", LLAMA, **ways)


def test_a_load_that_takes_too_long_is_ended(face: Face, world: World) -> None:
    """After the time limit the command is gone and the model is not there."""
    world.set(load_seconds=600)
    with pytest.raises(LmsTimeout):
        face.call("load", LLAMA, timeout=0.3)
    with world.state() as state:
        assert (state["loaded"], state["pending"]) == ([], [])


def test_a_load_that_survives_its_killed_caller_is_found(
    face: Face, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """LM Studio may go on loading without the command: the state is read again, and what is there is taken."""
    world.set(load_seconds=0.6, survives=True, deaf=True)
    assert face.call("load", LLAMA, LONG, timeout=0.3).context_length == 8192
    assert "is loaded, though the load said" in caplog.text


def test_a_hang_is_ended(face: Face, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`lms ps` has no time limit of its own."""
    monkeypatch.setattr("phi4_http.lmstudio.lms.reach.QUERY_SECONDS", 0.3)
    world.set(hang=["ps"])
    with pytest.raises(LmsTimeout):
        face.call("loaded")


def test_ps_is_asked_again_where_a_model_vanished(face: Face, world: World) -> None:
    """A model that is unloaded while `lms ps` looks makes the whole command fail: once more, then."""
    world.put(LLAMA)
    world.set(vanishing=2)
    assert [one.identifier for one in face.call("loaded")] == [LLAMA]
    assert len(world.calls("ps")) == 3


def test_ps_is_not_asked_for_ever(face: Face, world: World) -> None:
    """A failure that stays is told."""
    world.set(vanishing=99)
    with pytest.raises(LmsFailed, match="already been unloaded"):
        face.call("loaded")


def test_a_failing_ps_is_told(face: Face, world: World) -> None:
    """A way that is there and fails is an error, not a reason to take another."""
    world.set(ps_fails=True)
    with pytest.raises(LmsFailed, match="Boom Cause: why"):
        face.call("loaded")


@pytest.mark.parametrize("kind", FACES)
def test_output_that_is_no_list_is_told(kind: str, world: World, tmp_path: Path) -> None:
    """An `lms` that says something else is a failure with a reason."""
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho '{\"a\": 1}'\n", encoding="utf-8")
    other.chmod(0o755)
    face = FACES[kind](world.url, str(other))
    with pytest.raises(LmsFailed, match="can't be read"):
        face.call("loaded")
    face.close()


@pytest.mark.parametrize(("knob", "says"), [("rest_fails", "Operation canceled"), ("no_instance", "no instance")])
def test_a_failed_rest_load_is_told(knob: str, says: str, face: Face, world: World) -> None:
    """A refusal is the server's own words; a success with nothing to show for it is none."""
    world.set(**{knob: True})
    with pytest.raises(LoadFailed, match=says):
        face.call("load", LLAMA, **REST_ONLY)


def test_a_rest_load_that_fails_and_is_there_is_a_success(face: Face, world: World) -> None:
    """What counts is what is loaded."""
    world.set(rest_crash=True)
    assert face.call("load", LLAMA, **REST_ONLY).identifier == LLAMA


def test_a_token_that_is_missing_is_told(face: Face, world: World) -> None:
    """401 means that REST is there: no other way is tried behind its back."""
    world.set(token="secret")
    with pytest.raises(AuthError):
        face.call("load", LLAMA, ways=["rest", "jit"])


def test_just_in_time_loading_that_is_off_is_told(face: Face, world: World) -> None:
    """LM Studio's own words, where a request may not load."""
    world.set(no_jit=True)
    with pytest.raises(ModelNotFound, match="No models loaded"):
        face.call("load", LLAMA, **JIT_ONLY)


def test_nobody_anywhere_is_told(no_lms: Face, world: World) -> None:
    """Neither command nor server: the address is named."""
    with world.state() as state:
        state["server"]["running"] = False
    for name in ("loaded", "downloaded"):
        with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1"):
            no_lms.call(name)


def test_a_server_with_no_native_api_is_told(no_lms: Face, world: World) -> None:
    """Another server than LM Studio says nothing about what is loaded."""
    world.set(v0_3=True, no_v0=True)
    with pytest.raises(NotLMStudio):
        no_lms.call("loaded")


def test_every_run_is_free_of_questions(face: Face, world: World) -> None:
    """No run can ask: nothing to read, no colours, wide columns, plain locale."""
    face.call("load", LLAMA)
    face.call("unload", LLAMA)
    with world.state() as state:
        assert len(state["calls"]) >= 5
        for call in state["calls"]:
            assert call["env"] == {"FORCE_COLOR": "0", "COLUMNS": "1000", "LC_ALL": "C"}


# --- unload


@pytest.mark.parametrize("ways", [LMS_ONLY, REST_ONLY])
def test_unload_is_read_back(ways: Any, face: Face, world: World) -> None:
    """Only the instance of that very name goes."""
    world.put(LLAMA)
    world.put(LLAMA, "one")
    assert face.call("unload", "one", **ways).model == LLAMA
    assert world.loaded == [LLAMA]


@pytest.mark.parametrize("ways", [LMS_ONLY, REST_ONLY])
def test_unloading_an_unknown_name_is_an_error(ways: Any, face: Face, world: World) -> None:
    """`lms unload` prints a box and exits with 0: here it is an error that lists what is loaded. A key is no name."""
    world.put(LLAMA, "one")
    with pytest.raises(ModelNotFound) as caught:
        face.call("unload", LLAMA, **ways)
    assert caught.value.available == ("one",)
    assert world.loaded == ["one"]


@pytest.mark.parametrize("ways", [LMS_ONLY, REST_ONLY])
def test_an_unload_that_did_nothing_is_an_error(
    ways: Any, face: Face, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 0 or status 200, and the instance is still there: an exit code proves nothing."""
    monkeypatch.setattr("phi4_http.lmstudio.unload._GONE_PAUSE", 0.01)
    world.put(LLAMA)
    world.set(unload_ignored=True)
    with pytest.raises(ServerError, match="still loaded"):
        face.call("unload", LLAMA, **ways)


def test_an_unload_that_fails_is_told(face: Face, world: World) -> None:
    """LM Studio's words are the message."""
    world.put(LLAMA)
    world.set(unload_fails=True)
    with pytest.raises(LmsFailed, match="Cannot unload: model busy"):
        face.call("unload", LLAMA)


def test_nothing_unloads_just_in_time(face: Face) -> None:
    """No request can undo a load: the way is refused for that."""
    with pytest.raises(InvalidRequest, match="'lms' or 'rest'"):
        face.call("unload", LLAMA, **JIT_ONLY)


@pytest.mark.parametrize("ways", [LMS_ONLY, REST_ONLY])
def test_unload_all_takes_them_one_by_one(ways: Any, face: Face, world: World) -> None:
    """All that is loaded goes, and what went is returned; nothing loaded is no error."""
    for name in (LLAMA, "one", f"{LLAMA}:2"):
        world.put(LLAMA, name)
    assert {one.identifier for one in face.call("unload_all", **ways)} == {LLAMA, "one", f"{LLAMA}:2"}
    assert face.call("unload_all", **ways) == ()
    assert world.loaded == []


ODD = ["", "-x", "--all", "a\nb", "a\x1b[2J"]


@pytest.mark.parametrize("odd", ODD)
def test_what_no_command_can_name_is_unloaded_over_rest(odd: str, face: Face, world: World) -> None:
    """An identifier that is empty, looks like an option or holds control characters keeps nobody."""
    world.put(LLAMA, odd)
    world.put(LLAMA, "one")
    assert {one.identifier for one in face.call("unload_all")} == {odd, "one"}
    assert world.loaded == []


def test_unload_all_goes_on_after_a_fault_and_tells_it(face: Face, world: World) -> None:
    """An instance that can't be named to a command stays where REST is missing; the others go."""
    world.set(v0_3=True)
    world.put(LLAMA, "")
    world.put(LLAMA, "one")
    with pytest.raises(InvalidRequest, match=r"0\.4\.0"):
        face.call("unload_all")
    assert world.loaded == [""]


# --- lists and estimates


def test_loaded_is_told_by_each_way(face: Face, world: World) -> None:
    """All three see the same instances; only `lms` sees who is busy."""
    world.put(LLAMA, context=8192, status="generating", queued=1)
    world.put(LLAMA, f"{LLAMA}:2")
    seen = {way: face.call("loaded", ways=[way]) for way in ("lms", "rest", "jit")}
    for instances in seen.values():
        assert [(one.identifier, one.model, one.context_length) for one in instances] == [
            (LLAMA, LLAMA, 8192),
            (f"{LLAMA}:2", LLAMA, 4096),
        ]
    assert [instances[0].busy for instances in seen.values()] == [True, None, None]


@pytest.mark.parametrize("knobs", [{}, {"v0_3": True}, {"v0_3": True, "no_v0": True}])
def test_downloaded_has_states_and_sizes_from_wherever(knobs: Any, face: Face, world: World) -> None:
    """REST alone, v0 with the sizes of `lms ls`, or `lms` alone: the same table."""
    world.put(LLAMA, context=8192)
    world.set(**knobs)
    models = {model.id: model for model in face.call("downloaded")}
    assert len(models) == 5
    llama, gpt = models[LLAMA], models[GPT]
    assert (llama.loaded, llama.loaded_context_length, llama.max_context_length) == (True, 8192, 131072)
    assert (llama.size_bytes, llama.quantization) == (1_321_082_528, "Q8_0")
    assert (gpt.loaded, gpt.loaded_context_length, gpt.size_bytes) == (False, None, 12_109_565_632)


def test_downloaded_does_without_sizes(no_lms: Face, world: World) -> None:
    """On 0.3 without `lms` nobody tells the sizes; the list is there all the same."""
    world.set(v0_3=True)
    assert {model.size_bytes for model in no_lms.call("downloaded")} == {None}


def test_an_estimate_says_whether_it_fits(face: Face, world: World) -> None:
    """GPU and total bytes, and LM Studio's own verdict, which the exit code does not show."""
    guess = face.call("estimate", GPT, LoadConfig(context_length=131072, gpu=0.3))
    assert (guess.model, guess.fits, guess.confident) == (GPT, True, True)
    assert (guess.gpu_bytes, guess.total_bytes) == (round(5.55 * 1024**3), round(18.50 * 1024**3))
    world.set(guardrails=True, low_confidence=True)
    guess = face.call("estimate", GPT)
    assert (guess.fits, guess.confident) == (False, False)
    assert world.loaded == []


def test_an_old_estimate_names_the_path(face: Face, world: World) -> None:
    """Older releases print the path where newer ones print the key."""
    world.set(old=True)
    assert face.call("estimate", LLAMA).model.endswith("Q8_0.gguf")


def test_an_estimate_of_another_model_is_an_error(face: Face, world: World) -> None:
    """The search may find something else: the name in the estimate is checked."""
    share_path(world)
    world.set(deleted_meanwhile=QWEN)
    with pytest.raises(LmsFailed, match=f"estimated {QWEN_1M} in place of {QWEN}"):
        face.call("estimate", QWEN)


def test_an_estimate_needs_lms(no_lms: Face) -> None:
    """Nobody else can tell."""
    with pytest.raises(LmsNotFound):
        no_lms.call("estimate", LLAMA)


def test_an_estimate_takes_what_lms_can_set(face: Face) -> None:
    """Flash attention changes the memory, and `lms` can't say by how much."""
    with pytest.raises(UnsupportedSetting):
        face.call("estimate", LLAMA, LoadConfig(flash_attention=True))


def test_an_estimate_of_an_unknown_key_lists_the_closest(face: Face, world: World) -> None:
    """As for a load."""
    with pytest.raises(ModelNotFound, match=LLAMA):
        face.call("estimate", "lama-3.2-1b")
    world.set(deleted_meanwhile=GPT)
    with pytest.raises(ModelNotFound, match="No model found"):
        face.call("estimate", GPT)
