"""Histories drawn from plain bytes: three of them make a message. Fast to draw, and they shrink to fewer messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from phi4_http.phi4.facts import SYSTEM_PROMPT

Message = Mapping[str, Any]

ROLES = ("user", "assistant", "user", "assistant", "call", "tool")
TEXTS = (
    "",
    "a",
    "why ",
    "the answer is a number. ",
    "日本",
    "🧠",
    "\n",
    ":\n\n",
    "  ",
    "<think>x</think>",
    "<|im_end|>",
    "é",
    "0123456789",
    "\x00",
    "(((",
)
SYSTEMS = (None, "", "x", "Be brief.\n", SYSTEM_PROMPT)


def message(kind: int, text: int, size: int) -> Message:
    """One message; a `call` is an answer that only calls a tool."""
    role, said = ROLES[kind % len(ROLES)], TEXTS[text % len(TEXTS)] * (size // 6)
    if role == "call":
        function = {"name": "look", "arguments": said}
        return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]}
    return {"role": role, "content": said}


def history_of(draws: bytes) -> list[Message]:
    """A message for every three bytes."""
    return [message(*draws[at : at + 3]) for at in range(0, len(draws) - 2, 3)]


def chats(most: int = 16) -> st.SearchStrategy[list[Message]]:
    """A system message or none, any history of at most so many messages, and a user's newest message."""
    return st.builds(
        lambda system, draws, newest: [
            *([] if SYSTEMS[system] is None else [{"role": "system", "content": SYSTEMS[system]}]),
            *history_of(draws),
            {"role": "user", "content": message(0, *newest)["content"]},
        ],
        st.integers(0, len(SYSTEMS) - 1),
        st.binary(max_size=3 * most),
        st.binary(min_size=2, max_size=2),
    )


def open_chats(most: int = 16) -> st.SearchStrategy[list[Message]]:
    """The same, which may end with the results of tools that the newest turn has called."""
    exchange = [message(4, 1, 60), message(5, 2, 90), message(5, 3, 40)]
    return st.builds(lambda chat, results: [*chat, *exchange[:results]], chats(most), st.sampled_from([0, 0, 2, 3]))
