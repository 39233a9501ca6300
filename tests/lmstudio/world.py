"""A LM Studio that is not there: a state file, the `lms` stand-in over it, and a loopback server over the same.

So a load by the command shows in the server's lists, a chat loads just in time what the command then unloads, and
whatever several processes do meets in one place.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmstudio import backend
from lmstudio.backend import opened
from phi4_http.phi4.facts import SYSTEM_PROMPT

if TYPE_CHECKING:
    from lmstudio.backend import State

TESTS = Path(__file__).parent.parent


class World:
    """One LM Studio. `url` is its server's, `lms` the command's path, `state()` what both look at."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.path = folder / "state.json"
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        state = backend.fresh()
        state["server"]["port"] = port
        self.path.write_text(json.dumps(state), encoding="utf-8")
        self.lms = str(folder / "lms")
        script = f"import sys; sys.path.insert(0, {str(TESTS)!r})\nfrom lmstudio import fake_lms\n"
        script += f"fake_lms.main({str(self.path)!r}, sys.argv[1:])\n"
        # Isolated and without site-packages: a process for every look must start fast.
        Path(self.lms).write_text(f"#!{sys.executable} -IS\n{script}", encoding="utf-8")
        os.chmod(self.lms, 0o755)

    @contextlib.contextmanager
    def state(self) -> Iterator[State]:
        """The state, to read and to change."""
        with opened(self.path) as state:
            yield state

    def set(self, **knobs: Any) -> None:
        """Turn on what goes wrong."""
        with self.state() as state:
            state["knobs"].update(knobs)

    def put(self, key: str, identifier: str | None = None, *, context: int | None = None, **fields: Any) -> None:
        """Have an instance loaded, by somebody else."""
        with self.state() as state:
            state["loaded"].append(backend.instance(state, key, identifier, context=context) | fields)

    @property
    def loaded(self) -> list[str]:
        """The identifiers of what is loaded."""
        with self.state() as state:
            return [one["identifier"] for one in state["loaded"]]

    def calls(self, command: str) -> list[list[str]]:
        """The runs of one `lms` command, each with its arguments."""
        with self.state() as state:
            return [call["argv"] for call in state["calls"] if call["argv"][:1] == [command]]

    def requests(self, path: str) -> list[Any]:
        """The bodies that came for one path."""
        with self.state() as state:
            return [body for asked, body in state["requests"] if asked == path]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[World]:
    """A world whose server answers."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.world = World(folder, server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.world
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    world: World
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that has gone is no news here


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self._answer(json.loads(self.rfile.read(length) or b"null"))

    def _answer(self, body: Any) -> None:
        with self.server.world.state() as state:
            state["requests"].append((self.path, body))
            server, knobs = state["server"], state["knobs"]
            if not server["running"]:
                self.close_connection = True
                return
        status, said = self._route(body, knobs)
        kind, content = "application/json", json.dumps(said).encode()
        if status == 200 and isinstance(body, dict) and body.get("stream"):
            kind, content = "text/event-stream", _as_stream(said)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _route(self, body: Any, knobs: dict[str, Any]) -> tuple[int, Any]:
        if self.path == "/lmstudio-greeting" and not (knobs.get("no_greeting") or knobs.get("llama_cpp")):
            return 200, {"lmstudio": True}
        if knobs.get("token") and self.headers.get("authorization") != f"Bearer {knobs['token']}":
            message = "An LM Studio API token is required"
            return 401, {"error": {"type": "invalid_request", "code": "invalid_api_key", "message": message}}
        routes: dict[str, Any] = {
            "/api/v0/models": self._v0,
            "/v1/models": self._openai,
            "/v1/chat/completions": self._chat,
            "/v1/embeddings": self._embed,
        }
        if not knobs.get("v0_3"):
            routes |= {
                "/api/v1/models": self._v1,
                "/api/v1/models/load": self._load,
                "/api/v1/models/unload": self._unload,
            }
        if knobs.get("no_v0"):
            del routes["/api/v0/models"]
        if knobs.get("llama_cpp"):  # no LM Studio: what llama-server has
            routes = {path: routes[path] for path in ("/v1/models", "/v1/chat/completions")}
            routes["/apply-template"] = lambda body: (200, {"prompt": _written(body["messages"], knobs)})
        elif not knobs.get("v0_3"):
            for path in ("/api/v1/models/download", "/api/v1/models/download/status/j%2F1"):
                routes[path] = self._download
        if self.path not in routes:
            return 200, {"error": f"Unexpected endpoint or method. ({self.command} {self.path})"}
        result: tuple[int, Any] = routes[self.path](body)
        return result

    def _v0(self, body: Any) -> tuple[int, Any]:
        with self.server.world.state() as state:
            data = [_v0_model(state, model, model["modelKey"]) for model in state["models"]]
            keys = {model["modelKey"] for model in state["models"]}
            for one in state["loaded"]:
                model = backend.model_of(state, one["modelKey"])
                if one["identifier"] not in keys and model:
                    data.append(_v0_model(state, model, one["identifier"]))
            if state["knobs"].get("server_is_another"):
                data = [item | {"state": "not-loaded"} for item in data]
            return 200, {"object": "list", "data": data}

    def _v1(self, body: Any) -> tuple[int, Any]:
        with self.server.world.state() as state:
            return 200, {"models": [_v1_model(state, model) for model in state["models"]]}

    def _openai(self, body: Any) -> tuple[int, Any]:
        with self.server.world.state() as state:
            shown = [one["identifier"] for one in state["loaded"]] or [one["modelKey"] for one in state["models"]]
            return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in shown]}

    def _download(self, body: Any) -> tuple[int, Any]:
        """The next of what the knob holds."""
        with self.server.world.state() as state:
            steps = state["knobs"]["downloads"]
            return 200, steps.pop(0) if len(steps) > 1 else steps[0]

    def _load(self, body: Any) -> tuple[int, Any]:
        key = body.pop("model")
        with self.server.world.state() as state:
            knobs = dict(state["knobs"])
            if backend.model_of(state, key) is None:
                return 404, {
                    "error": {
                        "type": "invalid_request",
                        "code": "model_not_found",
                        "message": f"Model '{key}' not found",
                    }
                }
        if knobs.get("guardrails"):
            return 400, {"error": {"type": "model_load_failed", "message": _needs()}}
        time.sleep(knobs.get("load_seconds", 0.02))
        with self.server.world.state() as state:
            if "rival" in knobs:  # somebody else was a little faster
                state["loaded"].append(backend.instance(state, key, context=knobs["rival"]))
            made = backend.instance(state, key, context=body.pop("context_length", None), config=body)
            if knobs.get("rest_fails"):
                return 500, {"error": {"message": f'Failed to load model "{key}". Error: Operation canceled.'}}
            if not knobs.get("no_instance"):
                state["loaded"].append(made)
            if knobs.get("rest_crash"):
                return 500, {"error": {"message": "the engine crashed"}}
        return 200, {"type": "llm", "instance_id": made["identifier"], "load_time_seconds": 0.1, "status": "loaded"}

    def _unload(self, body: Any) -> tuple[int, Any]:
        with self.server.world.state() as state:
            found = backend.by_name(state, body["instance_id"])
            if found is None:
                return 404, {"error": {"code": "model_not_found", "message": "No such instance of a model"}}
            if not state["knobs"].get("unload_ignored"):
                state["loaded"].remove(found)
        return 200, {"instance_id": body["instance_id"]}

    def _chat(self, body: Any) -> tuple[int, Any]:
        refused = self._just_in_time(body)
        with self.server.world.state() as state:
            knobs = state["knobs"]
        if knobs.get("chat_fails") and body.get("max_tokens") != 1:
            return 500, {"error": {"message": "the engine crashed"}}
        message = {"role": "assistant", **(knobs.get("reply") or {"content": "<think>so</think>Yes."})}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        tokens = len(re.findall(r"<\|\w+\|>|\w+", _written(body["messages"], knobs)))
        usage = {"prompt_tokens": tokens, "completion_tokens": 4, "total_tokens": tokens + 4}
        return refused or (
            200,
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
                "usage": usage,
            },
        )

    def _embed(self, body: Any) -> tuple[int, Any]:
        refused = self._just_in_time(body)
        return refused or (200, {"object": "list", "model": body["model"], "data": [{"index": 0, "embedding": [0.5]}]})

    def _just_in_time(self, body: Any) -> tuple[int, Any] | None:
        with self.server.world.state() as state:
            knobs = state["knobs"]
            found = backend.by_name(state, body["model"])
            if found is None:
                if backend.model_of(state, body["model"]) is None or knobs.get("no_jit"):
                    message = (
                        "No models loaded. Please load a model in the developer page or use the 'lms load' command."
                    )
                    return 404, {
                        "error": {"message": message, "type": "invalid_request_error", "code": "model_not_found"}
                    }
                if knobs.get("guardrails"):
                    return 400, {"error": _needs()}
                found = backend.instance(state, body["model"], ttl=body.get("ttl", 3600))
                state["loaded"].append(found)
            found.update(lastUsedTime=int(time.time() * 1000), used=time.time())
        return None


def _as_stream(said: dict[str, Any]) -> bytes:
    """A whole answer as the two events of a short stream."""
    choice = said["choices"][0]
    chunks = [
        {**said, "usage": None, "choices": [{"index": 0, "delta": choice["message"], "finish_reason": None}]},
        {**said, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]},
    ]
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def _written(messages: list[dict[str, Any]], knobs: dict[str, Any]) -> str:
    """The prompt, by the model's turn format (its published template), or by one that a knob spoils."""
    turns = [(one["role"], one["content"]) for one in messages]
    rest = [turn for turn in turns if turn[0] != "system"]
    spoilt = {
        "ignores": rest,
        "loses the user": [turn for turn in turns if turn[0] == "system"] or turns,
        "misspells": [(role, text.replace("backtracing", "backtracking")) for role, text in turns],
        "built in": [("system", SYSTEM_PROMPT), *rest],
    }
    turns = spoilt.get(knobs.get("template", ""), turns)
    written = "".join(f"<|im_start|>{role}<|im_sep|>{text}<|im_end|>" for role, text in turns)
    return written + "<|im_start|>assistant<|im_sep|>"


