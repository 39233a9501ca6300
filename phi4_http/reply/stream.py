"""One reply from the question to its end: the flow that both clients drive.

    enter ──> prepared ──Open──> head ──no stream──> refused
                  ▲                └──> events: Read, Read, … ──> close
                  └──fitted── the prompt does not fit (once)   └──thought to be ended──Open──> events: Read, Read, …

`Replying` is the state of one reply. What it needs to know of models and histories it asks a `Question`. `events`
yields steps and, between them, lists of events: a client does the one and hands on the other.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, Literal

from ..errors import ContextOverflow, InvalidRequest, ModelLoading, Phi4Error, ServerUnreachable
from ..events import Event, Reply, Waiting
from ..flow import Answer, Channel, Close, Flow, Http, Open, Read, ReadAll, Sleep, Step, last
from ..limits import REPORT
from ..wire.bodies import streamed
from ..wire.refusals import refusal
from .decoder import ReplyDecoder
from .patience import Limit, Patience, out_of_time
from .question import Host, Plain, Question, RawPrompt, Request

STREAM_TYPE = "text/event-stream"


class Replying:
    """A reply that is asked for, comes, or has come.

    With `waiting`, entering asks nothing yet: the request goes out when the events are read, and `Waiting` events come
    among them for as long as the model says nothing.
    """

    def __init__(self, host: Host, question: Question, *, waiting: bool = False) -> None:
        self._host = host
        self._url = host.url
        self._question = question
        self._waiting = waiting
        self._patience = Patience(host.timeouts, 0.0)
        self._request: Request | None = None
        self._decoder: ReplyDecoder | None = None
        self._channel: Channel | None = None
        self._entered = False
        self._read = False
        self._parts = 0  # responses whose events were read
        self._clocked = -1
        self.left: bool = False
        """Whether the block was left: no event comes any more."""

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
        """What has arrived by now, as a reply. Raises InvalidRequest before the request has gone out."""
        if self._decoder is None:
            raise InvalidRequest("nothing was asked yet: enter the block first")
        return self._decoder.partial(time.monotonic())

    @property
    def over(self) -> bool:
        """Whether its events were read to the end, or the block was left."""
        return self.left or (self._read and self._decoder is not None and self._decoder.reply is not None)

    def check_readable(self) -> None:
        """Raises InvalidRequest where there are no events to come: before the block is entered, or when it is over."""
        if not self._entered:
            raise InvalidRequest("nothing was asked yet: enter the block (`with … as reply`) before you iterate")
        if self.over:
            raise InvalidRequest("the events of a reply come once, and these are over: the reply is in `result`")

    # The flows, in their order

    def enter(self) -> Flow[None]:
        """Ask, and wait for the head of the answer. Raises what is said there instead of a stream."""
        if self._entered:
            raise InvalidRequest("a stream is for one request, and this one was entered before: make another one")
        self._entered = True
        self._patience = Patience(self._host.timeouts, time.monotonic())
        if self._waiting:
            return
        try:
            yield from self._ask()
        except Phi4Error as error:
            self._refused(error)
            raise

    def events(self) -> Generator[Step | list[Event], Any, None]:
        """Steps, and lists of events between them. Raises how the reply failed, when its events are out."""
        self.check_readable()
        self._read = True
        fault: Phi4Error | None = None
        if self._waiting:
            try:
                yield from self._ask()
            except Phi4Error as error:
                self._refused(error)
                raise
        assert self._request is not None
        assert self._decoder is not None
        try:
            yield from self._part()
            overflow = self._decoder.error
            if isinstance(overflow, ContextOverflow) and not self._decoder.partial(time.monotonic()).raw:
                yield from self._again(overflow)
            yield from self._answers(self._request, self._decoder)
            if self._decoder.length.ended and self._decoder.length.reason is None:
                self._decoder.context_length = yield from self._question.context_length(self._request)
        except Phi4Error as error:
            fault = error
        if self._channel is not None:
            self._decoder.unread = self._channel.unread
        yield self._decoder.close(time.monotonic(), fault)
        if self._decoder.error is not None:
            raise self._decoder.error

    def leave(self) -> Flow[None]:
        """The block is left: the reply has ended, or ends now, and the connection is closed."""
        self.left = True
        if self._decoder is None and self._entered:
            self._decoder = ReplyDecoder(started=self._patience.started, url=self._url)
        if self._decoder is not None:
            self._decoder.cancel(time.monotonic())
            self._told()
        if self._channel is not None:
            yield Close(self._channel)

    # Their parts

    def _begun(self, request: Request) -> ReplyDecoder:
        decoder = ReplyDecoder(
            started=time.monotonic(),
            url=f"{self._url}{request.path}",
            opener=request.opener,
            closer=request.closer,
            rescue=request.rescue,
            expects_thought=request.expects_thought,
            max_tokens=_whole(request.body.get("max_tokens")),
        )
        decoder.notes += request.notes
        decoder.dropped = request.dropped
        self._decoder = decoder
        return decoder

    def _ask(self) -> Generator[Any, Any, None]:
        """Ask, and wait for the head of the answer. Lists of events are among the steps only with `waiting`."""
        self._request = yield from self._question.prepared()
        while True:
            try:
                return (yield from self._open_or_fitted(self._request))
            except ModelLoading:
                now = time.monotonic()
                if not self._waiting or self._patience.limit() is None or self._patience.over(now):
                    raise  # how long to ask again, only a time limit says
                yield [self._wait(now, "loading")]
                yield Sleep(REPORT)

    def _open_or_fitted(self, request: Request) -> Generator[Any, Any, None]:
        try:
            yield from self._open(request, self._begun(request))
        except ContextOverflow as overflow:
            yield from self._open_fitted(overflow)

    def _open(self, request: Request, decoder: ReplyDecoder) -> Generator[Any, Any, None]:
        """Send a request. Raises what the answer stands for where it is no stream."""
        channel = yield from self._opened(request)
        decoder.request_id = channel.headers.get("x-request-id")
        content_type = (channel.headers.get("content-type") or "").partition(";")[0].strip().lower()
        if channel.status == 200 and content_type == STREAM_TYPE:
            return
        answer: Answer = yield ReadAll(channel)
        if not self._parts:  # a whole completion, perhaps: its text is not lost
            decoder.feed(answer.body.decode("utf-8", "replace"), "message", time.monotonic())
        raise refusal(
            answer.body,
            url=f"{self._url}{request.path}",
            status=answer.status,
            content_type=content_type or None,
            model=request.body["model"],
            wanted="a stream",
            cut=answer.cut,
        )

    def _opened(self, request: Request) -> Generator[Any, Any, Channel]:
        """Send a request, and wait for the head of the answer; nothing may come before the prompt is processed."""
        body, patience, now = streamed(request.body), self._patience, time.monotonic()
        if self._parts != self._clocked:  # not where the same is asked again
            self._clocked = self._parts
            patience.begin_part(now)
        limit = patience.limit()
        if self._waiting and self._host.native is False:
            body = {**body, "return_progress": True}  # llama.cpp's; LM Studio is not known to take it
        step = Http("POST", request.path, body, slow=True)
        if limit is not None:
            step = step._replace(timeout=max(limit.ends - now, 0.001), limit=limit.name)
        channel: Channel = yield Open(step, REPORT if self._waiting else None)
        self._channel = channel
        while not channel.opened:
            now = time.monotonic()
            over = patience.over(now)
            if over is not None:
                yield Close(channel)
                raise self._out_of_time(over, channel, 0)
            yield [self._wait(now)]
            yield Open(step, patience.seconds(now, REPORT), channel)
        return channel

    def _out_of_time(self, limit: Limit, channel: Channel, events: int) -> ServerUnreachable:
        return out_of_time(
            limit,
            channel.url,
            opened=channel.opened,
            events=events,
            unread=channel.unread,
            characters=self._decoder.characters if self._decoder is not None else 0,
        )

    def _wait(self, now: float, phase: Literal["loading", "processing"] = "processing") -> Waiting:
        """How long nothing was said, and why."""
        known = self._host.find(self._request.body["model"]) if self._request is not None else None
        if known is not None and known.loaded is False:
            phase = "loading"
        share = self._decoder.prompt_share if self._decoder is not None else None
        if share is not None:
            phase = "processing"
        return Waiting(phase, now - self._patience.started, share)

    def _open_fitted(self, overflow: ContextOverflow) -> Generator[Any, Any, None]:
        """Send, instead of what did not fit, what fits. Raises the overflow where nothing new was learned from it."""
        assert self._request is not None
        again = yield from self._question.fitted(self._request, overflow)
        if again is None:
            raise overflow
        self._request = again
        yield from self._open(again, self._begun(again))

    def _again(self, overflow: ContextOverflow) -> Generator[Step | list[Event], Any, None]:
        """The same, where a stream said so before any text."""
        decoder = self._decoder
        try:
            yield from self._open_fitted(overflow)
        except ContextOverflow as error:
            if error is not overflow:
                raise
            self._decoder = decoder
            return
        yield from self._part()

    def _part(self) -> Generator[Step | list[Event], Any, None]:
        """The events of one response, up to its end or to where it is to be left."""
        decoder, channel = self._decoder, self._channel
        assert decoder is not None
        assert channel is not None
        self._parts += 1
        feed, read, now = decoder.feed, Read(channel), time.monotonic
        patience, heard = self._patience, 0
        timed = self._waiting or patience.limited
        report = REPORT if self._waiting else None
        limit: Limit | None = None
        while True:
            finished = decoder.finished
            lines = yield Read(channel, patience.seconds(now(), report)) if timed or finished else read
            if lines is None:
                break
            at = now()
            events: list[Event] = []
            for line in lines:
                events += feed(line.data, line.event, at)
                if decoder.done:
                    break
            if timed or finished or decoder.finished:
                heard += len(lines)
                begun = decoder.begun
                patience.note(at, events=bool(lines), begun=begun, finished=decoder.finished)
                if decoder.finished or begun:
                    report = None
                elif report is not None and (not lines or decoder.prompt_share is not None):
                    events = [*events, self._wait(at)]
            if events:
                yield events
            if decoder.done:
                break
            if timed or finished:
                limit = patience.over(at)
                if limit is not None and (limit.name or not lines):
                    break
        yield Close(channel)
        if limit is not None:
            yield from self._late(limit, channel, heard)

    def _late(self, limit: Limit, channel: Channel, events: int) -> Generator[list[Event], None, None]:
        """A time limit is over. Raises that, unless the event that was left without its end says more."""
        decoder, at = self._decoder, time.monotonic()
        assert decoder is not None
        late = self._out_of_time(limit, channel, events)
        for line in channel.left():
            yield decoder.feed(line.data, line.event, at)
        if limit.name and not decoder.finished and decoder.error is None:
            raise late

    def _answers(self, request: Request, decoder: ReplyDecoder) -> Generator[Step | list[Event], Any, None]:
        """The model goes on to its answer, over the raw prompt; again, where it begins to think again. An error of that
        is no reason to lose a thought in which the model had stopped by itself."""
        if not decoder._wants_answer():
            return
        try:
            prompt = yield from self._question.raw_prompt(request)
            decoder.context_length = yield from self._question.context_length(request)
            while decoder._wants_answer():
                yield from self._answer(request, decoder, prompt)
                if (fault := decoder._unanswered()) is not None:
                    raise fault
        except Phi4Error as error:
            unanswered = decoder._unanswered(error)
            if unanswered is not None:
                raise unanswered from error.__cause__
        if decoder._lacks_count:
            tokens, requests = yield from self._question.counted(request)
            decoder._note_count(tokens, requests)
        if decoder._check_parts():
            self._question.doubted(request)

    def _answer(
        self, request: Request, decoder: ReplyDecoder, prompt: RawPrompt
    ) -> Generator[Step | list[Event], Any, None]:
        """One part over the raw prompt."""
        text = decoder._continued(prompt.text, prompt.tokens)
        if text is None:
            return
        yield from self._open(self._question.continued(request, text, decoder.left), decoder)
        yield decoder._answer(
            time.monotonic(), template=prompt.template, prompt_tokens=prompt.tokens, requests=prompt.requests
        )
        yield from self._part()

    def _refused(self, error: Phi4Error) -> None:
        """The question was not answered by a stream: its reply is how, and what text there was."""
        now = time.monotonic()
        self._decoder = decoder = self._decoder or ReplyDecoder(started=now, url=self._url)
        self._read = True
        decoder.error = error
        decoder.close(now)
        self._told()

    def _told(self) -> None:
        """Whoever asked is told how it ended, once."""
        if self._request is not None and self._decoder is not None:
            question, self._question = self._question, Plain(self._request)
            question.ended(self._request, self.result, self._decoder.error)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read(replying: Replying) -> Flow[Reply]:
    """The whole reply. Raises what entering and reading a stream raise."""
    yield from replying.enter()
    try:
        yield from last(replying.events())
    except Phi4Error:
        yield from replying.leave()
        raise
    yield from replying.leave()
    return replying.result
