"""pydantic-ai, by its requests to a model: an agent would ask again where an answer is empty."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable, Iterator

import openai
from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from clients.check import QUESTION, Case, Seen


def version() -> str:
    """Which one."""
    return importlib.metadata.version("pydantic-ai-slim")


def ask_all(address: Callable[[Case], str], cases: list[Case]) -> Iterator[Seen]:
    """Each chat."""
    loop = asyncio.new_event_loop()
    for case in cases:
        yield loop.run_until_complete(ask(address(case), case))


async def ask(url: str, case: Case) -> Seen:
    """One chat."""
    client = openai.AsyncOpenAI(base_url=url, api_key="sk-none", max_retries=0)
    model = OpenAIChatModel(case.name, provider=OpenAIProvider(openai_client=client))
    messages = [ModelRequest.user_text_prompt(QUESTION)]
    try:
        if not case.stream:
            return seen(await model_request(model, messages))
        async with model_request_stream(model, messages) as stream:
            async for _ in stream:
                pass
            return seen(stream.get())
    except Exception as error:  # openai's, or its own
        return Seen("", None, None, f"{error} {getattr(error, 'body', '')}")


def seen(response: ModelResponse) -> Seen:
    """What it holds."""
    content = "".join(part.content for part in response.parts if isinstance(part, TextPart))
    thought = "".join(part.content for part in response.parts if isinstance(part, ThinkingPart))
    finish = (response.provider_details or {}).get("finish_reason")
    return Seen(content, thought, finish, None)
