"""Unstreamed answers as typed values: chat completions, completions of a raw prompt, embeddings.

Each value keeps the fields that it does not know in `extra`, as they came. Source: LM Studio's published REST v0 and
OpenAI-compatible docs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..events import ToolCall, Usage


@dataclass(frozen=True, slots=True)
class Message:
    """What the model said. `reasoning` is the server's own split of the thought, where it made one."""

    role: str
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerStats:
    """LM Studio's own figures (v0): tokens per second, seconds, and why it stopped (`eosFound`, …)."""

    tokens_per_second: float | None = None
    time_to_first_token: float | None = None
    generation_time: float | None = None
    stop_reason: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AnsweringModel:
    """The model that answered (v0 `model_info`); `context_length` in tokens is that of the loaded instance."""

    arch: str | None = None
    quant: str | None = None
    format: str | None = None
    context_length: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Runtime:
    """The engine that answered (v0 `runtime`)."""

    name: str | None = None
    version: str | None = None
    supported_formats: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatChoice:
    """One answer of a chat completion."""

    index: int
    message: Message
    finish_reason: str | None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextChoice:
    """One continuation of a raw prompt."""

    index: int
    text: str
    finish_reason: str | None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """An unstreamed chat completion. `stats`, `model_info` and `runtime` come from LM Studio's v0 API only."""

    id: str | None
    model: str | None
    created: int | None
    choices: tuple[ChatChoice, ...]
    usage: Usage | None
    stats: ServerStats | None = None
    model_info: AnsweringModel | None = None
    runtime: Runtime | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completion:
    """An unstreamed completion of a raw prompt. `stats`, `model_info` and `runtime` come from v0 only."""

    id: str | None
    model: str | None
    created: int | None
    choices: tuple[TextChoice, ...]
    usage: Usage | None
    stats: ServerStats | None = None
    model_info: AnsweringModel | None = None
    runtime: Runtime | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors, one for each input, in the order of the inputs."""

    model: str | None
    vectors: tuple[tuple[float, ...], ...]
    usage: Usage | None
    extra: Mapping[str, Any] = field(default_factory=dict)


def parse_chat(payload: Mapping[str, Any]) -> ChatCompletion:
    """A chat completion's JSON as a value. Raises ValueError with the field where it is none."""
    return ChatCompletion(choices=tuple(map(_chat_choice, _objects(payload, "choices"))), **_completion_fields(payload))


def parse_completion(payload: Mapping[str, Any]) -> Completion:
    """A text completion's JSON as a value. Raises ValueError with the field where it is none."""
    return Completion(choices=tuple(map(_text_choice, _objects(payload, "choices"))), **_completion_fields(payload))


def parse_embeddings(payload: Mapping[str, Any]) -> Embeddings:
    """An embeddings answer's JSON as a value. Raises ValueError with the field where it is none."""
    data = sorted(_objects(payload, "data"), key=lambda item: count(item.get("index")) or 0)
    return Embeddings(
        model=payload.get("model"),
        vectors=tuple(tuple(_list(item, "embedding")) for item in data),
        usage=parse_usage(payload.get("usage")),
        extra=_rest(payload, ("model", "data", "usage")),
    )


def parse_usage(payload: Any) -> Usage | None:
    """Token counts, or None where there are none. A count that is no whole number stays in `extra`."""
    if not isinstance(payload, Mapping):
        return None
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    counts = {name: payload[name] for name in names if count(payload.get(name)) is not None}
    details = payload.get("prompt_tokens_details")
    cached = count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
    return Usage(cached_tokens=cached, extra=_rest(payload, tuple(counts)), **counts)


def parse_tool_call(payload: Mapping[str, Any]) -> ToolCall:
    """One whole tool call of a message."""
    function = payload.get("function")
    function = function if isinstance(function, Mapping) else {}
    return ToolCall(
        id=json_text(payload.get("id")),
        name=json_text(function.get("name")),
        arguments=json_text(function.get("arguments")),
        type=json_text(payload.get("type")) or "function",
    )


def json_text(value: Any) -> str:
    """A text as it is; any other value, where a text is usual, as its JSON; nothing for None."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def count(value: Any) -> int | None:
    """A count of something; None for what can't be one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def text_of(content: Any) -> str:
    """The text of a `content` field: a text, None, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(json_text(part.get("text")) for part in content if isinstance(part, Mapping))
    return ""


def _chat_choice(payload: Mapping[str, Any]) -> ChatChoice:
    message = payload.get("message")
    if not isinstance(message, Mapping):
        raise ValueError("choices[].message is missing")
    return ChatChoice(
        index=payload.get("index", 0),
        message=Message(
            role=message.get("role", "assistant"),
            content=text_of(message.get("content")),
            reasoning=message.get("reasoning_content") or message.get("reasoning"),
            tool_calls=tuple(
                map(parse_tool_call, _objects(message, "tool_calls") if message.get("tool_calls") else ())
            ),
            extra=_rest(message, ("role", "content", "reasoning_content", "reasoning", "tool_calls")),
        ),
        finish_reason=payload.get("finish_reason"),
        extra=_rest(payload, ("index", "message", "finish_reason")),
    )


def _text_choice(payload: Mapping[str, Any]) -> TextChoice:
    if not isinstance(payload.get("text"), str):
        raise ValueError("choices[].text is missing")
    return TextChoice(
        index=payload.get("index", 0),
        text=payload["text"],
        finish_reason=payload.get("finish_reason"),
        extra=_rest(payload, ("index", "text", "finish_reason")),
    )


def _completion_fields(payload: Mapping[str, Any]) -> dict[str, Any]:
    known = ("id", "model", "created", "choices", "usage", "stats", "model_info", "runtime", "object")
    return {
        "id": payload.get("id"),
        "model": payload.get("model"),
        "created": payload.get("created"),
        "usage": parse_usage(payload.get("usage")),
        "stats": _record(ServerStats, payload.get("stats")),
        "model_info": _record(AnsweringModel, payload.get("model_info")),
        "runtime": _record(Runtime, payload.get("runtime")),
        "extra": _rest(payload, known),
    }


_Record = TypeVar("_Record", ServerStats, AnsweringModel, Runtime)


def _record(kind: type[_Record], payload: Any) -> _Record | None:
    """A small record whose fields are named as in the JSON."""
    if not isinstance(payload, Mapping):
        return None
    names = [name for name in kind.__dataclass_fields__ if name != "extra"]
    known: dict[str, Any] = {name: payload[name] for name in names if name in payload}
    known.update((name, tuple(value)) for name, value in known.items() if isinstance(value, list))
    return kind(**known, extra=_rest(payload, names))


def _list(payload: Mapping[str, Any], name: str) -> list[Any]:
    value = payload.get(name)
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    return value


def _objects(payload: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = _list(payload, name)
    if not all(isinstance(item, Mapping) for item in value):
        raise ValueError(f"{name} is not a list of objects")
    return value


def _rest(payload: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in payload.items() if name not in known}
