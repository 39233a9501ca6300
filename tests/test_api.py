"""Every endpoint, on both faces, against what LM Studio and llama.cpp servers answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest
from support import EXCHANGES, GOOD, MESSAGES, Face, Recording, answering, sse

from phi4_http import AuthError, InvalidRequest, ModelLoading, ModelNotFound, NotLMStudio, ServerError
from phi4_http.api import path
from phi4_http.phi4.request import phi4_model
from phi4_http.tape.matching import Match
from phi4_http.tape.playback import AT_ONCE
from phi4_http.tape.server import ReplayServer
from phi4_http.wire.answers import ServerStats

PHI = "microsoft/phi-4-reasoning-plus"
QWEN = "qwen/qwen3-8b"
EMBEDDER = "text-embedding-nomic-embed-text-v1.5"


def recorded(name: str) -> Any:
    return json.loads(EXCHANGES[name].body)


def lm_studio(**more: Any) -> Recording:
    """LM Studio with its three models."""
    return Recording(
        {
            "/api/v0/models": recorded("v0-models"),
            "/v1/models": recorded("v1-models"),
            **more,
        }
    )


def llama_cpp(status: int = 404) -> Recording:
    """A server that has nothing but /v1, and says so in one way or another."""
    missing = {"error": {"message": "File Not Found", "type": "not_found_error", "code": status}}
    routes = ["/api/v0/models", *(f"/api/v0/models/{id}" for id in ("tiny-phi-4-reasoning-plus", "x"))]
    return Recording({"/v1/models": recorded("cpp-models"), **dict.fromkeys(routes, (status, missing))})


# --- models -----------------------------------------------------------------------------------------------------------


def test_the_native_list_tells_the_state(face: Face) -> None:
    """State and context length, where the server tells them; None where it does not."""
    server = lm_studio()
    with face.studio(server) as client:
        phi, qwen, embedder = face.wait(client.models())
    assert server.paths == ["GET /api/v0/models"]
    assert (phi.id, phi.state, phi.loaded) == (PHI, "loaded", True)
    assert (phi.loaded_context_length, phi.max_context_length) == (8192, 32768)
    assert (qwen.id, qwen.loaded, qwen.loaded_context_length, qwen.capabilities) == (QWEN, False, None, ("tool_use",))
    assert (embedder.id, embedder.type) == (EMBEDDER, "embeddings")


def test_the_list_of_names_tells_no_state(face: Face) -> None:
    """From /v1 there are names, and the state is unknown, not guessed."""
    with face.studio(lm_studio()) as client:
        models = face.wait(client.models("openai"))
    assert [model.id for model in models] == [PHI, QWEN, EMBEDDER]
    assert {(model.state, model.loaded, model.loaded_context_length) for model in models} == {(None, None, None)}


def test_an_unknown_state_is_kept_and_is_neither_loaded_nor_not(face: Face) -> None:
    """A state that this library does not know is shown as it is."""
    body = {"data": [{"id": "x", "state": "hibernating", "news": 1}]}
    with face.studio(Recording({"/api/v0/models": body})) as client:
        (model,) = face.wait(client.models())
    assert (model.state, model.loaded, model.extra) == ("hibernating", None, {"news": 1})


@pytest.mark.parametrize("status", [200, 404, 405, 501])
def test_a_server_without_the_native_api_is_asked_for_its_names(face: Face, status: int) -> None:
    """Whether it answers an unknown route with 200, 404, 405 or 501; llama.cpp's context is taken from its `meta`."""
    server = Recording({"/v1/models": recorded("cpp-models")}) if status == 200 else llama_cpp(status)
    with face.studio(server) as client:
        (model,) = face.wait(client.models())
    assert server.paths == ["GET /api/v0/models", "GET /api/v1/models", "GET /v1/models"]
    assert (model.id, model.state) == ("tiny-phi-4-reasoning-plus", None)
    assert (model.loaded_context_length, model.max_context_length) == (4096, 32768)


def test_a_web_page_in_the_place_of_the_native_api_is_as_good_as_none(face: Face) -> None:
    """A server that answers every unknown path with its front page has /v1 all the same."""
    server = Recording({"/v1/models": recorded("py-models")})
    page = answering("<!doctype html><title>hello</title>", 200, "text/html")
    import httpx

    routed = httpx.MockTransport(
        lambda request: (server if request.url.path.startswith("/v1") else page).handle_request(request)
    )
    with face.studio(routed) as client:
        assert [model.id for model in face.wait(client.models())] == ["tiny-phi-4-reasoning-plus"]


