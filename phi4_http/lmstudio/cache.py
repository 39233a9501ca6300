"""The just-in-time cache of models: which instance to take, load, wait for or give up. Flows over `lifecycle`.

Its memory is what it has loaded itself, and when each was last asked for. The truth is LM Studio's: an instance's time
to live is LM Studio's clock, people load and unload by hand, and other processes do too. So every call reads the state
first, and drops from its memory what is gone.

Of many callers that ask for one model at once, one loads; the others wait for it and take what it has loaded. Threads
and tasks of one cache wait in memory, processes of one user for a lock of the operating system. Models that are not the
same are loaded side by side, as far as the limits go.

What somebody else has loaded is loaded anew only where it stays theirs; who uses what is in `unloading`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from ..errors import (
    ContextTooShort,
    DoesNotFit,
    InvalidRequest,
    LmsError,
    LmsNotFound,
    LoadFailed,
    ModelBusy,
    ModelNotFound,
    Phi4Error,
    UnsupportedSetting,
)
from ..flow import Events, Flow, Sleep, last
from ..running import Job
from ..wire.listings import Instance, ModelInfo
from .config import ABLE, LoadConfig, Way, check_against, check_name, usable_ways
from .inventory import listed, match, ways_of
from .lease import LOCK, elapsed, leased, until
from .lifecycle import Loaded, LoadEvent, check_loaded, estimate, load, obtaining, refuse
from .lock import FileLock
from .memory import Flight
from .unloading import LOOK, MEMORY, Busy, Watch, copies, here

log: logging.Logger = logging.getLogger("phi4_http")

_DEFAULT = LoadConfig()


class ModelCache(Watch):
    """The flows of a `ModelManager`, and what they remember. May be shared by threads and tasks."""

    def get(self, key: str, config: LoadConfig | None = None) -> Flow[Instance]:
        """A loaded instance of the model with what the config asks for: one that is there, or a new one.

        Its `identifier` is the `model` of requests. However many threads, tasks and processes ask at once, one loads.
        Nothing keeps it from being unloaded for another one: for that, there is `use`. Raises ModelBusy for an instance
        that must go and works on, DoesNotFit for the limit, ContextTooShort also where LM Studio is known to cut the
        context, and what `LMStudio.load` raises.
        """
        config = config or _DEFAULT
        check_name(key, "model key")
        usable_ways(config, ways_of(self.server, self._ways))
        found = yield from self.quick(key, config)
        if found:
            return self._taken(config, found)
        ends = time.monotonic() + self._limits.timeout
        while True:
            flight, mine = self._memory.join(key, config)
            if mine:
                return (yield from self._lead(flight, key, config))
            yield from self._await(key, lambda flight=flight: flight.over, ends, MEMORY)  # type: ignore[misc]
            if flight.error is not None and flight.config == config:
                raise flight.error
            found = flight.instance and self._satisfying(flight.instance.model, config, [flight.instance])
            if found:
                return self._taken(config, found)

    def use(self, key: str, config: LoadConfig | None = None) -> Leasing:
        """A block with an instance as `get` gives it, which is not unloaded before the block is left: by no manager of
        this user, in any thread, task or process. Entering raises what `get` raises."""
        return Leasing(self, key, lambda: self.get(key, config), config or _DEFAULT)

    def eject(self, name: str) -> Flow[tuple[Instance, ...]]:
        """Unload the instance of that identifier, or else all instances of that model, and return them.

        Waits for busy ones. Raises ModelBusy, also for one that others have loaded where nobody reports whether it is
        at work, and ModelNotFound where nothing of that name is loaded.
        """
        instances = yield from self._state()
        found = [one for one in here(instances) if one.identifier == name]
        found = found or [one for one in here(instances) if one.model == name]
        if not found:
            available = tuple(one.identifier for one in instances)
            raise ModelNotFound(f"no loaded instance is named {name!r}.", model=name, available=available)
        return (yield from self._eject(found))

    def eject_all(self) -> Flow[tuple[Instance, ...]]:
        """Unload all that this cache has loaded and that is still there, and return it. Waits for busy ones."""
        if not self._memory.own:
            return ()
        instances = yield from self._state()
        return (yield from self._eject([one for one in instances if one.identifier in self._memory.own]))

    # --- one turn

    def _lead(self, flight: Flight, key: str, config: LoadConfig) -> Flow[Instance]:
        """Do what others wait for."""
        try:
            model = match(key, (yield from listed(self.server, self._ways)))
            check_against(config, model)
            lock = self._leases.loading(model.id)
            yield from self._await(model.id, lock.acquire, time.monotonic() + self._limits.timeout, LOCK)
            try:
                flight.instance = yield from self._get(flight, model, config)
            finally:
                lock.release()
            return flight.instance
        except Phi4Error as error:
            flight.error = error
            raise
        finally:
            self._memory.loading.pop(id(flight), None)
            self._memory.land(key, flight)

    def _get(self, flight: Flight, model: ModelInfo, config: LoadConfig) -> Flow[Instance]:
        """With the lock held: what is there now, or else a load."""
        instances = yield from self._state()
        found = self._satisfying(model.id, config, instances)
        if found:
            return self._taken(config, found)
        memory = self._memory
        # Whatever is there of this model is too short, or set otherwise: two copies would take twice the memory.
        there = copies(model.id, config, instances)
        old = next((one for one in there if one.identifier in memory.own), there[0] if there else None)
        theirs = old is not None and old.identifier not in memory.own
        ways, wanted, size = self._ways, config, 0
        if old is not None:
            self._check_cut(model.id, config, old)
        if old is not None and theirs:
            old, wanted, ways = yield from self._as_theirs(old, model.id, config)
        elif old is not None and (old.identifier != model.id or len(there) > 1):
            named = dataclasses.replace(config, identifier=old.identifier)
            wanted = named if any(not named.beyond(way) for way in ways_of(self.server, ways)) else config
        if not theirs:
            size = yield from self._size(model, config)
        if old is not None:
            lacking = ", ".join(memory.lacks(config, old))
            log.info("%s lacks the %s asked for: reloading", old.identifier, lacking)
            yield from self._free(old)
        if not theirs:
            yield from self._make_room(flight, model, size)
        try:
            got, asked = yield from self._load(model, wanted, ways, ttl=None if theirs else self._limits.ttl)
        except Phi4Error:
            if old is not None and theirs:
                yield from self._put_back(old, ways)
            raise
        if not got.found and not theirs:
            memory.keep(got.instance.identifier, asked, size, self._clock())
        self._check_got(model.id, config, got)
        return got.instance

    def _load(
        self, model: ModelInfo, config: LoadConfig, ways: Sequence[Way] | None, *, ttl: int | None
    ) -> Flow[tuple[Loaded, LoadConfig]]:
        """What was loaded, and what was asked for."""

        def with_ttl(ttl: int | None) -> Flow[tuple[Loaded, LoadConfig]]:
            asked = dataclasses.replace(config, ttl=ttl)
            timeout = self._limits.timeout

            def events() -> Events[LoadEvent]:
                yield [(yield from obtaining(self.server, model.id, asked, ways, timeout, allow_shorter=True))]

            end = yield from last(events())
            assert isinstance(end, Loaded)
            return end, asked

        if config.ttl is not None or ttl is None:
            return (yield from with_ttl(config.ttl))
        try:
            return (yield from with_ttl(ttl))
        except (UnsupportedSetting, LmsNotFound):
            # The time to live is this cache's wish, not the caller's: what can't have one may still be loaded.
            got, asked = yield from with_ttl(None)
            name = got.instance.identifier
            log.warning("%s stays loaded until it is ejected: REST, which loaded it, sets no ttl", name)
            return got, asked
        except LoadFailed:
            # Somebody else may have loaded it meanwhile, with a time to live of his own, which will do here.
            found = self._satisfying(model.id, config, (yield from self._state()))
            if found is None:
                raise
            return Loaded(found, found=True), config

    def _check_cut(self, key: str, config: LoadConfig, old: Instance) -> None:
        """Raises ContextTooShort where a reload would give what is there already."""
        limit = self._memory.cut(key, config)
        if limit is not None and config.context_length is not None and (old.context_length or 0) >= limit:
            raise ContextTooShort(config.context_length, limit, identifier=old.identifier)

    def _check_got(self, key: str, config: LoadConfig, got: Loaded) -> None:
        """Raises ContextTooShort for one that is too short; where LM Studio has cut it, that is remembered."""
        try:
            check_loaded(got.instance, config)
        except ContextTooShort as error:
            if not got.found:
                self._memory.note_cut(key, config, error.limit)
            raise

    def _taken(self, config: LoadConfig, instance: Instance) -> Instance:
        """What is there is taken; what nobody reports of it is told, once."""
        names = self._memory.unknown(config, instance)
        if names:
            log.warning("nobody reports whether %s has the %s asked for", instance.identifier, ", ".join(names))
        return instance

    # --- what somebody else has loaded

    def _as_theirs(
        self, old: Instance, key: str, config: LoadConfig
    ) -> Flow[tuple[Instance, LoadConfig, tuple[Way, ...]]]:
        """How to load somebody else's instance anew so that it is theirs still: its own name and time to live.

        Raises ContextTooShort or LoadFailed where that can't be, or where nobody reports the time to live.
        """
        seen = yield from self._reported(old.identifier)
        lacking = self._memory.lacks(config, old)
        if seen is None or config.ttl not in (None, seen.ttl):
            refuse(old, lacking, config)
        name = seen.identifier if seen.identifier != key else config.identifier
        wanted = dataclasses.replace(config, ttl=seen.ttl, identifier=name)
        order: tuple[Way, ...] = ways_of(self.server, self._ways)
        if seen.ttl is None:
            order = tuple(way for way in order if way != "jit")  # which sets one of its own
        usable: tuple[Way, ...] = tuple(way for way in order if not wanted.beyond(way))
        if not usable:
            refuse(old, lacking, config)
        return seen, wanted, usable

    def _put_back(self, old: Instance, ways: Sequence[Way] | None) -> Flow[None]:
        """Somebody else's instance was unloaded for one that could not be loaded: theirs is loaded again, if it can."""
        name = old.identifier if old.identifier != old.model else None
        before = LoadConfig(context_length=old.context_length, ttl=old.ttl, identifier=name)
        try:
            yield from load(self.server, old.model, before, ways=ways, timeout=self._limits.timeout)
        except Phi4Error as error:
            log.warning("%s, which somebody else had loaded, could not be loaded again: %s", old.identifier, error)

    # --- room

    def _size(self, model: ModelInfo, config: LoadConfig) -> Flow[int]:
        """Bytes that the model is expected to take; 0 where no limit asks. Without `lms`, the size of its file.

        Raises DoesNotFit for one that is above the limit alone.
        """
        limit, size = self._limits.memory_limit, None
        if limit is None:
            return 0
        known = {name: getattr(config, name) for name in config.settings if "lms" in ABLE[name]}
        if "lms" in ways_of(self.server, self._ways):
            try:
                size = (yield from estimate(self.server, model.id, LoadConfig(**known))).total_bytes
            except LmsError as error:
                log.debug("no estimate: %s", error)
        if size is None:
            log.warning("%s is counted with the size of its file: it will take more than that", model.id)
            size = model.size_bytes or 0
        if size > limit:
            message = f"{model.id} takes about {size:,} bytes, and the limit is {limit:,}."
            raise DoesNotFit(message, needed=size, limit=limit)
        return size

    def _make_room(self, flight: Flight, model: ModelInfo, size: int) -> Flow[None]:
        """Evict what was used least recently, of what this cache has loaded, until one more of that size is allowed."""
        began, busy, name = time.monotonic(), Busy("waiting for others to be loaded"), model.id
        memory, limits = self._memory, self._limits
        for pause in until(began + max(limits.patience, limits.timeout), LOOK):
            while not memory.reserve(flight, size, limits):
                for instance in self._by_use((yield from self._state())):
                    reason = yield from self._unloaded(instance.identifier, began + limits.patience)
                    if reason is None:
                        log.info("%s is unloaded for %s", instance.identifier, model.id)
                        break
                    busy, name = reason, instance.identifier
                else:
                    break
            else:
                return
            if not memory.loading and time.monotonic() - began >= limits.patience:
                break  # what is being loaded is waited for longer: as long as a load may take
            yield Sleep(min(pause, max(began + limits.patience - time.monotonic(), 0.01)))
        raise ModelBusy(name, waited=elapsed(began), status=busy.status, queued=busy.queued)

    def _by_use(self, instances: Iterable[Instance]) -> list[Instance]:
        """Those of this cache: idle ones first, and of those the one whose last use, through here or not, is longest
        ago."""
        own = self._memory.own
        found = [one for one in here(instances) if one.identifier in own]
        return sorted(found, key=lambda one: (bool(one.busy), max(own[one.identifier].used, one.last_used or 0.0)))

    def _eject(self, instances: Iterable[Instance]) -> Flow[tuple[Instance, ...]]:
        """Free each; one that does not go does not keep the others, and its error is raised at the end."""
        gone: list[Instance] = []
        fault: Phi4Error | None = None
        ends = time.monotonic() + self._limits.patience
        for instance in instances:
            try:
                yield from self._free(instance, ends)
                gone.append(instance)
            except Phi4Error as error:
                fault = fault or error
        if fault:
            raise fault
        return tuple(gone)

    def _await(self, key: str, over: Callable[[], bool], ends: float, longest: float) -> Flow[None]:
        """Wait for somebody else's load, or raise ModelBusy."""
        for pause in until(ends, longest):
            if over():
                return
            yield Sleep(pause)
        raise ModelBusy(key, waited=self._limits.timeout, status="being loaded by somebody else")


