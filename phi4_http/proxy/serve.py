"""The application in an embedded host: threads of `loopback` read requests and write answers, one event loop runs it.

A thread waits for what the application sends, and writes it: a client that reads slowly holds up nobody else. Another
watches the client; where it leaves, the application is told at once, whatever it waits for. What is not yet written is
bounded (`_AHEAD`): then the application waits.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import urllib.parse
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from ..loopback import ClientGone, Incoming, LoopbackServer, Responder
from .asgi import Proxy, Scope

_AHEAD = 1 << 18
"""Bytes of one answer that may wait to be written."""
_CLOSING = 10.0
"""Seconds for the application to close its connections."""


class ProxyServer(LoopbackServer):
    """Serves an application on loopback. Use it as a context manager; `url` is its address.

    Raises OSError where the address is taken. Which hosts and origins are let in is the application's to say, and the
    host's: `allow_hosts` is as in `LoopbackServer`.
    """

    def __init__(
        self, application: Proxy, *, host: str = "127.0.0.1", port: int = 0, allow_hosts: Iterable[str] = ()
    ) -> None:
        super().__init__(host=host, port=port, allow_hosts=allow_hosts)
        self._application = application
        self._loop = asyncio.new_event_loop()
        self._looping = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        if not self._looping.is_alive():
            self._looping.start()
        super().start()

    def close(self) -> None:
        """End every answer, and what it has asked of the server behind. Harmless when repeated."""
        super().close()
        if self._looping.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_CLOSING)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._looping.join()
        if not self._loop.is_running():
            self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._application.aclose()
        await self._loop.shutdown_asyncgens()

    def _answer(self, request: Incoming, responder: Responder) -> None:
        exchange = _Exchange(self._loop, request, responder)
        scope = _scope(request, self.port, self._host)
        running: Future[None] = asyncio.run_coroutine_threadsafe(
            self._application(scope, exchange.receive, exchange.send), self._loop
        )
        running.add_done_callback(exchange.over)
        with responder.watching(exchange.leave):
            try:
                exchange.write()
            finally:
                exchange.leave()
        error = running.exception() if running.done() and not running.cancelled() else None
        if error is not None:
            raise error


def _scope(request: Incoming, port: int, host: str) -> Scope:
    path, _, query = request.path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": urllib.parse.unquote(path),
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in request.headers],
        "client": None,
        "server": (host, port),
    }


class _Exchange:
    """One request and its answer, between the loop's thread and the connection's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, request: Incoming, responder: Responder) -> None:
        self._loop = loop
        self._request = request
        self._responder = responder
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0  # bytes that are not written yet
        self._written: asyncio.Event | None = None
        self._asked = self._gone = False
        self._left: asyncio.Event | None = None

    # In the loop

    async def receive(self) -> dict[str, Any]:
        """The request, then, when the client has left, that."""
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        if self._left is None:
            self._left = asyncio.Event()
        if not self._gone:
            await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """A part of the answer: written soon, by the connection's thread."""
        size = len(message.get("body", b""))
        with self._lock:
            self._waiting += size
            self._written = asyncio.Event() if self._waiting > _AHEAD and not self._gone else None
            written = self._written
        self._messages.put(message)
        if written is not None:
            await written.wait()

    # In the connection's thread, and the one that watches it

    def write(self) -> None:
        """Write what comes, to the end. Raises ClientGone."""
        responder = self._responder
        while (message := self._messages.get()) is not None:
            if message["type"] == "http.response.start":
                headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
                sizes = [value for name, value in headers if name.lower() == "content-length"]
                responder.start(message["status"], headers, length=int(sizes[0]) if sizes else None)
                continue
            responder.send(message["body"])
            self._note(len(message["body"]))
            if not message["more_body"]:
                responder.finish()
                return
        if self._gone:
            raise ClientGone
        responder.break_off()  # it ended without an end

    def _note(self, size: int) -> None:
        with self._lock:
            self._waiting -= size
            written = self._written if self._waiting <= _AHEAD else None
        if written is not None:
            self._loop.call_soon_threadsafe(written.set)

    def leave(self) -> None:
        """The client has left, or has all that it asked for."""
        self._loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        self._gone = True
        for event in (self._left, self._written):
            if event is not None:
                event.set()

    def over(self, _: object) -> None:
        """The application is done with it."""
        self._messages.put(None)
