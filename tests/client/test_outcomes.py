"""Every shipped chat, replayed over real HTTP on both faces, ends in the way that the table says, whatever the cuts.

The table is in `ends`. The text is also read a second time, by a plain reader of the recorded bytes and the slow
reading of the think rules, which share nothing with the library.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from ends import ENDS
from reading import MARKER, read, read_with_field
from support import (
    CHAT,
    CHATS,
    EXCHANGES,
    GOOD,
    HEAD,
    MESSAGES,
    PATIENT,
    AddedUp,
    Face,
    Heard,
    RawServer,
    answering,
    await_leaving,
    delta,
    framed,
    playing,
    reset,
    sse,
    usage,
    whole,
)
from tools import replies as say

from phi4_http import (
    ContextOverflow,
    EmptyReply,
    NotLMStudio,
    Phi4Error,
    ServerError,
    ServerUnreachable,
    SolutionTruncated,
    StreamCut,
    ThoughtUnclosed,
    Timeouts,
)
from phi4_http.errors import SilentOverflow
from phi4_http.tape.exchange import Exchange
from phi4_http.tape.matching import Match
from phi4_http.tape.playback import AT_ONCE
from phi4_http.tape.server import ReplayServer

Address = Callable[..., str]


each_chat = pytest.mark.parametrize("name", ENDS)


def test_every_shipped_chat_is_in_the_table() -> None:
    """No exchange that answers a chat is left out of the table, and none in it is gone."""
    assert set(ENDS) == set(CHATS)


def check(heard: Heard, name: str) -> None:
    """The stream ended as the table says, and its events add up to its reply."""
    end, reply = ENDS[name], heard.reply
    assert type(heard.error) is (end.error or type(None)), heard.error
    if heard.error is not None:
        facts = heard.error.facts
        assert {fact: facts[fact] for fact in end.facts} == end.facts
    assert str(reply.outcome) == end.outcome
    if name == "connection-reset":
        # A reset throws away what is still on its way: how much of the text has come is chance.
        assert f"<think>{end.thought}</think>{end.solution}".startswith(reply.raw)
        return
    assert (reply.thought, reply.thought_closed) == (end.thought, end.closed)
    assert (reply.solution, reply.revisions) == (end.solution, end.revisions)
    counts = reply.usage and (reply.usage.prompt_tokens, reply.usage.completion_tokens)
    assert (reply.finish_reason, counts) == (end.finish, end.usage)


def check_events(heard: Heard) -> None:
    """The events, added up by somebody who knows nothing else, are the reply."""
    added, reply = AddedUp(heard.events), heard.reply
    assert added.finished is heard.result
    if heard.events:
        assert (added.thought, added.solution) == (reply.thought, reply.solution)


def limits(name: str) -> Timeouts:
    """Short where the server goes quiet, far away everywhere else."""
    return replace(PATIENT, idle=0.5) if name == "stalled" else PATIENT


# --- over real HTTP, on both faces ------------------------------------------------------------------------------------

ALL_BYTES = 9_000
"""Bodies up to so many bytes are sent byte by byte; longer ones in pieces of 13, which is as good as any."""


@each_chat
@pytest.mark.parametrize("cuts", ["recorded", "byte by byte", "random"])
def test_a_chat_ends_as_the_table_says(face: Face, chat_server: Address, name: str, cuts: str) -> None:
    """Outcome, error, numbers, thought, solution, finish reason and usage are the same however the bytes are cut."""
    small = CHATS[name].content.size <= ALL_BYTES
    playback = {"recorded": {}, "byte by byte": {"recut": 1 if small else 13}, "random": {"seed": 20}}[cuts]
    with face.phi(chat_server(**playback), model=name, timeouts=limits(name)) as phi:
        heard = face.read(phi.stream("What is 7 × 8?"))
    check(heard, name)
    if CHATS[name].response.is_event_stream:
        check_events(heard)


@each_chat
def test_asking_gives_what_streaming_gives(face: Face, chat_server: Address, name: str) -> None:
    """`ask` returns the reply of the table, or raises its error with the same reply in it."""
    with face.phi(chat_server(), model=name, timeouts=limits(name)) as phi:
        check(face.ask(phi, "What is 7 × 8?"), name)


@pytest.mark.parametrize("name", [name for name in ENDS if name != "connection-reset"])
def test_a_reply_agrees_with_a_plain_reading_of_the_recorded_bytes(face: Face, chat_server: Address, name: str) -> None:
    """Raw text, thought and solution are what the recorded JSON says, read by the slow reading of the rules."""
    said, content, field = plain_text(CHATS[name])
    with face.studio(chat_server(), timeouts=limits(name)) as client:
        reply = face.read(client.stream_chat_completion(name, MESSAGES)).reply
    assert reply.raw == content
    if not said:
        assert (reply.thought, reply.solution) == (None, "")
        return
    wanted = read_with_field(field, content) if field else read(content)
    assert (reply.thought, reply.thought_closed) == (wanted.thought, wanted.closed)
    assert (reply.solution, reply.revisions) == (wanted.solution, wanted.revisions)


def plain_text(exchange: Exchange) -> tuple[bool, str, str]:
    """Whether any text was said, the text of all contents, the text of all reasoning fields."""
    content = reasoning = ""
    body = exchange.body.decode()
    lines = body.splitlines() if exchange.response.is_event_stream else [f"data: {json.dumps(json_or_none(body))}"]
    for line in lines:
        chunk = json_or_none(line.removeprefix("data: ")) if line.startswith("data: ") else None
        for choice in (chunk or {}).get("choices", ()):
            said = choice.get("delta") or choice.get("message") or {}
            content += said.get("content") or ""
            reasoning += said.get("reasoning_content") or said.get("reasoning") or ""
    return bool(content or reasoning), content, reasoning


def json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_the_synthetic_marker_is_in_the_recorded_bytes_and_not_in_the_reply(face: Face, chat_server: Address) -> None:
    """LM Studio's internal end marker reaches `raw` alone."""
    with face.studio(chat_server()) as client:
        reply = face.read(client.stream_chat_completion("synthetic-marker", MESSAGES)).reply
    assert MARKER.search(reply.raw)
    assert not MARKER.search(f"{reply.thought}{reply.solution}")


