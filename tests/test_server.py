"""What is known of a server, asked for once: requests are counted, servers of every kind are understood."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from phi4 import standin
from phi4.standin import CHAT, MODEL, RAW, StandIn
from support import Face, Recording

from phi4_http import ContextOverflow, ModelNotFound, Outcome, ServerUnreachable
from phi4_http.server import Listing, Server
from phi4_http.wire.listings import parse_openai_models, parse_v1_models

QUESTION = "Is it late, and then, and then, why is it so late? " * 3
KINDS: dict[str, dict[str, Any]] = {
    "v0": {},
    "v1": {"lists": ("v1",)},
    "llama.cpp": {"native": False, "free": "llama.cpp"},
    "vllm": {"native": False, "free": "vllm"},
    "router": {"native": False, "free": "llama.cpp", "router": True},
    "bare": {"native": False},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def turns(face: Face, chat: Any, number: int) -> list[Any]:
    """So many turns of a chat."""
    return [face.wait(chat.ask(f"{turn}: {QUESTION}")) for turn in range(number)]


def refused(server: StandIn) -> set[str]:
    """What was asked and is not there."""
    there = {"POST " + CHAT, "POST " + RAW, "GET /v1/models"}
    if server.native:
        there |= {f"GET /api/{version}/models" for version in server.lists}
    if server.free == "llama.cpp":
        there |= {"POST /apply-template", "POST /tokenize"}
    if server.free == "vllm":
        there |= {"POST /tokenize"}
    return set(server.seen) - there


# --- how often it is asked --------------------------------------------------------------------------------------------


@each_kind
def test_a_chat_that_fits_takes_one_request_a_turn_and_three_look_ups(face: Face, kind: str) -> None:
    """Twenty turns, on every kind of server; what it lacks is asked for once."""
    with StandIn(context_length=32_768, **KINDS[kind]) as server, face.phi(server.url) as phi:
        turns(face, phi.chat(), 20)
    assert len(server.chats) == 20
    assert len(server.seen) <= 23
    assert max(Counter(request for request in server.seen if request in refused(server)).values(), default=0) <= 1


@pytest.mark.parametrize("kind", ["v0", "v1", "llama.cpp", "router"])
def test_a_chat_past_the_end_of_its_context_stays_cheap(face: Face, kind: str) -> None:
    """At most 1.3 requests a turn that make the model run; where counting is free, one, and two free calls a turn."""
    with StandIn(context_length=2000, **KINDS[kind]) as server, face.phi(server.url, reserve=200) as phi:
        chat = phi.chat()
        while not turns(face, chat, 1)[0].dropped:
            pass
        before = len(server.asked)
        replies = turns(face, chat, 40)
        past = server.asked[before:]
    generating = [path for path, _ in past if path in (CHAT, RAW)]
    free = [path for path, _ in past if path not in (CHAT, RAW)]
    assert all(reply.dropped for reply in replies)
    assert len(generating) <= (40 if server.free else 52)
    assert len(free) <= (80 if server.free else 0)
    assert max(Counter(request for request in server.seen if request in refused(server)).values(), default=0) <= 1
    for body in server.chats:
        assert standin.count(server.rendered(body)) <= 1800


@each_kind
def test_nothing_is_sent_again_to_what_a_server_lacks(face: Face, kind: str) -> None:
    """Lists, counts, probes, rescues: whatever is done with it."""
    with StandIn(context_length=1500, **KINDS[kind]) as server, face.phi(server.url) as phi:
        for number in range(3):
            turns(face, phi.chat(), 4)
            face.ask(phi, QUESTION, thinking_budget=2, model=f"other-{number}")
            face.wait(phi.count(QUESTION))
            face.wait(phi.client.models())
    assert max(Counter(request for request in server.seen if request in refused(server)).values(), default=0) <= 1


def test_two_clients_know_each_their_own(face: Face) -> None:
    """What one has learned of its server is not told of another."""
    with (
        StandIn(context_length=900) as one,
        StandIn(context_length=1800) as other,
        face.phi(one.url) as phi,
        face.phi(other.url) as second,
    ):
        assert (face.wait(phi.context_length()), face.wait(second.context_length())) == (900, 1800)


# --- what it understands ----------------------------------------------------------------------------------------------


def test_native_v1_is_read_where_v0_is_gone(face: Face) -> None:
    """State and context are known, and the window fits them."""
    with StandIn(context_length=900, lists=("v1",)) as server, face.phi(server.url, reserve=100) as phi:
        (model,) = face.wait(phi.client.models())
        assert (model.id, model.state, model.loaded_context_length) == (MODEL, "loaded", 900)
        replies = turns(face, phi.chat(), 12)
    assert replies[-1].dropped
    assert {reply.outcome for reply in replies} == {Outcome.COMPLETE}


@pytest.mark.parametrize("name", ["second", "whatever"])
def test_an_alias_or_any_name_means_the_only_model(face: Face, name: str) -> None:
    """llama-server takes both: the context is known all the same, and a full chat goes on."""
    options: dict[str, Any] = {"native": False, "free": "llama.cpp", "aliases": ("second",)}
    with StandIn(context_length=900, **options) as server, face.phi(server.url, model=name, reserve=100) as phi:
        assert face.wait(phi.context_length()) == 900
        assert turns(face, phi.chat(), 12)[-1].dropped


def test_names_are_found_where_they_stand() -> None:
    """Key, alias, instance; any name where there is one model and the list is not LM Studio's; else none."""
    server = Server()
    assert server.find("x") is None
    listed = {"data": [{"id": "a", "aliases": ["b"], "meta": {"n_ctx": 7}}]}
    server.listing = Listing(parse_openai_models(listed), "/v1/models")
    assert [found and found.id for found in map(server.find, ("a", "b", "zzz"))] == ["a"] * 3
    assert server.find("zzz", named=True) is None
    two = {"data": [{"id": "a"}, {"id": "c"}]}
    server.listing = Listing(parse_openai_models(two), "/v1/models")
    assert server.find("zzz") is None
    instances = [{"id": "k:2", "config": {"context_length": 512}}, {"id": "k", "config": {"context_length": 4096}}]
    native = {"models": [{"key": "k", "loaded_instances": instances}]}
    server.listing = Listing(parse_v1_models(native), "/api/v1/models")
    found = server.find("k:2")
    assert found is not None
    assert (found.id, found.loaded_context_length) == ("k:2", 512)
    assert server.find("zzz") is None


