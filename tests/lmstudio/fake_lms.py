"""A stand-in for `lms`: the recorded command's outputs, streams and exit codes, over the shared state.

`test_fake_lms.py` holds it against the recorded runs.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import time

from lmstudio import backend
from lmstudio.backend import opened

TYPE_CHECKING = False  # as in `backend`
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from lmstudio.backend import Model, State

HIDE, SHOW, CLEAR = "\x1b[?25l", "\x1b[?25h", "\x1b[K"

VALUES = {
    "load": ("--gpu", "-c", "--context-length", "--parallel", "--ttl", "--identifier", "--host", "--port"),
    "unload": ("--host", "--port"),
    "ps": ("--host", "--port"),
    "ls": ("--host", "--port"),
    "server": ("-p", "--port", "--bind"),
}
FLAGS = {
    "load": ("--exact", "--local", "-y", "--yes", "--estimate-only"),
    "unload": ("-a", "--all"),
    "ps": ("--json",),
    "ls": ("--json", "--llm", "--embedding"),
    "server": ("--json", "--cors"),
}


def main(path: str, argv: list[str]) -> None:
    with opened(path) as state:
        environment = {name: os.environ.get(name) for name in ("FORCE_COLOR", "COLUMNS", "LC_ALL")}
        state["calls"].append({"argv": argv, "env": environment, "pid": os.getpid()})
        knobs = state["knobs"]
    PLAIN[0] = bool(knobs.get("plain"))
    if "-v" in argv or "--version" in argv:
        out("CLI commit: 07b7252\n")
        sys.exit(0)
    command = argv[0] if argv else ""
    if command not in VALUES:
        die(f"error: unknown command '{command}'\n")
    if command in knobs.get("hang", ()):
        hang(path)
    if knobs.get("service_down") and command != "server":
        err("Waking up LM Studio service...\n")
        die("Error: Failed to start or connect to local LM Studio API server.\n")
    if knobs.get("service_starts"):
        err("Waking up LM Studio service...\n")
        service()
    options, positional = parse(command, argv[1:], knobs)
    if command != "server":
        path = reach(path, options)
    {"load": load, "unload": unload, "ps": ps, "ls": ls, "server": server}[command](path, options, positional)


def parse(command: str, argv: list[str], knobs: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Options and the rest, as commander does it."""
    options: dict[str, str] = {}
    positional: list[str] = []
    values = [name for name in VALUES[command] if not (knobs.get("old") and name == "--parallel")]
    arguments = iter(argv)
    for argument in arguments:
        if argument in values:
            value = next(arguments, None)
            if value is None:
                die(f"error: option '{argument}' argument missing\n")
            options[{"-c": "--context-length", "-p": "--port"}.get(argument, argument)] = value
        elif argument in FLAGS[command]:
            options[{"-y": "--yes", "-a": "--all"}.get(argument, argument)] = ""
        elif argument.startswith("-"):
            die(f"error: unknown option '{argument}'\n")
        else:
            positional.append(argument)
    limit = 2 if command == "server" else 1
    if len(positional) > limit:
        die(f"error: too many arguments for '{command}'. Expected 1 argument but got {len(positional)}.\n")
    return options, positional


def reach(path: str, options: dict[str, str]) -> str:
    """The greeting that `--host` and `--port` ask for (the command's source): whoever answers at that port is spoken
    to, which may be another LM Studio on this machine. It is waited for 500 ms, too short where the server is busy."""
    host = options.get("--host")
    if host in (None, "127.0.0.1") and "--port" not in options:
        return path
    if host and "://" in host:
        die("Error: Host should not include the protocol.\n")
    if host and ":" in host:
        die("Error: Host should not include the port number. Use --port instead.\n")
    port = int(options.get("--port", 1234))
    with opened(path) as state:
        if state["knobs"].get("ignores_port"):  # not known of any release: what must be noticed all the same
            return path
        there = state["server"]["running"] and state["server"]["port"] == port
        other = state["elsewhere"].get(str(port))
        if state["knobs"].get("busy_greetings"):
            state["knobs"]["busy_greetings"] -= 1
            there, other = False, None
    if not there and other is None:
        die(
            f"Error: The server does not appear to be running at {host or '127.0.0.1'}:{port}. Please make sure the "
            "server is running and accessible at the specified address.\n"
        )
    return path if there else str(other)


# --- load


NUMBERS = {
    "--context-length": ("-c, --context-length <length>", True, 1, None),
    "--gpu": ("--gpu <offload-ratio>", False, 0, 1),
    "--ttl": ("--ttl <seconds>", True, 1, None),
    "--parallel": ("--parallel <count>", True, 1, None),
}


