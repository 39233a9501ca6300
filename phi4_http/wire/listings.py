"""What models there are and which are loaded: decoded JSON of any of the five sources in, frozen values out.

Five lists speak about models, each with its own names, and none says everything:

    parse_v0_models      GET /api/v0/models         state and loaded context length; not the size
    parse_v1_models      GET /api/v1/models         instances and size; since 0.4.0
    parse_openai_models  GET /v1/models             names alone (llama.cpp adds aliases, context, state)
    parse_lms_ls         lms ls --json              what is downloaded, with paths; not the state
    parse_lms_ps         lms ps --json              instances: who is busy, and the time to live

Missing fields are None, unknown ones are kept in `extra`, and so is a known one whose value has a shape that was
not expected. Only what can't be a list of models at all raises ValueError, which names the field. Sizes are in bytes,
context lengths in tokens, times in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .fields import Fault, Fields, each, shown

LOADED = "loaded"
NOT_LOADED = "not-loaded"


@dataclass(frozen=True, slots=True)
class Instance:
    """One loaded copy of a model. A field is None where the source does not tell it."""

    identifier: str
    """The name that requests use. The model's key, or `key:2` for a second copy, or a name of the caller's own."""
    model: str
    """The model's key."""
    context_length: int | None = None
    """Tokens it was really loaded with."""
    max_context_length: int | None = None
    """Tokens the model can have at most."""
    type: str | None = None
    """`llm`, `vlm`, `embeddings`."""
    status: str | None = None
    """`idle`, `processingPrompt`, `generating`, `computingEmbedding`. Only newer versions of `lms ps` tell."""
    queued: int | None = None
    """Requests that wait for it."""
    parallel: int | None = None
    """Requests that it serves at a time."""
    ttl: int | None = None
    """Idle seconds after which it is unloaded, rounded up; None: never (`ttlMs` is in `extra` then), or unknown."""
    last_used: float | None = None
    """Seconds since the epoch."""
    size_bytes: int | None = None
    """Size of the model's file, which is less than the memory it takes."""
    device: str | None = None
    """The other machine it is loaded on (LM Link), None for this one."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Every other field, as it came."""

    @property
    def busy(self) -> bool | None:
        """Whether it works or has work waiting; None where the source can't tell."""
        if self.status is None and self.queued is None:
            return None
        return bool(self.queued) or self.status not in (None, "idle")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model as a server or `lms` lists it. A field is None where the source does not tell it."""

    id: str
    """The model's key, such as `microsoft/phi-4-reasoning-plus`; in v0 and `/v1` lists it may name an instance."""
    type: str | None = None
    """`llm`, `vlm`, `embeddings`."""
    publisher: str | None = None
    arch: str | None = None
    compatibility_type: str | None = None
    """The format of the file: `gguf`, `mlx`, `safetensors`, ..."""
    quantization: str | None = None
    state: str | None = None
    """`loaded`, `not-loaded`, or whatever else the server says (llama.cpp's router: `loading`, `sleeping`,
    `downloading`); None: unknown."""
    max_context_length: int | None = None
    """Tokens the model can have at most."""
    loaded_context_length: int | None = None
    """Tokens it is loaded with; of several instances, the first one's."""
    capabilities: tuple[str, ...] = ()
    """v0's names: `tool_use`, `vision`, `reasoning`, ..."""
    size_bytes: int | None = None
    """Size of the file."""
    display_name: str | None = None
    path: str | None = None
    """Where the file is, below LM Studio's folder of models; only `lms ls` tells."""
    device: str | None = None
    """The other machine it is on (LM Link), None for this one."""
    instances: tuple[Instance, ...] = ()
    """The loaded copies; only the v1 list tells."""
    aliases: tuple[str, ...] = ()
    """Further names that requests can use; only llama.cpp's servers tell."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Every other field, as it came."""

    @property
    def loaded(self) -> bool | None:
        """Whether it is loaded; None where that is unknown, or the state is one that this library does not know."""
        return {LOADED: True, NOT_LOADED: False}.get(self.state or "")


# --- the lists ---------------------------------------------------------------------------------------------------


def parse_v0_models(data: Any) -> tuple[ModelInfo, ...]:
    """The body of `GET /api/v0/models`. Raises ValueError if it is no list of models."""
    return each(_listed(data, "data"), "data", _v0_model)


def parse_v1_models(data: Any) -> tuple[ModelInfo, ...]:
    """The body of `GET /api/v1/models`. Raises ValueError if it is no list of models."""
    return each(_listed(data, "models"), "models", _v1_model)


def parse_openai_models(data: Any) -> tuple[ModelInfo, ...]:
    """The body of `GET /v1/models`. Raises ValueError if it is no list of models.

    llama.cpp adds `meta`, which stays in `extra`: its `n_ctx` is the loaded context length, `n_ctx_train` the longest.
    Its router adds `status`, whose `value` is the state; what it says of a failed load stays in `extra`. All other
    servers leave the state unknown. vLLM adds `max_model_len`, which is the loaded context length.
    """
    return each(_listed(data, "data"), "data", _openai_model)


def parse_lms_ls(data: Any) -> tuple[ModelInfo, ...]:
    """The output of `lms ls --json`. Raises ValueError if it is no list of models."""
    return each(_listed(data, None), "ls", _ls_model)


