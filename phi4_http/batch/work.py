"""A batch at work: questions checked, servers looked at, answers kept and handed on as they come. asyncio's."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..errors import InvalidRequest, ModelNotFound, NotLMStudio, Phi4Error, ServerError
from ..events import Reply
from ..flow import Flow, Http
from ..phi4 import asking
from ..phi4.facts import SAMPLING
from ..phi4.placing import placing_of
from ..phi4.request import Phi, named
from ..server import V1_MODELS, fetch, listing
from ..wire.fields import Fields
from ..wire.listings import parse_v1_models
from .answered import BatchAnswer, BatchProgress, line_of
from .answers import AnswerFile
from .lines import BatchQuestion, gather, read_lines, taken
from .schedule import Ask, Look, Schedule, Verdict, judge

if TYPE_CHECKING:
    from asyncio import Task

    from typing_extensions import Unpack

    from ..wire.parameters import AskParameters

PATIENCE = 300.0
"""Seconds that a server which has gone away is waited for."""
_PROPS = "/props"
"""Where llama.cpp's server tells how many it serves at once (`total_slots`)."""

Run: TypeAlias = Callable[[Flow[Any]], Awaitable[Any]]
"""Drives a flow to its value, at one server."""


class Sharing(Protocol):
    """A further `Phi4` (`AsyncPhi4`), whose server shares the work."""

    @property
    def client(self) -> Any:
        """The client that asks."""
        ...

    @property
    def _state(self) -> Phi: ...


def batch(
    phi: Phi,
    questions: Iterable[str | Mapping[str, Any] | BatchQuestion] | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    also: Sequence[Sharing] = (),
    retry_failed: bool = False,
    patience: float = PATIENCE,
    thought: bool = True,
    stats: bool = False,
    **parameters: Unpack[AskParameters],
) -> Work:
    """Ask many questions; iterate for their answers as they come, in any order, each once: `BatchAnswer`.

    A question is a text, or a mapping with `prompt` or `history`, and, if wanted, `id`, `instructions`, `model` and
    parameters, which count before those given here; or a line of OpenAI's batches. `questions` may be the Path of a
    file with such a line of JSON each. Without an id, a question's number is that.

    With `out`, each answer is appended to that file as a line of JSON before it is handed on, with or without its
    `thought` and `stats`; what is answered there already is not asked again, but with `retry_failed` what failed.
    `jobs` is how many are asked at once of each server: as many as it serves, or 1 where it does not tell. `also` are
    further clients of the same kind, whose servers share the work. A server that goes away is waited for, `patience`
    seconds since it answered last.

    What fails for itself is an answer with an `error`. Iterating raises what ends it all: no server is left, or `out`
    can't be written. Raises InvalidRequest, before anything is asked, for what can't be sent, for an id that two
    questions have, and for an `out` that another run has or that holds answers to other questions.
    """
    if jobs is not None and (not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1):
        raise InvalidRequest(f"jobs is {jobs!r}: it takes a whole number of questions at once, from 1 up")
    if not isinstance(patience, (int, float)) or isinstance(patience, bool) or not patience >= 0:
        raise InvalidRequest(f"patience is {patience!r}: it takes seconds, from 0 up")
    if retry_failed and out is None:
        raise InvalidRequest("retry_failed goes with out, the file that holds what failed")
    if isinstance(questions, os.PathLike):
        path = Path(questions)
        try:
            asked = read_lines(path.read_bytes(), str(path))
        except OSError as error:
            raise InvalidRequest(f"{path} can't be read: {error.strerror or error}") from None
    else:
        asked = taken(questions)
    work = Work([phi, *(one._state for one in also)], asked, dict(parameters), jobs=jobs, patience=patience)
    work.clients = tuple(one.client for one in also)
    work.out, work.retry_failed = out, retry_failed
    work.shown = {"thought": thought, "stats": stats}
    return work


