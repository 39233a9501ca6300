"""What a streamed event costs: this library against a bare loop of httpx, httpx-sse and `json.loads`.

Both read the same stream, over real HTTP on loopback, from a server in a process of its own, in turn; the figure is
the ratio of the reader's CPU time, pair by pair. Run it with `nox -s benchmark`, or

    python tests/benchmarks/stream.py [--events 100000] [--runs 5] [--memory-events 1000000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import resource
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import httpx
import httpx_sse

from phi4_http import AsyncLMStudio, LMStudio

_WORDS = ("So", " the", " answer", " must", " be", " smaller", " than", " that", ".", "\n")
_MODEL = "microsoft/phi-4-reasoning-plus"
_MESSAGES = [{"role": "user", "content": "x"}]
_EVENTS_A_WRITE = 20  # a fast server's events arrive several to a read


def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    """One event as LM Studio writes it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": _MODEL,
        "system_fingerprint": _MODEL,
    }
    return b"data: " + json.dumps({**head, "choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"


def body(events: int) -> Iterator[bytes]:
    """A reply of so many events: nine tenths thought, one tenth solution."""
    deltas = [chunk({"content": word}) for word in _WORDS]
    yield chunk({"role": "assistant", "content": ""}) + chunk({"content": "<think>"})
    closer = events * 9 // 10
    for start in range(0, events, _EVENTS_A_WRITE):
        numbers = range(start, min(start + _EVENTS_A_WRITE, events))
        yield b"".join(
            chunk({"content": "</think>"}) if number == closer else deltas[number % len(deltas)] for number in numbers
        )
    yield chunk({}, "stop") + b"data: [DONE]\n\n"


def serve(channel: Connection) -> None:
    """Answer every request with a stream, as long as the path's number says."""
    listener = socket.create_server(("127.0.0.1", 0))
    channel.send(listener.getsockname()[1])
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as reader:
            events = int(reader.readline().split()[1].split(b"/")[1])
            length = 0
            while (line := reader.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            reader.read(length)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            try:
                for piece in body(events):
                    connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                connection.sendall(b"0\r\n\r\n")
            except OSError:
                pass  # the reader stops at [DONE]


def bare(url: str) -> int:
    """The least that reading such a stream can be."""
    characters = 0
    with (
        httpx.Client(trust_env=False) as client,
        httpx_sse.connect_sse(client, "POST", f"{url}/v1/chat/completions", json={}) as source,
    ):
        for sse in source.iter_sse():
            if sse.data == "[DONE]":
                break
            characters += len(json.loads(sse.data)["choices"][0]["delta"].get("content", ""))
    return characters


def ours(url: str) -> int:
    """The blocking face."""
    count = 0
    with LMStudio(url) as client, client.stream_chat_completion(_MODEL, _MESSAGES) as reply:
        for _ in reply:
            count += 1
    return len(reply.result.raw)


async def _bare_async(url: str) -> int:
    characters = 0
    async with (
        httpx.AsyncClient(trust_env=False) as client,
        httpx_sse.aconnect_sse(client, "POST", f"{url}/v1/chat/completions", json={}) as source,
    ):
        async for sse in source.aiter_sse():
            if sse.data == "[DONE]":
                break
            characters += len(json.loads(sse.data)["choices"][0]["delta"].get("content", ""))
    return characters


async def _ours_async(url: str) -> int:
    async with AsyncLMStudio(url) as client, client.stream_chat_completion(_MODEL, _MESSAGES) as reply:
        async for _ in reply:
            pass
    return len(reply.result.raw)


def cpu(read: Callable[[str], int], url: str) -> float:
    """Seconds of CPU that one reading takes."""
    before = time.process_time()
    read(url)
    return time.process_time() - before


def compare(
    name: str, ours: Callable[[str], int], bare: Callable[[str], int], url: str, runs: int, events: int
) -> None:
    """Print the ratio of the two, pair by pair."""
    assert ours(url) == bare(url), "the two did not read the same text"
    pairs = [(cpu(ours, url), cpu(bare, url)) for _ in range(runs)]
    ratios = sorted(mine / least for mine, least in pairs)
    per_event = statistics.median(mine for mine, _ in pairs) / events * 1e6
    print(
        f"{name:9} {runs} pairs of {events:,} events: {statistics.median(ratios):.2f} times the bare loop's CPU "
        f"(lowest {ratios[0]:.2f}, highest {ratios[-1]:.2f}); {per_event:.1f} µs an event"
    )


def memory(url: str, events: int, channel: Connection) -> None:
    """Send the peak memory of this process before and after reading a stream, in bytes, and the text's length."""
    unit = 1 if sys.platform == "darwin" else 1024
    ours(f"{url}/1000")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    text = ours(f"{url}/{events}")
    channel.send((before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, text))


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--memory-events", type=int, default=1_000_000)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}"
    print(f"Python {platform.python_version()}, httpx {httpx.__version__}, on {platform.system()} {platform.machine()}")
    stream = f"{url}/{arguments.events}"
    compare("blocking", ours, bare, stream, arguments.runs, arguments.events)
    compare(
        "async",
        lambda at: asyncio.run(_ours_async(at)),
        lambda at: asyncio.run(_bare_async(at)),
        stream,
        arguments.runs,
        arguments.events,
    )
    if arguments.memory_events:
        reader = context.Process(target=memory, args=(url, arguments.memory_events, there))
        reader.start()
        before, after, text = here.recv()
        reader.join()
        grown = after - before
        print(
            f"memory    {arguments.memory_events:,} events, {text:,} characters: {grown / 2**20:.1f} MiB more at the "
            f"peak, {grown / text:.1f} bytes a character"
        )
    server.terminate()


if __name__ == "__main__":
    main()
