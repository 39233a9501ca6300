"""What the tests share: both faces behind one, servers that fail on purpose, and the shipped exchanges.

A behavioural test is written once and takes `face`: `face.studio(…)` makes the client, `face.read(stream)` reads a
stream to its end, `face.wait(client.anything(…))` calls a method. The async face runs on an event loop in the same
thread, step by step, so a test never waits for a scheduler. `httpx` is never patched: a test hands in a transport, or
talks to a real socket on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

import phi4_http
from phi4_http.client import aio
from phi4_http.client import blocking as client
from phi4_http.errors import Phi4Error
from phi4_http.events import Event, Finished, Reply, Revised, Solution, Thinking, Thought
from phi4_http.limits import Timeouts
from phi4_http.tape.exchange import Exchange, RecordedRequest
from phi4_http.tape.format import load_tape
from phi4_http.tape.shipped import shipped

GUARD = 30.0
"""Seconds after which a test that hangs is ended: far more than anything takes, and nothing is measured by it."""

CHAT = "/v1/chat/completions"
MESSAGES = ({"role": "user", "content": "What is 7 × 8?"},)
STREAM = (("content-type", "text/event-stream"),)
PATIENT = Timeouts(connect=GUARD, request=GUARD, first_byte=GUARD, idle=GUARD)


# --- both faces -------------------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """What came out of a stream: its events, and its reply or its error."""

    events: list[Event] = field(default_factory=list)
    result: Reply | None = None
    error: Phi4Error | None = None

    @property
    def reply(self) -> Reply:
        """The reply, or as much of it as the error carries."""
        found = self.result if self.error is None else self.error.partial
        assert isinstance(found, Reply), "there is no reply, and none in the error"
        return found


class Face:
    """The blocking face, as it is. The names of the other one are the same; here they need no waiting."""

    name = "blocking"
    LMStudio: Any = client.LMStudio
    Phi4: Any = client.Phi4
    HttpClient: Any = httpx.Client

    def wait(self, value: Any) -> Any:
        """The value that a call gives, at last."""
        return value

    def close(self) -> None:
        """End what the face itself has running."""

    def _open(self, stream: Any) -> Any:
        return stream.__enter__()

    def _leave(self, stream: Any) -> None:
        stream.__exit__(None, None, None)

    def _close_client(self, client: Any) -> None:
        client.close()

    def events(self, stream: Any) -> Iterator[Event]:
        """The events of an entered stream, one at a time."""
        return iter(stream)

    @contextlib.contextmanager
    def studio(self, to: str | httpx.MockTransport = "http://test.invalid", **options: Any) -> Iterator[Any]:
        """A client for an address, or for a transport that plays the server."""
        options.setdefault("timeouts", PATIENT)
        if isinstance(to, httpx.MockTransport):
            made = self.LMStudio(transport=to, **options)
        else:
            made = self.LMStudio(to, **options)
        with self.closing(made):
            yield made

    @contextlib.contextmanager
    def phi(self, to: str | httpx.MockTransport = "http://test.invalid", **options: Any) -> Iterator[Any]:
        """A `Phi4` on such a client; `options` are those of `Phi4`, and `timeouts`. What a template does is not asked
        unless a test is about that: tests count requests."""
        options.setdefault("system", "send")
        client_options = {name: options.pop(name) for name in ("timeouts", "token") if name in options}
        with self.studio(to, **client_options) as made:
            yield self.Phi4(made, **options)

    @contextlib.contextmanager
    def closing(self, made: Any) -> Iterator[Any]:
        """Close a client after the block."""
        try:
            yield made
        finally:
            self._close_client(made)

    @contextlib.contextmanager
    def entered(self, stream: Any) -> Iterator[Any]:
        """The block of a stream."""
        entered = self._open(stream)
        try:
            yield entered
        finally:
            self._leave(stream)

    def read(self, stream: Any) -> Heard:
        """Read a stream to its end, whatever end that is."""
        heard = Heard()
        try:
            with self.entered(stream) as reply:
                for event in self.events(reply):
                    heard.events.append(event)
            heard.result = stream.result
        except Phi4Error as error:
            heard.error = error
        return heard

    def ask(self, phi: Any, *arguments: Any, **options: Any) -> Heard:
        """`phi.ask`, its reply or its error."""
        try:
            return Heard(result=self.wait(phi.ask(*arguments, **options)))
        except Phi4Error as error:
            return Heard(error=error)


class AsyncFace(Face):
    """The async face, on a loop of its own."""

    name = "async"
    LMStudio = aio.AsyncLMStudio
    Phi4 = aio.AsyncPhi4
    HttpClient = httpx.AsyncClient

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def wait(self, value: Any) -> Any:
        """The value that an awaitable gives, at last."""
        return self.loop.run_until_complete(value)

    def close(self) -> None:
        """End the loop, and what httpx has left to it: generators that were not read to their end."""
        self.loop.run_until_complete(self._settle())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    @staticmethod
    async def _settle() -> None:
        for _ in range(20):  # one generator is inside the other, and each is closed in a turn of its own
            await asyncio.sleep(0)
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    def _open(self, stream: Any) -> Any:
        return self.wait(stream.__aenter__())

    def _leave(self, stream: Any) -> None:
        self.wait(stream.__aexit__(None, None, None))

    def _close_client(self, client: Any) -> None:
        self.wait(client.aclose())

    def events(self, stream: Any) -> Iterator[Event]:
        """The events of an entered stream, one at a time."""
        events = stream.__aiter__()
        while True:
            try:
                yield self.wait(events.__anext__())
            except StopAsyncIteration:
                return


FACES: Mapping[str, Callable[[], Face]] = {"blocking": Face, "async": AsyncFace}


class AddedUp:
    """Somebody who knows nothing but the events, and adds them up as the docstring of `events` says."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.thought: str | None = None
        self.solution = ""
        self.finished: Reply | None = None
        self._kept = ""
        for event in events:
            self._add(event)

    def _add(self, event: Event) -> None:
        assert self.finished is None, "an event came after the last one"
        if isinstance(event, Thinking):
            assert event.text, "an empty delta"
            self.thought = (self.thought or "") + event.text
        elif isinstance(event, Thought):
            self.thought = self.thought or ""
            assert event.text == self.thought, "the thought event has another thought than its deltas"
            self._kept = self.solution
        elif isinstance(event, Solution):
            assert event.text, "an empty delta"
            self.solution += event.text
        elif isinstance(event, Revised):
            self.thought = (self.thought or "") + event.text
            self.solution = self._kept
        else:
            assert isinstance(event, Finished)
            self.finished = event.reply


