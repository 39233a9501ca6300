"""What can be asked of a load, by which way, and whether a loaded instance has it.

Three ways lead to a loaded model, and none can set everything:

    lms    the command `lms load`                context length, gpu, ttl, parallel, identifier
    rest   POST /api/v1/models/load (0.4.0+)     context length, flash attention, batch size, KV cache offload, experts
    jit    any request that names the model      ttl

RoPE base and scale and keep-in-memory are settable by none of them, only in LM Studio's own per-model defaults; they
are fields here so that asking for them is an error and not a silence. Everything is checked before anything runs:
`lms` reads numbers as JavaScript does (`""` is 0, which turns the GPU off), and servers ignore what they don't know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from ..errors import InvalidRequest, UnsupportedSetting
from ..wire.listings import Instance, ModelInfo

Way: TypeAlias = Literal["lms", "rest", "jit"]
"""A way of loading a model."""

ABLE: dict[str, tuple[Way, ...]] = {
    "context_length": ("lms", "rest"),
    "gpu": ("lms",),
    "ttl": ("lms", "jit"),
    "parallel": ("lms",),
    "identifier": ("lms",),
    "flash_attention": ("rest",),
    "eval_batch_size": ("rest",),
    "offload_kv_cache_to_gpu": ("rest",),
    "num_experts": ("rest",),
    "rope_frequency_base": (),
    "rope_frequency_scale": (),
    "keep_model_in_memory": (),
}
"""Each setting, and the ways that can set it. From LM Studio's REST docs and the options of `lms load`."""


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """How a model is to be loaded. None leaves a setting to LM Studio.

    Raises InvalidRequest, with the range, for a value that can't be.
    """

    context_length: int | None = None
    """Tokens, from 1 to the model's longest."""
    gpu: Literal["max", "off", "auto"] | float | None = None
    """What goes to the GPU: a share of the model from 0 to 1, `max` (1), `off` (0), or `auto`: LM Studio decides."""
    ttl: int | None = None
    """Idle seconds after which LM Studio unloads it, 1 or more. None: `lms` and REST loads stay until unloaded."""
    parallel: int | None = None
    """Requests served at a time, 1 or more."""
    identifier: str | None = None
    """The instance's name in requests; None: the model's key."""
    flash_attention: bool | None = None
    eval_batch_size: int | None = None
    """Tokens of the prompt evaluated at a time, 1 or more."""
    offload_kv_cache_to_gpu: bool | None = None
    num_experts: int | None = None
    """Experts used by a mixture-of-experts model, 1 or more."""
    rope_frequency_base: float | None = None
    rope_frequency_scale: float | None = None
    keep_model_in_memory: bool | None = None

    def __post_init__(self) -> None:
        _check_whole(self, "context_length", "tokens")
        _check_whole(self, "ttl", "seconds")
        _check_whole(self, "parallel", "requests")
        _check_whole(self, "eval_batch_size", "tokens")
        _check_whole(self, "num_experts", "experts")
        for name in ("flash_attention", "offload_kv_cache_to_gpu", "keep_model_in_memory"):
            if not isinstance(getattr(self, name), bool | None):
                raise InvalidRequest(f"{name} is {getattr(self, name)!r}: it takes True or False")
        for name in ("rope_frequency_base", "rope_frequency_scale"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value > 0):
                raise InvalidRequest(f"{name} is {value!r}: it takes a number above 0")
        share: Any = self.gpu
        if share not in (None, "max", "off", "auto") and not (_is_number(share) and 0 <= share <= 1):
            raise InvalidRequest(f"gpu is {share!r}: it takes 'max', 'off', 'auto', or a share from 0 to 1")
        if self.identifier is not None:
            check_name(self.identifier, "identifier")

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of the settings that are not left to LM Studio."""
        left = ("gpu",) if self.gpu == "auto" else ()
        return tuple(name for name in ABLE if getattr(self, name) is not None and name not in left)

    def beyond(self, way: Way) -> tuple[str, ...]:
        """The settings asked for that this way can't set."""
        return tuple(name for name in self.settings if way not in ABLE[name])


