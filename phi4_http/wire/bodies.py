"""The bodies of requests: from arguments, checked, to UTF-8 JSON. What can't be sent raises InvalidRequest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ..errors import InvalidRequest
from .parameters import check

Messages: TypeAlias = Sequence[Mapping[str, Any]]


def encode(body: Mapping[str, Any]) -> bytes:
    """A request body as UTF-8 JSON. Raises InvalidRequest for what JSON or UTF-8 can't hold."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.start]
        raise InvalidRequest(
            f"a lone surrogate (half of a character) stands after {around!r}: it can't be sent as UTF-8"
        ) from None
    except RecursionError:
        raise InvalidRequest("the request can't be written as JSON: it is nested too deep") from None
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the request can't be written as JSON: {error}") from None


def chat_body(model: str, messages: Messages, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a chat completion. Raises InvalidRequest for what can't be sent."""
    several = isinstance(messages, Iterable) and not isinstance(messages, (str, bytes, Mapping))
    said: list[Any] = list(messages) if several else [None]
    if not all(isinstance(message, Mapping) for message in said):
        raise InvalidRequest("messages takes a list of mappings with role and content")
    if not said:
        raise InvalidRequest("messages is empty")
    return {"model": check_model(model), "messages": [dict(message) for message in said], **check(parameters)}


def completion_body(model: str, prompt: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a completion. Raises InvalidRequest for what can't be sent."""
    if not isinstance(prompt, str) or not prompt:
        raise InvalidRequest("the prompt is empty")
    return {"model": check_model(model), "prompt": prompt, **check(parameters)}


def embeddings_body(model: str, texts: str | Sequence[str], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request for embeddings. Raises InvalidRequest for what can't be sent."""
    if not texts or not all(isinstance(text, str) and text for text in ([texts] if isinstance(texts, str) else texts)):
        raise InvalidRequest("embeddings take a text, or a list of texts, none of them empty")
    if reserved := {"model", "input"} & set(extra):
        raise InvalidRequest(f"{sorted(reserved)[0]!r} is set by the call itself, it can't be in extra")
    return {"model": check_model(model), "input": texts if isinstance(texts, str) else list(texts), **extra}


def streamed(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same request, answered as a stream that ends with the token counts."""
    return {**body, "stream": True, "stream_options": {"include_usage": True, **body.get("stream_options", {})}}


def check_model(model: str) -> str:
    """The name of a model, if it can be one. Raises InvalidRequest."""
    if not isinstance(model, str) or not model.strip():
        raise InvalidRequest("the model name is empty")
    return model
