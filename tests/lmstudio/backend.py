"""What the `lms` stand-in and the HTTP stand-in share: a state file, and LM Studio's rules for it.

The rules are those that the recorded runs of `lms` show (`data/lms_runs.json`) and LM Studio's docs state: loading a
key again makes `key:2`, a name can be taken once, a just-in-time load has the default context. `knobs` in the state
turn on what goes wrong. A load that is under way is in `pending`, with the process that asked for it, and becomes an
instance when its time has come, whoever looks then.
"""

from __future__ import annotations

import contextlib
import json
import os
import time

TYPE_CHECKING = False  # `typing` itself is slow to import, and this is part of a command that starts very often
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any, TypeAlias

    State: TypeAlias = dict[str, Any]
    Model: TypeAlias = dict[str, Any]

try:
    import fcntl
except ImportError:  # pragma: no cover  # these tests start scripts as commands, which Windows can't
    fcntl = None  # type: ignore[assignment]

DATA = os.path.join(os.path.dirname(__file__), "data", "lms_runs.json")
DEFAULT_CONTEXT = 4096


def recorded() -> list[dict[str, Any]]:
    """The recorded runs."""
    with open(DATA, encoding="utf-8") as file:
        runs: list[dict[str, Any]] = json.load(file)["runs"]
    return runs


def fresh(**knobs: Any) -> State:
    """A state with the recorded models, nothing loaded, and the server on."""
    listing = next(run for run in recorded() if run["label"] == "ls --json")
    return {
        "models": json.loads(listing["stdout"]),
        "loaded": [],
        "pending": [],
        "last_loaded": [],
        "server": {"running": True, "port": 1234, "ever": True},
        "elsewhere": {},  # other LM Studios on this machine: their states, by the ports of their servers
        "knobs": knobs,
        "calls": [],
        "requests": [],
    }


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[State]:
    """The state, to read and to change, with nobody else at it."""
    with open(path, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        state: State = json.load(file)
        _settle(state)
        try:
            yield state
        finally:
            text = json.dumps(state)  # whole, since a process of `lms` may be killed in mid-write
            file.seek(0)
            file.write(text)
            file.truncate()


def _settle(state: State) -> None:
    now = time.time()
    for job in list(state["pending"]):
        survives = state["knobs"].get("survives")
        if not survives and not _alive(job["pid"]):
            state["pending"].remove(job)
        elif survives and now >= job["at"]:
            state["pending"].remove(job)
            state["loaded"].append(job["instance"])
    for instance in list(state["loaded"]):
        ttl, used = instance["ttlMs"], instance.get("used", now)
        if ttl is not None and now - used > ttl / 1000 and instance["status"] == "idle":
            state["loaded"].remove(instance)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def model_of(state: State, key: str) -> Model | None:
    found = [model for model in state["models"] if key in (model["modelKey"], *model.get("variants", ()))]
    return min(found, key=lambda model: model["deviceIdentifier"] is not None, default=None)


def by_name(state: State, identifier: str) -> dict[str, Any] | None:
    return next((one for one in state["loaded"] if one["identifier"] == identifier), None)


def instance(
    state: State,
    key: str,
    identifier: str | None = None,
    *,
    context: int | None = None,
    ttl: float | None = None,
    parallel: int | None = None,
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """An instance as it will be loaded; its default name is the key, or `key:2`, `key:3`, …"""
    model = model_of(state, key)
    assert model is not None
    variant = key if key != model["modelKey"] else model.get("selectedVariant")
    key = model["modelKey"]
    names = {one["identifier"] for one in state["loaded"]}
    if identifier is None:
        identifier = next(name for name in (key, *(f"{key}:{n}" for n in range(2, 99))) if name not in names)
    length = context or DEFAULT_CONTEXT
    return {
        "identifier": identifier,
        "modelKey": key,
        "contextLength": min(length, state["knobs"].get("cut_context", length)),
        "ttlMs": None if ttl is None else int(ttl * 1000),
        "lastUsedTime": None,
        "parallel": None if model["type"] == "embedding" else parallel or 4,
        "status": "idle",
        "queued": 0,
        "config": config or {},
        "variant": variant,
        "used": time.time(),
    }


def shown(state: State, one: dict[str, Any]) -> dict[str, Any]:
    """An instance as `lms ps --json` shows it."""
    item = dict(model_of(state, one["modelKey"]) or {})
    names = ["identifier", "ttlMs", "lastUsedTime", "contextLength"]
    if not state["knobs"].get("old"):
        names += ["status", "queued", "parallel"]
    else:
        item.pop("deviceIdentifier")
    if one.get("variant"):
        item["selectedVariant"] = one["variant"]
    return item | {name: one[name] for name in names}


GIB = 1024**3


def estimated(state: State, key: str, context: int | None, gpu: float | None) -> tuple[int, int]:
    """GPU and total bytes, by the formula that fits the recorded estimates."""
    model = model_of(state, key)
    assert model is not None
    total = model["sizeBytes"] * 1.02 + (context or DEFAULT_CONTEXT) * 57344
    return round(total * (1 if gpu is None else gpu)), round(total)


INSUFFICIENT = "Model loading was stopped due to insufficient system resources."
