"""The just-in-time cache of models: which instance to take, load, wait for or give up. Flows over `lifecycle`.

Its memory is what it has loaded itself, and when each was last asked for. The truth is LM Studio's: an instance's time
to live is LM Studio's clock, people load and unload by hand, and other processes do too. So every call reads the state
first, and drops from its memory what is gone.

Of many callers that ask for one model at once, one loads; the others wait and take what it has loaded. Threads and
tasks of one cache take turns by a lock in memory, so that the limits hold; processes by a lock file for each server and
key. Where all that fails, LM Studio refuses an instance's name twice, and reading back finds a twin.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from ..flow import Flow, Sleep
from ..server import Server
from ..wire.listings import Instance, ModelInfo
from .config import ABLE, LoadConfig, Way, check_against, check_name, unmet, usable_ways
from .inventory import listed, loaded, match, ways_of
from .lifecycle import LOAD_SECONDS, estimate, load
from .lock import FileLock, lock_path
from .unload import unload

log: logging.Logger = logging.getLogger("phi4_http")

_DEFAULT = LoadConfig()

_LOCK_PAUSE, _BUSY_PAUSE = 0.25, 1.0
"""The longest pauses, in seconds, between two looks at a lock, and at a busy instance, which takes a process."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a cache may use. None is no limit."""

    ttl: int | None = 300
    """Idle seconds after which LM Studio unloads what the cache has loaded, where the config says nothing."""
    max_models: int | None = None
    """Instances that the cache has loaded itself, at a time."""
    memory_limit: int | None = None
    """Estimated bytes of those instances together."""
    patience: float = 60.0
    """Seconds to wait for a busy instance that must go."""
    timeout: float = LOAD_SECONDS
    """Seconds for a load, and to wait for somebody else's."""

    def __post_init__(self) -> None:
        LoadConfig(ttl=self.ttl)
        for name, unit in (("max_models", "models"), ("memory_limit", "bytes")):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InvalidRequest(f"{name} is {value!r}: it takes a whole number of {unit}, 1 or more")
        for name in ("patience", "timeout"):
            if not getattr(self, name) >= 0:
                raise InvalidRequest(f"{name} is {getattr(self, name)!r}: it takes seconds, 0 or more")


@dataclass(slots=True)
class _Own:
    """An instance that the cache has loaded."""

    size: int
    """Estimated bytes."""
    used: float
    """Seconds since the epoch, as `lms ps` has it."""