def test_a_router_is_told_the_model_with_every_call(face: Face) -> None:
    """And a model of its that is not loaded yet is loaded by the first request, after which its context is known."""
    with (
        StandIn(context_length=900, loaded=False, **KINDS["router"]) as server,
        face.phi(server.url, reserve=100) as phi,
    ):
        assert face.wait(phi.client.models())[0].loaded is False
        replies = turns(face, phi.chat(), 12)
    assert replies[-1].dropped
    assert all(body.get("model") == MODEL for path, body in server.asked)


# --- what disproves it ------------------------------------------------------------------------------------------------


def test_a_model_that_is_not_found_is_looked_for_anew(face: Face) -> None:
    """The list that named it was old."""
    answers: dict[str, Any] = {
        "/api/v0/models": {"data": [{"id": "a/phi-4-reasoning-plus", "state": "loaded"}]},
        CHAT: (404, {"error": {"message": "no such model", "code": "model_not_found"}}),
    }
    server = Recording(answers)
    with face.phi(server) as phi:
        assert isinstance(face.ask(phi, "x").error, ModelNotFound)
        server.answers["/api/v0/models"] = {"data": [{"id": "b/phi-4-reasoning-plus", "state": "loaded"}]}
        face.ask(phi, "x")
        assert server.body["model"] == "b/phi-4-reasoning-plus"


def test_who_answers_after_nobody_did_is_asked_anew(face: Face, unused_port: int) -> None:
    """What the old server lacked, the new one may have."""
    with face.studio(f"http://127.0.0.1:{unused_port}") as client:
        state = client._state
        state.note_lack("/api/v0/models")
        state.listing = Listing((), "/v1/models")
        with pytest.raises(ServerUnreachable):
            face.wait(client.models())
        assert not state.lacks("/api/v0/models")
        assert state.listing is None


def test_counts_of_one_model_are_not_used_for_another(face: Face) -> None:
    """A chat that goes on with a model of another name is counted anew, so that it fits there too."""
    with StandIn(context_length=2000) as server, face.phi(server.url, reserve=100) as phi:
        chat = phi.chat()
        turns(face, chat, 3)
        facts = phi.client._state.facts
        assert facts(MODEL).histories is not facts("other").histories
        assert vars(facts("other").histories)["_counts"] == {}
        assert vars(facts(MODEL).histories)["_counts"]


def test_a_context_that_is_listed_otherwise_ends_what_was_counted(face: Face) -> None:
    """A model that was loaded anew, with another length, by somebody else."""
    with StandIn(context_length=2000) as server, face.phi(server.url, reserve=100) as phi:
        turns(face, phi.chat(), 3)
        facts = phi.client._state.facts(MODEL)
        server.context_length = 1000
        face.wait(phi.client.models())
        assert vars(facts.histories)["_counts"] == {}
        assert face.wait(phi.context_length()) == 1000


def test_tools_are_counted(face: Face) -> None:
    """They are in the prompt, so they are in its count."""
    tools = [{"type": "function", "function": {"name": "look", "description": "d" * 1200}}]
    for kind in ("v0", "llama.cpp"):
        with StandIn(**KINDS[kind]) as server, face.phi(server.url) as phi:
            bare, more = (face.wait(phi.count("Is it late?", tools=given)) for given in (None, tools))
            assert more.tokens - bare.tokens == standin.count(standin.rendered_turn("tools", json.dumps(tools)))


def test_an_overflow_without_numbers_is_the_callers(face: Face) -> None:
    """Where neither it nor the list tells anything new, nothing is sent again."""
    answers: dict[str, Any] = {
        "/api/v0/models": {"data": [{"id": MODEL, "state": "loaded", "loaded_context_length": 4096}]},
        CHAT: (400, {"error": {"message": "Context size has been exceeded"}}),
    }
    server = Recording(answers)
    with face.phi(server) as phi:
        error = face.ask(phi, "x").error
    assert isinstance(error, ContextOverflow)
    assert server.paths.count(f"POST {CHAT}") == 1