def test_a_completion_is_read_as_a_chat_is(face: Face) -> None:
    """A streamed continuation of a raw prompt is told apart too."""
    exchange = EXCHANGES["v1-completion-stream"]
    with (
        ReplayServer([exchange], playback=AT_ONCE, match=Match(body=False)) as server,
        face.studio(server.url) as client,
    ):
        reply = face.read(client.stream_completion("m", "What is 7 × 8?")).reply
    assert (reply.thought, reply.solution) == (say.SHORT_THOUGHT, say.SHORT_SOLUTION)
    assert str(reply.outcome) == "complete"


# --- what the outcome means for the caller ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, end in ENDS.items() if end.error is None])
def test_only_an_incomplete_reply_raises_on_request(face: Face, chat_server: Address, name: str) -> None:
    """`raise_for_outcome` gives a complete reply back, and raises for the two that stopped early."""
    raised = {"thought_unclosed": ThoughtUnclosed, "solution_truncated": SolutionTruncated}.get(ENDS[name].outcome)
    with face.phi(chat_server(), model=name) as phi:
        reply = face.ask(phi, "x").reply
    if raised is None:
        assert reply.raise_for_outcome() is reply
        return
    with pytest.raises(raised) as caught:
        reply.raise_for_outcome()
    assert caught.value.partial is reply


@pytest.mark.parametrize("name", ["overflow-8-no-delta", "overflow-8-no-done"])
def test_a_silent_overflow_is_also_an_empty_reply(face: Face, chat_server: Address, name: str) -> None:
    """What is only inferred can be caught under both of its meanings."""
    with face.phi(chat_server(), model=name) as phi:
        error = face.ask(phi, "x").error
    assert isinstance(error, ContextOverflow)
    assert isinstance(error, EmptyReply)


