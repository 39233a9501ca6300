"""What an event costs from a tape: a replay inside the client, against the same tape over HTTP from another process.

Both read the same stream with the same client, in turn; the figure is the ratio of the reader's CPU time, pair by pair.
Run it with `nox -s benchmark`, or

    python tests/benchmarks/replay.py [--events 20000] [--runs 5]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import httpx

from phi4_http.tape import Exchange, Match, Origin, RecordedRequest, RecordedResponse, Tape, write_exchange

_PATH = "/v1/chat/completions"
_HEADERS = (("Content-Type", "text/event-stream"),)
_EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
_SERVE = """
import sys
from phi4_http.tape import Match, Playback, ReplayServer, load_tape
match = Match(loop=True)
with ReplayServer(load_tape(sys.argv[1]), playback=Playback(speed=None), match=match) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def record(folder: str, events: int) -> None:
    """A tape with one stream of so many events, each a piece of its own."""
    request, response = RecordedRequest("POST", _PATH), RecordedResponse(200, _HEADERS)
    cuts = [(0.0, len(_EVENT))] * events
    origin = Origin("composed", source="a benchmark")
    write_exchange(folder, Exchange.of("long", request, response, _EVENT * events, cuts=cuts, origin=origin))


def cpu(client: httpx.Client, url: str, size: int) -> float:
    """Seconds of CPU that one reading takes."""
    before = time.process_time()
    with client.stream("POST", url + _PATH) as response:
        assert sum(map(len, response.iter_raw())) == size, "the stream is not whole"
    return time.process_time() - before


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    size = len(_EVENT) * arguments.events
    with tempfile.TemporaryDirectory() as folder:
        record(folder, arguments.events)
        command = [sys.executable, "-c", _SERVE, folder]
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server,
            httpx.Client(trust_env=False) as live,
            httpx.Client(transport=Tape(folder, match=Match(loop=True)).replay()) as replay,
        ):
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            pairs = [(cpu(replay, url, size), cpu(live, url, size)) for _ in range(arguments.runs)]
            server.communicate()
    ratios = sorted(played / lived for played, lived in pairs)
    per_event = statistics.median(played for played, _ in pairs) / arguments.events * 1e6
    print(f"Python {platform.python_version()}, httpx {httpx.__version__}, on {platform.system()} {platform.machine()}")
    print(
        f"replay    {arguments.runs} pairs of {arguments.events:,} events: {statistics.median(ratios):.2f} times the "
        f"CPU of the live stream (lowest {ratios[0]:.2f}, highest {ratios[-1]:.2f}); {per_event:.1f} µs an event"
    )


if __name__ == "__main__":
    main()
