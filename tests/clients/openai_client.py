"""openai-python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai

from clients.check import QUESTION, Case, Seen


def version() -> str:
    """Which one."""
    return openai.__version__


def ask_all(address: Callable[[Case], str], cases: list[Case]) -> Iterator[Seen]:
    """Each chat, by one client for each address."""
    made: dict[str, openai.OpenAI] = {}
    for case in cases:
        url = address(case)
        if url not in made:
            made[url] = openai.OpenAI(base_url=url, api_key="sk-none", max_retries=0, timeout=30)
        yield ask(made[url], case)


def ask(client: Any, case: Case) -> Seen:
    """One chat."""
    content = thought = ""
    finish = None
    messages = [{"role": "user", "content": QUESTION}]
    try:
        if not case.stream:
            choice = client.chat.completions.create(model=case.name, messages=messages).choices[0]
            said = choice.message
            return Seen(said.content or "", getattr(said, "reasoning_content", None) or "", choice.finish_reason, None)
        options = {"include_usage": True}
        for chunk in client.chat.completions.create(
            model=case.name, messages=messages, stream=True, stream_options=options
        ):
            for choice in chunk.choices:
                content += choice.delta.content or ""
                thought += getattr(choice.delta, "reasoning_content", None) or ""
                finish = choice.finish_reason or finish
    except openai.OpenAIError as error:
        return Seen(content, thought, finish, f"{error} {getattr(error, 'code', '')}")
    return Seen(content, thought, finish, None)
