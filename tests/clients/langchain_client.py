"""langchain-openai's `ChatOpenAI`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator

from langchain_openai import ChatOpenAI

from clients.check import QUESTION, Case, Seen


def version() -> str:
    """Which one."""
    return importlib.metadata.version("langchain-openai")


def ask_all(address: Callable[[Case], str], cases: list[Case]) -> Iterator[Seen]:
    """Each chat."""
    return (ask(address(case), case) for case in cases)


def ask(url: str, case: Case) -> Seen:
    """One chat. It has no place for a thought."""
    content = ""
    finish = None
    model = ChatOpenAI(model=case.name, base_url=url, api_key="sk-none", max_retries=0, timeout=30)
    try:
        if not case.stream:
            said = model.invoke(QUESTION)
            return Seen(said.text, None, said.response_metadata.get("finish_reason"), None)
        for piece in model.stream(QUESTION):
            content += piece.text
            finish = piece.response_metadata.get("finish_reason") or finish
    except Exception as error:  # openai's, or its own
        return Seen(content, None, finish, f"{error} {getattr(error, 'code', '')}")
    return Seen(content, None, finish, None)