def test_the_tool_calls_are_whole(face: Face, chat_server: Address) -> None:
    """Calls that came in pieces are assembled, each with its id, name and arguments."""
    with face.phi(chat_server(), model="tool-calls") as phi:
        calls = face.ask(phi, "x").reply.tool_calls
    assert [(call.id, call.name, json.loads(call.arguments), call.type) for call in calls] == [
        ("365174485", "weather", {"city": "Zürich"}, "function"),
        ("365174486", "weather", {"city": "Oslo"}, "function"),
    ]


def test_the_figures_of_llama_cpp_are_kept(face: Face, chat_server: Address) -> None:
    """Cached tokens, the server's own timings and fields that nobody knows are reachable on the reply."""
    with face.phi(chat_server()) as phi:
        timed = face.ask(phi, "x", model="cpp-think-incontent-nousage").reply
        progress = face.ask(phi, "x", model="cpp-ping-progress-stream").reply
        cached = face.ask(phi, "x", model="cpp-think-incontent-stream").reply
    assert timed.stats.server is not None
    assert timed.stats.server["predicted_n"] == 75
    assert timed.stats.server_tokens_per_second == timed.stats.server["predicted_per_second"]
    assert progress.extra["prompt_progress"]["total"] == 2043
    assert cached.usage is not None
    assert cached.usage.cached_tokens == 78


# --- failures that no tape has ----------------------------------------------------------------------------------------


def outcome(face: Face, transport: httpx.MockTransport) -> Heard:
    with face.studio(transport) as client:
        return face.read(client.stream_chat_completion("phi", MESSAGES))


STARTED = delta("<think>a</think>b")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ('event: error\ndata: {"error":{"message":"It broke."},"message":"It broke."}\n\n', "It broke."),
        ('event: error\ndata: {"error":"It broke."}\n\n', "It broke."),
        ("event: error\ndata: It broke.\n\n", "It broke."),
        ('event: error\ndata: {"message":"It broke."}\n\n', "It broke."),
        ('data: {"error":"It broke."}\n\n', "It broke."),
        ('data: {"error":{"message":"It broke."}}', "It broke."),
        ('event: error\ndata: {"error":{"code":7}}\n\n', '{"code": 7}'),
    ],
)
def test_an_error_frame_of_any_form_is_a_server_error(face: Face, frame: str, message: str) -> None:
    """Object, text or plain words, named as error or not, with a blank line after it or not: the text is told."""
    heard = outcome(face, playing(sse(STARTED, done=False), frame.encode()))
    assert isinstance(heard.error, ServerError)
    assert (heard.error.message, heard.error.status) == (message, 200)
    assert (heard.reply.thought, heard.reply.solution) == ("a", "b")


def test_a_chunk_that_says_there_is_no_error_is_no_error(face: Face) -> None:
    """`"error": null`, which some servers put into every chunk, is not a failure."""
    chunks = [{**chunk, "error": None} for chunk in (delta("<think>a</think>"), delta("b"), delta(finish="stop"))]
    heard = outcome(face, playing(sse(*chunks)))
    assert heard.error is None
    assert heard.reply.solution == "b"


def test_a_finish_reason_counts_more_than_what_comes_after_it(face: Face) -> None:
    """Once the finish reason is there, a missing [DONE], a broken connection or a rest of a chunk changes nothing."""
    ended = sse(delta("<think>a</think>b"), delta(finish="stop"), done=False)
    for transport in (
        playing(ended),
        playing(ended, b'data: {"id":'),
        playing(ended, fault=httpx.ReadError("reset")),
        playing(ended, fault=httpx.ReadTimeout("slow")),
    ):
        heard = outcome(face, transport)
        assert heard.error is None
        assert str(heard.reply.outcome) == "complete"


def test_an_error_after_the_finish_reason_is_still_an_error(face: Face) -> None:
    """What the server says to have failed has failed."""
    heard = outcome(face, playing(sse(STARTED, delta(finish="stop"), {"error": "It broke."}, done=False)))
    assert isinstance(heard.error, ServerError)
    assert heard.reply.solution == "b"