def number(options: dict[str, str], name: str) -> float | None:
    """A number as JavaScript reads it."""
    text = options.get(name)
    if text is None:
        return None
    shown, whole, least, most = NUMBERS[name]
    if name == "--gpu" and text in ("off", "max"):
        return {"off": 0.0, "max": 1.0}[text]
    try:
        value = 0.0 if not text.strip() else float(text)
    except ValueError:
        die(f"error: option '{shown}' argument '{text}' is invalid. Not a number\n")
    if whole and not value.is_integer():
        die(f"error: option '{shown}' argument '{text}' is invalid. Not an integer\n")
    if value < least or (most is not None and value > most):
        wanted = f"at least {least}" if most is None else f"between {least} and {most}"
        die(f"error: option '{shown}' argument '{text}' is invalid. Number out of range, must be {wanted}\n")
    return value


def load(path: str, options: dict[str, str], positional: list[str]) -> None:
    values = {name: number(options, name) for name in NUMBERS}
    with opened(path) as state:
        gone = state["knobs"].pop("deleted_meanwhile", None)
        state["models"] = [model for model in state["models"] if model["modelKey"] != gone]
        model = select(state, options, positional)
    if "--estimate-only" in options:
        estimate(path, model, values)
        return
    carry_out(path, model, options.get("--identifier"), values)


def select(state: State, options: dict[str, str], positional: list[str]) -> dict[str, Any]:
    asked = positional[0] if positional else None
    models: list[Model] = sorted(
        (model for model in state["models"] if "--local" not in options or model["deviceIdentifier"] is None),
        key=lambda model: (state["last_loaded"] + [model["path"]]).index(model["path"]),
    )
    if "--exact" in options:
        if asked is None:
            box("Path not provided", "The parameter [model-key] is required when using the --exact flag.")
            sys.exit(1)
        found = [model for model in models if model["path"] == asked]
        if not found:
            shortest = min((model["path"] for model in models), key=len)
            box(
                "Model not found",
                f'No model found with path being exactly "{asked}".',
                "To disable exact matching, remove the --exact flag.",
                "To see a list of all downloaded models, run:",
                "    lms ls",
                f"Note, you need to provide the full model path. For example:\n\n  lms load --exact {shortest}",
            )
            sys.exit(1)
        return found[0]
    found = fuzzy(asked or "", models)
    if "--yes" in options:
        if not found:
            box(
                "Model not found",
                f'No model found that matches model key "{asked}".',
                "To see a list of all downloaded models, run:",
                "    lms ls",
                "To select a model interactively, remove the --yes flag:",
                "    lms load",
            )
            sys.exit(1)
        if len(found) > 1:
            err(f"W {len(found)} models match the provided model key on the same device. Loading the first one.\n")
        return found[0]
    out("\n")
    if len(found) != 1 or asked is None:
        if asked is not None:
            out(
                "! Multiple models match the provided model key. Please select one.\n"
                if found
                else f"! Cannot find a model matching the provided model key ({asked}). "
                "Please select one from the list below.\n"
            )
        err("? Select a model to load |\n")
        sys.stdin.read()  # for ever, if nobody closes it
        sys.exit(1)
    return found[0]


def fuzzy(pattern: str, models: list[Model]) -> list[Model]:
    """Subsequence search, long runs first: the one of npm's `fuzzy`, which `lms` uses."""
    scored: list[tuple[float, Model]] = []
    for model in models:
        rest, run, total = list(pattern.lower()), 0, 0
        for character in model["modelKey"].lower():
            if rest and character == rest[0]:
                rest.pop(0)
                run += 1 + run
            else:
                run = 0
            total += run
        if not rest:
            exact = model["modelKey"].lower() == pattern.lower()
            scored.append((math.inf if exact else total, model))
    return [model for _, model in sorted(scored, key=lambda pair: -pair[0])]


