"""Streams as both faces hand them out: blocks, iteration, leaving early, cancelling, sharing, and what is sent."""

from __future__ import annotations

import asyncio
import copy
import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support import (
    CHATS,
    GOOD,
    GUARD,
    HEAD,
    MESSAGES,
    Face,
    RawServer,
    Recording,
    asked_by_name,
    await_leaving,
    delta,
    framed,
    playing,
    sse,
    whole,
)
from tools import replies as say

from phi4_http import (
    SYSTEM_PROMPT,
    AsyncLMStudio,
    AsyncPhi4,
    Finished,
    InvalidRequest,
    LMStudio,
    Outcome,
    Phi4,
    ServerUnreachable,
    StreamCut,
    Thinking,
)
from phi4_http.tape.matching import Match
from phi4_http.tape.playback import AT_ONCE
from phi4_http.tape.server import ReplayServer, Served

# --- inside the block -------------------------------------------------------------------------------------------------


def test_events_come_before_the_reply_has_ended(face: Face) -> None:
    """Each is handed out when it arrives: the server goes on only after the client has seen the first."""
    seen = threading.Event()

    def script(connection: socket.socket, request: bytes) -> None:
        connection.sendall(HEAD + framed(sse(delta("<think>first"), done=False)))
        if seen.wait(GUARD):
            rest = sse(delta("</think>last"), delta(finish="stop"))
            connection.sendall(framed(rest) + b"0\r\n\r\n")

    with RawServer(script) as server, face.studio(server.url) as client:
        stream = client.stream_chat_completion("phi", MESSAGES)
        with face.entered(stream) as reply:
            events = face.events(reply)
            assert next(events) == Thinking("first")
            assert reply.partial().thought == "first"
            seen.set()
            assert isinstance(list(events)[-1], Finished)
    assert stream.result.solution == "last"


def test_a_stream_can_be_iterated_in_several_goes(face: Face) -> None:
    """A second loop goes on where the first one stopped; after the end, a third one is told that they are over."""
    with face.studio(playing(GOOD)) as client:
        stream = client.stream_chat_completion("phi", MESSAGES)
        with face.entered(stream) as reply:
            first = next(face.events(reply))
            rest = list(face.events(reply))
            with pytest.raises(InvalidRequest, match="come once"):
                next(face.events(reply))
    assert first == Thinking("7 × 8")
    assert [type(event).__name__ for event in rest] == ["Thought", "Solution", "Finished"]


def test_read_goes_on_from_where_an_iteration_stopped(face: Face) -> None:
    """`read` gives the whole reply, whoever has heard the first events."""
    with face.studio(playing(GOOD)) as client, face.entered(client.stream_chat_completion("phi", MESSAGES)) as reply:
        next(face.events(reply))
        whole_reply = face.wait(reply.read())
        assert whole_reply is reply.result
    assert (whole_reply.thought, whole_reply.solution) == ("7 × 8", "56")


def test_the_result_is_there_as_soon_as_the_last_event_is(face: Face) -> None:
    """It need not wait for the end of the block."""
    with face.studio(playing(GOOD)) as client, face.entered(client.stream_chat_completion("phi", MESSAGES)) as reply:
        last = list(face.events(reply))[-1]
        assert isinstance(last, Finished)
        assert reply.result is last.reply


def test_the_request_id_is_on_the_reply(face: Face) -> None:
    """The header of the answer, where the server sends one."""
    headers = (("content-type", "text/event-stream"), ("x-request-id", "r-7"))
    with face.studio(playing(GOOD, headers=headers)) as client:
        assert face.read(client.stream_chat_completion("phi", MESSAGES)).reply.request_id == "r-7"


# --- outside the block ------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_the_block_is_entered(face: Face) -> None:
    """A stream that was made and not used asks nothing."""
    server = Recording({"/v1/chat/completions": GOOD})
    with face.studio(server) as client:
        stream = client.stream_chat_completion("phi", MESSAGES)
        assert not stream.started
        assert server.requests == []
        face.read(stream)
    assert stream.started
    assert len(server.requests) == 1


def test_what_needs_the_block_says_so_outside_of_it(face: Face) -> None:
    """Iterating, reading, the result and what has arrived: each is an invalid request before the block."""
    with face.studio(playing(GOOD)) as client:
        stream = client.stream_chat_completion("phi", MESSAGES)
        with pytest.raises(InvalidRequest, match="enter the block"):
            next(face.events(stream))
        with pytest.raises(InvalidRequest, match="enter the block"):
            face.wait(stream.read())
        with pytest.raises(InvalidRequest, match="enter the block"):
            stream.partial()
        with pytest.raises(InvalidRequest, match="not ended"):
            stream.result  # noqa: B018  # that it raises is the claim


