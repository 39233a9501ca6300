"""Whatever a server does, a reply ends in the way that the table (`faults`) says: both faces, and the command."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from examples import LONG, PROFILE
from faults import DONE, FAULTS, FIN, FINISHED, GARBAGE, RST, TEXT, Fault, stream
from hypothesis import given
from hypothesis import strategies as st
from strategies import chunked
from support import CHATS, FACES, HEAD, MESSAGES, AddedUp, Face, Heard, await_leaving, playing, read_request, reset

from phi4_http import Outcome, Timeouts
from phi4_http.cli import main
from phi4_http.cli.exits import exit_code, outcome_code

NOT_THERE = b'{"error":"Unexpected endpoint or method."}'
LOOKED_UP = b"HTTP/1.1 404 No\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(NOT_THERE), NOT_THERE)


class FaultServer:
    """One thread on loopback that does to each stream what the first part of the path names; it has nothing else."""

    def __init__(self) -> None:
        self.scripts: dict[str, tuple[bytes, str]] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def at(self, sent: bytes, end: str) -> str:
        """The address where this happens."""
        name = str(len(self.scripts))
        self.scripts[name] = (sent, end)
        return f"{self.url}/{name}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                self._do(connection, read_request(connection))

    def _do(self, connection: socket.socket, request: bytes) -> None:
        if b'"stream":true' not in request.replace(b" ", b""):
            connection.sendall(LOOKED_UP)
            return
        sent, end = self.scripts[request.split(b" ")[1].split(b"/")[1].decode()]
        connection.sendall(sent)
        if end == RST:
            reset(connection)
            return
        if end == FIN:
            connection.shutdown(socket.SHUT_WR)
        await_leaving(connection)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    made = FaultServer()
    yield made
    made.close()


each_fault = pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])


def hear(face: Face, url: str, timeouts: Timeouts) -> Heard:
    with face.studio(url, timeouts=timeouts) as client:
        return face.read(client.stream_chat_completion("m", MESSAGES))


def check(fault: Fault, outcome: str, kept: tuple[str | None, str], code: int) -> None:
    if fault.end != RST:
        assert (outcome, kept, code) == (fault.outcome, fault.kept, fault.code)
        return
    # A reset may throw away what is still on its way.
    assert (outcome, code) in {(fault.outcome, fault.code), ("cut", 9), ("unreachable", 3)}
    assert (fault.kept[0] or "").startswith(kept[0] or "")
    assert fault.kept[1].startswith(kept[1])


def test_no_two_faults_have_one_name() -> None:
    """And the table is as large as it says."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 190


@each_fault
def test_a_fault_ends_as_the_table_says(face: Face, server: FaultServer, fault: Fault) -> None:
    """Outcome, text and exit code; the error is one of ours, makes a sentence, and carries the reply."""
    heard = hear(face, server.at(fault.sent, fault.end), fault.timeouts)
    reply = heard.reply
    code = outcome_code(reply.outcome) if heard.error is None else exit_code(heard.error)
    check(fault, str(reply.outcome), (reply.thought, reply.solution), code)
    if heard.error is not None:
        assert str(heard.error)


