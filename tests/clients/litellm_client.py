"""litellm, as `openai/NAME`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any

import litellm

from clients.check import QUESTION, Case, Seen


def version() -> str:
    """Which one."""
    return importlib.metadata.version("litellm")


def ask_all(address: Callable[[Case], str], cases: list[Case]) -> Iterator[Seen]:
    """Each chat."""
    litellm.suppress_debug_info = True
    return (ask(address(case), case) for case in cases)


def ask(url: str, case: Case) -> Seen:
    """One chat."""
    content = thought = ""
    finish = None
    try:
        answer: Any = litellm.completion(
            model=f"openai/{case.name}",
            api_base=url,
            api_key="sk-none",
            messages=[{"role": "user", "content": QUESTION}],
            stream=case.stream,
            num_retries=0,
            max_retries=0,
            timeout=30,
        )
        if not case.stream:
            choice = answer.choices[0]
            said = choice.message
            return Seen(said.content or "", getattr(said, "reasoning_content", None) or "", choice.finish_reason, None)
        for chunk in answer:
            for choice in chunk.choices:
                content += choice.delta.content or ""
                thought += getattr(choice.delta, "reasoning_content", None) or ""
                finish = choice.finish_reason or finish
    except Exception as error:  # its errors have no common base but this
        return Seen(content, thought, finish, f"{error} {getattr(error, 'code', '')}")
    return Seen(content, thought, finish, None)