def test_the_result_of_a_reply_that_still_runs_is_refused(face: Face) -> None:
    """Half a reply is never taken for a whole one."""
    with face.studio(playing(GOOD)) as client, face.entered(client.stream_chat_completion("phi", MESSAGES)) as reply:
        next(face.events(reply))
        with pytest.raises(InvalidRequest, match="not ended"):
            reply.result  # noqa: B018  # that it raises is the claim


def test_a_stream_is_for_one_request(face: Face) -> None:
    """Entering the block a second time is an invalid request, and nothing is sent."""
    server = Recording({"/v1/chat/completions": GOOD})
    with face.studio(server) as client:
        stream = client.stream_chat_completion("phi", MESSAGES)
        face.read(stream)
        with pytest.raises(InvalidRequest), face.entered(stream):
            pass
    assert len(server.requests) == 1


def test_a_reply_that_could_not_begin_has_a_result_all_the_same(face: Face, unused_port: int) -> None:
    """Where entering failed, `partial` is empty and says how it ended."""
    with face.studio(f"http://127.0.0.1:{unused_port}") as client:
        stream = client.stream_chat_completion("phi", MESSAGES)
        error = face.read(stream).error
    assert isinstance(error, ServerUnreachable)
    assert (stream.partial().raw, stream.partial().thought) == ("", None)


# --- leaving early ----------------------------------------------------------------------------------------------------


class Endless(RawServer):
    """A reply that goes on until the client leaves."""

    def __init__(self) -> None:
        super().__init__(self._talk)

    def _talk(self, connection: socket.socket, request: bytes) -> None:
        connection.sendall(HEAD + framed(sse(delta("<think>a</think>b"), done=False)))
        await_leaving(connection)
        self.left.set()


def test_leaving_the_block_closes_the_connection(face: Face) -> None:
    """That is how a generation is stopped: the server sees it at once."""
    with Endless() as server, face.studio(server.url) as client:
        stream = client.stream_chat_completion("phi", MESSAGES)
        with face.entered(stream) as reply:
            next(face.events(reply))
            assert not server.left.is_set()
        assert server.left.wait(GUARD)
        assert stream.result.outcome is Outcome.CANCELLED
        assert (stream.result.thought, stream.result.solution) == ("a", "b")


def test_leaving_by_an_exception_closes_the_connection_and_lets_it_through(face: Face) -> None:
    """Whatever ends the block, the model is stopped."""
    with Endless() as server, face.studio(server.url) as client:
        stream = client.stream_chat_completion("phi", MESSAGES)
        with pytest.raises(ZeroDivisionError), face.entered(stream) as reply:  # noqa: PT012  # the block is the point
            next(face.events(reply))
            raise ZeroDivisionError
        assert server.left.wait(GUARD)
        assert stream.result.outcome is Outcome.CANCELLED


def test_leaving_without_having_read_closes_the_connection(face: Face) -> None:
    """Entering alone is enough to have something to close."""
    with Endless() as server, face.studio(server.url) as client:
        stream = client.stream_chat_completion("phi", MESSAGES)
        with face.entered(stream):
            pass
        assert server.left.wait(GUARD)
        assert stream.result.outcome is Outcome.CANCELLED
        assert stream.result.raw == ""


def test_a_recorded_server_is_told_when_its_client_leaves(face: Face) -> None:
    """The replay server reports it, as a real one would stop to generate."""
    served: queue.Queue[Served] = queue.Queue()
    with (
        ReplayServer([CHATS["stalled"]], playback=AT_ONCE, match=Match(body=False), report=served.put) as server,
        face.studio(server.url) as client,
    ):
        with face.entered(client.stream_chat_completion("phi", MESSAGES)) as reply:
            next(face.events(reply))
            assert served.empty()
        told = served.get(timeout=GUARD)
    assert (told.name, told.left) == ("stalled", True)


def test_after_leaving_nothing_more_comes_and_the_result_stays(face: Face) -> None:
    """A loop that runs ends, a new one is told that the events are over; the result stays what it was."""
    with Endless() as server, face.studio(server.url) as client:
        stream = client.stream_chat_completion("phi", MESSAGES)
        with face.entered(stream) as reply:
            running = face.events(reply)
            next(running)
        before = stream.result
        assert list(running) == []
        with pytest.raises(InvalidRequest, match="come once"):
            next(face.events(stream))
        assert stream.result is before