@each_fault
def test_the_command_ends_as_the_table_says(
    server: FaultServer, fault: Fault, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `--json`, a last object always comes, and has the same text."""
    limit = ["--timeout", str(fault.timeouts.first_byte)]
    code = main(["ask", "--json", "--url", server.at(fault.sent, fault.end), "-m", "m", *limit, "hi"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["type"] == ("finished" if fault.code == 0 or last["type"] == "finished" else "error")
    reply: dict[str, Any] = last if last["type"] == "finished" else last["partial"]
    check(fault, reply["outcome"], (reply["thought"], reply["solution"]), code)


# --- every offset of a short reply, and any bytes at all --------------------------------------------------------------

SHORT = stream(FINISHED + DONE)
OFFSETS = range(len(SHORT) + 1)


def ways_to_end(offset: int) -> set[tuple[str, int]]:
    """How a reply may end that is cut there: never as complete before its finish reason is whole."""
    if offset < len(HEAD):
        return {("unreachable", 3)}
    finish = SHORT.index(b'"finish_reason": "stop"') + len(b'"finish_reason": "stop"}]}')
    return {("complete", 0)} if offset >= finish else {("cut", 9)}


@pytest.mark.parametrize("end", [FIN, RST])
def test_a_short_reply_that_ends_at_any_byte_is_told_as_what_it_is(face: Face, server: FaultServer, end: str) -> None:
    """Head, chunk sizes and last chunk included; the text that is kept is what had come."""
    for offset in OFFSETS:
        heard = hear(face, server.at(SHORT[:offset], end), Timeouts(first_byte=20.0, idle=20.0))
        reply = heard.reply
        code = outcome_code(reply.outcome) if heard.error is None else exit_code(heard.error)
        assert "ab".startswith((reply.thought or "") + reply.solution), offset
        found = (str(reply.outcome), code)
        assert found in ways_to_end(offset) | ({("cut", 9), ("unreachable", 3)} if end == RST else set()), offset


def test_the_command_tells_a_reply_that_ends_at_any_byte(
    server: FaultServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A last object, and the exit code that goes with it."""
    for offset in OFFSETS[::3]:
        code = main(["ask", "--json", "--url", server.at(SHORT[:offset], FIN), "-m", "m", "hi"])
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        reply = last if last["type"] == "finished" else last["partial"]
        assert (reply["outcome"], code) in ways_to_end(offset), offset


# Streams of servers, recorded or composed, of which every offset would take too long for every run.
STREAMS = [
    exchange.body
    for exchange in CHATS.values()
    if exchange.response.status == 200 and exchange.body.lstrip().startswith((b"data:", b":"))
]
PATIENT = Timeouts(first_byte=20.0, idle=20.0)


@LONG
@given(st.sampled_from(STREAMS), st.sampled_from([FIN, RST]), st.sampled_from(sorted(FACES)), st.data())
def test_a_longer_reply_that_ends_at_any_byte_keeps_the_start_of_its_text(
    server: FaultServer, body: bytes, end: str, face: str, data: st.DataObject
) -> None:
    """Over a socket, in the middle of head, framing or text: never another end than the whole has, or a cut one."""
    sent = stream(body)
    offset = data.draw(st.integers(0, len(sent)))
    made = FACES[face]()
    try:
        whole = hear(made, server.at(sent, FIN), PATIENT).reply
        heard = hear(made, server.at(sent[:offset], end), PATIENT)
    finally:
        made.close()
    reply = heard.reply
    AddedUp(heard.events)
    assert heard.error is None or str(heard.error)
    assert whole.raw.startswith(reply.raw), offset
    assert reply.outcome in {whole.outcome, Outcome.CUT, Outcome.UNREACHABLE}, offset


@pytest.mark.hypothesis
@pytest.mark.skipif(PROFILE != "fuzz", reason="takes minutes: `nox -s fuzz`")
@pytest.mark.parametrize("end", [FIN, RST])
@pytest.mark.parametrize("name", ["cpp-ping-progress-stream", "cpp-think-cut-incontent-stream"])
def test_a_recorded_reply_keeps_no_less_the_later_it_ends(face: Face, server: FaultServer, name: str, end: str) -> None:
    """At every byte of two of llama.cpp's streams: cut, then as the whole, never to and fro. A reset may take text."""
    sent = stream(CHATS[name].body)
    whole = hear(face, server.at(sent, FIN), PATIENT).reply
    kept, ended = "", False
    for offset in range(len(sent) + 1):
        reply = hear(face, server.at(sent[:offset], end), PATIENT).reply
        assert whole.raw.startswith(reply.raw), offset
        assert reply.outcome in {whole.outcome, Outcome.CUT, Outcome.UNREACHABLE}, offset
        if end == FIN:
            assert reply.raw.startswith(kept), offset
            assert not ended or reply.outcome is whole.outcome, offset
            kept, ended = reply.raw, reply.outcome is whole.outcome


@st.composite
def mutated(draw: st.DrawFn, bodies: list[bytes], places: int = 3) -> bytes:
    """Bytes at random, or one of these bodies with bytes replaced, taken out or put in, or with a bit turned."""
    body = draw(st.sampled_from(bodies))
    for _ in range(draw(st.integers(0, places))):
        at = draw(st.integers(0, len(body)))
        if body[at:] and draw(st.booleans()):
            body = body[:at] + bytes([body[at] ^ 1 << draw(st.integers(0, 7))]) + body[at + 1 :]
        else:
            body = body[:at] + draw(st.binary(max_size=6)) + body[at + draw(st.integers(0, 6)) :]
    return body


def check_any(face: Face, body: bytes, data: st.DataObject, broken: bool) -> None:
    """Documented events, then a reply or an error of ours with one; and the same for every cut."""
    fault = httpx.ReadError("reset") if broken else None
    found = []
    for pieces in ([body], data.draw(chunked(body))):
        with face.studio(playing(*pieces, fault=fault)) as client:
            heard = face.read(client.stream_chat_completion("m", MESSAGES))
        reply = heard.reply
        AddedUp(heard.events)
        assert heard.error is None or str(heard.error)
        text = (reply.outcome, reply.thought, reply.solution, reply.finish_reason)
        found.append((text, type(heard.error), str(heard.error)))
    assert found[0] == found[1]


@given(mutated([FINISHED + DONE, TEXT, b"", *(body for _, body, _, _ in GARBAGE)]), st.data(), st.booleans())
def test_any_bytes_come_to_a_documented_end_whatever_the_cuts(body: bytes, data: st.DataObject, broken: bool) -> None:
    """Short bodies, so that many places are tried."""
    check_any(Face(), body, data, broken)


@LONG
@given(mutated(STREAMS, places=8), st.sampled_from(sorted(FACES)), st.data(), st.booleans())
def test_so_do_real_streams_with_bytes_changed(body: bytes, face: str, data: st.DataObject, broken: bool) -> None:
    """On both faces."""
    made = FACES[face]()
    try:
        check_any(made, body, data, broken)
    finally:
        made.close()
