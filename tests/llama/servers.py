"""Real servers as child processes: llama-cpp-python's own, and llama.cpp's `llama-server` where it is there."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from support import GUARD

from llama.tiny_model import NAME

CONTEXT = 4096


@dataclass(frozen=True)
class Server:
    """One that runs. `kind` is `python` or `llama-server`."""

    kind: str
    url: str


def llama_server() -> Path | None:
    """The binary: the one that LLAMA_SERVER names, the one that pip built, or the one on the path."""
    built = Path(sysconfig.get_paths()["platlib"]) / "bin" / "llama-server"
    named, found = os.environ.get("LLAMA_SERVER"), shutil.which("llama-server")
    candidates = [Path(name) for name in (named, built, found) if name]
    return next((path for path in candidates if path.is_file()), None)


def kinds() -> list[str]:
    """The servers that are there."""
    return ["python", *(["llama-server"] if llama_server() else [])]


@contextlib.contextmanager
def serving(
    kind: str, model: Path, log: Path, *, reasoning: str = "none", template: str | None = None
) -> Iterator[Server]:
    """A server with this model, its output in `log`; it is ended after the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*_command(kind, model, port, reasoning), *(["--chat-template", template] if template else [])],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(kind),
            cwd=log.parent,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(child, url, log)
            yield Server(kind, url)
        finally:
            child.terminate()
            try:
                child.wait(GUARD)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(GUARD)


def _command(kind: str, model: Path, port: int, reasoning: str) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(port), "--model", str(model)]
    if kind == "python":
        options = ["--model_alias", NAME, "--n_ctx", str(CONTEXT), "--n_threads", "1", "--verbose", "false"]
        return [sys.executable, "-m", "llama_cpp.server", *where, *options]
    options = ["--alias", NAME, "--ctx-size", str(CONTEXT), "--threads", "1", "--parallel", "1", "--jinja"]
    return [str(llama_server()), *where, *options, "--reasoning-format", reasoning]


def _environment(kind: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    binary = llama_server()
    if kind == "llama-server" and binary is not None:
        # pip puts the libraries beside the folder of the binary, where no loader looks.
        kept["LD_LIBRARY_PATH"] = os.pathsep.join(str(binary.parent.parent / name) for name in ("lib", "bin"))
    return kept


def _wait(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Until it lists its model."""
    for _ in range(int(GUARD * 4)):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/v1/models", trust_env=False).status_code == 200:
                return
        if child.poll() is not None:
            break
        time.sleep(0.25)
    raise AssertionError(f"the server did not start:\n{log.read_text(errors='replace')[-2000:]}")