def _needs() -> str:
    return f"{backend.INSUFFICIENT} Loading it requires approximately 24.00 GB of memory."


def _v0_model(state: State, model: dict[str, Any], name: str) -> dict[str, Any]:
    one = backend.by_name(state, name)
    if one is not None and one["modelKey"] != model["modelKey"]:
        one = None
    kind = {"embedding": "embeddings"}.get(model["type"], model["type"])
    return {
        "id": name,
        "object": "model",
        "type": kind,
        "publisher": model["publisher"],
        "arch": model["architecture"],
        "compatibility_type": model["format"],
        "quantization": model["quantization"]["name"],
        "state": "loaded" if one else "not-loaded",
        "max_context_length": model["maxContextLength"],
    } | ({"loaded_context_length": state["knobs"].get("server_sees", one["contextLength"])} if one else {})


def _v1_model(state: State, model: dict[str, Any]) -> dict[str, Any]:
    instances = [
        {
            "id": one["identifier"],
            "config": {"context_length": one["contextLength"], "parallel": one["parallel"], **one["config"]},
        }
        for one in state["loaded"]
        if one["modelKey"] == model["modelKey"]
    ]
    return {
        "type": model["type"],
        "publisher": model["publisher"],
        "key": model["modelKey"],
        "display_name": model["displayName"],
        "architecture": model["architecture"],
        "quantization": {"name": model["quantization"]["name"], "bits_per_weight": model["quantization"]["bits"]},
        "size_bytes": model["sizeBytes"],
        "params_string": model.get("paramsString"),
        "loaded_instances": instances,
        "max_context_length": model["maxContextLength"],
        "format": model["format"],
        "capabilities": {"vision": False, "trained_for_tool_use": model.get("trainedForToolUse", False)},
    }
