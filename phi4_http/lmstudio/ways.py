"""What a load is, and each way of doing it: flows that act. What came of it is judged in `lifecycle`."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from ..api import path
from ..errors import LoadFailed, Phi4Error, UnsupportedSetting
from ..flow import Close, Completed, Flow, Http, Lms, Read, Run, Sleep, Start, Step
from ..server import Server, fetch
from ..wire.listings import Instance, ModelInfo
from .config import LoadConfig, Way, check_name, lms_arguments, rest_body
from .inventory import lms_instances
from .lms.reach import ask_lms
from .lms.text import Progress, is_taken, load_error, message_of, no_room, unknown_option

_TAKEN_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Loading:
    """A load goes on: one event at its beginning, and one for each word of how far it is."""

    model: str
    """The model's key."""
    way: Way
    """How it is loaded."""
    share: float | None = None
    """How much is loaded, 0 to 1; None where nobody tells (only `lms` does)."""


@dataclass(frozen=True, slots=True)
class Job:
    """A load that may be done."""

    server: Server
    way: Way
    model: ModelInfo
    config: LoadConfig
    listed: Sequence[ModelInfo]
    timeout: float
    there: Sequence[Instance]
    """What is loaded before it."""
    variant: str | None
    """The variant that was asked for by its name."""

    @property
    def name(self) -> str:
        """What REST and requests call the model."""
        return self.variant or self.model.id


def load_lms(job: Job) -> Generator[Step | list[Any], Any, None]:
    """Have `lms` load it, and follow how far it is. Raises UnsupportedSetting, and what `load_error` makes of it."""
    named = dataclasses.replace(job.config, identifier=job.config.identifier or job.model.id)
    arguments = ("load", *selection(job.model, job.listed), *lms_arguments(named))
    until = time.monotonic() + job.timeout
    while True:
        done = yield from ask_lms(job.server, *arguments, timeout=job.timeout, run=lambda step: _followed(job, step))
        if done.exit_code == 0 or not is_taken(message_of(done)) or time.monotonic() > until:
            break
        # Somebody else's load of that name is under way: it comes, or fails, and then it is our turn.
        if any(one.identifier == named.identifier for one in (yield from lms_instances(job.server))):
            break
        yield Sleep(_TAKEN_PAUSE)
    if done.exit_code != 0:
        option = unknown_option(message_of(done))
        if option:
            setting = option.removeprefix("--").replace("-", "_")
            raise UnsupportedSetting((setting,), way="lms", reason=f"this release has no {option}")
        raise load_error(done, job.model.id)


def _followed(job: Job, step: Lms) -> Generator[Step | list[Any], Any, Completed]:
    """A run of `lms` that loads, its progress read on the way."""
    run: Run = yield Start(step)
    progress = Progress()
    try:
        while (texts := (yield Read(run))) is not None:
            shares = [share for text in texts for share in progress.feed(text)]
            if shares:
                yield [Loading(job.model.id, job.way, share) for share in shares]
    except Phi4Error:
        yield Close(run)
        raise
    yield Close(run)
    return run.completed


def selection(model: ModelInfo, models: Sequence[ModelInfo]) -> tuple[str, ...]:
    """The arguments that mean this model. `--exact` compares paths, letter for letter; a key is searched, loosely."""
    paths = collections.Counter(other.path for other in models if other.device is None)
    local = ("--local",) if any(other.device for other in models) else ()  # as old as LM Link, so only where it is met
    if model.path and paths[model.path] == 1:
        return ("--exact", check_name(model.path, "model path"), *local)
    return (check_name(model.id, "model key"), "-y", *local)


def load_rest(job: Job) -> Flow[str]:
    """Returns the identifier, which the server chooses."""
    body = rest_body(job.config, job.name)
    step = Http("POST", "/api/v1/models/load", body, timeout=job.timeout, slow=True)
    said = yield from _loading(job, step)
    return str(said.get("instance_id") or job.model.id)


def load_jit(job: Job) -> Flow[None]:
    """The smallest request there is. LM Studio loads the model for it, with its default context."""
    key = job.name
    endpoint = "chat/completions"
    body: dict[str, Any] = {"model": key, "messages": [{"role": "user", "content": "."}], "max_tokens": 1}
    if job.model.type == "embeddings":
        endpoint, body = "embeddings", {"model": key, "input": "."}
    if job.config.ttl is not None:
        body["ttl"] = job.config.ttl
    yield from _loading(job, Http("POST", path("openai", endpoint), body, timeout=job.timeout, slow=True))


def _loading(job: Job, step: Http) -> Flow[dict[str, Any]]:
    """What a request that loads a model is answered. Raises what the server says went wrong."""
    try:
        return (yield from fetch(job.server, dict, step, model=job.model.id, optional=job.way == "rest"))
    except LoadFailed as error:
        if "insufficient system resources" in error.message:
            raise no_room(error.message) from None
        raise
