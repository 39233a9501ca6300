"""What is loaded, who uses it, and unloading what nobody uses: flows that the cache of models is made of.

Nothing is unloaded that is in use, as far as anybody knows: by a lease of any process of this user, by a reply that
comes to this process, or by what `lms ps` reports, which is asked where REST, which does not report it, was seen last.
Where nobody reports it, what this cache has loaded goes after a quiet time, and what it has not loaded stays.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from ..errors import LmsError, LmsTimeout, ModelBusy, ModelNotFound, Phi4Error, ServerUnreachable
from ..flow import Flow, Http, Lms, Sleep
from ..server import Server
from ..wire.listings import Instance
from .config import LoadConfig, Way, unread
from .inventory import Shown, check_same, lms_instances, loaded, ways_of
from .lease import Leases, elapsed, until
from .memory import Limits, Memory
from .unload import unload

log: logging.Logger = logging.getLogger("phi4_http")

T = TypeVar("T")

QUIET_SECONDS = 60.0
"""Where nobody reports whether an instance is at work: without a request of ours for so long, one of ours may go."""

_LOOK_SECONDS = 2.0
"""What a look takes at most when the time that it is part of is nearly over: `lms` alone takes one to start."""

MEMORY, LOOK = 0.05, 1.0
"""The longest pauses, in seconds, between two looks at what costs nothing, and at what is loaded."""


class Busy(NamedTuple):
    """Why an instance is not unloaded."""

    status: str
    queued: int | None = None
    after: float = 0.0
    """Seconds for which waiting is certainly in vain."""


class Watch:
    """One LM Studio as a manager sees it. May be shared by threads and tasks.

    `ways` is the order in which ways are tried, as for `load`. `clock` gives seconds since the epoch.
    """

    def __init__(
        self,
        server: Server,
        limits: Limits,
        *,
        ways: Sequence[Way] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.server = server
        self._limits = limits
        self._ways = ways
        self._leases = Leases(server.address)
        self._clock = clock
        self._known = Memory()

    @property
    def _memory(self) -> Memory:
        """Of this process: a forked child has loaded nothing yet."""
        if self._known.inherited:
            self._known = Memory()
            self.server.work.forget()
        return self._known

    # --- what is there

    def quick(self, key: str, config: LoadConfig) -> Flow[Instance | None]:
        """The instance to take, where the server's own list shows it: one GET."""
        order = ways_of(self.server, self._ways)
        ways: list[Way] = [way for way in ("rest", "jit") if way in order]
        if not ways:
            return None
        began = time.monotonic()
        try:
            instances = yield from loaded(self.server, ways=ways)
        except Phi4Error as error:  # `lms` may do without the server, or its token
            log.debug("no list of what is loaded: %s", error)
            return None
        memory = self._memory
        memory.keep_only({one.identifier for one in instances}, began)
        memory.listed = {one.identifier: one for one in instances}
        found = self._satisfying(key, config, instances)
        # Only `lms ps` reports the time to live.
        asks = found is not None and found.identifier not in memory.own and "ttl" in unread(config, found)
        return None if asks and "lms" in order else found

    def _state(self) -> Flow[tuple[Instance, ...]]:
        """What is loaded now; what is gone is forgotten. Who looks at the same time shares a look."""
        asked, memory = time.monotonic(), self._memory
        while True:
            look, mine = memory.joined_look(asked)
            if mine:
                try:
                    seen = yield from loaded(self.server, ways=self._ways)
                    look.instances = tuple(map(memory.filled, seen))
                finally:
                    look.over = True
                memory.keep_only({one.identifier for one in here(look.instances)}, look.began)
            if look.over and look.instances is not None:
                return look.instances
            yield Sleep(0.02)

    def _satisfying(self, key: str, config: LoadConfig, instances: Iterable[Instance]) -> Instance | None:
        """A loaded instance that has what is asked for; it counts as used now."""
        memory = self._memory
        for instance in copies(key, config, instances):
            if not memory.lacks(config, instance):
                self.touch(instance.identifier)
                return memory.filled(instance)
        return None

    def touch(self, name: str) -> None:
        """It is used now."""
        own = self._memory.own.get(name)
        if own:
            own.used = self._clock()

    # --- unloading

    def _free(self, instance: Instance, ends: float | None = None) -> Flow[None]:
        """Unload an instance as soon as it is idle. Raises ModelBusy where it does not become so."""
        began = time.monotonic()
        ends = began + self._limits.patience if ends is None else ends
        busy: Busy | None = None
        for pause in until(ends, LOOK):
            try:
                busy = yield from self._unloaded(instance.identifier, ends)
            except (LmsTimeout, ServerUnreachable):
                if busy is None or time.monotonic() < ends:
                    raise
            if busy is None:
                return
            if busy.after > ends - time.monotonic():
                break
            yield Sleep(pause)
        assert busy is not None
        raise ModelBusy(instance.identifier, waited=elapsed(began), status=busy.status, queued=busy.queued)

    def _unloaded(self, name: str, ends: float) -> Flow[Busy | None]:
        """Unload an instance if it is idle; else, why not. Nobody takes a lease on it meanwhile."""
        gate, work, memory = self._leases.gate(name), self.server.work, self._memory
        if work.busy(name):
            return Busy("in use by this process")
        if not gate.acquire():
            return Busy("being taken into use")
        try:
            if self._leases.taken(name):
                return Busy("in use by another process")
            instances = yield from within(self._state(), ends)
            instance = next((one for one in here(instances) if one.identifier == name), None)
            if instance is not None:
                if instance.busy is not None and not (yield from within(self._is_same(instances), ends)):
                    instance = replace(instance, status=None, queued=None)
                busy = yield from within(self._at_work(instance), ends)
                if busy is not None:
                    return busy
                if work.busy(name):
                    return Busy("in use by this process")
                with contextlib.suppress(ModelNotFound):  # its time was over, or somebody else was quicker
                    yield from unload(self.server, name, ways=self._ways)
                memory.forget_cuts()
            memory.own.pop(name, None)
            return None
        finally:
            gate.release()

    def _at_work(self, instance: Instance) -> Flow[Busy | None]:
        """What the instance does, as whoever can tell reports it."""
        name, own = instance.identifier, self._memory.own.get(instance.identifier)
        if instance.busy is None:
            instance = (yield from self._reported(name)) or instance
        if instance.busy:
            return Busy(instance.status or "busy", instance.queued)
        if instance.busy is not None:
            return None
        if own is None:
            return Busy("perhaps at work (nobody reports it, and it was loaded by somebody else)", after=float("inf"))
        last = max(own.used, self.server.work.last.get(name, 0.0), self._leases.used(name))
        left = QUIET_SECONDS - (self._clock() - last)
        return Busy("perhaps at work (nobody reports it)", after=left) if left > 0 else None

    def _reported(self, name: str) -> Flow[Instance | None]:
        """What `lms ps` of that address says of an instance; None where it says nothing."""
        try:
            instances = yield from lms_instances(self.server)
        except LmsError as error:
            log.debug("%s: %s", name, error)
            return None
        found = next((one for one in here(instances) if one.identifier == name), None)
        return found if found is not None and (yield from self._is_same(instances)) else None

    def _is_same(self, instances: Sequence[Instance]) -> Flow[bool]:
        """Whether `lms`, which has listed this, is known to speak to the LM Studio at the address."""
        try:
            yield from check_same(self.server, Shown((), tuple(instances)))
        except Phi4Error as error:
            log.debug("what `lms ps` says does not count: %s", error)
            return False
        return True


def here(instances: Iterable[Instance]) -> list[Instance]:
    """Those on this machine, not lent by another one (LM Link)."""
    return [one for one in instances if one.device is None]


def copies(key: str, config: LoadConfig, instances: Iterable[Instance]) -> list[Instance]:
    """The instances of the model, or of that name, that may stand for the one asked for."""
    found = [one for one in here(instances) if key in (one.model, one.identifier)]
    return [one for one in found if config.identifier in (None, one.identifier)]


def within(flow: Flow[T], ends: float) -> Flow[T]:
    """The same flow, whose steps take no longer than what is left until then."""
    try:
        step = next(flow)
        while True:
            left = max(ends - time.monotonic(), _LOOK_SECONDS)
            if isinstance(step, Lms | Http):
                step = step._replace(timeout=left if step.timeout is None else min(step.timeout, left))
            try:
                result = yield step
            except Phi4Error as error:
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        flow.close()
