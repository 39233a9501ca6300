"""The one server behind the proxy: chats that are repaired, requests that pass as they are, models that are loaded."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple

import httpx

from ..client.aio import AsyncLMStudio, AsyncPhi4
from ..client.http import translated
from ..client.manager import AsyncModelManager
from ..limits import Timeouts
from ..lmstudio.config import LoadConfig
from ..loopback import HOP_BY_HOP
from ..phi4.placing import placing_of
from ..server import look_up

_CALLERS = 16
"""Tokens of callers whose clients are kept: nearly always there is one."""
_NOT_PASSED = HOP_BY_HOP | {"host", "expect"}
_WITH_BODY = ("POST", "PUT", "PATCH")


class _Caller(NamedTuple):
    """What asks with one token."""

    phi: AsyncPhi4
    manager: AsyncModelManager


class Upstream:
    """The server at `url`. `token` is sent for callers that bring none; `load` is how its model is to be loaded, None
    where that is LM Studio's own business; `options` are those of `AsyncPhi4`. Raises InvalidRequest."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeouts: Timeouts | None = None,
        lms: str | None = None,
        load: LoadConfig | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        **options: Any,
    ) -> None:
        self._root = AsyncLMStudio(url, token, timeouts=timeouts, transport=transport, lms=lms)
        self._lms = lms
        self._load = load
        self._options = options
        self._callers: OrderedDict[str | None, _Caller] = OrderedDict({None: self._caller(self._root)})
        self._base = httpx.URL(self._root.url)
        self._met: set[str] = set()
        self._meeting = asyncio.Lock()

    @property
    def url(self) -> str:
        """Its address."""
        return self._root.url

    @property
    def planned_length(self) -> int | None:
        """Tokens that its model is to be loaded with; None where nobody said."""
        return self._load.context_length if self._load else None

    def phi(self, token: str | None) -> AsyncPhi4:
        """What asks with this token. Raises InvalidRequest for one that can't be sent."""
        return self._known(token).phi

    def _caller(self, studio: AsyncLMStudio) -> _Caller:
        return _Caller(AsyncPhi4(studio, **self._options), AsyncModelManager(studio))

    def _known(self, token: str | None) -> _Caller:
        if token not in self._callers:
            root = self._root
            studio = AsyncLMStudio(root.url, token, timeouts=root.timeouts, http_client=root._http, lms=self._lms)
            studio._state.on_tape = root._state.on_tape
            self._callers[token] = self._caller(studio)
            if len(self._callers) > _CALLERS:  # the root's own is never used by a name
                del self._callers[next(name for name in self._callers if name is not None)]
        self._callers.move_to_end(token)
        return self._callers[token]

    @contextlib.asynccontextmanager
    async def holding(self, token: str | None, model: str) -> AsyncGenerator[str, None]:
        """In the block, the model is loaded as it is to be: the name that requests use. Of many that come at once, one
        finds out what is to be known of it. Raises what a load raises."""
        phi, manager = self._known(token)
        studio, state = phi.client, phi._state
        async with contextlib.AsyncExitStack() as held:
            if self._load is not None:
                await studio._run(look_up(state.server, model))
                if state.server.native:
                    model = (await held.enter_async_context(manager.use(model, self._load))).identifier
                else:  # nobody can load it, and perhaps nobody tells how it is loaded
                    state.stated_length = self._load.context_length
            if model not in self._met:
                async with self._meeting:
                    if model not in self._met:
                        await studio._run(placing_of(state, model, {}))
                        self._met.add(model)
            yield model

    async def send(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        *,
        seconds: float | None = None,
    ) -> httpx.Response:
        """Pass a request on; returns when the head of the answer is there, which is read bit by bit. Raises
        ServerUnreachable; `seconds` limits each wait."""
        request = httpx.Request(
            method,
            # Not a joined text, of which the host could become another one.
            self._base.copy_with(raw_path=self._base.raw_path.rstrip(b"/") + target.encode("ascii")),
            headers=[pair for pair in headers if pair[0].decode("latin-1").lower() not in _NOT_PASSED],
            content=body or (b"" if method in _WITH_BODY else None),
            extensions={"timeout": {"connect": seconds or self._root.timeouts.connect, "read": seconds}},
        )
        own: Mapping[str, str] = self._root._endpoint.headers
        if "Authorization" in own and "authorization" not in request.headers:
            request.headers["Authorization"] = own["Authorization"]
        with translated(self._root.url):
            return await self._root._http.send(request, stream=True)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._root.aclose()
