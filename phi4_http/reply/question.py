"""What is asked: a request, and what the flow of its reply must know that only the layers above know.

A `Question` makes the request, fits it again, and goes on from it; `Plain` is one that needs nothing of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

from ..errors import ContextOverflow, Phi4Error
from ..events import Reply
from ..flow import Flow
from ..limits import Timeouts
from .rescue import Rescue


class Request(NamedTuple):
    """A request that is ready to go out, and how its reply is to be read."""

    path: str
    body: Mapping[str, Any]
    opener: Literal["auto", "assumed"] = "auto"
    closer: Literal["last", "first"] = "last"
    rescue: Rescue = Rescue()
    expects_thought: bool = False
    dropped: tuple[Mapping[str, Any], ...] = ()
    """Messages of the history that are not sent."""
    notes: tuple[str, ...] = ()
    """What is to be said of how it is sent."""


class RawPrompt(NamedTuple):
    """A prompt for `/v1/completions` that equals a chat's. `template` is the name of what makes it."""

    text: str
    template: str
    tokens: int | None = None
    requests: int = 0
    """Requests of one token that finding out took."""


class Question(Protocol):
    """What is asked, and what only the layer above knows of it."""

    def prepared(self) -> Flow[Request]:
        """The request to send."""
        ...

    def fitted(self, request: Request, overflow: ContextOverflow) -> Flow[Request | None]:
        """The request to send instead of one whose prompt did not fit; None where nothing new was learned."""
        ...

    def raw_prompt(self, request: Request) -> Flow[RawPrompt]:
        """The prompt that the server makes of the request. Raises CannotContinue."""
        ...

    def continued(self, request: Request, text: str, max_tokens: int | None) -> Request:
        """The request that goes on after this text, for so many tokens; None: for as many as there may be."""
        ...

    def context_length(self, request: Request) -> Flow[int | None]:
        """The context length of its model in tokens, None where nobody tells it."""
        ...

    def doubted(self, request: Request) -> None:
        """The raw prompt was not the server's own: what is known of its template is wrong."""
        ...

    def counted(self, request: Request) -> Flow[tuple[int | None, int]]:
        """The tokens of the request's prompt, and the requests that counting them took."""
        ...

    def ended(self, request: Request, reply: Reply, error: Phi4Error | None) -> None:
        """The reply has ended, well or with this error."""
        ...

    def left(self) -> Flow[None]:
        """The connection is closed: what was held for the reply is given back."""
        ...


class Listed(Protocol):
    """What is known of a model."""

    @property
    def loaded(self) -> bool | None:
        """Whether it is in memory; None where nobody tells."""
        ...


class Host(Protocol):
    """What is known of the server that is asked."""

    @property
    def url(self) -> str:
        """Its address."""
        ...

    @property
    def timeouts(self) -> Timeouts:
        """How long its replies are waited for."""
        ...

    @property
    def native(self) -> bool | None:
        """Whether it is LM Studio; None as long as nobody knows."""
        ...

    def find(self, model: str) -> Listed | None:
        """What is known of a model."""
        ...


class Plain:
    """A request as it is, for any model: no window, no rescue."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def prepared(self) -> Flow[Request]:
        """The request."""
        return self._request
        yield

    def fitted(self, request: Request, overflow: ContextOverflow) -> Flow[Request | None]:
        """Nothing is left out of it."""
        return None
        yield

    def raw_prompt(self, request: Request) -> Flow[RawPrompt]:
        """It is never asked for: there is no rescue."""
        raise NotImplementedError

    def continued(self, request: Request, text: str, max_tokens: int | None) -> Request:
        """As above."""
        raise NotImplementedError

    def context_length(self, request: Request) -> Flow[int | None]:
        """Nobody knows it here."""
        return None
        yield

    def doubted(self, request: Request) -> None:
        """As above."""

    def counted(self, request: Request) -> Flow[tuple[int | None, int]]:
        """As above."""
        raise NotImplementedError

    def ended(self, request: Request, reply: Reply, error: Phi4Error | None) -> None:
        """Nobody keeps it."""

    def left(self) -> Flow[None]:
        """Nothing was held."""
        return None
        yield