def test_a_failed_stream_keeps_its_reply(face: Face) -> None:
    """What the error carries is the stream's result, too."""
    with face.studio(playing(sse(delta("<think>a</think>b"), done=False))) as client:
        stream = client.stream_chat_completion("phi", MESSAGES)
        error = face.read(stream).error
    assert isinstance(error, StreamCut)
    assert stream.result.outcome is Outcome.CUT
    assert error.partial is stream.result


# --- asyncio ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before the headers", "inside the reply"])
def test_cancelling_a_task_closes_its_connection(when: str) -> None:
    """`ask` in a task that is cancelled stops the model, wherever it was waiting."""

    def silent(connection: socket.socket, request: bytes) -> None:
        await_leaving(connection)
        server.left.set()

    async def main() -> None:
        async with AsyncLMStudio(server.url) as client:
            task = asyncio.create_task(AsyncPhi4(client, model="phi").ask("x"))
            await asyncio.to_thread(server.asked.wait, GUARD)
            if when == "inside the reply":
                await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.left.wait, GUARD)

    with RawServer(silent) if when == "before the headers" else Endless() as server:
        asyncio.run(main())


def test_a_time_limit_of_asyncio_stops_a_reply_and_keeps_what_came() -> None:
    """`asyncio.wait_for` around a loop over events leaves the block in order."""

    async def main() -> None:
        async with AsyncLMStudio(server.url) as client:
            stream = client.stream_chat_completion("phi", MESSAGES)

            async def follow() -> None:
                async with stream as reply:
                    async for _ in reply:
                        pass

            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(follow(), 1.0)
            assert stream.result.outcome is Outcome.CANCELLED
            assert stream.result.solution == "b"
            assert await asyncio.to_thread(server.left.wait, GUARD)

    with Endless() as server:
        asyncio.run(main())


def test_a_break_out_of_an_async_loop_leaves_nothing_running() -> None:
    """After the block, no task and no generator of it is left."""

    async def main() -> int:
        async with AsyncLMStudio(server.url) as client, client.stream_chat_completion("phi", MESSAGES) as reply:
            async for _ in reply:
                break
        return len(asyncio.all_tasks()) - 1

    with Endless() as server:
        assert asyncio.run(main()) == 0


def test_many_tasks_share_a_client() -> None:
    """Several replies at once, each whole."""

    async def main() -> list[Any]:
        async with AsyncLMStudio(server.url) as client:
            phi = AsyncPhi4(client)
            return list(await asyncio.gather(*(phi.ask("x", model=name) for name in names)))

    names = ["no-tags", "cut-anywhere", "keep-alive-comments", "several-closers"] * 5
    with ReplayServer(
        asked_by_name(CHATS.values()), playback=AT_ONCE, match=Match(ignore=IGNORED, loop=True)
    ) as server:
        replies = asyncio.run(main())
    assert [reply.solution for reply in replies] == [SOLUTIONS[name] for name in names]


# --- threads ----------------------------------------------------------------------------------------------------------

IGNORED = ("messages", "stream", "stream_options", "temperature", "top_p", "top_k")
SOLUTIONS = {
    "no-tags": say.SHORT_SOLUTION,
    "cut-anywhere": say.LIGHT_SOLUTION,
    "keep-alive-comments": say.SHORT_SOLUTION,
    "several-closers": say.PERCENT_SOLUTION,
}


