"""What the proxy does before a model is asked: it is loaded as it is to be, and a thought without end is ended."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from lmstudio.world import World
from phi4.standin import CHAT, MODEL, StandIn

from phi4_http.lmstudio.config import LoadConfig
from phi4_http.proxy.upstream import Upstream

from .support import asking, proxied

KEY = "llama-3.2-1b-instruct"


def test_the_model_is_loaded_once_as_it_is_to_be(world: World) -> None:
    """Of eight requests that come at once, one loads it; the next finds it there."""

    async def main() -> set[str]:
        upstream = Upstream(world.url, lms=world.lms, load=LoadConfig(context_length=8192), system="send")

        async def one() -> str:
            async with upstream.holding(None, KEY) as name:
                return name

        try:
            names = await asyncio.gather(*(one() for _ in range(8)))
            return {*names, await one()}
        finally:
            await upstream.aclose()

    assert asyncio.run(main()) == {KEY}
    assert world.loaded == [KEY]
    assert len(world.calls("load")) == 1
    with world.state() as state:
        assert state["loaded"][0]["contextLength"] == 8192


def test_clients_of_callers_are_bounded() -> None:
    """Each token has a client of its own; the oldest are forgotten, never the one without a token."""

    async def main() -> None:
        upstream = Upstream("http://upstream.invalid")
        first = upstream.phi("sk-0")
        assert upstream.phi("sk-0") is first
        none = upstream.phi(None)
        for number in range(1, 40):
            upstream.phi(f"sk-{number}")
        assert upstream.phi(None) is none
        assert upstream.phi("sk-0") is not first
        await upstream.aclose()

    asyncio.run(main())


def endless(path: str, body: dict[str, Any]) -> bool:
    return path == CHAT and bool(body.get("stream"))


def test_a_thought_without_end_is_ended_within_one_answer() -> None:
    """By a budget, in the field or as a header, or by an effort: streamed and whole."""
    thought = "I reason, and the train is late, and so on. " * 40
    with (
        StandIn(reply=f"<think>{thought}", holds=endless) as server,
        proxied(server.url) as proxy,
        httpx.Client(trust_env=False, timeout=30) as client,
    ):
        for stream in (True, False):
            by_field = asking(client, proxy.url, MODEL, stream=stream, thinking_budget=20)
            by_header = asking(client, proxy.url, MODEL, stream=stream, headers={"X-Thinking-Budget": "20"})
            by_effort = asking(client, proxy.url, MODEL, stream=stream, reasoning_effort="none")
            for got in (by_field, by_header, by_effort):
                assert got.succeeded
                assert thought.startswith(got.thought.rstrip())
                assert got.content
                assert got.usage["completion_tokens_details"]["reasoning_tokens"] > 0
            assert len(by_effort.thought) < len(by_field.thought) == len(by_header.thought) < len(thought)
            assert got.finishes == ["stop"]


def test_a_template_is_looked_into_once() -> None:
    """However many first requests come at once."""
    with StandIn() as server:

        async def main() -> None:
            upstream = Upstream(server.url)

            async def one() -> None:
                async with upstream.holding(None, MODEL):
                    pass

            await asyncio.gather(*(one() for _ in range(16)))
            await upstream.aclose()

        asyncio.run(main())
        asked = len(server.asked)
    assert 0 < asked < 12
