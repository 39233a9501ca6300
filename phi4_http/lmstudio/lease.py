"""Leases on the instances of one LM Studio: who uses one, among all processes of this user.

In the folder of that LM Studio, of which the address is the name however it is written:

    load-MODEL           held by who loads a model
    gate-INSTANCE        held for a moment by who takes a lease, and by who unloads, from the last look to the end
    lease-INSTANCE-N     held as long as a lease is; each has the first file that is free

So an instance without leases, seen behind its gate, has none until the gate is open again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from ..errors import ModelBusy
from ..flow import Flow, Sleep
from .lock import FileLock, digest, lock_folder

LOCK = 0.25
"""The longest pause between two looks at a lock, in seconds."""


class Leases:
    """The leases on what one LM Studio has. None of its methods waits."""

    def __init__(self, address: str, folder: Path | None = None) -> None:
        # Without a home, a folder that can't be made: the locks then hold within this process.
        self._folder = (folder or lock_folder() or Path(os.devnull)) / digest(address)

    def loading(self, key: str) -> FileLock:
        """The lock of who loads this model."""
        return FileLock(self._folder / f"load-{digest(key)}")

    def gate(self, identifier: str) -> FileLock:
        """The lock of who takes a lease on this instance, or unloads it."""
        return FileLock(self._folder / f"gate-{digest(identifier)}")

    def take(self, identifier: str) -> FileLock | None:
        """A lease; None where the gate is held, by who unloads it, or takes one too: ask again."""
        gate = self.gate(identifier)
        if not gate.acquire():
            return None
        try:
            lease = next(lease for lease in self._files(identifier) if lease.acquire())
        finally:
            gate.release()
        lease.touch()
        return lease

    def taken(self, identifier: str) -> bool:
        """Whether there is a lease. To be asked with the gate held."""
        for lease in self._files(identifier):
            if not lease.known():
                return False
            if not lease.acquire():
                return True
            lease.release()
        return False

    def used(self, identifier: str) -> float:
        """When a lease last began or ended, in seconds since the epoch; 0 where there was none."""
        last = 0.0
        for lease in self._files(identifier):
            if not lease.known():
                break
            last = max(last, lease.used())
        return last

    def _files(self, identifier: str) -> Iterator[FileLock]:
        name = digest(identifier)
        return (FileLock(self._folder / f"lease-{name}-{number}") for number in count())


def leased(leases: Leases, identifier: str, ends: float) -> Flow[FileLock]:
    """A lease, had by that time of the monotonic clock. Raises ModelBusy where it is not."""
    began = time.monotonic()
    for pause in until(ends, LOCK):
        lease = leases.take(identifier)
        if lease is not None:
            return lease
        yield Sleep(pause)
    raise ModelBusy(identifier, waited=elapsed(began), status="being unloaded")


def until(ends: float, longest: float) -> Iterator[float]:
    """Pauses that grow up to `longest`, until it is that time by the monotonic clock; the last look comes then."""
    pause = 0.01
    while (left := ends - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(2 * pause, longest)
    yield 0.0


def elapsed(began: float) -> float:
    """The seconds since then, as they are told."""
    return round(time.monotonic() - began, 1)