# --- servers that are transports --------------------------------------------------------------------------------------


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in pieces, for either client."""

    def __init__(self, pieces: Iterable[bytes], fault: Exception | None = None) -> None:
        self._pieces = list(pieces)
        self._fault = fault
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        if self._fault is not None:
            raise self._fault

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def playing(
    *pieces: bytes, status: int = 200, headers: Sequence[tuple[str, str]] = STREAM, fault: Exception | None = None
) -> httpx.MockTransport:
    """A server that answers every request with these pieces."""
    return httpx.MockTransport(
        lambda request: httpx.Response(status, headers=list(headers), stream=Pieces(pieces, fault))
    )


def answering(answer: Any, status: int = 200, content_type: str = "application/json") -> httpx.MockTransport:
    """A server that answers every request with this JSON, text or bytes."""
    content = answer if isinstance(answer, (str, bytes)) else json.dumps(answer)
    return httpx.MockTransport(
        lambda request: httpx.Response(status, headers={"content-type": content_type}, content=content)
    )


class Recording(httpx.MockTransport):
    """A server that keeps what it was asked, and answers by path; an unknown path as LM Studio does."""

    def __init__(self, answers: Mapping[str, Any] | None = None) -> None:
        super().__init__(self._answer)
        self.answers = dict(answers or {})
        self.requests: list[httpx.Request] = []

    @property
    def paths(self) -> list[str]:
        """Method and path of each request."""
        return [f"{request.method} {request.url.raw_path.decode()}" for request in self.requests]

    @property
    def body(self) -> dict[str, Any]:
        """The body of the last request."""
        value: dict[str, Any] = json.loads(self.requests[-1].content)
        return value

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        path = request.url.raw_path.decode()
        answer = self.answers.get(path, {"error": f"Unexpected endpoint or method. ({request.method} {path})"})
        if isinstance(answer, tuple):
            status, answer = answer
            return httpx.Response(status, json=answer)
        if isinstance(answer, bytes):
            return httpx.Response(200, headers=list(STREAM), stream=Pieces([answer]))
        return httpx.Response(200, json=answer)


def sse(*chunks: Any, done: bool = True) -> bytes:
    """A stream of events: each chunk as JSON, or as it is where it is a text."""
    texts = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    return "".join(f"data: {text}\n\n" for text in [*texts, *(["[DONE]"] if done else [])]).encode()


def delta(content: str | None = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """One chunk of a chat, as LM Studio writes it."""
    said = {**({} if content is None else {"content": content}), **fields}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "phi",
        "choices": [{"index": 0, "delta": said, "logprobs": None, "finish_reason": finish}],
    }


def usage(prompt: int, completion: int, **fields: Any) -> dict[str, Any]:
    """The chunk with the token counts."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"id": "chatcmpl-1", "choices": [], "usage": {**counts, **fields}}


GOOD = sse(delta("<think>"), delta("7 × 8"), delta("</think>"), delta("56"), delta(finish="stop"), usage(9, 4))


# --- servers on a raw socket ------------------------------------------------------------------------------------------