def parse_lms_ps(data: Any) -> tuple[Instance, ...]:
    """The output of `lms ps --json`. Raises ValueError if it is no list of instances."""
    return each(_listed(data, None), "ps", _ps_instance)


# --- one item of each ------------------------------------------------------------------------------------------


def _v0_model(fields: Fields) -> ModelInfo:
    return ModelInfo(
        id=fields.need("id", str),
        type=_type_name(fields.text("type")),
        publisher=fields.text("publisher"),
        arch=fields.text("arch"),
        compatibility_type=fields.text("compatibility_type"),
        quantization=fields.text("quantization"),
        state=fields.text("state"),
        max_context_length=fields.count("max_context_length"),
        loaded_context_length=fields.count("loaded_context_length"),
        capabilities=fields.names("capabilities"),
        size_bytes=fields.count("size_bytes"),
        display_name=fields.text("display_name"),
        extra=fields.rest("object"),
    )


def _v1_model(fields: Fields) -> ModelInfo:
    key, longest, kind = fields.need("key", str), fields.count("max_context_length"), _type_name(fields.text("type"))
    size = fields.count("size_bytes")
    items: list[Any] | None = fields.take("loaded_instances", list)

    def instance(item: Fields) -> Instance:
        config = Fields(item.take("config", dict) or {}, item.where)
        return Instance(
            identifier=item.need("id", str),
            model=key,
            context_length=config.count("context_length"),
            max_context_length=longest,
            type=kind,
            parallel=config.count("parallel"),
            size_bytes=size,
            extra={**config.rest(), **item.rest()},
        )

    instances = each(items or [], f"{fields.where}.loaded_instances", instance)
    return ModelInfo(
        id=key,
        type=kind,
        publisher=fields.text("publisher"),
        arch=fields.text("architecture"),
        compatibility_type=fields.text("format"),
        quantization=fields.inner("quantization", "name") or fields.text("quantization"),
        state=None if items is None else LOADED if instances else NOT_LOADED,
        max_context_length=longest,
        loaded_context_length=instances[0].context_length if instances else None,
        capabilities=tuple(_CAPABILITIES.get(name, name) for name in fields.flags("capabilities")),
        size_bytes=size,
        display_name=fields.text("display_name"),
        instances=instances,
        extra=fields.rest(),
    )


def _openai_model(fields: Fields) -> ModelInfo:
    meta = fields.look("meta")
    context = Fields(meta if isinstance(meta, Mapping) else {}, fields.where)
    state = fields.inner("status", "value")
    return ModelInfo(
        id=fields.need("id", str),
        aliases=fields.names("aliases"),
        state=NOT_LOADED if state == "unloaded" else state,
        max_context_length=context.count("n_ctx_train"),
        loaded_context_length=context.count("n_ctx") or fields.count("max_model_len"),
        size_bytes=context.count("size"),
        extra=fields.rest("object"),
    )


def _ls_model(fields: Fields) -> ModelInfo:
    return ModelInfo(
        id=fields.need("modelKey", str),
        type=_type_name(fields.text("type")),
        publisher=fields.text("publisher"),
        arch=fields.text("architecture"),
        compatibility_type=fields.text("format"),
        quantization=fields.inner("quantization", "name") or fields.text("quantization"),
        max_context_length=fields.count("maxContextLength"),
        capabilities=_cli_capabilities(fields),
        size_bytes=fields.count("sizeBytes"),
        display_name=fields.text("displayName"),
        path=fields.text("path"),
        device=fields.text("deviceIdentifier"),
        extra=fields.rest(),
    )


def _ps_instance(fields: Fields) -> Instance:
    never = {"ttlMs": None} if fields.has_null("ttlMs") else {}
    ttl, last_used = fields.count("ttlMs"), fields.count("lastUsedTime")
    return Instance(
        identifier=fields.need("identifier", str),  # empty after `lms load --identifier ""`
        model=fields.need("modelKey", str),
        context_length=fields.count("contextLength"),
        max_context_length=fields.count("maxContextLength"),
        type=_type_name(fields.text("type")),
        status=fields.text("status"),
        queued=fields.count("queued"),
        parallel=fields.count("parallel"),
        ttl=None if ttl is None else -(-ttl // 1000),
        last_used=None if last_used is None else last_used / 1000,
        size_bytes=fields.count("sizeBytes"),
        device=fields.text("deviceIdentifier"),
        extra={**fields.rest(), **never},
    )


def _type_name(name: str | None) -> str | None:
    """v1 and `lms` say `embedding` where v0 says `embeddings`."""
    return "embeddings" if name == "embedding" else name


_CAPABILITIES = {"trained_for_tool_use": "tool_use", "trainedForToolUse": "tool_use"}
"""What the other sources call v0's capabilities, where the name differs."""


def _cli_capabilities(fields: Fields) -> tuple[str, ...]:
    names = [name for name in ("vision", "trainedForToolUse") if fields.take(name, bool)]
    return tuple(_CAPABILITIES.get(name, name) for name in names)


def _listed(data: Any, name: str | None) -> list[Any]:
    """The list itself, or the one under that name."""
    if name is not None:
        data = Fields(data, name).look(name)
    if not isinstance(data, list):
        raise Fault(name or "output", f"is not a list of models but {shown(data)}")
    return data
