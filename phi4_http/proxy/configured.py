"""What is behind the proxy, as settings say: the command line's, or the environment's."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from ..lmstudio.config import LoadConfig
from ..reply.rescue import Rescue
from ..settings import SETTINGS, find, timeouts_of, token_in
from .gate import Gate, names
from .repair import Repair
from .upstream import Upstream

GROUPS = ("server", "loading", "template", "sampling", "thought", "proxy")
"""The groups of settings that are the proxy's."""
FIELDS: tuple[str, ...] = ("instructions", *(each.field for each in SETTINGS if each.group in GROUPS))


def configured(values: Mapping[str, Any]) -> tuple[Upstream, Repair, Gate]:
    """What is behind the proxy; `values` are settings by field. Raises InvalidRequest for what can't be."""
    gpu: Any = values["gpu"]
    with contextlib.suppress(ValueError, TypeError):
        gpu = float(gpu)
    length = values["context_length"]
    load = None if length is None and gpu is None else LoadConfig(context_length=length, gpu=gpu, ttl=values["ttl"])
    sampling = {each.field: values[each.field] for each in SETTINGS if each.group == "sampling"}
    reserve = sampling.pop("reserve")
    repair = Repair(values["models"], values["reasoning"], values["closer"], values["keepalive"])
    upstream = Upstream(
        values["url"],
        token=token_in(values["token_variable"]),
        timeouts=timeouts_of(values["timeout"], values["max_time"]),
        lms=values["lms"],
        load=load,
        instructions=values["instructions"],
        system=values["system"],
        opener=values["opener"],
        closer=repair.closer,
        reserve=reserve,
        rescue=Rescue(values["thinking_budget"], values["on_unclosed"], values["on_loop"]),
        **{name: value for name, value in {**sampling, "ttl": values["ttl"]}.items() if value is not None},
    )
    return upstream, repair, Gate(names(values["allow_host"]), names(values["cors"]))


def from_environment(environment: Mapping[str, str] | None = None) -> tuple[Upstream, Repair, Gate]:
    """The same, as the environment and the configuration file say. Raises InvalidRequest."""
    return configured({field: each.value for field, each in find(FIELDS, environment).items()})