def test_many_threads_share_a_client() -> None:
    """Several replies at once, each whole, over one pool."""
    names = [*SOLUTIONS] * 10
    with (
        ReplayServer(asked_by_name(CHATS.values()), playback=AT_ONCE, match=Match(ignore=IGNORED, loop=True)) as server,
        LMStudio(server.url) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        phi = Phi4(client)
        replies = list(pool.map(lambda name: phi.ask("x", model=name), names))
    assert [reply.solution for reply in replies] == [SOLUTIONS[name] for name in names]


# --- what is sent -----------------------------------------------------------------------------------------------------


def sent(face: Face, phi_options: dict[str, Any], **options: Any) -> dict[str, Any]:
    server = Recording({"/v1/chat/completions": GOOD})
    with face.phi(server, model="phi", **phi_options) as phi:
        face.ask(phi, "What is 7 × 8?", **options)
    return server.body


def test_a_prompt_goes_out_with_the_models_prompt_and_sampling(face: Face) -> None:
    """The whole body of the simplest request, field by field."""
    assert sent(face, {}) == {
        "model": "phi",
        "messages": [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": "What is 7 × 8?"},
        ],
        "temperature": 0.8,
        "top_p": 0.95,
        "top_k": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_parameters_of_the_call_come_before_those_of_phi_and_those_before_the_models(face: Face) -> None:
    """Each level overrides the one before it, field by field."""
    body = sent(face, {"temperature": 0.5, "top_p": 0.5, "seed": 1}, temperature=0.1, stop=["\n"])
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.1, 0.5, 50)
    assert (body["seed"], body["stop"]) == (1, ["\n"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttl", 300),
        ("seed", 7),
        ("stop", "END"),
        ("max_tokens", -1),
        ("max_tokens", 32_768),
        ("min_p", 0.05),
        ("draft_model", "tiny"),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"1": -100}),
        ("reasoning_effort", "high"),
    ],
)
def test_a_parameter_goes_out_as_it_is(face: Face, name: str, value: Any) -> None:
    """Known ones and unknown ones, from `Phi4` and from the call."""
    assert sent(face, {}, **{name: value})[name] == value
    assert sent(face, {name: value})[name] == value


def test_a_parameter_that_is_none_is_one_that_was_not_given(face: Face) -> None:
    """It takes no default away: the model's own sampling goes out."""
    body = sent(face, {"seed": 1}, temperature=None, top_k=None, seed=None, max_tokens=None)
    assert (body["temperature"], body["top_k"], body["seed"]) == (0.8, 50, 1)
    assert "max_tokens" not in body


def test_extra_fields_go_out_from_both(face: Face) -> None:
    """Those of the `Phi4` and those of the call, none of them lost."""
    body = sent(face, {"extra": {"a": 1, "b": 1}}, extra={"b": 2, "c": None})
    assert (body["a"], body["b"], body["c"]) == (1, 2, None)


def test_stream_options_of_the_caller_are_added_to_ours(face: Face) -> None:
    """Usage is asked for, unless the caller says not to."""
    assert sent(face, {}, stream_options={"x": 1})["stream_options"] == {"include_usage": True, "x": 1}
    assert sent(face, {}, stream_options={"include_usage": False})["stream_options"] == {"include_usage": False}


def test_a_chat_of_the_client_has_no_sampling_of_its_own(face: Face) -> None:
    """`LMStudio` is for any model: what is not given is the server's to choose."""
    server = Recording({"/v1/chat/completions": GOOD, "/v1/completions": GOOD})
    with face.studio(server) as client:
        face.read(client.stream_chat_completion("qwen", MESSAGES))
        assert set(server.body) == {"model", "messages", "stream", "stream_options"}
        face.read(client.stream_completion("qwen", "x", max_tokens=5))
        assert set(server.body) == {"model", "prompt", "max_tokens", "stream", "stream_options"}


def test_a_request_for_a_stream_asks_for_one_in_its_headers(face: Face) -> None:
    """Event stream, not compressed, not from a cache; no trace of another client's name."""
    server = Recording({"/v1/chat/completions": GOOD})
    with face.studio(server) as client:
        face.read(client.stream_chat_completion("phi", MESSAGES))
    headers = server.requests[0].headers
    assert headers["accept"] == "text/event-stream"
    assert headers["accept-encoding"] == "identity"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"] == "phi4_http"


def test_the_callers_arguments_are_left_alone(face: Face) -> None:
    """Neither messages nor parameters nor history are changed, and later changes of them don't reach a request."""
    server = Recording({"/v1/chat/completions": GOOD})
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b</think>c"}]
    options = {"stop": ["x"], "stream_options": {"y": 1}, "extra": {"z": {}}}
    before = copy.deepcopy((history, options))
    with face.phi(server, model="phi") as phi:
        stream = phi.stream("d", history=history, **options)
        history.append({"role": "user", "content": "later"})
        face.read(stream)
        history.pop()
    assert (history, options) == before
    assert len(server.body["messages"]) == 4


def test_a_prompt_that_utf8_can_t_hold_is_refused_and_not_sent(face: Face) -> None:
    """Half a character, as it comes from a badly decoded file, is told with its place."""
    server = Recording({"/v1/chat/completions": GOOD})
    with face.phi(server, model="phi") as phi:
        error = face.ask(phi, "before \udc80 after").error
    assert isinstance(error, InvalidRequest)
    assert "before" in str(error)
    assert server.requests == []


