"""From the start of a process to its first token: this library against a bare script of httpx and httpx-sse.

Each is a process of its own, run in turn against one server on loopback that answers at once; the figure is the ratio,
pair by pair. Run it with `nox -s benchmark`, or

    python tests/benchmarks/start.py [--pairs 20]
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import subprocess
import sys
import time

from stream import serve

BARE = """
import httpx, httpx_sse, json
with httpx.Client() as client, httpx_sse.connect_sse(client, "POST", "{url}/100/v1/chat/completions", json={{
    "model": "m", "messages": [{{"role": "user", "content": "x"}}], "stream": True}}) as source:
    for sse in source.iter_sse():
        content = json.loads(sse.data)["choices"][0]["delta"].get("content")
        if content:
            print(content, flush=True)
            break
"""
SCRIPT = """
from phi4_http import Phi4
with Phi4("{url}/100", model="m") as phi, phi.stream("x") as reply:
    for event in reply:
        print(event.text, flush=True)
        break
"""


def seconds(command: list[str]) -> float:
    """From the start of the process to the first byte of its output."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        first = child.stdout.read(1)
        taken = time.perf_counter() - began
        rest = child.stdout.read()
    if not first or b"Traceback" in first + rest:
        raise RuntimeError((first + rest).decode())
    return taken


def compare(name: str, command: list[str], bare: list[str], pairs: int) -> None:
    """Print how one compares with the bare script, pair by pair; who is first alternates."""
    ratios, times = [], []
    for pair in range(pairs):
        found = {}
        for which in ("ours", "bare") if pair % 2 else ("bare", "ours"):
            found[which] = seconds(command if which == "ours" else bare)
        ratios.append(found["ours"] / found["bare"])
        times.append(found["ours"])
    ratios.sort()
    print(
        f"{name:12} {statistics.median(ratios):.2f} times the bare script (lowest {ratios[0]:.2f}, highest "
        f"{ratios[-1]:.2f}); {statistics.median(times) * 1000:.0f} ms"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=20)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}"
    bare = [sys.executable, "-c", BARE.format(url=url)]
    script = [sys.executable, "-c", SCRIPT.format(url=url)]
    ask = [sys.executable, "-m", "phi4_http", "ask", "x", "-m", "m", "--url", f"{url}/100"]
    for command in (bare, script, ask):
        seconds(command)  # byte code is written and the disk is warm
    print(f"start to first token, {arguments.pairs} pairs each, Python {platform.python_version()}")
    compare("a script", script, bare, arguments.pairs)
    compare("ask -m", ask, bare, arguments.pairs)
    server.terminate()


if __name__ == "__main__":
    main()