def check_name(name: str, what: str) -> str:
    """The name of a model or instance, if it can be an argument of a command and is no option of it.

    Raises InvalidRequest for an empty one, one that starts with `-`, and one with control characters.
    """
    if not isinstance(name, str) or not name.strip():
        raise InvalidRequest(f"the {what} is {name!r}: it takes a text that is not empty")
    if name.startswith("-"):
        raise InvalidRequest(f"the {what} {name!r} starts with '-': a command would take it for an option")
    if not name.isprintable():
        raise InvalidRequest(f"the {what} {name!r} holds control characters")
    return name


def usable_ways(config: LoadConfig, order: Sequence[Way]) -> tuple[Way, ...]:
    """The ways of `order` that can set all that the config asks for, in that order.

    Raises UnsupportedSetting where there is none. It names the settings of the way that comes closest.
    """
    usable: tuple[Way, ...] = tuple(way for way in order if not config.beyond(way))
    if usable:
        return usable
    closest = min(order, key=lambda way: len(config.beyond(way)))
    beyond = config.beyond(closest)
    able = [way for way in ABLE[beyond[0]] if not config.beyond(way)]
    raise UnsupportedSetting(beyond, way=closest, able=tuple(able), reason=which_ways(config))


def which_ways(config: LoadConfig) -> str:
    """Which ways can set each of the settings asked for."""
    nobody = "only LM Studio's own per-model defaults"
    return "; ".join(f"{name}: {', '.join(ABLE[name]) or nobody}" for name in config.settings)


def check_against(config: LoadConfig, model: ModelInfo) -> None:
    """Raises InvalidRequest for what this model can't have: a context above its longest, parallel embeddings."""
    longest = model.max_context_length
    if config.context_length is not None and longest and config.context_length > longest:
        asked = f"context_length is {config.context_length:,}"
        raise InvalidRequest(f"{asked}: {model.id} takes from 1 to {longest:,} tokens")
    if config.parallel is not None and model.type == "embeddings":
        # `lms load` takes the option and drops it without a word.
        raise InvalidRequest(f"parallel is {config.parallel}: {model.id} is an embedding model and has no such setting")


def unmet(config: LoadConfig, instance: Instance) -> tuple[str, ...]:
    """The settings that the instance is known not to have. What its source does not tell is `unread`."""
    return tuple(name for name in config.settings if _is_told(name, instance) and not _is_met(name, config, instance))


def unread(config: LoadConfig, instance: Instance) -> tuple[str, ...]:
    """The settings asked for of which the instance's source does not tell what it has."""
    return tuple(name for name in config.settings if not _is_told(name, instance))


READERS: dict[str, Way] = {
    "ttl": "lms",
    "parallel": "lms",
    "flash_attention": "rest",
    "eval_batch_size": "rest",
    "offload_kv_cache_to_gpu": "rest",
    "num_experts": "rest",
}
"""Who tells a setting that not every list does: `lms ps`, or the native v1 list. Nobody tells the GPU share."""


def _is_told(name: str, instance: Instance) -> bool:
    if name == "ttl":  # where it is never unloaded, `lms ps` says null
        return instance.ttl is not None or "ttlMs" in instance.extra
    return _value(name, instance) is not None


def _value(name: str, instance: Instance) -> Any:
    """What the instance has; what is no field of it is in the REST list's `config`, under the same name."""
    return getattr(instance, name) if name in _KNOWN else instance.extra.get(name)


def _is_met(name: str, config: LoadConfig, instance: Instance) -> bool:
    asked, has = getattr(config, name), _value(name, instance)
    return bool(has >= asked) if name in ("context_length", "parallel") else bool(has == asked)


_KNOWN = frozenset(field.name for field in fields(Instance))


def lms_arguments(config: LoadConfig) -> tuple[str, ...]:
    """The settings as options of `lms load`, each value an argument of its own."""
    options = {
        "context_length": "--context-length",
        "gpu": "--gpu",
        "ttl": "--ttl",
        "parallel": "--parallel",
        "identifier": "--identifier",
    }
    pairs = [(options[name], str(getattr(config, name))) for name in config.settings if name in options]
    return tuple(argument for pair in pairs for argument in pair)


def rest_body(config: LoadConfig, model: str) -> dict[str, Any]:
    """The body of `POST /api/v1/models/load`."""
    return {"model": model} | {name: getattr(config, name) for name in config.settings if "rest" in ABLE[name]}


def _check_whole(config: LoadConfig, name: str, unit: str) -> None:
    value = getattr(config, name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InvalidRequest(f"{name} is {value!r}: it takes a whole number of {unit}, 1 or more")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