def test_an_api_that_was_asked_for_is_not_exchanged_for_another(face: Face) -> None:
    """`models("native")` of a server without it is an error."""
    server = llama_cpp()
    with face.studio(server) as client, pytest.raises(NotLMStudio):
        face.wait(client.models("native"))
    assert server.paths == ["GET /api/v0/models", "GET /api/v1/models"]


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (401, {"error": {"message": "no", "code": "invalid_api_key"}}, AuthError),
        (403, {"error": {"message": "no"}}, AuthError),
        (500, {"error": {"message": "boom"}}, ServerError),
        (503, {"error": {"message": "Loading model"}}, ModelLoading),
    ],
)
def test_a_refusal_of_the_native_api_is_not_taken_for_its_absence(
    face: Face, status: int, answer: Any, error: type[Exception]
) -> None:
    """A missing token, a fault, a model that loads: each is told, and nothing else is asked."""
    server = lm_studio(**{"/api/v0/models": (status, answer)})
    with face.studio(server) as client, pytest.raises(error):
        face.wait(client.models())
    assert len(server.requests) == 1


def test_a_server_that_lists_nothing_has_no_models(face: Face) -> None:
    """An empty list is an answer."""
    with face.studio(Recording({"/api/v0/models": {"object": "list", "data": []}})) as client:
        assert face.wait(client.models()) == ()


@pytest.mark.parametrize("body", [{"data": 7}, {}, {"data": ["x"]}, {"data": [{}]}, {"models": []}])
def test_a_list_that_is_none_is_not_lm_studio(face: Face, body: Any) -> None:
    """The error says what can't be read."""
    with face.studio(Recording({"/v1/models": body})) as client, pytest.raises(NotLMStudio, match="can't be read"):
        face.wait(client.models("openai"))


# --- one model --------------------------------------------------------------------------------------------------------


def test_a_model_is_found_by_its_id(face: Face) -> None:
    """In the list, which is asked for once."""
    server = lm_studio()
    with face.studio(server) as client:
        model = face.wait(client.model(PHI))
    assert server.paths == ["GET /api/v0/models"]
    assert (model.id, model.loaded_context_length) == (PHI, 8192)


def test_a_model_is_found_over_real_http(face: Face) -> None:
    """The same against a server that plays the documented answer."""
    with (
        ReplayServer([EXCHANGES["v0-models"]] * 2, playback=AT_ONCE) as server,
        face.studio(server.url) as client,
    ):
        assert face.wait(client.model(PHI)) in face.wait(client.models())


def test_a_model_of_a_server_without_the_native_api_is_found_in_its_list(face: Face) -> None:
    """What is known of it is its name, and llama.cpp's context."""
    with face.studio(llama_cpp()) as client:
        model = face.wait(client.model("tiny-phi-4-reasoning-plus"))
    assert (model.id, model.state, model.max_context_length) == ("tiny-phi-4-reasoning-plus", None, 32768)


@pytest.mark.parametrize("server", [lm_studio, llama_cpp])
def test_a_model_that_is_not_there_is_told_with_what_is(face: Face, server: Any) -> None:
    """The closest names come first."""
    with face.studio(server()) as client, pytest.raises(ModelNotFound) as caught:
        face.wait(client.model("x"))
    assert caught.value.model == "x"
    listed = ["tiny-phi-4-reasoning-plus"] if server is llama_cpp else [PHI, QWEN, EMBEDDER]
    assert list(caught.value.available) == listed


def test_the_closest_name_is_told_first(face: Face) -> None:
    """A slip in a name is seen at once."""
    with face.studio(lm_studio()) as client, pytest.raises(ModelNotFound) as caught:
        face.wait(client.model("qwen/qwen-8b"))
    assert caught.value.available[0] == QWEN
    assert QWEN in str(caught.value)


@pytest.mark.parametrize(("status", "error"), [(401, AuthError), (403, AuthError), (500, ServerError)])
def test_a_refusal_to_tell_of_a_model_is_not_taken_for_its_absence(
    face: Face, status: int, error: type[Exception]
) -> None:
    """A missing token or a fault is told, and nothing else is asked for."""
    server = lm_studio(**{"/api/v0/models": (status, {"error": {"message": "no"}})})
    with face.studio(server) as client, pytest.raises(error):
        face.wait(client.model(PHI))
    assert len(server.requests) == 1


@pytest.mark.parametrize("id", ["", " ", None, 7])
def test_an_id_that_is_none_is_refused(face: Face, id: Any) -> None:
    """Nothing is sent for it."""
    server = lm_studio()
    with face.studio(server) as client, pytest.raises(InvalidRequest):
        face.wait(client.model(id))
    assert server.requests == []


# --- completions ------------------------------------------------------------------------------------------------------