class RawServer:
    """Listens on loopback and lets `script` do what it likes with each connection, for what no honest server does.

    `script(connection, request)` gets each request as its raw bytes; when it returns True, the connection is kept and
    read again. `connections` counts them, `left` is set when a client has closed one.
    """

    def __init__(self, script: Callable[[socket.socket, bytes], object]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.connections = 0
        self.requests: list[bytes] = []
        self.asked = threading.Event()
        self.left = threading.Event()
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> RawServer:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(GUARD)

    def _spawn(self, run: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.append(connection)
                self.connections += 1
            self._spawn(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while request := read_request(connection):
                self.requests.append(request)
                self.asked.set()
                if not self._script(connection, request):
                    return
            self.left.set()


def keeping(answer: bytes) -> Callable[[socket.socket, bytes], bool]:
    """A script that gives every request this answer, and keeps the connection."""

    def script(connection: socket.socket, request: bytes) -> bool:
        connection.sendall(answer)
        return True

    return script


def read_request(connection: socket.socket) -> bytes:
    """One request, head and body; empty where the client has left."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0].split(b":")[1]) - len(body) if lengths else 0
    while missing > 0:
        more = connection.recv(65536)
        if not more:
            return b""
        data, missing = data + more, missing - len(more)
    return data


def reset(connection: socket.socket) -> None:
    """Close a connection the hard way: the other side gets a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def await_leaving(connection: socket.socket) -> None:
    """Say nothing until the client leaves."""
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def framed(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: bytes, content_type: str = "application/json", *, keep: bool = True) -> bytes:
    """A whole HTTP answer."""
    connection = "keep-alive" if keep else "close"
    return (
        f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"Connection: {connection}\r\n\r\n".encode()
        + body
    )


# --- the shipped exchanges --------------------------------------------------------------------------------------------

TAPES: Mapping[str, tuple[Exchange, ...]] = {name: load_tape(shipped(name)) for name in ("phi4", "llama_cpp")}
EXCHANGES: Mapping[str, Exchange] = {exchange.name: exchange for tape in TAPES.values() for exchange in tape}
CHATS: Mapping[str, Exchange] = {
    name: exchange for name, exchange in EXCHANGES.items() if exchange.request.path == CHAT
}
"""Every exchange that answers a chat."""


def asked_by_name(exchanges: Iterable[Exchange]) -> list[Exchange]:
    """The exchanges, each for a request whose model is the exchange's name, so that one server has them all."""
    return [
        dataclasses.replace(exchange, request=RecordedRequest("POST", exchange.request.path, {"model": exchange.name}))
        for exchange in exchanges
    ]


ANY_CHAT = ("messages", "stream", "stream_options", "temperature", "top_p", "top_k", "seed", "stop", "max_tokens")
"""What of a chat's body is not looked at by a server that is asked by name."""


# --- child processes --------------------------------------------------------------------------------------------------

SOURCE = str(Path(phi4_http.__file__).resolve().parent.parent)
"""Where the package under test is, so that a child process takes the same one."""


_USERS = ("XDG_CACHE_HOME", "LOCALAPPDATA", "XDG_CONFIG_HOME", "APPDATA")
NOTHING_KEPT = {name: os.path.join(os.devnull, "none") for name in _USERS}
"""Folders for findings and settings that are empty, and can't be written."""


def child_environment(**variables: str | None) -> dict[str, str]:
    """An environment with no proxy, no token and no terminal settings but those given; None takes one out."""
    dropped = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "lm_api_token", "lmstudio_api_token", "no_color")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.lower() not in dropped and not name.startswith("PHI4_HTTP_")
    }
    kept |= NOTHING_KEPT
    kept |= {"PYTHONPATH": SOURCE, "PYTHONWARNINGS": "error", "PYTHONUTF8": "1"}
    for name, value in variables.items():
        if value is None:
            kept.pop(name, None)
        else:
            kept[name] = value
    return kept


def command(*arguments: str) -> list[str]:
    """The command line as a child process."""
    return [sys.executable, "-m", "phi4_http", *arguments]


@dataclass(frozen=True)
class Ran:
    """What a child process did."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[Any]:
        """Stdout, a JSON value a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def run_child(
    *arguments: str, stdin: bytes = b"", folder: Path | None = None, python: bool = False, **variables: str | None
) -> Ran:
    """Run the command line (or, with `python`, the interpreter) to its end, in another folder than the sources."""
    line = [sys.executable, *arguments] if python else command(*arguments)
    done = subprocess.run(
        line,
        input=stdin,
        capture_output=True,
        timeout=GUARD,
        env=child_environment(**variables),
        cwd=folder or Path(os.path.abspath(os.sep)),
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8", "replace"))


_SEVERAL = """
import contextlib, io, json, os, sys
from phi4_http.cli import main
for line, stdin in json.load(open(sys.argv[1], encoding="utf-8")):
    with open(sys.argv[1] + ".stdin", "wb") as file:
        file.write(stdin.encode("utf-8", "surrogatepass"))
    given = os.open(file.name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    os.dup2(given, 0)
    os.close(given)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(line)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def run_several(lines: Sequence[tuple[Sequence[str], str]], folder: Path) -> list[Ran]:
    """Run several command lines, each with its stdin, one after the other in one child process: it starts once."""
    file = folder / "lines.json"
    file.write_text(json.dumps(lines), encoding="utf-8")
    ran = run_child("-c", _SEVERAL, str(file), python=True)
    assert ran.code == 0, ran.err
    return [Ran(code, out, err) for code, out, err in ran.objects]