def test_a_stream_is_utf8_whatever_its_header_says(face: Face) -> None:
    """As server-sent events always are."""
    headers = (("content-type", "text/event-stream; charset=iso-8859-1"),)
    body = sse(json.dumps(delta("é 中"), ensure_ascii=False), delta(finish="stop"))
    assert outcome(face, playing(body, headers=headers)).reply.solution == "é 中"


def test_a_stream_that_ends_inside_a_chunk_keeps_what_came_before(face: Face) -> None:
    """Half an event is no event, and the reply is cut."""
    heard = outcome(face, playing(sse(STARTED, done=False), b'data: {"choices":[{"delta":{"content":"c'))
    assert isinstance(heard.error, StreamCut)
    assert heard.reply.solution == "b"


def test_an_answer_longer_than_its_limit_inside_a_tool_call_is_not_complete(face: Face) -> None:
    """Arguments that the length limit cut can't be taken for a whole call."""
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}
    heard = outcome(face, playing(sse(delta(tool_calls=[call]), delta(finish="length"))))
    assert str(heard.reply.outcome) == "solution_truncated"
    assert heard.reply.tool_calls[0].arguments == '{"a": '


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_a_prompt_counted_and_nothing_said_is_an_overflow_with_its_number(face: Face, finish: str) -> None:
    """Where the usage tells how long the prompt was, the inferred overflow has that number."""
    heard = outcome(face, playing(sse(delta(finish=finish), usage(4096, 0))))
    assert isinstance(heard.error, SilentOverflow)
    assert heard.error.needed == 4096


def test_an_empty_body_of_a_200_is_not_taken_for_a_reply(face: Face) -> None:
    """Nothing at all, with no type: that is not LM Studio's API."""
    heard = outcome(face, playing(headers=[]))
    assert isinstance(heard.error, NotLMStudio)


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_is_told_and_not_followed(face: Face, status: int) -> None:
    """A token must not travel to where somebody else says."""
    moved = httpx.MockTransport(
        lambda request: httpx.Response(status, headers={"location": "http://elsewhere.invalid/"})
    )
    heard = outcome(face, moved)
    assert isinstance(heard.error, NotLMStudio)
    assert heard.error.status == status


def test_an_answer_in_html_with_an_error_status_is_not_lm_studio(face: Face) -> None:
    """A gateway's error page is not a failure of the server behind it."""
    heard = outcome(face, answering("<!doctype html><title>502 Bad Gateway</title>", 502, "text/html"))
    assert isinstance(heard.error, NotLMStudio)
    assert heard.error.status == 502


# --- unreachable ------------------------------------------------------------------------------------------------------


def test_a_refused_connection_is_unreachable(face: Face, unused_port: int) -> None:
    """Nobody listens: the error has the address, and it was no time limit."""
    with face.studio(f"http://127.0.0.1:{unused_port}") as client:
        error = face.read(client.stream_chat_completion("phi", MESSAGES)).error
    assert isinstance(error, ServerUnreachable)
    assert (error.url, error.timed_out) == (f"http://127.0.0.1:{unused_port}", False)
    assert "lms server start" in str(error)


def test_a_name_that_does_not_exist_is_unreachable(face: Face) -> None:
    """A host that has no address is told as such."""
    with face.studio("http://no-such-host.invalid") as client:
        error = face.read(client.stream_chat_completion("phi", MESSAGES)).error
    assert isinstance(error, ServerUnreachable)


def test_the_first_byte_has_a_time_limit_of_its_own(face: Face) -> None:
    """A server that accepts and never answers ends the wait after `first_byte`, and the error says so."""
    with RawServer(lambda connection, request: await_leaving(connection)) as server:
        with face.studio(server.url, timeouts=replace(PATIENT, first_byte=0.2)) as client:
            error = face.read(client.stream_chat_completion("phi", MESSAGES)).error
        assert server.connections == 1
    assert isinstance(error, ServerUnreachable)
    assert error.timed_out


def test_a_request_that_needs_no_model_has_its_own_time_limit(face: Face) -> None:
    """`request` limits a list, where `first_byte` does not."""
    with (
        RawServer(lambda connection, request: await_leaving(connection)) as server,
        face.studio(server.url, timeouts=replace(PATIENT, request=0.2)) as client,
        pytest.raises(ServerUnreachable) as caught,
    ):
        face.wait(client.models())
    assert caught.value.timed_out


