"""Time: which limit ends a wait, what it says, what is told while nothing comes, and that leaving ends it at once."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import (
    GOOD,
    GUARD,
    HEAD,
    MESSAGES,
    PATIENT,
    Face,
    RawServer,
    await_leaving,
    delta,
    framed,
    keeping,
    sse,
    usage,
    whole,
)

from phi4_http import ModelLoading, ServerUnreachable, StreamCut, Timeouts, Waiting
from phi4_http.limits import GRACE
from phi4_http.reply.patience import Patience

Script = Callable[[socket.socket, bytes], object]


def sending(*pieces: bytes | float) -> Script:
    """A script that sends these pieces, waits where one is a number of seconds, and then says nothing."""

    def script(connection: socket.socket, request: bytes) -> None:
        over = threading.Event()
        for piece in pieces:
            if isinstance(piece, bytes):
                connection.sendall(piece)
            else:
                over.wait(piece)
        await_leaving(connection)

    return script


def hear(face: Face, script: Script, timeouts: Timeouts, **options: Any) -> Any:
    with RawServer(script) as server, face.studio(server.url, timeouts=timeouts) as client:
        return face.read(client.stream_chat_completion("phi", MESSAGES, **options))


SAID = framed(sse(delta("<think>a"), done=False))
DRIPPING: list[bytes | float] = [SAID, 0.02] * 50

each_way = pytest.mark.parametrize("waiting", [False, True], ids=["not told", "told"])


@each_way
@pytest.mark.parametrize(
    ("script", "timeouts", "error", "words"),
    [
        (sending(), Timeouts(first_byte=0.1), ServerUnreachable, r"nothing came within .* 0\.1 s \(first_byte\)"),
        (sending(HEAD), Timeouts(first_byte=0.1), ServerUnreachable, r"0\.1 s \(first_byte\), but for the head"),
        (sending(HEAD), Timeouts(total=0.1), ServerUnreachable, r"0\.1 s \(total\), but for the head"),
        (
            sending(HEAD, framed(b": ping\n\n")),
            Timeouts(first_byte=0.1),
            ServerUnreachable,
            r"\(first_byte\), only ': ping'",
        ),
        (
            sending(HEAD, framed(sse(delta(role="assistant"), done=False))),
            Timeouts(first_byte=0.1, idle=0.01),
            ServerUnreachable,
            r"no text came .*\(first_byte\), only 1 event with none",
        ),
        (sending(HEAD, SAID), Timeouts(idle=0.1), StreamCut, r"nothing more came .*0\.1 s \(idle\), after 8 char"),
        (sending(HEAD, SAID), Timeouts(first_byte=9, total=0.1), StreamCut, r"not over .*0\.1 s \(total\): 8 char"),
        (sending(HEAD, *DRIPPING), Timeouts(idle=9, total=0.2), StreamCut, r"not over .*0\.2 s \(total\)"),
    ],
)
def test_each_limit_says_which_it_is_how_long_and_what_had_come(
    face: Face, script: Script, timeouts: Timeouts, error: type[Exception], words: str, waiting: bool
) -> None:
    """Before any text nobody answered in time; after it, the reply is cut."""
    heard = hear(face, script, timeouts, waiting=waiting)
    assert type(heard.error) is error
    with pytest.raises(error, match=words):
        raise heard.error
    assert str(heard.reply.outcome) == ("cut" if error is StreamCut else "unreachable")


@each_way
def test_idle_begins_with_the_first_text(face: Face, waiting: bool) -> None:
    """Roles and silences before it are the prompt's, however long; a late reply within its limits is whole."""
    role = framed(sse(delta(role="assistant"), done=False))
    script = sending(HEAD, role, 0.3, framed(GOOD), b"0\r\n\r\n")
    heard = hear(face, script, Timeouts(idle=0.1, first_byte=9), waiting=waiting)
    assert heard.error is None
    assert heard.reply.solution == "56"


def test_after_a_finish_reason_the_end_is_waited_for_a_moment(face: Face) -> None:
    """With no limit set at all: usage that comes late is read, and a connection that stays open holds up nobody."""
    text = framed(sse(delta("<think>a</think>b"), delta(finish="stop"), done=False))
    began = time.monotonic()
    heard = hear(face, sending(HEAD, text, 0.2, framed(sse(usage(9, 4), done=False))), Timeouts())
    assert heard.error is None
    assert heard.reply.usage.completion_tokens == 4
    assert GRACE * 0.9 < time.monotonic() - began < GRACE + 3


def test_waiting_is_told_about_once_a_second(face: Face) -> None:
    """Before the head and after it; entering returns at once, and the reply is the same."""
    script = sending(1.2, HEAD, 1.2, framed(GOOD), b"0\r\n\r\n")
    with RawServer(script) as server, face.studio(server.url) as client:
        stream = client.stream_chat_completion("phi", MESSAGES, waiting=True)
        began = time.monotonic()
        with face.entered(stream) as reply:
            assert time.monotonic() - began < 0.5
            events = list(face.events(reply))
    waits = [event for event in events if isinstance(event, Waiting)]
    assert [(wait.phase, wait.share) for wait in waits] == [("processing", None)] * 2
    assert 0.9 < waits[0].seconds < waits[1].seconds < 4
    assert stream.result.solution == "56"