class Leasing:
    """One block's lease on an instance: what entering and leaving it do."""

    def __init__(self, cache: ModelCache, name: str, get: Callable[[], Flow[Instance]], config: LoadConfig) -> None:
        self._cache = cache
        self._name = name
        self._get = get
        self._config = config
        self._lease: FileLock | None = None
        self._job: Job | None = None

    def enter(self) -> Flow[Instance]:
        """The instance, with nobody to unload it before `leave`. Raises what `get` raises."""
        if self._lease is not None:
            raise InvalidRequest("this lease is held: ask for another one")
        cache = self._cache
        ends = time.monotonic() + cache._limits.timeout
        while True:
            instance = yield from self._get()
            self._lease = yield from leased(cache._leases, instance.identifier, ends)
            self._job = cache.server.work.begin(instance.identifier)
            try:
                if (yield from self._still(instance.identifier)):
                    return instance
            except BaseException:
                self.leave()
                raise
            self.leave()  # it was unloaded just before

    def leave(self) -> None:
        """Give it back; more than once is no matter."""
        lease, self._lease = self._lease, None
        if lease is not None and self._job is not None:
            self._cache.touch(self._job.model)
            self._job.end()
            lease.touch()
            lease.release()

    def _still(self, name: str) -> Flow[bool]:
        found = yield from self._cache.quick(self._name, self._config)
        if found is not None:
            return found.identifier == name
        return any(one.identifier == name for one in (yield from self._cache._state()))
