"""What keeps a model loaded while a reply of one's own runs, however it was loaded."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..lmstudio.config import LoadConfig
    from .blocking import LMStudio
    from .manager import Lease, ModelManager

_LEASE_SECONDS = 60.0
"""How long a model is waited for that is being unloaded."""


class Named(NamedTuple):
    """A model that is kept loaded, by its name alone."""

    identifier: str


class Keeper:
    """What a reply's model is kept loaded by, for as long as the reply runs: a manager, as the model was loaded, or
    else a lease on whatever has its name, for which nothing is asked."""

    def __init__(self, client: LMStudio) -> None:
        self.client: LMStudio = client
        self.loaded: tuple[ModelManager, str, LoadConfig] | None = None
        """By whom the model was loaded, by which key, and how."""

    def use(self, key: str, config: object = None) -> Lease | contextlib.AbstractContextManager[Named]:
        """The model, held."""
        if self.loaded is None:
            return self._named(key)
        manager, key, asked = self.loaded
        return manager.use(key, asked)

    @contextlib.contextmanager
    def _named(self, key: str) -> Generator[Named, None, None]:
        from ..lmstudio.lease import Leases, leased

        server = self.client._state
        if server.on_tape or server.native is False:  # there is nobody to unload it
            yield Named(key)
            return
        lease = self.client._run(leased(Leases(server.address), key, time.monotonic() + _LEASE_SECONDS))
        try:
            yield Named(key)
        finally:
            lease.release()
