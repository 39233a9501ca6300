"""The endpoints, each once: a flow that sends a request and reads its answer.

`api` chooses between LM Studio's native API (`"native"`: lists from v0 or v1, whichever the server has; completions
and embeddings from v0, 0.3.6 and later, which adds its own figures) and the OpenAI-compatible one (`"openai"`), which
every server of the field has.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from .errors import InvalidRequest, ModelNotFound, NotLMStudio
from .flow import Flow, Http
from .reply.question import Plain, Request
from .reply.stream import Replying
from .reply.tags import chosen_tags
from .server import OPENAI_MODELS, Server, fetch, listing
from .wire.bodies import Messages, chat_body, completion_body, embeddings_body
from .wire.listings import ModelInfo, parse_openai_models

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .wire.answers import ChatCompletion, Completion, Embeddings
    from .wire.parameters import Parameters

T = TypeVar("T")
Api: TypeAlias = Literal["native", "openai"]
"""Which of a server's APIs is asked."""

_ROOTS: Mapping[str, str] = {"native": "/api/v0", "openai": "/v1"}


def path(api: Api, name: str) -> str:
    """The path of an endpoint. Raises InvalidRequest for an API that isn't one of the two."""
    if api not in _ROOTS:
        raise InvalidRequest(f"api is {api!r}: it can be 'native' or 'openai'")
    return f"{_ROOTS[api]}/{name}"


# --- models -----------------------------------------------------------------------------------------------------------


def models(server: Server, api: Api | None = None) -> Flow[tuple[ModelInfo, ...]]:
    """The models that the server lists, with their state where it tells it.

    `api` is `"native"`, `"openai"` (names only), or None: native where it is there.
    """
    if api is not None:
        path(api, "models")  # refuses another one
    if api == "openai":
        return (yield from fetch(server, parse_openai_models, Http("GET", OPENAI_MODELS)))
    found = yield from listing(server, anew=True, native=api == "native")
    return found.models


def model(server: Server, id: str) -> Flow[ModelInfo]:
    """One model by its id, an alias or the name of an instance. Raises ModelNotFound, with what is there."""
    if not isinstance(id, str) or not id.strip():
        raise InvalidRequest("the model id is empty")
    found = yield from listing(server, anew=True)
    info = server.find(id, named=True)
    if info is None:
        raise not_found(id, (info.id for info in found.models))
    return info


def not_found(wanted: str, available: Iterable[str]) -> ModelNotFound:
    """The error for a name that no listed model has, the closest names first."""
    ids = list(available)
    close = difflib.get_close_matches(wanted, ids, n=5, cutoff=0.4)
    ordered = tuple(dict.fromkeys([*close, *ids]))
    return ModelNotFound(f"no model is named {wanted!r}.", model=wanted, available=ordered)


# --- completions ------------------------------------------------------------------------------------------------------


def chat_completion(
    server: Server, model: str, messages: Messages, *, api: Api = "openai", **parameters: Unpack[Parameters]
) -> Flow[ChatCompletion]:
    """A chat completion in one piece. With `api="native"` it carries the server's stats, model_info and runtime."""
    from .wire.answers import parse_chat

    body = chat_body(model, messages, parameters)
    return _post(server, api, "chat/completions", body, parse_chat)


def completion(
    server: Server, model: str, prompt: str, *, api: Api = "openai", **parameters: Unpack[Parameters]
) -> Flow[Completion]:
    """The continuation of a raw prompt in one piece: no chat template is applied."""
    from .wire.answers import parse_completion

    return _post(server, api, "completions", completion_body(model, prompt, parameters), parse_completion)


def embeddings(
    server: Server,
    model: str,
    texts: str | Sequence[str],
    *,
    api: Api = "openai",
    extra: Mapping[str, Any] | None = None,
) -> Flow[Embeddings]:
    """Vectors for one text or several. `extra` is further fields of the body, as they are."""
    from .wire.answers import parse_embeddings

    return _post(server, api, "embeddings", embeddings_body(model, texts, extra or {}), parse_embeddings)


def stream_chat_completion(
    server: Server,
    model: str,
    messages: Messages,
    *,
    api: Api = "openai",
    opener: Literal["auto", "assumed"] = "auto",
    closer: Literal["last", "first"] = "last",
    waiting: bool = False,
    **parameters: Unpack[Parameters],
) -> Replying:
    """A chat completion as it comes, thought and solution told apart.

    With `waiting`, entering returns at once, and `Waiting` events come until the model says something. A server that
    says that its model is loading is then asked again, for as long as the client's `Timeouts` allow.
    """
    body = chat_body(model, messages, parameters)
    return _stream(server, path(api, "chat/completions"), body, opener, closer, waiting=waiting)


def stream_completion(
    server: Server,
    model: str,
    prompt: str,
    *,
    api: Api = "openai",
    opener: Literal["auto", "assumed"] = "auto",
    closer: Literal["last", "first"] = "last",
    waiting: bool = False,
    **parameters: Unpack[Parameters],
) -> Replying:
    """The continuation of a raw prompt as it comes. `opener="assumed"` where the prompt ends inside a thought.

    `waiting` is as in `stream_chat_completion`.
    """
    return _stream(
        server, path(api, "completions"), completion_body(model, prompt, parameters), opener, closer, waiting=waiting
    )


def _stream(
    server: Server,
    path: str,
    body: Mapping[str, Any],
    opener: Literal["auto", "assumed"],
    closer: Literal["last", "first"],
    *,
    waiting: bool,
) -> Replying:
    chosen_tags(opener, closer)  # refuses what they can't be
    return Replying(server, Plain(Request(path, body, opener, closer)), waiting=waiting)


def _post(server: Server, api: Api, name: str, body: Mapping[str, Any], parse: Callable[[Any], T]) -> Flow[T]:
    step = Http("POST", path(api, name), body, slow=True)
    return _answered(server, step, parse, native=api == "native")


def _answered(server: Server, step: Http, parse: Callable[[Any], T], *, native: bool) -> Flow[T]:
    try:
        return (yield from fetch(server, parse, step, model=(step.body or {}).get("model"), optional=native))
    except NotLMStudio as error:
        if native and error.missing:
            raise NotLMStudio(
                error.url, "it has no native completions and embeddings (v0): ask with api='openai'", missing=True
            ) from error
        raise
