"""Cancellation from anywhere ends the step that runs, a child process included, before the caller goes on."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from lmstudio.world import World
from support import GUARD, MESSAGES, RawServer, await_leaving

from phi4_http import AsyncLMStudio, AsyncPhi4


@contextlib.asynccontextmanager
async def by_task(seconds: float) -> AsyncIterator[None]:
    """`task.cancel()`, from outside."""
    task = asyncio.current_task()
    assert task is not None
    handle = asyncio.get_running_loop().call_later(seconds, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        yield
    handle.cancel()


@contextlib.asynccontextmanager
async def by_timeout(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout`, which Python has since 3.11."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # type: ignore[attr-defined]  # newer than what types are checked for
            yield


@contextlib.asynccontextmanager
async def by_scope(seconds: float) -> AsyncIterator[None]:
    """anyio's scopes, which cancel again and again until they are left."""
    with anyio.move_on_after(seconds):
        yield


WAYS: list[Callable[[float], Any]] = [by_task, by_scope, *([by_timeout] if sys.version_info >= (3, 11) else [])]
each_way = pytest.mark.parametrize("within", WAYS, ids=lambda way: way.__name__)


def runs(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@each_way
def test_a_running_command_is_gone_before_the_caller_goes_on(world: World, within: Callable[[float], Any]) -> None:
    """`lms` hangs in its load: when the block is left, its process has ended."""
    world.set(hang=["load"])

    async def main() -> list[int]:
        async with AsyncLMStudio(world.url, lms=world.lms) as client:
            began = time.monotonic()
            async with within(2.0):
                await client.load("llama-3.2-1b-instruct", ways=["lms"])
            assert time.monotonic() - began < GUARD / 2
            with world.state() as state:
                return [call["pid"] for call in state["calls"] if call["argv"][0] == "load" and runs(call["pid"])]

    assert asyncio.run(main()) == []
    assert world.calls("load")


@each_way
@pytest.mark.parametrize("headers", [False, True])
def test_a_question_that_is_waited_for_is_left(within: Callable[[float], Any], headers: bool) -> None:
    """With or without a head of the answer: the connection is closed, which stops the model."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

    def script(connection: Any, request: bytes) -> None:
        if headers:
            connection.sendall(head)
        await_leaving(connection)
        server.left.set()

    async def main() -> None:
        async with AsyncLMStudio(server.url) as client:
            async with within(0.2):
                await AsyncPhi4(client, model="m", system="send").ask("x")
            await asyncio.to_thread(server.left.wait, GUARD)
            async with within(0.2), client.stream_chat_completion("m", MESSAGES) as reply:
                async for _ in reply:
                    pass

    with RawServer(script) as server:
        asyncio.run(main())
        assert server.left.wait(GUARD)
        assert server.connections == 2


@each_way
def test_a_stream_that_is_opened_while_it_says_so_is_left(within: Callable[[float], Any]) -> None:
    """Between two words on waiting, nobody has the connection yet: it is closed all the same."""

    def script(connection: Any, request: bytes) -> None:
        await_leaving(connection)
        server.left.set()

    async def main() -> None:
        async with AsyncLMStudio(server.url) as client:
            phi = AsyncPhi4(client, model="m", system="send")
            async with within(0.2), phi.stream("x", waiting=True) as reply:
                async for _ in reply:
                    pass
            assert await asyncio.to_thread(server.left.wait, GUARD)

    with RawServer(script) as server:
        asyncio.run(main())
