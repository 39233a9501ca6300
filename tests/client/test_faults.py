"""Whatever a server does, a reply ends in the way that the table (`faults`) says: both faces, and the command."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from faults import FAULTS, FIN, RST, Fault
from support import MESSAGES, Face, Heard, await_leaving, read_request, reset

from phi4_http import Timeouts
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
