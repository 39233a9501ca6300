"""What the proxy adds to a stream: CPU and delay per event against a plain pass-through, memory, and many at once.

Server, proxies and reader are processes of their own, over real HTTP on loopback. The pass-through is the same
application with a model that is not for it, so that the difference is what repairing costs. Run it with
`nox -s benchmark`, or

    python tests/benchmarks/proxying.py [--seconds 10] [--streams 64] [--rate 50] [--memory-events 1000000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import httpx
from stream import chunk

from phi4_http.proxy.asgi import Proxy
from phi4_http.proxy.gate import Gate
from phi4_http.proxy.repair import Repair
from phi4_http.proxy.serve import ProxyServer
from phi4_http.proxy.upstream import Upstream

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENTS_A_WRITE = 20  # where nothing is timed
_SENT = re.compile(rb'ontent": ?"(\d+\.\d+) "')
Delays = list[float]


def serve(channel: Connection) -> None:
    """Stream as many events as the question says, so many a second (0: at once); each holds the time it was sent."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        events, rate = map(int, json.loads(await reader.readexactly(size))["messages"][-1]["content"].split())
        writer.write(_HEAD)
        _write(writer, chunk({"content": "<think>"}))
        began = time.monotonic()
        try:
            if rate:
                for number in range(events):
                    await asyncio.sleep(max(began + number / rate - time.monotonic(), 0))
                    _write(writer, chunk({"content": f"{time.monotonic():.6f} "}))
            else:
                piece = chunk({"content": " word"}) * _EVENTS_A_WRITE
                for _ in range(events // _EVENTS_A_WRITE):
                    _write(writer, piece)
                    await writer.drain()
            _write(writer, chunk({"content": "</think>"}) + chunk({"content": "x"}) + chunk({}, "stop"))
            _write(writer, b"data: [DONE]\n\n")
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        except ConnectionError:
            pass  # the reader has all that it wants
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=256)
        channel.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def proxy(channel: Connection, upstream: str) -> None:
    """The proxy, in its embedded host; tells its CPU seconds and its largest size in bytes when it is asked."""

    def make() -> tuple[Upstream, Repair, Gate]:
        return Upstream(upstream, system="send"), Repair(models="^repaired$"), Gate()

    with ProxyServer(Proxy(make, report=lambda handled: None)) as server:
        channel.send(server.url)
        while channel.recv():
            channel.send((time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


async def read(client: httpx.AsyncClient, url: str, model: str, events: int, rate: int) -> Delays:
    """Read one stream; the seconds that each event took to come through."""
    delays: Delays = []
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": f"{events} {rate}"}]}
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        rest = b""
        async for data in response.aiter_raw():
            came = time.monotonic()
            if not rate:
                rest = data
                continue
            *lines, rest = (rest + data).split(b"\n\n")
            for line in lines:
                if said := _SENT.search(line):
                    delays.append(came - float(said[1]))
        assert b"[DONE]" in data or b"[DONE]" in rest
    assert not rate or len(delays) == events, (len(delays), events)
    return delays


async def read_many(url: str, models: list[str], events: int, rate: int) -> tuple[list[Delays], float]:
    """Many streams at once, and the seconds that they took."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(trust_env=False, timeout=600, limits=limits) as client:
        began = time.monotonic()
        found = await asyncio.gather(*(read(client, url, model, events, rate) for model in models))
        return list(found), time.monotonic() - began


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of them lies, in milliseconds."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] * 1e3


class Measured:
    """The proxy's process, before and after."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def now(self) -> tuple[float, int]:
        """Its CPU seconds, and its largest size in bytes."""
        self._channel.send(True)
        found: tuple[float, int] = self._channel.recv()
        return found


def compare(measured: Measured, url: str, seconds: int, rate: int, rounds: int = 3) -> None:
    """CPU of one stream, repaired and passed on, in turn; then both at once, so that whatever else the machine does
    delays both."""
    events = seconds * rate
    for model in ("passed", "repaired"):
        spent = []
        for _ in range(rounds):
            before = measured.now()[0]
            asyncio.run(read_many(url, [model], events, rate))
            spent.append((measured.now()[0] - before) / events * 1e6)
        print(f"{model:9} {rounds} × {events:,} events at {rate}/s: {statistics.median(spent):.0f} µs CPU an event")
    delays: tuple[Delays, Delays] = [], []
    for _ in range(rounds):
        found, _ = asyncio.run(read_many(url, ["passed", "repaired"], events, rate))
        for kept, more in zip(delays, found, strict=True):
            kept.extend(more)
    for share, name in ((0.5, "median"), (0.99, "p99")):
        passed, repaired = (percentile(kept, share) for kept in delays)
        print(f"delay     {name}: {passed:.2f} ms passed, {repaired:.2f} repaired, {repaired - passed:+.2f} ms added")


def together(measured: Measured, url: str, streams: int, seconds: int, rate: int) -> None:
    """Many streams at once: does any fall behind?"""
    for model in ("passed", "repaired"):
        before = measured.now()[0]
        found, took = asyncio.run(read_many(url, [model] * streams, seconds * rate, rate))
        late = [delay for delays in found for delay in delays[-rate:]]
        print(
            f"{model:9} {streams} streams at {rate} events/s each: over after {took:.1f} s (due {seconds}), delay in "
            f"the last second {percentile(late, 0.5):.1f} ms at the median, {percentile(late, 0.99):.1f} at p99; "
            f"{(measured.now()[0] - before) / took:.0%} of a core"
        )


def memory(measured: Measured, url: str, events: int) -> None:
    """One very long stream."""
    asyncio.run(read_many(url, ["repaired"], 1000, 0))
    before = measured.now()
    _, took = asyncio.run(read_many(url, ["repaired"], events, 0))
    after = measured.now()
    grown, text = after[1] - before[1], 5 * events
    print(
        f"memory    {events:,} events, {text:,} characters, in {took:.0f} s: {grown / 2**20:.1f} MiB more at the peak, "
        f"{grown / text:.1f} bytes a character; {(after[0] - before[0]) / events * 1e6:.0f} µs CPU an event"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rate", type=int, default=50)
    parser.add_argument("--memory-events", type=int, default=1_000_000)
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    upstream = f"http://127.0.0.1:{here.recv()}"
    ours, theirs = context.Pipe()
    running = context.Process(target=proxy, args=(theirs, upstream), daemon=True)
    running.start()
    url = ours.recv()
    print(
        f"Python {platform.python_version()}, httpx {httpx.__version__}, {os.cpu_count()} cores, {platform.machine()}"
    )
    measured = Measured(ours)
    compare(measured, url, given.seconds, given.rate)
    together(measured, url, given.streams, given.seconds, given.rate)
    if given.memory_events:
        memory(measured, url, given.memory_events)
    ours.send(False)
    running.join(10)
    server.terminate()


if __name__ == "__main__":
    main()
