"""Every shipped chat, read through the proxy by a plain client, ends as the library itself says.

Whole and cut anew, streamed and not, with either closer; and a reply that fails at any byte never looks like a success.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import httpx
import pytest
from ends import ENDS
from support import CHATS, GOOD, HEAD, RawServer, framed, playing, reset

from phi4_http import LMStudio, Phi4, Phi4Error, Reply, Timeouts
from phi4_http.limits import Timeouts as Limits
from phi4_http.proxy.repair import Repair

from .support import Got, application, asking, got_of, proxied, within

Address = Callable[..., str]
Closer = Literal["last", "first"]
LIMITS = Limits(idle=0.5)
"""For the one that goes quiet."""


@pytest.fixture(scope="module")
def through(chat_server: Address) -> Iterator[Callable[..., str]]:
    """Addresses of proxies before the server that has every shipped chat."""
    running: dict[Any, Any] = {}

    def address(closer: Closer, **playback: Any) -> str:
        key = (closer, *playback.items())
        if key not in running:
            repair = Repair(models=".", closer=closer, keepalive=0)
            manager = proxied(chat_server(**playback), repair=repair, timeouts=LIMITS)
            running[key] = (manager, manager.__enter__())
        url: str = running[key][1].url
        return url

    yield address
    for manager, _ in running.values():
        manager.__exit__(None, None, None)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client that knows nothing."""
    with httpx.Client(trust_env=False, timeout=30) as made:
        yield made


def library(url: str, name: str, closer: Closer) -> Reply:
    """What the library itself says of it."""
    with LMStudio(url, timeouts=Timeouts(idle=0.5)) as studio:
        try:
            return Phi4(studio, system="send", closer=closer).ask("What is 7 × 8?", model=name)
        except Phi4Error as error:
            return cast(Reply, error.partial)


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("closer", ["last", "first"])
@pytest.mark.parametrize("cuts", ["recorded", "byte by byte"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_chat_ends_through_the_proxy_as_the_library_says(
    through: Any, client: httpx.Client, chat_server: Address, name: str, closer: Closer, cuts: str, stream: bool
) -> None:
    """Outcome, thought, solution, tool calls, finish reason and usage: the same."""
    small = CHATS[name].content.size <= 9_000
    playback = {} if cuts == "recorded" else {"recut": 1 if small else 13}
    reply = library(chat_server(), name, closer)
    got = asking(client, through(closer, **playback), name, stream=stream)
    assert got.outcome == str(reply.outcome)
    assert got.succeeded == (got.error is None)
    if name == "connection-reset" or got.status != 200:
        return
    assert (got.thought, got.content) == (reply.thought or "", reply.solution)
    if got.error is None:
        check_end(got, reply, stream)


def check_end(got: Got, reply: Reply, stream: bool) -> None:
    """What a good end says beside the text."""
    assert got.done or not stream
    assert got.finishes == [reply.finish_reason]
    assert [call["function"]["arguments"] for call in got.calls] == [call.arguments for call in reply.tool_calls]
    usage = reply.usage
    if usage is None:
        assert got.usage is None
        return
    assert (got.usage["prompt_tokens"], got.usage["completion_tokens"]) == (
        usage.prompt_tokens,
        usage.completion_tokens,
    )
    assert 0 <= got.usage["completion_tokens_details"]["reasoning_tokens"] <= got.usage["completion_tokens"]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("end", ["clean", "FIN", "RST"])
def test_a_reply_that_ends_at_any_byte_is_no_success(stream: bool, end: str) -> None:
    """Cut before its finish reason has come, in any way: an error, never an end that looks good."""
    faults = {"clean": None, "FIN": httpx.RemoteProtocolError("peer closed"), "RST": httpx.ReadError("reset")}
    finished = GOOD.index(b'"finish_reason": "stop"')
    assert finished > 0
    for size in range(len(GOOD) + 1):
        response = within(application(transport=playing(GOOD[:size], fault=faults[end])), stream=stream)
        got = got_of(response, response.text)
        whole = GOOD[finished:size].find(b"}\n") >= 0  # the chunk with the finish reason is there, if not its last \n
        assert got.succeeded == whole or (got.succeeded and GOOD[finished:size].endswith(b"}")), size
        assert got.succeeded or got.error is not None, size
        assert not got.done or got.succeeded


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("rst", [False, True], ids=["FIN", "RST"])
def test_so_it_is_over_real_sockets(client: httpx.Client, stream: bool, rst: bool) -> None:
    """The same with real connections that break."""
    body = framed(GOOD)
    finished = body.index(b'"finish_reason": "stop"')
    sizes = iter(range(0, finished, 17))

    def script(connection: Any, request: bytes) -> None:
        connection.sendall(HEAD + body[: next(sizes)])
        if rst:
            reset(connection)

    with RawServer(script) as server, proxied(server.url) as proxy:
        for size in range(0, finished, 17):
            got = asking(client, proxy.url, "m", stream=stream)
            assert not got.succeeded, size
            assert got.error is not None, size