def test_a_chat_in_one_piece(face: Face) -> None:
    """Both APIs answer it; the native one adds its figures."""
    server = Recording(
        {path("native", "chat/completions"): recorded("v0-chat"), "/v1/chat/completions": recorded("v1-chat")}
    )
    with face.studio(server) as client:
        native = face.wait(client.chat_completion(PHI, MESSAGES, api="native", temperature=0.5, extra={"x": 1}))
        assert server.body == {"model": PHI, "messages": list(MESSAGES), "temperature": 0.5, "x": 1}
        other = face.wait(client.chat_completion(PHI, MESSAGES))
    assert native.choices[0].message.content == other.choices[0].message.content
    assert native.stats == ServerStats(26.998962, 0.8, 0.963, "eosFound")
    assert other.stats is None


def test_a_completion_in_one_piece(face: Face) -> None:
    """A raw prompt, on both APIs."""
    server = Recording(
        {path("native", "completions"): recorded("v0-completion"), "/v1/completions": recorded("v1-completion")}
    )
    with face.studio(server) as client:
        native = face.wait(client.completion(PHI, "7 × 8 =", api="native", max_tokens=5))
        assert server.body == {"model": PHI, "prompt": "7 × 8 =", "max_tokens": 5}
        other = face.wait(client.completion(PHI, "7 × 8 ="))
    assert native.choices[0].text == other.choices[0].text == "<think>7 × 8 = 56.</think>7 × 8 = **56**."
    assert native.runtime is not None
    assert other.runtime is None


@pytest.mark.parametrize(("api", "version"), [("native", "v0"), ("openai", "v1")])
def test_embeddings(face: Face, api: str, version: str) -> None:
    """One text or several, and any further field."""
    server = Recording({f"{'/api/v0' if api == 'native' else '/v1'}/embeddings": recorded(f"{version}-embeddings")})
    with face.studio(server) as client:
        one = face.wait(client.embeddings(EMBEDDER, "a", api=api))
        assert server.body == {"model": EMBEDDER, "input": "a"}
        face.wait(client.embeddings(EMBEDDER, ("a", "b"), api=api, extra={"encoding_format": "float"}))
        assert server.body == {"model": EMBEDDER, "input": ["a", "b"], "encoding_format": "float"}
    assert (len(one.vectors), len(one.vectors[0]), one.model) == (1, 4, EMBEDDER)


@pytest.mark.parametrize("texts", ["", [], [""], ["a", ""], ["a", 7], [None], b"a"])
def test_nothing_to_embed_is_refused(face: Face, texts: Any) -> None:
    """Empty texts have no vector; nothing is sent."""
    server = Recording()
    with face.studio(server) as client, pytest.raises(InvalidRequest):
        face.wait(client.embeddings(EMBEDDER, texts))
    assert server.requests == []


def test_every_shipped_plain_answer_is_read_over_real_http(face: Face) -> None:
    """A server that plays all of them is asked through every method that has one."""
    names = ["v0-models", "v1-models", "v0-chat", "v0-completion", "v0-embeddings", "v1-completion"]
    exchanges = [EXCHANGES[name] for name in [*names, "v1-embeddings", "v1-chat"]]
    match = Match(body=False)
    with ReplayServer(exchanges, playback=AT_ONCE, match=match) as server, face.studio(server.url) as client:
        face.wait(client.models())
        face.wait(client.models("openai"))
        for api in ("native", "openai"):
            assert face.wait(client.chat_completion(PHI, MESSAGES, api=api)).choices[0].finish_reason == "stop"
            assert face.wait(client.completion(PHI, "x", api=api)).choices[0].finish_reason == "stop"
            assert face.wait(client.embeddings(EMBEDDER, "x", api=api)).vectors
        assert server.unused == ()


def test_a_method_of_a_server_without_it_is_not_lm_studio(face: Face) -> None:
    """Each says so, whatever status the server gives."""
    with face.studio(Recording()) as client:
        for call, arguments in (
            ("chat_completion", (PHI, MESSAGES)),
            ("completion", (PHI, "x")),
            ("embeddings", (PHI, "x")),
        ):
            with pytest.raises(NotLMStudio, match="no such endpoint"):
                face.wait(getattr(client, call)(*arguments))


@pytest.mark.parametrize("api", ["v2", "", None, "/v1"])
@pytest.mark.parametrize(
    "call", ["chat_completion", "completion", "embeddings", "stream_chat_completion", "stream_completion"]
)
def test_an_api_that_there_is_not_is_refused(face: Face, call: str, api: Any) -> None:
    """Native or OpenAI's; nothing is sent."""
    server = Recording()
    argument: Any = MESSAGES if "chat" in call else "x"
    with face.studio(server) as client, pytest.raises(InvalidRequest, match="native"):
        face.wait(getattr(client, call)(PHI, argument, api=api))
    assert server.requests == []


