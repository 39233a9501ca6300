"""What both clients are before they wait for anything: address, settings, what is known of the server; a question's
settings; a conversation. Everything that does not wait stands here, once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import httpx

from ..errors import InvalidRequest
from ..limits import Timeouts
from ..phi4.conversation import Conversation
from ..phi4.request import Phi
from ..server import DEFAULT_URL, Server
from .http import KEPT, client_options, endpoint, proxied, transport_options, usable_settings
from .kept import Folder

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..phi4.counting import Counter
    from ..phi4.request import Manager
    from ..reply.rescue import Rescue
    from ..wire.parameters import AskParameters

HttpClient = TypeVar("HttpClient", httpx.Client, httpx.AsyncClient)
Transport = TypeVar("Transport", httpx.BaseTransport, httpx.AsyncBaseTransport)


class Connected(Generic[HttpClient, Transport]):
    """A server and the way to it: what both clients are."""

    _client_type: Callable[..., HttpClient]
    _transport_type: Callable[..., Transport]

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        token: str | None = None,
        *,
        timeouts: Timeouts | None = None,
        http_client: HttpClient | None = None,
        transport: Transport | None = None,
        lms: str | os.PathLike[str] | None = None,
    ) -> None:
        if http_client is not None and transport is not None:
            raise InvalidRequest("an http_client brings its own transport: give one of the two")
        if timeouts is not None and not isinstance(timeouts, Timeouts):
            raise InvalidRequest(f"timeouts is {timeouts!r}: it takes Timeouts(…), such as Timeouts(idle=60)")
        if token is not None and not isinstance(token, str):
            raise InvalidRequest(f"token is a {type(token).__name__}: it takes a text")
        self._lms = lms
        self._endpoint = endpoint(base_url, token, timeouts or Timeouts())
        self._state = Server(self._endpoint.url, self._endpoint.timeouts)
        self._state.on_tape = bool(getattr(transport or getattr(http_client, "_transport", None), "on_tape", False))
        self._state.lms_given = lms is not None
        self._owned = http_client is None
        self._network = self._owned and transport is None
        self._http: HttpClient = self._made(transport) if http_client is None else http_client

    def _made(self, transport: Transport | None, keep: int = KEPT) -> HttpClient:
        url = self._endpoint.url
        if transport is None and not proxied(url):
            transport = self._transport_type(**transport_options(url, keep=keep))
        with usable_settings():
            return self._client_type(transport=transport, **client_options(url, keep=keep))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def _client(self) -> Self:
        return self

    @property
    def url(self) -> str:
        """The server's address, with no path of an API."""
        return self._endpoint.url

    @property
    def timeouts(self) -> Timeouts:
        """The time limits of its requests, in seconds."""
        return self._endpoint.timeouts


def check_block(context: object, entered: str) -> None:
    """Raises InvalidRequest for what this kind of client can't enter."""
    if not hasattr(type(context), entered):
        raise InvalidRequest(
            f"the manager's `use` gave {context!r}, which has no {entered}: Phi4 takes a ModelManager, AsyncPhi4 an "
            "AsyncModelManager"
        )


AnyClient = TypeVar("AnyClient", bound="Connected[Any, Any]")


class Asking(Generic[AnyClient]):
    """What is asked with every question, and by which client."""

    _client_type: type[AnyClient]

    def __init__(
        self,
        client: AnyClient | str | None = None,
        *,
        model: str | None = None,
        instructions: str | None = None,
        opener: Literal["auto", "assumed"] = "auto",
        closer: Literal["last", "first"] = "last",
        system: Literal["send", "omit", "auto"] = "auto",
        reserve: int | None = None,
        counter: Callable[[Sequence[Mapping[str, Any]]], int] | Counter | None = None,
        context_length: int | None = None,
        window: Literal["steady", "longest"] = "steady",
        rescue: Rescue | None = None,
        manager: Manager | None = None,
        config: object = None,
        cache: str | os.PathLike[str] | None = None,
        **parameters: Unpack[AskParameters],
    ) -> None:
        if not isinstance(client, self._client_type | str | None):
            wanted = self._client_type.__name__
            raise InvalidRequest(
                f"{type(self).__name__} takes a client of its own kind, {wanted}, or an address: not {client!r}"
            )
        self._owned = client is None or isinstance(client, str)
        address = client if isinstance(client, str) else DEFAULT_URL
        self._client: AnyClient = client if isinstance(client, self._client_type) else self._client_type(address)
        self._state = Phi(
            self._client._state,
            model=model,
            instructions=instructions,
            opener=opener,
            closer=closer,
            system=system,
            reserve=reserve,
            counter=counter,
            context_length=context_length,
            window=window,
            rescue=rescue,
            manager=manager,
            config=config,
            kept=None if cache is None else Folder(cache),
            parameters=parameters,
        )

    def __repr__(self) -> str:
        model = self._state.model
        return f"{type(self).__name__}({self._client.url!r}{f', model={model!r}' if model else ''})"

    @property
    def client(self) -> AnyClient:
        """The client that asks."""
        return self._client


class Talking(Generic[AnyClient]):
    """A conversation, and by which client it is led."""

    def __init__(self, client: AnyClient, conversation: Conversation) -> None:
        self._client = client
        self._state = conversation

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._state.history)} messages, {self._client.url}>"

    @property
    def history(self) -> tuple[Mapping[str, Any], ...]:
        """Messages with role and content, oldest first."""
        return tuple(self._state.history)

    def clear(self) -> None:
        """Forget the history."""
        self._state.clear()