def carry_out(path: str, model: dict[str, Any], identifier: str | None, values: dict[str, float | None]) -> None:
    key = model["modelKey"]
    with opened(path) as state:
        knobs = state["knobs"]
        if "rival" in knobs:  # somebody else was a little faster
            state["loaded"].append(backend.instance(state, key, context=knobs["rival"]))
        if identifier is not None and backend.by_name(state, identifier):
            taken(identifier)
        if knobs.get("guardrails"):
            out(f"\r{CLEAR}{SHOW}")
            advice = "Adjust the model loading guardrails in settings."
            die(f"Error: {backend.INSUFFICIENT} \n\n\n (!) SUGGESTION {advice}\n")
        made = backend.instance(state, key, identifier, context=whole(values["--context-length"]))
        if made["contextLength"] > knobs.get("refuses_above", math.inf):
            out(f"\r{CLEAR}{SHOW}")
            die("Error: Failed to load the model.\n")
        made |= {"ttlMs": None if values["--ttl"] is None else whole(values["--ttl"] * 1000)}
        if values["--parallel"] is not None and made["parallel"] is not None:
            made["parallel"] = whole(values["--parallel"])
        made["gpu"] = values["--gpu"]
        seconds = knobs.get("load_seconds", 0.02)
        job = {"instance": made, "pid": os.getpid(), "at": time.time() + seconds}
        state["pending"].append(job)
        state["last_loaded"] = [model["path"], *(other for other in state["last_loaded"] if other != model["path"])]

    def cancelled(*_: object) -> NoReturn:
        if knobs.get("deaf"):
            time.sleep(600)
        with opened(path) as state:
            state["pending"] = [other for other in state["pending"] if other["pid"] != os.getpid()]
        out(f"\r{CLEAR}{SHOW}")
        die("W Load cancelled.\n")

    signal.signal(signal.SIGINT, cancelled)
    if knobs.get("children"):
        sleeper(path)
    frame = iter("⠙⠹⠸⠼⠴⠦⠧⠇" * 9)
    for percent in ("", "25% ", "75% ", "100% "):
        out(f"{HIDE}\rLoading {key} {percent}{next(frame)}")
        if percent == "75% " and knobs.get("crash"):
            out(f"\r{CLEAR}{SHOW}")
            with opened(path) as state:
                state["pending"] = [other for other in state["pending"] if other["pid"] != os.getpid()]
            die("Error: WebSocket connection closed\n")
        time.sleep(seconds / 4)
    with opened(path) as state:
        state["pending"] = [other for other in state["pending"] if other["pid"] != os.getpid()]
        if identifier is None:
            made["identifier"] = backend.instance(state, key)["identifier"]
        elif backend.by_name(state, identifier) and not knobs.get("survives"):
            taken(identifier)
        made["used"] = time.time()
        if not backend.by_name(state, made["identifier"]):
            state["loaded"].append(made)
    out(f"\r{CLEAR}{SHOW}")
    err(
        f"Model loaded successfully in 255.00ms.\n({size(model['sizeBytes'])})\n"
        f'To use the model in the API/SDK, use the identifier "{made["identifier"]}".\n'
    )


def taken(identifier: str) -> NoReturn:
    out(f"\r{CLEAR}{SHOW}")
    die(
        f'Error: Model identifier "{identifier}" is already in use. \n\n\n (!) SUGGESTION Please use a different '
        "identifier, or unload the model that uses it.\n"
    )


def estimate(path: str, model: dict[str, Any], values: dict[str, float | None]) -> None:
    context, gpu = whole(values["--context-length"]), values["--gpu"]
    with opened(path) as state:
        on_gpu, total = backend.estimated(state, model["modelKey"], context, gpu)
        knobs = state["knobs"]
    err(f"Model: {model['path' if knobs.get('old') else 'modelKey']}\n")
    if context is not None:
        err(f"Context Length: {context:,}\n")
    if gpu is not None:
        err(f"GPU Offload: {gpu * 100:.16g}%\n")
    err(f"Estimated GPU Memory:   {size(on_gpu)}\nEstimated Total Memory: {size(total)}\n")
    if knobs.get("low_confidence"):
        err("Confidence: LOW\n")
    verdict = "will fail to load" if knobs.get("guardrails") else "may be loaded"
    err(f"\nEstimate: This model {verdict} based on your resource guardrails settings.\n")


# --- unload, ps, ls


def unload(path: str, options: dict[str, str], positional: list[str]) -> None:
    with opened(path) as state:
        if "--all" in options:
            if positional:
                box("Invalid Usage", "You cannot provide [path] when the flag --all is set.")
                return
            if not state["loaded"]:
                err("No models to unload.\n")
                return
            for one in state["loaded"]:
                err(f'Unloading "{one["identifier"]}"...\n')
            many = len(state["loaded"])
            err(f"Unloaded {many} model{'s' if many > 1 else ''}.\n")
            state["loaded"] = []
            return
        if not positional:
            if not state["loaded"]:
                die('You don\'t have any models loaded. Use "lms load" to load a model.\n')
            if len(state["loaded"]) > 1:
                out("! To unload all models, use the --all flag.\n\n")
                err("? Select a model to unload |\n")
                sys.exit(1)
        name = positional[0] if positional else state["loaded"][0]["identifier"]
        found = backend.by_name(state, name)
        if found is None:
            box(
                "Model Not Found",
                f'Cannot find a model with the identifier "{name}".',
                "To see a list of loaded models, run:",
                "    lms ps",
            )
            return
        if state["knobs"].get("unload_fails"):
            die("Error: Cannot unload: model busy\n")
        if not state["knobs"].get("unload_ignored"):
            state["loaded"].remove(found)
    err(f'Model "{name}" unloaded.\n')


