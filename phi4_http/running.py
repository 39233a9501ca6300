"""Which models this process asks just now, and when it last did: for each server, by all clients together.

A manager must not unload a model whose reply comes to this very process, whichever client reads it. So all `Server`s of
one address share one `Work`, which goes with the last of them.
"""

from __future__ import annotations

import time
import weakref
from itertools import count


class Job:
    """One request to a model, or one lease on it: from its making until `end`, or until nobody holds it any more."""

    __slots__ = ("__weakref__", "_work", "model")

    def __init__(self, work: Work, model: str) -> None:
        self._work: Work | None = work
        self.model: str = model

    def end(self) -> None:
        """It is over."""
        work, self._work = self._work, None
        if work is not None:
            work.last[self.model] = time.time()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._work is None


class Work:
    """What this process does with the models of one server. May be shared by threads."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        """When each model was last begun or ended with, in seconds since the epoch."""
        self._jobs: dict[int, weakref.ref[Job]] = {}
        self._numbers = count()

    def begin(self, model: str) -> Job:
        """The model works for this process until the job has ended."""
        job, number = Job(self, model), next(self._numbers)
        self.last[model] = time.time()
        self._jobs[number] = weakref.ref(job, lambda _: self._jobs.pop(number, None))
        return job

    def busy(self, model: str) -> bool:
        """Whether it works for this process."""
        jobs = [reference() for reference in list(self._jobs.values())]
        return any(job is not None and not job.over and job.model == model for job in jobs)

    def forget(self) -> None:
        """In a forked child: that was the parent's."""
        self._jobs.clear()


_works: weakref.WeakValueDictionary[str, Work] = weakref.WeakValueDictionary()
"""The one thing of this process that no client can hold: what all of them do together."""


def work_at(address: str) -> Work:
    """What this process does at an address."""
    return _works.setdefault(address, Work())