# --- Phi4 and its client ----------------------------------------------------------------------------------------------


def test_phi_makes_a_client_of_its_own_and_closes_it(face: Face) -> None:
    """For the default address; a client that was handed in stays open."""
    phi = face.Phi4()
    assert phi.client.url == "http://127.0.0.1:1234"
    face._close_client(phi)
    assert phi.client._http.is_closed
    with face.studio(playing(GOOD)) as client:
        face._close_client(face.Phi4(client))
        assert not client._http.is_closed
        assert face.ask(face.Phi4(client, model="m"), "x").reply.solution == "56"


def test_clients_are_context_managers() -> None:
    """Each of the four, in both faces."""
    with LMStudio() as client, Phi4(client) as phi:
        assert phi.client is client
    assert client._http.is_closed

    async def main() -> None:
        async with AsyncLMStudio() as client, AsyncPhi4(client) as phi:
            assert phi.client is client
        assert client._http.is_closed

    asyncio.run(main())


@pytest.mark.parametrize("setting", [{"opener": "yes"}, {"closer": "frist"}])
def test_a_setting_of_the_splitter_that_can_t_be_is_refused_before_anything_is_sent(
    face: Face, setting: dict[str, Any]
) -> None:
    """On `Phi4` and on the client's streams."""
    server = Recording({"/v1/chat/completions": GOOD})
    with face.studio(server) as client:
        with pytest.raises(InvalidRequest):
            face.wait(face.Phi4(client, model="m", **setting).ask("x"))
        with pytest.raises(InvalidRequest), face.entered(client.stream_chat_completion("m", MESSAGES, **setting)):
            pass
    assert server.requests == []


def test_the_reading_can_be_set_for_a_template_that_opens_the_thought(face: Face) -> None:
    """`opener="assumed"`: the first character is thought already."""
    swallowed = sse(delta("a"), delta("</think>b"), delta(finish="stop"))
    with face.phi(playing(swallowed), model="m", opener="assumed") as phi:
        heard = face.read(phi.stream("x"))
    assert heard.events[0] == Thinking("a")
    assert (heard.reply.revisions, heard.reply.solution) == (0, "b")


def test_an_unstreamed_answer_in_pieces_is_put_together(face: Face) -> None:
    """JSON that comes over several packets is one answer."""
    answer = whole(b'{"object":"list","data":[{"id":"x"}]}')

    def script(connection: socket.socket, request: bytes) -> bool:
        for start in range(0, len(answer), 7):
            connection.sendall(answer[start : start + 7])
        return True

    with RawServer(script) as server, face.studio(server.url) as client:
        assert [model.id for model in face.wait(client.models("openai"))] == ["x"]


def test_leaving_while_another_task_reads_ends_both_in_peace() -> None:
    """The reader gets no event more, and nobody an error."""

    async def both(url: str) -> tuple[list[object], str]:
        async with AsyncLMStudio(url) as client:
            stream = client.stream_chat_completion("phi", MESSAGES)
            heard: list[object] = []
            first = asyncio.Event()

            async def reading() -> None:
                async for event in stream:
                    heard.append(event)
                    first.set()

            async with stream:
                task = asyncio.create_task(reading())
                await first.wait()
            await asyncio.wait_for(task, GUARD)
            return heard, str(stream.result.outcome)

    def script(connection: socket.socket, request: bytes) -> None:
        connection.sendall(HEAD + framed(sse(delta("<think>first"), done=False)))
        await_leaving(connection)

    with RawServer(script) as server:
        assert asyncio.run(both(server.url)) == ([Thinking("first")], "cancelled")


def test_leaving_while_another_thread_reads_ends_both_in_peace() -> None:
    """As with tasks: its read is woken, and gives nothing."""

    def script(connection: socket.socket, request: bytes) -> None:
        connection.sendall(HEAD + framed(sse(delta("<think>first"), done=False)))
        await_leaving(connection)

    heard: list[object] = []
    first = threading.Event()
    with RawServer(script) as server, LMStudio(server.url) as client:
        stream = client.stream_chat_completion("phi", MESSAGES)

        def reading() -> None:
            for event in stream:
                heard.append(event)
                first.set()

        with stream:
            thread = threading.Thread(target=reading)
            thread.start()
            assert first.wait(GUARD)
        thread.join(GUARD)
        assert not thread.is_alive()
    assert heard == [Thinking("first")]
