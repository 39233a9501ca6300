"""The endpoints, each once: a flow that sends a request and reads its answer, for both faces.

`api` chooses between LM Studio's native API (`"v0"`, 0.3.6 and later), which adds its own figures to an answer, and
the OpenAI-compatible one (`"v1"`), which every server of the field has.
"""

from __future__ import annotations

import difflib
import logging
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

from .errors import AuthError, InvalidRequest, ModelNotFound, NotLMStudio, ServerError
from .flow import Flow, Http
from .wire.answers import ChatCompletion, Completion, Embeddings, parse_chat, parse_completion, parse_embeddings
from .wire.bodies import Messages, chat_body, completion_body, embeddings_body
from .wire.listings import ModelInfo, parse_openai_models, parse_v0_model, parse_v0_models
from .wire.refusals import read_answer

log = logging.getLogger("phi4_http")

T = TypeVar("T")
Api: TypeAlias = Literal["v0", "v1"]

_ROOTS: Mapping[str, str] = {"v0": "/api/v0", "v1": "/v1"}


def path(api: Api, name: str) -> str:
    """The path of an endpoint. Raises InvalidRequest for an API that isn't one of the two."""
    if api not in _ROOTS:
        raise InvalidRequest(f"api is {api!r}: it can be 'v0' or 'v1'")
    return f"{_ROOTS[api]}/{name}"


# ---------------------------------------------------------------------------------------------------------------------
# Models


def models(api: Api | None = None) -> Flow[tuple[ModelInfo, ...]]:
    """The models that the server lists. With no `api`: the native list, or bare names where there is none."""
    if api == "v1":
        return (yield from _get(path("v1", "models"), parse_openai_models))
    try:
        return (yield from _get(path("v0" if api is None else api, "models"), parse_v0_models))
    except (NotLMStudio, ServerError) as error:
        if api is not None or isinstance(error, AuthError) or not is_missing(error):
            raise
    log.debug("no /api/v0: taking names from /v1/models")
    return (yield from _get(path("v1", "models"), parse_openai_models))


def model(id: str) -> Flow[ModelInfo]:
    """One model by its id. Raises ModelNotFound, with what is there, where the server has none of that name."""
    if not isinstance(id, str) or not id.strip():
        raise InvalidRequest("the model id is empty")
    try:
        # The ids hold `/`, and the server takes them as they are.
        return (yield from _get(path("v0", "models/") + urllib.parse.quote(id, safe="/@:"), parse_v0_model, model=id))
    except ModelNotFound:
        pass
    except (NotLMStudio, ServerError) as error:
        if isinstance(error, AuthError) or not is_missing(error):
            raise
    listed = yield from models()
    for info in listed:
        if info.id == id:
            return info
    raise not_found(id, (info.id for info in listed))


def not_found(wanted: str, available: Iterable[str]) -> ModelNotFound:
    """The error for a name that no listed model has, the closest names first."""
    ids = list(available)
    close = difflib.get_close_matches(wanted, ids, n=5, cutoff=0.4)
    ordered = tuple(dict.fromkeys([*close, *ids]))
    return ModelNotFound(f"no model is named {wanted!r}.", model=wanted, available=ordered)


def is_missing(error: NotLMStudio | ServerError) -> bool:
    """Whether this is how a server says that it has no such endpoint."""
    return isinstance(error, NotLMStudio) or error.status in (404, 405, 501)


# ---------------------------------------------------------------------------------------------------------------------
# Completions


def chat(model: str, messages: Messages, api: Api, parameters: Mapping[str, Any]) -> Flow[ChatCompletion]:
    """A chat completion, unstreamed."""
    body = chat_body(model, messages, parameters)
    return (yield from _post(path(api, "chat/completions"), body, parse_chat))


def complete(model: str, prompt: str, api: Api, parameters: Mapping[str, Any]) -> Flow[Completion]:
    """The continuation of a raw prompt, unstreamed."""
    return (yield from _post(path(api, "completions"), completion_body(model, prompt, parameters), parse_completion))


def embed(model: str, texts: str | Sequence[str], api: Api, extra: Mapping[str, Any]) -> Flow[Embeddings]:
    """Vectors for one text or several."""
    body = embeddings_body(model, texts, extra)
    return (yield from _post(path(api, "embeddings"), body, parse_embeddings))


# ---------------------------------------------------------------------------------------------------------------------


def _get(path: str, parse: Callable[[Any], T], model: str | None = None) -> Flow[T]:
    answer = yield Http("GET", path)
    return read_answer(answer, parse, model)


def _post(path: str, body: Mapping[str, Any], parse: Callable[[Any], T]) -> Flow[T]:
    answer = yield Http("POST", path, body, slow=True)
    return read_answer(answer, parse, body["model"])