class Work:
    """A batch: its questions, those that ask them, and how far it is."""

    def __init__(
        self,
        phis: Sequence[Phi],
        questions: Sequence[BatchQuestion],
        parameters: Mapping[str, Any],
        *,
        jobs: int | None,
        patience: float,
    ) -> None:
        self._phis = phis
        self._questions = questions
        self._parameters = {name: value for name, value in parameters.items() if value is not None}
        self._jobs = jobs
        self._patience = patience
        self._file: AnswerFile | None = None
        self._schedule: Schedule | None = None
        self._answered = self._failed = self._kept = 0
        self.clients: Sequence[Any] = ()
        """The clients of those that share the work, beside the first."""
        self.out: str | os.PathLike[str] | None = None
        self.retry_failed: bool = False
        self.shown: Mapping[str, bool] = {}
        """What of an answer its line has."""

        def check(question: BatchQuestion) -> BatchQuestion:
            self._asked(phis[0], question)
            return question

        gather([(question.place or "a question", 0, question) for question in questions], check, "")

    def open(self) -> None:
        """Take the file of answers, and look what is there. Raises InvalidRequest."""
        if self._schedule is not None:
            return
        todo = list(self._questions)
        if self.out is not None:
            self._file = AnswerFile(self.out, retry_failed=self.retry_failed)
            try:
                todo = self._file.todo(todo)
            except BaseException:
                self.close()
                raise
            self._kept, self._failed = len(self._questions) - len(todo), self._file.failed(self._questions)
        now = time.monotonic()
        self._schedule = Schedule(todo, len(self._phis), jobs=self._jobs, patience=self._patience, now=now)

    def close(self) -> None:
        """Give the file of answers back."""
        if self._file is not None:
            self._file.close()

    @property
    def progress(self) -> BatchProgress:
        """How far it is."""
        schedule = self._schedule
        return BatchProgress(
            len(self._questions),
            self._kept,
            self._answered,
            self._failed,
            schedule.running if schedule else 0,
            tuple(self._phis[at].server.url for at in schedule.away) if schedule else (),
            schedule.lost if schedule else (),
        )

    async def answers(self, runs: Sequence[Run]) -> AsyncGenerator[BatchAnswer, None]:
        """The answers as they come. `runs` drive flows, one for each server."""
        import asyncio

        assert self._schedule is not None, "it is not open"
        schedule = self._schedule
        running: dict[Task[tuple[Any, Phi4Error | None]], Ask | Look] = {}
        try:
            while True:
                while (step := schedule.next(time.monotonic())) is not None:
                    running[asyncio.ensure_future(self._do(step, runs[step.server]))] = step
                seconds = schedule.seconds(time.monotonic())
                if running:
                    await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                elif seconds is not None:
                    await asyncio.sleep(seconds)
                elif schedule.stranded is not None:
                    raise schedule.stranded
                else:
                    return
                done = [task for task in running if task.done()]
                for answer in [self._noted(running.pop(task), *task.result()) for task in done]:
                    if answer is not None:
                        yield answer
        finally:
            for task in running:
                task.cancel()
            for step, ended in zip(
                running.values(), await asyncio.gather(*running, return_exceptions=True), strict=True
            ):
                if not isinstance(ended, BaseException):  # it had come when the batch was left
                    self._noted(step, *ended)

    async def _do(self, step: Ask | Look, run: Run) -> tuple[Any, Phi4Error | None]:
        """Do one step: what came of it, and its error."""
        phi = self._phis[step.server]
        try:
            if isinstance(step, Look):
                return await run(_serves(phi, known=self._jobs)), None
            reply: Reply = await run(self._asked(phi, step.question))
            reply.raise_for_outcome()
        except Phi4Error as error:
            return error.partial, error
        return reply, None

    def _asked(self, phi: Phi, question: BatchQuestion) -> Flow[Reply]:
        """The flow of one question. Raises InvalidRequest for what can't be sent."""
        own = question.parameters
        parameters: Any = {**self._parameters, **own}
        if "extra" in own and isinstance(mine := self._parameters.get("extra"), Mapping):
            parameters["extra"] = {**mine, **own["extra"]}
        return asking.ask(
            phi,
            question.prompt,
            history=question.history,
            instructions=question.instructions,
            model=question.model,
            **parameters,
        )

    def _noted(self, step: Ask | Look, came: Any, error: Phi4Error | None) -> BatchAnswer | None:
        """A step has ended: the answer, where it is one, is kept."""
        schedule, now = self._schedule, time.monotonic()
        assert schedule is not None
        if isinstance(step, Look):
            schedule.looked(step, now, came or 1, error)
            return None
        if not schedule.answered(step, now, error):
            return None
        url = self._phis[step.server].server.url
        answer = BatchAnswer(step.question, came, error, url, schedule.tries(step.question))
        if self._file is not None:
            self._file.append(line_of(answer, **self.shown))
        self._answered += 1
        self._failed += error is not None
        return answer


def _serves(phi: Phi, *, known: int | None) -> Flow[int]:
    """Look whether a server is there, and what every question needs to know of it: how many it serves at once."""
    server = phi.server
    if server.on_tape:
        return 1
    try:
        yield from listing(server, anew=True)
    except (NotLMStudio, ServerError) as error:
        if isinstance(error, ServerError) or judge(error) is Verdict.AWAY:
            raise
    try:
        model = yield from named(phi, None)
    except ModelNotFound:  # the questions may name theirs
        return 1
    yield from placing_of(phi, model, {**SAMPLING, **phi.parameters})
    if known is not None:
        return known
    try:
        if server.native is False:
            slots = yield from fetch(server, _total_slots, Http("GET", _PROPS))
            return slots or 1
        listed = yield from fetch(server, parse_v1_models, Http("GET", V1_MODELS))
    except (NotLMStudio, ServerError):
        return 1  # it does not tell
    told = [one.parallel for info in listed for one in info.instances if model in (info.id, one.identifier)]
    return told[0] or 1 if told else 1


def _total_slots(data: Any) -> int | None:
    return Fields(data, _PROPS).count("total_slots")
