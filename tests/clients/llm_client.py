"""`llm`, with a model as `extra-openai-models.yaml` makes one."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator

from llm.default_plugins.openai_models import Chat

from clients.check import QUESTION, Case, Seen


def version() -> str:
    """Which one."""
    return importlib.metadata.version("llm")


def ask_all(address: Callable[[Case], str], cases: list[Case]) -> Iterator[Seen]:
    """Each chat."""
    return (ask(address(case), case) for case in cases)


def ask(url: str, case: Case) -> Seen:
    """One chat. It keeps no thought of such a model, and tells no finish reason."""
    content = ""
    try:
        model = Chat(case.name, model_name=case.name, api_base=url)
        for piece in model.prompt(QUESTION, stream=case.stream, key="sk-none"):
            content += piece
    except Exception as error:  # openai's, or its own
        return Seen(content, None, None, f"{error} {getattr(error, 'code', '')}")
    return Seen(content, None, None, None)