def test_headers_and_then_silence_end_after_the_limit_on_the_first_text(face: Face) -> None:
    """Servers that send headers at once process the prompt after them: `first_byte` counts until something is said."""

    def script(connection: Any, request: bytes) -> None:
        connection.sendall(HEAD)
        await_leaving(connection)

    with (
        RawServer(script) as server,
        face.studio(server.url, timeouts=replace(PATIENT, idle=0.01, first_byte=0.2)) as client,
    ):
        heard = face.read(client.stream_chat_completion("phi", MESSAGES))
    assert isinstance(heard.error, ServerUnreachable)
    assert (heard.error.timed_out, heard.error.limit) == (True, "first_byte")
    assert "nothing came within the time limit of 0.2 s (first_byte), but for the head" in str(heard.error)
    assert (heard.reply.thought, heard.reply.solution) == (None, "")


def test_a_long_wait_for_the_first_byte_is_no_idleness(face: Face) -> None:
    """A server that thinks for longer than `idle` before its headers is waited for."""

    def script(connection: Any, request: bytes) -> None:
        server.over.wait(0.4)
        connection.sendall(HEAD + framed(GOOD) + b"0\r\n\r\n")

    with RawServer(script) as server, face.studio(server.url, timeouts=replace(PATIENT, idle=0.1)) as client:
        heard = face.read(client.stream_chat_completion("phi", MESSAGES))
    assert heard.error is None


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Ty"], ids=["nothing", "half of the headers"])
def test_a_reset_before_the_headers_are_there_is_unreachable(face: Face, sent: bytes) -> None:
    """A server that dies before it has begun to answer has not answered."""

    def script(connection: Any, request: bytes) -> None:
        connection.sendall(sent)
        reset(connection)

    with RawServer(script) as server, face.studio(server.url) as client:
        error = face.read(client.stream_chat_completion("phi", MESSAGES)).error
    assert isinstance(error, ServerUnreachable)
    assert not error.timed_out


def test_what_is_not_http_is_unreachable_or_not_lm_studio(face: Face) -> None:
    """Another kind of server on the port is told apart from a crash of this library."""
    with (
        RawServer(lambda connection, request: connection.sendall(b"220 mail.invalid ESMTP\r\n")) as server,
        face.studio(server.url) as client,
    ):
        error = face.read(client.stream_chat_completion("phi", MESSAGES)).error
    assert isinstance(error, (ServerUnreachable, NotLMStudio))


def test_one_byte_a_packet_is_read_like_any_other_stream(face: Face) -> None:
    """Headers, chunk frames and events that arrive byte by byte over TCP are put together."""

    def script(connection: Any, request: bytes) -> None:
        for byte in HEAD + framed(GOOD) + b"0\r\n\r\n":
            connection.sendall(bytes([byte]))

    with RawServer(script) as server, face.studio(server.url) as client:
        heard = face.read(client.stream_chat_completion("phi", MESSAGES))
    assert (heard.reply.thought, heard.reply.solution) == ("7 × 8", "56")
    check_events(heard)


def test_json_that_breaks_off_is_an_error_of_the_connection(face: Face) -> None:
    """An unstreamed answer that is shorter than announced is never read as whole."""
    answer = whole(b'{"object":"list","data":[]}')[:-4]
    with (
        RawServer(lambda connection, request: connection.sendall(answer)) as server,
        face.studio(server.url) as client,
        pytest.raises(Phi4Error),
    ):
        face.wait(client.models("openai"))


def test_the_path_of_a_chat_is_the_one_that_every_server_has(face: Face) -> None:
    """A chat is asked for under /v1, unless the caller says otherwise."""
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=GOOD)

    with face.studio(httpx.MockTransport(answer)) as client:
        face.read(client.stream_chat_completion("phi", MESSAGES))
        face.read(client.stream_chat_completion("phi", MESSAGES, api="native"))
    assert asked == [CHAT, "/api/v0/chat/completions"]
