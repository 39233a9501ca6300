"""What both faces of a stream share: the reply that runs, and what can be asked of it. No I/O but the clock."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import InvalidRequest, Phi4Error
from ..events import Reply
from ..phi4.conversation import Conversation
from ..phi4.request import Prepared
from ..reply.decoder import ReplyDecoder
from ..wire.refusals import refusal

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn of a conversation that a stream is."""

    conversation: Conversation
    prompt: str


class ReplyProgress:
    """What both faces of a stream share: the decoder of a reply that runs, and what can be asked of it."""

    def __init__(self, url: str, reading: Mapping[str, Any], turn: Turn | None = None) -> None:
        self._url = url
        self._reading = reading
        self._turn = turn
        self._prepared: Prepared | None = None
        self._decoder: ReplyDecoder | None = None
        self._entry = False  # whether the block was entered
        self._streaming = False  # whether a stream has begun

    def _begin(self) -> None:
        """The block is entered."""
        if self._entry:
            raise InvalidRequest("a stream is for one request, and this one was entered before: make another one")
        self._entry = True

    def _start(self, prepared: Prepared) -> None:
        """The request goes out now."""
        self._prepared = prepared
        self._decoder = ReplyDecoder(
            started=time.monotonic(),
            url=self._url,
            rescue=prepared.rescue,
            expects_thought=prepared.expects_thought,
            **self._reading,
        )
        self._decoder.dropped = prepared.dropped

    def _over(self) -> None:
        """The block is left: the reply has ended, or ends now; a conversation keeps its turn."""
        if self._decoder is not None and self._prepared is not None:
            self._decoder.cancel(time.monotonic())
            if self._turn is not None:
                self._turn.conversation.record(self._turn.prompt, self.result)
                self._turn = None
            if self._streaming:
                self._prepared.learn(self.result)

    @property
    def started(self) -> bool:
        """Whether the request has gone out."""
        return self._decoder is not None

    @property
    def result(self) -> Reply:
        """The reply, once it has ended or the block was left. Raises InvalidRequest before that."""
        if self._decoder is None or self._decoder.reply is None:
            raise InvalidRequest(
                "the reply has not ended yet: read it to its end, or leave the block, then ask for the result"
            )
        return self._decoder.reply

    def partial(self) -> Reply:
        """What has arrived by now, as a reply. Raises InvalidRequest before the block is entered."""
        if self._decoder is None:
            raise InvalidRequest("nothing was asked yet: enter the block first")
        return self._decoder.partial(time.monotonic())

    def _entered(self, events: T | None) -> T:
        if events is None:
            raise InvalidRequest("nothing was asked yet: enter the block (`with … as reply`) before you iterate")
        return events

    def _refuse(self, body: bytes, *, status: int, content_type: str | None, model: str) -> Phi4Error:
        """The error for an answer that is no stream, with the reply in it if the body holds a whole one."""
        error = refusal(body, url=self._url, status=status, content_type=content_type, model=model, wanted="a stream")
        if self._decoder is not None and not self._streaming:
            now = time.monotonic()
            self._decoder.feed(body.decode("utf-8", "replace"), "message", now)
            self._decoder.error = error
            self._decoder.close(now)
        return error