def ps(path: str, options: dict[str, str], positional: list[str]) -> None:
    with opened(path) as state:
        vanishing = state["knobs"].get("vanishing", 0)
        if vanishing:
            state["knobs"]["vanishing"] = vanishing - 1
            die("Error: This model has already been unloaded\n")
        if state["knobs"].get("ps_fails"):
            die("Error: Boom \n\n\n   (X) CAUSE  \n\nwhy\n")
        for one in state["loaded"]:
            if one.get("busy_looks"):
                one["busy_looks"] -= 1
                if not one["busy_looks"]:
                    one.update(status="idle", queued=0)
        if state["knobs"].get("noise"):
            err("W You are using a development build of lms-cli.\n")
        out(json.dumps([backend.shown(state, one) for one in state["loaded"]], separators=(",", ":")) + "\n")


def ls(path: str, options: dict[str, str], positional: list[str]) -> None:
    with opened(path) as state:
        if positional:
            die(f"Error: Model not found: {positional[0]}\n")
        kinds = [name[2:] for name in ("--llm", "--embedding") if name in options] or ["llm", "embedding"]
        models = [model for model in state["models"] if model["type"] in kinds]
        out(json.dumps(models, separators=(",", ":"), ensure_ascii=False) + "\n")


# --- server


def server(path: str, options: dict[str, str], positional: list[str]) -> None:
    with opened(path) as state:
        known, knobs = state["server"], state["knobs"]
        action = positional[0]
        if action == "status":
            running = known["running"] and not knobs.get("busy_server")
            told: dict[str, Any] = {"running": running}
            if known["ever"]:
                told["port"] = known["port"]
            if "--json" in options:
                out(json.dumps(told, separators=(",", ":")) + "\n")
            else:
                err(f"The server is running on port {known['port']}.\n" if running else "The server is not running.\n")
        elif action == "stop":
            if not known["running"] or knobs.get("busy_server"):
                die("Error: The server is not running.\n")
            known["running"] = bool(knobs.get("unstoppable"))
            err(f"Stopped the server on port {known['port']}.\n")
        else:
            start(known, knobs, options.get("--port"))


def start(known: dict[str, Any], knobs: dict[str, Any], text: str | None) -> None:
    port = known["port"] if text is None else int(text)
    if knobs.get("port_in_use"):
        die(
            f"Error: Failed to start server on port {port} \n\n\n   (X) CAUSE  \n\n"
            f"listen EADDRINUSE: address already in use 127.0.0.1:{port}\n"
        )
    if knobs.get("never_answers"):
        die("Error: Failed to verify the server is running. Please try to use another port.\n")
    known |= {"running": not knobs.get("says_so_only"), "port": port, "ever": True}
    err(f"Success! Server is now running on port {port}\n")


# --- output


def whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def size(count: int) -> str:
    if not count:
        return "0 Bytes"
    power = int(math.log(count, 1024))
    return f"{count / 1024**power:.2f} {['Bytes', 'KiB', 'MiB', 'GiB', 'TiB'][power]}"


PLAIN: list[bool] = [False]


def box(title: str, *paragraphs: str) -> None:
    """A box as wide as its text; where $COLUMNS is too narrow for it, the line breaks vanish, as recorded.

    Newer sources (2026-08) print no boxes: titles come as plain lines.
    """
    if PLAIN[0]:
        err(f"Error: {title}\n\n" + "\n\n".join(paragraphs) + "\n")
        return
    lines = ["", *"\n\n".join((title, *paragraphs)).split("\n"), ""]
    width = max(map(len, lines)) + 6
    columns = int(os.environ.get("COLUMNS") or 80)
    if width + 2 + 6 <= columns:
        pad, newline = "   ", "\n"
    else:
        width, pad, newline = columns - 2, "", ""
        lines = [piece for line in lines for piece in (re.findall(f".{{1,{width - 6}}}", line.strip()) or [""])]
    rows = [f"│   {line:<{width - 6}}   │" for line in lines]
    top, bottom = f"┌ Error {'─' * (width - 7)}┐", f"└{'─' * width}┘"
    err("\n\n" + "".join(pad + row + newline for row in (top, *rows, bottom)) + ("\n" if newline else "\n\n"))


def out(text: str) -> None:
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def err(text: str) -> None:
    sys.stderr.buffer.write(text.encode())
    sys.stderr.buffer.flush()


def die(text: str) -> NoReturn:
    err(text)
    sys.exit(1)


def hang(path: str) -> NoReturn:
    """No answer from the backend, ever; and a child of its own, which must not be left behind either."""
    sleeper(path)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        time.sleep(600)


def sleeper(path: str) -> None:
    """A child of this command, noted in the state."""
    child = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "600")
    with opened(path) as state:
        state["child"] = child


def service() -> None:
    """LM Studio, started on the way: it lives on, and has this command's own streams open."""
    if os.fork() == 0:
        os.setsid()
        os.execlp("sleep", "sleep", "20")