@pytest.mark.parametrize("api", ["v2", "", "v0/"])
def test_a_list_of_an_api_that_there_is_not_is_refused(face: Face, api: Any) -> None:
    """Nor is a list asked for by a wrong name."""
    server = Recording()
    with face.studio(server) as client, pytest.raises(InvalidRequest):
        face.wait(client.models(api))
    assert server.requests == []


@pytest.mark.parametrize("messages", ["x", b"x", {"role": "user", "content": "x"}, ["x"], [None], [], 7, None])
def test_messages_that_are_none_are_refused(face: Face, messages: Any) -> None:
    """A list of mappings, and not an empty one."""
    server = Recording()
    with face.studio(server) as client:
        for call in (client.chat_completion, client.stream_chat_completion):
            with pytest.raises(InvalidRequest, match="messages"):
                face.wait(call(PHI, messages))
    assert server.requests == []


def test_messages_of_any_iterable_are_all_sent(face: Face) -> None:
    """A generator is read once, and nothing of it is lost."""
    server = Recording({"/v1/chat/completions": recorded("v1-chat")})
    with face.studio(server) as client:
        face.wait(client.chat_completion(PHI, iter(MESSAGES)))
    assert server.body["messages"] == list(MESSAGES)


# --- which model Phi4 asks --------------------------------------------------------------------------------------------


def model_asked(face: Face, server: Recording, **options: Any) -> str:
    server.answers.setdefault("/v1/chat/completions", GOOD)
    with face.phi(server, **options) as phi:
        heard = face.ask(phi, "x")
    if heard.error is not None:
        raise heard.error
    model: str = server.body["model"]
    return model


def listing(*ids: Mapping[str, Any]) -> Recording:
    return Recording({"/api/v0/models": {"data": list(ids)}})


def test_a_model_that_was_named_is_asked_and_nothing_is_looked_up(face: Face) -> None:
    """The name goes out as it is, whatever the server has."""
    server = listing()
    assert model_asked(face, server, model="some/other") == "some/other"
    assert server.paths == ["POST /v1/chat/completions"]


def test_without_a_name_the_servers_own_is_asked_a_loaded_one_first(face: Face) -> None:
    """Not just any model, and not just any build."""
    server = listing(
        {"id": "microsoft/phi-4", "state": "loaded"},
        {"id": "a/phi-4-reasoning-plus", "state": "not-loaded"},
        {"id": "b/phi-4-reasoning-plus", "state": "loaded"},
    )
    assert model_asked(face, server) == "b/phi-4-reasoning-plus"


def test_a_server_without_the_native_api_has_its_model_found_by_name(face: Face) -> None:
    """llama.cpp's list is enough."""
    assert model_asked(face, llama_cpp()) == "tiny-phi-4-reasoning-plus"


@pytest.mark.parametrize("ids", [[], ["microsoft/phi-4", "microsoft/phi-4-reasoning"]])
def test_a_server_that_has_no_such_model_is_not_asked(face: Face, ids: list[str]) -> None:
    """It is told with what is there, and no other model is taken for it."""
    server = listing(*({"id": id} for id in ids))
    with pytest.raises(ModelNotFound) as caught:
        model_asked(face, server)
    assert caught.value.available == tuple(ids)
    assert server.paths == ["GET /api/v0/models"]


def test_a_server_that_lists_nothing_at_all_is_asked_by_the_usual_name(
    face: Face, caplog: pytest.LogCaptureFixture
) -> None:
    """A server without any list can still be asked; its answer tells, and so does the log."""
    server = Recording()
    with caplog.at_level(logging.WARNING, "phi4_http"):
        assert model_asked(face, server) == PHI
    assert PHI in caplog.text


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_token_for_its_list_is_told_as_such(face: Face, status: int) -> None:
    """The missing token is the error, not what would come of going on without."""
    server = Recording({"/api/v0/models": (status, {"error": {"message": "no"}})})
    with pytest.raises(AuthError):
        model_asked(face, server)
    assert len(server.requests) == 1


def test_the_model_of_a_call_comes_before_that_of_phi(face: Face) -> None:
    """And before the lookup."""
    server = Recording(
        {"/v1/chat/completions": sse({"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]})}
    )
    with face.phi(server, model="one") as phi:
        face.ask(phi, "x", model="two")
        assert server.body["model"] == "two"
        face.ask(phi, "x")
        assert server.body["model"] == "one"


def test_the_lookup_is_a_flow_that_needs_no_http() -> None:
    """It can be driven by hand: one step out, one answer in, and the name."""
    from phi4_http.flow import Answer, Http
    from phi4_http.server import Server

    flow = phi4_model(Server("http://x"))
    assert next(flow) == Http("GET", "/api/v0/models")
    with pytest.raises(StopIteration) as end:
        flow.send(Answer("http://x/api/v0/models", 200, {}, EXCHANGES["v0-models"].body))
    assert end.value.value == PHI
