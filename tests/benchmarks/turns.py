"""What a chat asks of a server: requests a turn, before and past the end of the context, by kind of server.

Counted by a stand-in on loopback with a real tokenizer; then the prompt tokens that a server's prefix cache would not
hold, for both ways of shortening a history. Run it with `nox -s benchmark`, or

    python tests/benchmarks/turns.py
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phi4 import simulation
from phi4.standin import CHAT, RAW, StandIn

from phi4_http import Phi4

QUESTION = "Is it late, and then, and then, why is it so late? " * 3
KINDS: dict[str, dict[str, Any]] = {
    "LM Studio, v0": {},
    "LM Studio, v1 alone": {"lists": ("v1",)},
    "llama.cpp": {"native": False, "free": "llama.cpp"},
    "vLLM": {"native": False, "free": "vllm"},
}


def told(name: str, turns: int, asked: list[str]) -> None:
    """One line of figures."""
    counts = Counter(asked)
    generating = counts[f"POST {CHAT}"] + counts[f"POST {RAW}"]
    print(f"  {name:22} {len(asked) / turns:5.2f} requests a turn, {generating / turns:5.2f} that make the model run")


def main() -> None:
    """Twenty turns that fit, then forty past the end, on each kind."""
    print("a chat of 20 turns that fits, look-ups included")
    for name, options in KINDS.items():
        with StandIn(context_length=32_768, **options) as server, Phi4(server.url, system="send") as phi:
            chat = phi.chat()
            for number in range(20):
                chat.ask(f"{number}: {QUESTION}")
            told(name, 20, server.seen)
    print("40 turns past the end of a context of 2,000 tokens")
    for name, options in KINDS.items():
        with (
            StandIn(context_length=2000, **options) as server,
            Phi4(server.url, reserve=200, system="send") as phi,
        ):
            chat, number = phi.chat(), 0
            while not chat.ask(f"{number}: {QUESTION}").dropped:
                number += 1
            server.seen.clear()
            for number in range(40):
                chat.ask(f"{number}: {QUESTION}")
            told(name, 40, server.seen)
    print(simulation.report())


if __name__ == "__main__":
    main()