def test_the_share_of_the_prompt_is_told_where_the_server_tells_it(face: Face) -> None:
    """llama.cpp's progress, asked for only where the server is known not to be LM Studio."""
    progress = [{"choices": [], "prompt_progress": {"total": 8, "cache": 0, "processed": n}} for n in (2, 8)]
    pieces = [framed(sse(chunk, done=False)) for chunk in progress]
    answer = HEAD + pieces[0]

    def script(connection: socket.socket, request: bytes) -> bool:
        if b"GET" in request[:4]:
            connection.sendall(whole(b'{"data":[{"id":"m"}]}') if b"/v1/models" in request[:16] else whole(b"{}"))
            return True
        connection.sendall(answer)
        time.sleep(0.05)
        connection.sendall(pieces[1] + framed(GOOD) + b"0\r\n\r\n")
        return False

    with RawServer(script) as server, face.studio(server.url) as client:
        before = face.read(client.stream_chat_completion("m", MESSAGES, waiting=True))
        face.wait(client.models())
        heard = face.read(client.stream_chat_completion("m", MESSAGES, waiting=True))
        face.read(client.stream_chat_completion("m", MESSAGES))
    asked = [b"return_progress" in request for request in server.requests if request.startswith(b"POST")]
    assert asked == [False, True, False]
    assert before.error is heard.error is None
    first = heard.events[0]
    assert isinstance(first, Waiting)
    assert (first.phase, first.share) == ("processing", 0.25)


def test_a_model_that_loads_is_asked_again_for_as_long_as_the_limit_allows(face: Face) -> None:
    """A 503 is waited through, and told; without `waiting` or a limit it is an error at once."""
    loading = whole(b'{"error":{"message":"Loading model","code":503}}', keep=False).replace(b"200 OK", b"503 No", 1)
    count = iter(range(100))

    def script(connection: socket.socket, request: bytes) -> None:
        connection.sendall(loading if next(count) < 2 else HEAD + framed(GOOD) + b"0\r\n\r\n")

    heard = hear(face, script, Timeouts(first_byte=GUARD), waiting=True)
    assert heard.error is None
    assert [event.phase for event in heard.events if isinstance(event, Waiting)] == ["loading", "loading"]
    for timeouts, waiting in ((Timeouts(), True), (PATIENT, False)):
        error = hear(face, keeping(loading), timeouts, waiting=waiting).error
        assert isinstance(error, ModelLoading)
        assert error.partial is not None


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + SAID], ids=["no head", "a head", "text"])
def test_leaving_while_it_waits_closes_the_connection(face: Face, sent: bytes) -> None:
    """That is what stops the model, also before it has begun to answer."""
    with RawServer(sending(sent)) as server, face.studio(server.url) as client:
        script_over = threading.Event()
        stream = client.stream_chat_completion("phi", MESSAGES, waiting=True)
        with face.entered(stream) as reply:
            events = face.events(reply)
            next(events)
            assert server.asked.wait(GUARD)
        server._threads[-1].join(GUARD)  # the script ends when the client has left
        assert not server._threads[-1].is_alive()
        script_over.set()
    assert str(stream.result.outcome) == "cancelled"


def test_errors_of_a_waiting_stream_come_while_it_is_read(face: Face, unused_port: int) -> None:
    """Entering raises nothing; the error carries its reply, and so does the result."""
    with face.studio(f"http://127.0.0.1:{unused_port}") as client:
        stream = client.stream_chat_completion("phi", MESSAGES, waiting=True)
        with face.entered(stream) as reply, pytest.raises(ServerUnreachable) as caught:
            list(face.events(reply))
    assert str(stream.result.outcome) == "unreachable"
    assert caught.value.partial is stream.result


def test_a_waiting_stream_that_is_not_read_asks_nothing(face: Face, unused_port: int) -> None:
    """And is cancelled when its block is left."""
    with face.studio(f"http://127.0.0.1:{unused_port}") as client:
        stream = client.stream_chat_completion("phi", MESSAGES, waiting=True)
        with face.entered(stream):
            pass
    assert str(stream.result.outcome) == "cancelled"


def test_the_clock_of_a_reply() -> None:
    """By hand: each limit begins when it should, and the grace comes after the finish reason alone."""
    patience = Patience(Timeouts(first_byte=5, idle=2, total=100), 10.0)
    patience.begin_part(11.0)
    assert patience.seconds(12.0) == 4.0
    patience.note(15.0, events=True, begun=False, finished=False)
    assert patience.over(16.0) is not None
    patience.note(15.5, events=True, begun=True, finished=False)
    assert patience.seconds(16.0) == 1.5
    assert patience.seconds(16.0, 1.0) == 1.0
    patience.note(17.0, events=True, begun=True, finished=True)
    assert patience.seconds(17.0) == GRACE
    patience.begin_part(108.0)
    assert patience.limit() == ("total", 100, 110.0)
    unlimited = Patience(Timeouts(), 0.0)
    assert (unlimited.limited, unlimited.seconds(9.0), unlimited.seconds(9.0, 1.0)) == (False, None, 1.0)
