"""The just-in-time cache of models, for both faces. What it does is in `cache`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import Phi4Error
from ..lmstudio.cache import Limits, ModelCache
from ..lmstudio.config import LoadConfig, Way
from ..lmstudio.lifecycle import LOAD_SECONDS
from ..wire.listings import Instance

if TYPE_CHECKING:
    from typing_extensions import Self

    from .aio import AsyncLMStudio
    from .blocking import LMStudio

log = logging.getLogger("phi4_http")


class ModelManager:
    """Models loaded when they are asked for, and given up when others need the room.

    `ttl` is the seconds without use after which LM Studio unloads what was loaded here (None: never); `max_models`
    and `memory_limit` (estimated bytes) bound what is loaded here at a time, and the least recently used goes first.
    `patience` is how many seconds a busy model is waited for, `timeout` how long a load may take. Models that others
    have loaded are used too, but only unloaded where one is asked for with a setting it lacks, such as a longer
    context. As a context manager, it ejects on leaving what it has loaded. It may be shared by threads.
    """

    def __init__(
        self,
        client: LMStudio,
        *,
        ttl: int | None = 300,
        max_models: int | None = None,
        memory_limit: int | None = None,
        patience: float = 60.0,
        timeout: float = LOAD_SECONDS,
        ways: Sequence[Way] | None = None,
    ) -> None:
        self._client = client
        self._cache = ModelCache(client.site, Limits(ttl, max_models, memory_limit, patience, timeout), ways=ways)

    def get(
        self, key: str, config: LoadConfig | None = None, *, on_progress: Callable[[float], None] | None = None
    ) -> Instance:
        """A loaded instance of the model with what the config asks for: one that is there, or a new one.

        Its `identifier` is the `model` of requests. However many threads, tasks and processes ask at once, one loads.
        Raises ModelBusy, DoesNotFit, and what `LMStudio.load` raises.
        """
        return self._client.run(self._cache.get(key, config or LoadConfig(), on_progress=on_progress))

    def eject(self, name: str) -> tuple[Instance, ...]:
        """Unload the instance of that identifier, or all of that model. Raises ModelBusy, ModelNotFound."""
        return self._client.run(self._cache.eject(name))

    def eject_all(self) -> tuple[Instance, ...]:
        """Unload all that was loaded here and is still there. Raises ModelBusy."""
        return self._client.run(self._cache.eject_all())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.eject_all()
        except Phi4Error as fault:
            _report(fault, error)


class AsyncModelManager:
    """As `ModelManager`, awaited. It may be shared by tasks."""

    def __init__(
        self,
        client: AsyncLMStudio,
        *,
        ttl: int | None = 300,
        max_models: int | None = None,
        memory_limit: int | None = None,
        patience: float = 60.0,
        timeout: float = LOAD_SECONDS,
        ways: Sequence[Way] | None = None,
    ) -> None:
        self._client = client
        self._cache = ModelCache(client.site, Limits(ttl, max_models, memory_limit, patience, timeout), ways=ways)

    async def get(
        self, key: str, config: LoadConfig | None = None, *, on_progress: Callable[[float], None] | None = None
    ) -> Instance:
        """A loaded instance of the model with what the config asks for: one that is there, or a new one.

        Its `identifier` is the `model` of requests. However many threads, tasks and processes ask at once, one loads.
        Raises ModelBusy, DoesNotFit, and what `AsyncLMStudio.load` raises.
        """
        return await self._client.run(self._cache.get(key, config or LoadConfig(), on_progress=on_progress))

    async def eject(self, name: str) -> tuple[Instance, ...]:
        """Unload the instance of that identifier, or all of that model. Raises ModelBusy, ModelNotFound."""
        return await self._client.run(self._cache.eject(name))

    async def eject_all(self) -> tuple[Instance, ...]:
        """Unload all that was loaded here and is still there. Raises ModelBusy."""
        return await self._client.run(self._cache.eject_all())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.eject_all()
        except Phi4Error as fault:
            _report(fault, error)


def _report(fault: Phi4Error, error: BaseException | None) -> None:
    """What could not be ejected is raised, unless an error is already on its way: that one matters more."""
    if error is None:
        raise fault
    log.warning("not ejected: %s", fault)