class ModelCache:
    """The flows of a `ModelManager`, and what they remember. May be shared by threads and tasks.

    `ways` is the order in which ways are tried, as for `load`. `clock` gives seconds since the epoch.
    """

    def __init__(
        self,
        server: Server,
        limits: Limits,
        *,
        ways: Sequence[Way] | None = None,
        lock_folder: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._server = server
        self._limits = limits
        self._ways = ways
        self._lock_folder = lock_folder
        self._clock = clock
        self._lock = threading.Lock()
        self._own: dict[str, _Own] = {}

    def get(self, key: str, config: LoadConfig | None = None) -> Flow[Instance]:
        """A loaded instance of the model with what the config asks for: one that is there, or a new one.

        Its `identifier` is the `model` of requests. However many threads, tasks and processes ask at once, one loads.
        Raises ModelBusy for an instance that must go and works
        on, DoesNotFit for the limit, and what `LMStudio.load` raises.
        """
        config = config or _DEFAULT
        check_name(key, "model key")
        usable_ways(config, ways_of(self._server, self._ways))
        instances = yield from self._state()
        found = self._satisfying(key, config, instances)
        if found:
            return found
        model = match(key, (yield from listed(self._server, self._ways)))
        check_against(config, model)
        lock = FileLock(lock_path(self._server.url, model.id, folder=self._lock_folder))
        yield from self._await_lock(model.id, lock)
        try:
            return (yield from self._get(model, config))
        finally:
            lock.release()
            self._lock.release()

    def eject(self, name: str) -> Flow[tuple[Instance, ...]]:
        """Unload the instance of that identifier, or else all instances of that model, and return them.

        Waits for busy ones. Raises ModelBusy, and ModelNotFound where nothing of that name is loaded.
        """
        instances = yield from self._state()
        found = [one for one in _here(instances) if one.identifier == name]
        found = found or [one for one in _here(instances) if one.model == name]
        if not found:
            available = tuple(one.identifier for one in instances)
            raise ModelNotFound(f"no loaded instance is named {name!r}.", model=name, available=available)
        return (yield from self._eject(found))

    def eject_all(self) -> Flow[tuple[Instance, ...]]:
        """Unload all that this cache has loaded and that is still there, and return it. Waits for busy ones."""
        instances = yield from self._state()
        return (yield from self._eject([one for one in instances if one.identifier in self._own]))

    # --- one turn

    def _get(self, model: ModelInfo, config: LoadConfig) -> Flow[Instance]:
        """With the lock held: what is there now, or else a load."""
        instances = yield from self._state()
        found = self._satisfying(model.id, config, instances)
        if found:
            return found
        # Whatever is there of this model is too short, or set otherwise: two copies would take twice the memory.
        for instance in _copies(model.id, config, instances):
            log.info("%s lacks the %s asked for: reloading", instance.identifier, ", ".join(unmet(config, instance)))
            yield from self._free(instance)
        size = yield from self._size(model, config)
        yield from self._make_room(model, size)
        try:
            instance = yield from self._load(model, config)
        except ContextTooShort as error:  # loaded all the same
            self._own[error.identifier] = _Own(size, self._clock())
            raise
        self._own[instance.identifier] = _Own(size, self._clock())
        return instance

    def _load(self, model: ModelInfo, config: LoadConfig) -> Flow[Instance]:
        def with_ttl(ttl: int | None) -> Flow[Instance]:
            wanted = dataclasses.replace(config, ttl=ttl)
            timeout = self._limits.timeout
            return load(self._server, model.id, wanted, ways=self._ways, timeout=timeout)

        if config.ttl is not None or self._limits.ttl is None:
            return (yield from with_ttl(config.ttl))
        try:
            return (yield from with_ttl(self._limits.ttl))
        except (UnsupportedSetting, LmsNotFound):
            # The time to live is this cache's wish, not the caller's: what can't have one may still be loaded.
            instance = yield from with_ttl(None)
            log.warning("%s stays loaded until it is ejected: REST, which loaded it, sets no ttl", instance.identifier)
            return instance
        except LoadFailed:
            # Somebody else may have loaded it meanwhile, with a time to live of his own, which will do here.
            found = self._satisfying(model.id, config, (yield from self._state()))
            if found is None:
                raise
            return found

    def _await_lock(self, key: str, lock: FileLock) -> Flow[None]:
        """Both locks, or ModelBusy after as long as a load may take."""
        for pause in _pauses(self._limits.timeout, _LOCK_PAUSE):
            if self._acquire(lock):
                return
            yield Sleep(pause)
        raise ModelBusy(key, waited=self._limits.timeout, status="being loaded by somebody else")

    def _acquire(self, lock: FileLock) -> bool:
        if not self._lock.acquire(blocking=False):
            return False
        held = False
        try:
            held = lock.acquire()
        finally:
            if not held:
                self._lock.release()
        return held

    # --- room

    def _size(self, model: ModelInfo, config: LoadConfig) -> Flow[int]:
        """Bytes that the model is expected to take; 0 where no limit asks. Without `lms`, the size of its file."""
        if self._limits.memory_limit is None:
            return 0
        known = {name: getattr(config, name) for name in config.settings if "lms" in ABLE[name]}
        if "lms" in ways_of(self._server, self._ways):
            try:
                return (yield from estimate(self._server, model.id, LoadConfig(**known))).total_bytes
            except LmsError as error:
                log.debug("no estimate: %s", error)
        log.warning("%s is counted with the size of its file: it will take more than that", model.id)
        return model.size_bytes or 0

    def _make_room(self, model: ModelInfo, size: int) -> Flow[None]:
        """Evict what was used least recently, of what this cache has loaded, until one more of that size is allowed."""
        limit = self._limits.memory_limit
        if limit is not None and size > limit:
            message = f"{model.id} takes about {size:,} bytes, and the limit is {limit:,}."
            raise DoesNotFit(message, needed=size, limit=limit)
        while self._own and not self._has_room(size):
            instances = {one.identifier: one for one in (yield from self._state())}
            if self._has_room(size):  # one was gone by itself
                break
            # An idle one if there is any; of those, the one whose last use, through here or not, is longest ago.
            victim = min(
                self._own,
                key=lambda name: (
                    bool(instances[name].busy),
                    max(self._own[name].used, instances[name].last_used or 0.0),
                ),
            )
            log.info("evicting %s for %s", victim, model.id)
            yield from self._free(instances[victim])

    def _has_room(self, size: int) -> bool:
        limits = self._limits
        used = sum(own.size for own in self._own.values())
        return (limits.max_models is None or len(self._own) < limits.max_models) and (
            limits.memory_limit is None or used + size <= limits.memory_limit
        )

    def _eject(self, instances: Iterable[Instance]) -> Flow[tuple[Instance, ...]]:
        """Free each; one that does not go does not keep the others, and its error is raised at the end."""
        gone: list[Instance] = []
        fault: Phi4Error | None = None
        for instance in instances:
            try:
                yield from self._free(instance)
                gone.append(instance)
            except Phi4Error as error:
                fault = fault or error
        if fault:
            raise fault
        return tuple(gone)

    def _free(self, instance: Instance) -> Flow[None]:
        """Unload an instance as soon as it is idle. Raises ModelBusy where it does not become so."""
        name, patience = instance.identifier, self._limits.patience
        for pause in _pauses(patience, _BUSY_PAUSE):
            if not instance.busy:
                break
            yield Sleep(pause)
            instances = {one.identifier: one for one in _here((yield from self._state()))}
            if name not in instances:
                return  # its time was over, or somebody else was quicker
            instance = instances[name]
        if instance.busy:
            raise ModelBusy(name, waited=patience, status=instance.status, queued=instance.queued)
        if instance.busy is None:
            log.warning("unloading %s, though nobody tells whether it is idle", name)
        with contextlib.suppress(ModelNotFound):  # as above
            yield from unload(self._server, name, ways=self._ways)
        self._own.pop(name, None)

    # --- what is there

    def _state(self) -> Flow[tuple[Instance, ...]]:
        """What is loaded now; what is gone is forgotten."""
        instances = yield from loaded(self._server, ways=self._ways)
        there = {one.identifier for one in _here(instances)}
        for identifier in [name for name in self._own if name not in there]:
            self._own.pop(identifier, None)
        return instances

    def _satisfying(self, key: str, config: LoadConfig, instances: Iterable[Instance]) -> Instance | None:
        """A loaded instance that has what is asked for; it counts as used now."""
        for instance in _copies(key, config, instances):
            if not unmet(config, instance):
                own = self._own.get(instance.identifier)
                if own:
                    own.used = self._clock()
                return instance
        return None


def _here(instances: Iterable[Instance]) -> list[Instance]:
    """Those on this machine, not lent by another one (LM Link)."""
    return [one for one in instances if one.device is None]


def _copies(key: str, config: LoadConfig, instances: Iterable[Instance]) -> list[Instance]:
    """The instances of the model that may stand for the one asked for."""
    return [one for one in _here(instances) if one.model == key and config.identifier in (None, one.identifier)]


def _pauses(seconds: float, longest: float) -> Iterator[float]:
    """Pauses that grow up to `longest` and take so many seconds together."""
    pause = 0.05
    while seconds > 0:
        yield min(pause, seconds)
        seconds -= pause
        pause = min(2 * pause, longest)
    yield 0.0
