"""What a long chat costs: requests, prompt tokens processed anew and seconds a turn, before and past a full context.

A real llama-server with a real model, of which each turn's own figures are read (`timings.prompt_n`). Both windows are
run, on a server started anew for each. Run it in the environment of `nox -s llama_cpp`, or

    python tests/benchmarks/window.py MODEL.gguf [--turns 50] [--context 4096]

`LLAMA_SERVER` may name the binary.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llama.servers import serving

from phi4_http import LMStudio, Phi4

ANSWER_TOKENS = 40
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + "
    "'<|im_end|>' }}{% endfor %}{{ '<|im_start|>assistant<|im_sep|>' }}"
)
"""The model's turn format, as text."""
QUESTION = (
    "This is turn {number} of a long conversation about trains, bridges and the weather. The train from the north was "
    "late again, the bridge over the river is closed for repairs until the spring, and it rained for the whole of the "
    "afternoon, as it did the day before. Somebody said that the timetable would change next week, but nobody at the "
    "station knew anything about it, and the notice on the wall was from last year. What should we do about it?"
)


@dataclass(frozen=True)
class Turn:
    """What one turn cost."""

    requests: int
    generating: int
    prompt_tokens: int
    anew: int
    seconds: float
    dropped: int


class Counted(httpx.HTTPTransport):
    """A transport that counts what is asked: every request, and those that make the model run."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: Counter[str] = Counter()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.paths[request.url.path] += 1
        return super().handle_request(request)


def chat(url: str, turns: int, window: Literal["steady", "longest"]) -> Iterator[Turn]:
    """The turns of one chat."""
    transport = Counted()
    with LMStudio(url, transport=transport) as studio:
        talk = Phi4(studio, window=window, max_tokens=ANSWER_TOKENS, temperature=0, extra={"ignore_eos": True}).chat()
        for number in range(turns):
            transport.paths.clear()
            began = time.monotonic()
            reply = talk.ask(QUESTION.format(number=number))
            seconds = time.monotonic() - began
            figures: Any = reply.stats.server or {}
            generating = sum(count for path, count in transport.paths.items() if path.endswith("/completions"))
            prompt = reply.usage.prompt_tokens if reply.usage else None
            yield Turn(
                transport.paths.total(),
                generating,
                prompt or 0,
                figures.get("prompt_n", 0),
                seconds,
                len(reply.dropped),
            )


def told(name: str, turns: list[Turn]) -> None:
    """One line of averages."""
    if not turns:
        print(f"{name:22} no turn")
        return

    def mean(what: str) -> float:
        return statistics.fmean(getattr(turn, what) for turn in turns)

    print(
        f"{name:22} {len(turns):3} turns: {mean('requests'):5.2f} requests, {mean('generating'):5.2f} generating, "
        f"{mean('prompt_tokens'):6.0f} prompt tokens, {mean('anew'):6.0f} processed anew, {mean('seconds'):6.2f} s"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for window in ("steady", "longest"):
            log = Path(scratch, f"{window}.log")
            with serving("llama-server", arguments.model, log, template=TEMPLATE) as server:
                turns = []
                for turn in chat(server.url, arguments.turns, window):
                    turns.append(turn)
                    if arguments.verbose:
                        print(turn, flush=True)
                past = [turn for turn in turns if turn.dropped]
                told(f"{window}, it all fits", [turn for turn in turns[1:] if not turn.dropped])
                told(f"{window}, past the end", past)


if __name__ == "__main__":
    main()
