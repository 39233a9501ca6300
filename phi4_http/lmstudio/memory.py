"""What a cache of models may use, and what it remembers: values that its threads and tasks share; no flows.

A memory is of one process. A forked child has its parent's as it was, but owns none of what that has loaded.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, replace

from ..errors import InvalidRequest, Phi4Error
from ..wire.listings import Instance
from .config import LoadConfig, unmet, unread
from .lifecycle import LOAD_SECONDS


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
class Own:
    """An instance that the cache has loaded."""

    config: LoadConfig
    """What was asked for, the time to live included."""
    size: int
    """Estimated bytes."""
    used: float
    """Seconds since the epoch, as `lms ps` has it."""
    since: float
    """When it was loaded, by the monotonic clock: an older look does not know it yet."""


@dataclass(slots=True)
class Flight:
    """One caller's work for a model, which others wait for. None of them is told more than it came to."""

    config: LoadConfig
    instance: Instance | None = None
    error: Phi4Error | None = None
    over: bool = False


@dataclass(slots=True)
class Look:
    """One look at what is loaded, which others may share that asked before it began."""

    began: float
    instances: tuple[Instance, ...] | None = None
    over: bool = False


class Memory:
    """What one process knows of what it has loaded, and what it is about to do."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.lock: threading.Lock = threading.Lock()  # never held over a step
        self.own: dict[str, Own] = {}
        """By identifier."""
        self.loading: dict[int, int] = {}
        """Bytes of what is being loaded, by flight."""
        self.flights: dict[str, Flight] = {}
        """By model."""
        self.look: Look | None = None
        self.listed: dict[str, Instance] = {}
        """The instances as the server's own list last showed them, which tells settings that `lms ps` does not."""
        self._cuts: dict[tuple[str, LoadConfig], int] = {}
        self._unknown: set[tuple[str, tuple[str, ...]]] = set()

    @property
    def inherited(self) -> bool:
        """Whether it is that of the process which this one was forked from."""
        return self._pid != os.getpid()

    def join(self, key: str, config: LoadConfig) -> tuple[Flight, bool]:
        """The work for this model that is under way, or a new one, and whether it is new."""
        with self.lock:
            flight = self.flights.get(key)
            if flight is not None:
                return flight, False
            flight = self.flights[key] = Flight(config)
            return flight, True

    def land(self, key: str, flight: Flight) -> None:
        """The work is done, or given up."""
        with self.lock:
            flight.over = True
            self.flights.pop(key, None)

    def joined_look(self, asked: float) -> tuple[Look, bool]:
        """A look that began no earlier than it was asked for, or the one to wait for first; and whether it is new."""
        with self.lock:
            look = self.look
            if look is None or (look.over and (look.began < asked or look.instances is None)):
                look = self.look = Look(time.monotonic())
                return look, True
            return look, False

    def reserve(self, flight: Flight, size: int, limits: Limits) -> bool:
        """Whether there is room for one more of this size, which it has then."""
        with self.lock:
            used = sum(own.size for own in self.own.values()) + sum(self.loading.values())
            many = len(self.own) + len(self.loading)
            room = (limits.max_models is None or many < limits.max_models) and (
                limits.memory_limit is None or used + size <= limits.memory_limit
            )
            if room:
                self.loading[id(flight)] = size
            return room

    def keep(self, identifier: str, config: LoadConfig, size: int, used: float) -> None:
        """It was loaded here."""
        self.own[identifier] = Own(config, size, used, time.monotonic())

    def keep_only(self, there: set[str], seen: float) -> None:
        """What a look did not show that began then is gone."""
        for identifier, own in list(self.own.items()):
            if identifier not in there and own.since < seen:
                self.own.pop(identifier, None)

    def lacks(self, config: LoadConfig, instance: Instance) -> tuple[str, ...]:
        """The settings that the instance is known not to have, by its source or since it was loaded here."""
        own = self.own.get(instance.identifier)
        lacking = set(unmet(config, instance))
        for name in ("gpu", "ttl") if own else ():
            if own and name in config.settings and _plain(getattr(own.config, name)) != _plain(getattr(config, name)):
                lacking.add(name)
        return tuple(name for name in config.settings if name in lacking)

    def unknown(self, config: LoadConfig, instance: Instance) -> tuple[str, ...]:
        """The settings asked for that nobody can say of this instance; each is told once."""
        if instance.identifier in self.own:
            return ()
        names = unread(config, instance)
        if not names or (instance.identifier, names) in self._unknown:
            return ()
        self._unknown.add((instance.identifier, names))
        return names

    def filled(self, instance: Instance) -> Instance:
        """The instance with what else is known of it: what the server's own list told, and what was asked for here."""
        own, listed = self.own.get(instance.identifier), self.listed.get(instance.identifier)
        if listed is not None:
            instance = replace(instance, extra={**listed.extra, **instance.extra})
        return replace(instance, ttl=own.config.ttl) if own and instance.ttl is None else instance

    # What LM Studio has cut

    def note_cut(self, key: str, config: LoadConfig, limit: int) -> None:
        """Asked for this, LM Studio gave so many tokens of context."""
        self._cuts[key, config] = limit

    def cut(self, key: str, config: LoadConfig) -> int | None:
        """What it gave when it was last asked for this; None where it was not, or gave it all."""
        return self._cuts.get((key, config))

    def forget_cuts(self) -> None:
        """There is more room than there was."""
        self._cuts.clear()


def _plain(share: object) -> object:
    """A GPU share as a number, where it is a word."""
    return {"max": 1.0, "off": 0.0}.get(share, share) if isinstance(share, str) else share
