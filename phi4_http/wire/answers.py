"""Unstreamed answers as typed values: chat completions, completions of a raw prompt, embeddings.

Each value keeps in `extra`, as they came, the fields that it does not know, and known ones of an unexpected kind.
Source: LM Studio's published REST v0 and OpenAI-compatible docs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..events import ToolCall, Usage
from .fields import Fields, text_of
from .parts import parse_tool_call, parse_usage


@dataclass(frozen=True, slots=True)
class ChatMessage:
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
    message: ChatMessage
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
    fields = Fields(payload)
    return ChatCompletion(choices=tuple(map(_chat_choice, fields.objects("choices"))), **_completion_fields(fields))


def parse_completion(payload: Mapping[str, Any]) -> Completion:
    """A text completion's JSON as a value. Raises ValueError with the field where it is none."""
    fields = Fields(payload)
    return Completion(choices=tuple(map(_text_choice, fields.objects("choices"))), **_completion_fields(fields))


def parse_embeddings(payload: Mapping[str, Any]) -> Embeddings:
    """An embeddings answer's JSON as a value. Raises ValueError with the field where it is none."""
    fields = Fields(payload)
    vectors = sorted(map(_vector, fields.objects("data")), key=lambda vector: vector[0])
    return Embeddings(
        model=fields.text("model"),
        vectors=tuple(vector for _, vector in vectors),
        usage=parse_usage(fields.take("usage", dict)),
        extra=fields.rest("object"),
    )


def _vector(fields: Fields) -> tuple[int, tuple[float, ...]]:
    """The vector of one input, and which one's it is."""
    values = fields.need("embedding", list)
    if not {type(value) for value in values} <= {float, int}:
        raise fields.fault("embedding", "is not an array of numbers")
    return fields.count("index") or 0, tuple(values)


def _chat_choice(fields: Fields) -> ChatChoice:
    message = fields.object("message")
    calls = message.objects("tool_calls") if message.look("tool_calls") else []
    thought = message.text("reasoning_content"), message.text("reasoning")
    content = message.look("content")
    message.text("content")  # the parts of any other content stay in the rest
    return ChatChoice(
        index=fields.count("index") or 0,
        message=ChatMessage(
            role=message.text("role") or "assistant",
            content=text_of(content),
            reasoning=thought[0] or thought[1] or None,
            tool_calls=tuple(parse_tool_call(call.rest()) for call in calls),
            extra=message.rest("tool_calls"),
        ),
        finish_reason=fields.text("finish_reason"),
        extra=fields.rest(),
    )


def _text_choice(fields: Fields) -> TextChoice:
    return TextChoice(
        index=fields.count("index") or 0,
        text=fields.need("text", str),
        finish_reason=fields.text("finish_reason"),
        extra=fields.rest(),
    )


def _completion_fields(fields: Fields) -> dict[str, Any]:
    return {
        "id": fields.text("id"),
        "model": fields.text("model"),
        "created": fields.count("created"),
        "usage": parse_usage(fields.take("usage", dict)),
        "stats": _stats(fields.take("stats", dict)),
        "model_info": _model(fields.take("model_info", dict)),
        "runtime": _runtime(fields.take("runtime", dict)),
        "extra": fields.rest("object"),
    }


def _stats(payload: dict[str, Any] | None) -> ServerStats | None:
    if payload is None:
        return None
    fields = Fields(payload)
    return ServerStats(
        tokens_per_second=fields.number("tokens_per_second"),
        time_to_first_token=fields.number("time_to_first_token"),
        generation_time=fields.number("generation_time"),
        stop_reason=fields.text("stop_reason"),
        extra=fields.rest(),
    )


def _model(payload: dict[str, Any] | None) -> AnsweringModel | None:
    if payload is None:
        return None
    fields = Fields(payload)
    return AnsweringModel(
        arch=fields.text("arch"),
        quant=fields.text("quant"),
        format=fields.text("format"),
        context_length=fields.count("context_length"),
        extra=fields.rest(),
    )


def _runtime(payload: dict[str, Any] | None) -> Runtime | None:
    if payload is None:
        return None
    fields = Fields(payload)
    return Runtime(
        name=fields.text("name"),
        version=fields.text("version"),
        supported_formats=fields.names("supported_formats"),
        extra=fields.rest(),
    )
