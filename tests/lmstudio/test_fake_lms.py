"""The stand-in for `lms` is worth what its likeness is worth: it is held against the recorded runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

import pytest

from lmstudio import backend
from lmstudio.world import World

# What was loaded before a run, where it matters; (key, identifier, context length) each.
LLAMA, QWEN, GPT = "llama-3.2-1b-instruct", "qwen2.5-7b-instruct", "openai/gpt-oss-20b"
BEFORE: dict[str, list[tuple[str, str]]] = {
    "load same key again -y (second instance)": [(LLAMA, LLAMA)],
    "load same key third time -y": [(LLAMA, LLAMA), (LLAMA, f"{LLAMA}:2")],
    "ps --json three instances": [(LLAMA, LLAMA), (LLAMA, f"{LLAMA}:2"), (LLAMA, f"{LLAMA}:3")],
    "load duplicate --identifier": [(GPT, "my-model")],
    "unload model KEY rather than identifier": [(LLAMA, "one"), (LLAMA, "two")],
    "unload no id, two loaded, stdin null": [(LLAMA, "one"), (LLAMA, "two")],
    "unload id + --all": [(LLAMA, "one"), (LLAMA, "two")],
    "unload ok": [(LLAMA, "one"), (LLAMA, "two")],
    "unload no id, one loaded": [(LLAMA, "two")],
    "unload --all": [(LLAMA, "x")],
    "unload backend failure": [(LLAMA, "x")],
}
KNOBS: dict[str, dict[str, Any]] = {
    "estimate-only fails guardrails (exit code?) low confidence": {"guardrails": True, "low_confidence": True},
    "load fails guardrails (backend error)": {"guardrails": True},
    "unload backend failure": {"unload_fails": True},
    "ps --json RPC error": {"ps_fails": True},
    "load, connection dropped mid-load": {"crash": True},
    "service cannot start: ps --json": {"service_down": True},
    "development build warning on stderr": {"noise": True},
    "server start, server never answers": {"never_answers": True},
    "server start, backend error (port in use)": {"port_in_use": True},
}
KEYS = {model["modelKey"] for model in backend.fresh()["models"]}
# What the library never asks for, and so the stand-in does not do; and ends of a run by a signal, which have tests.
NEVER = (
    "table",
    "(text)",
    "variant",
    "speculative",
    "--quiet",
    "--verbose",
    "--log-level",
    "FORCE_COLOR",
    "de_DE",
    "SIG",
    "afterwards",
    "after full options",
    "after signals",
    "after stop",
    "with embedding",
    "ambiguous 'q'",
    "no key: loads",
    "bad option -c",
    "load backend failure",
    "auto-starts",
    "cors",
    "-p 0",
    "-p abc",
    "-p 70000",
    "--host (not",
    "no port",
    "development build",
)
SAYS = [run for run in backend.recorded() if not any(part in run["label"] for part in NEVER)]


def picture(text: str) -> object:
    """A text without what differs from run to run: times, and how often the spinner turned."""
    if "Loading " in text:
        return "100% " in text, text[-10:]
    if text.startswith("["):
        return json.loads(text)
    if "? Select a model" in text:
        return "a prompt"
    return re.sub(r"in [\d.]+ms", "in a while", text)


def before(run: dict[str, Any]) -> list[tuple[str, str]]:
    """The instances that were there, as (key, identifier): for a load, all that were there after it but its own."""
    if run["label"] in BEFORE or run["argv"][1] != "load":
        return BEFORE.get(run["label"], [])
    names = run.get("loaded_after", [])
    names = names if run["exit_code"] or {"--estimate-only", "-v"} & set(run["argv"]) else names[:-1]
    return [(base if (base := name.partition(":")[0]) in KEYS else LLAMA, name) for name in names]


@pytest.mark.parametrize("run", SAYS, ids=[run["label"] for run in SAYS])
def test_stand_in_says_what_the_real_command_said(run: dict[str, Any], world: World) -> None:
    """For every recorded run that the library may cause: same streams, same exit code, same instances after it."""
    with world.state() as state:
        state["knobs"] = KNOBS.get(run["label"], {})
        ever = "never started" not in run["label"] and "cannot start" not in run["label"]
        state["server"] = {"running": ever, "port": 51235 if run["label"] == "server stop" else 51234, "ever": ever}
        for key, identifier in before(run):
            state["loaded"].append(backend.instance(state, key, identifier))
    environment = {"PATH": os.environ["PATH"], "COLUMNS": "80", **(run.get("env") or {})}
    command = [world.lms, *run["argv"][1:]]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=environment, check=False)
    assert done.returncode == run["exit_code"]
    assert picture(done.stdout.decode()) == picture(run.get("stdout", ""))
    assert picture(done.stderr.decode()) == picture(run.get("stderr", ""))
    if run["argv"][1] in ("load", "unload"):
        with world.state() as state:
            assert [one["identifier"] for one in state["loaded"]] == run.get("loaded_after", [])
