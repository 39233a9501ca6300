"""The just-in-time cache of models, for both clients. What it does is in `lmstudio.cache`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic

from ..errors import Phi4Error
from ..lmstudio.cache import Limits, ModelCache
from ..lmstudio.config import Way
from .base import AnyClient
from .binding import awaited, blocking

if TYPE_CHECKING:
    from typing_extensions import Self

    from .aio import AsyncLMStudio
    from .blocking import LMStudio
else:
    LMStudio = AsyncLMStudio = Any  # types alone: no client is made here

log: logging.Logger = logging.getLogger("phi4_http")

_DEFAULT = Limits()


class Managing(Generic[AnyClient]):
    """What may be loaded, and by which client."""

    def __init__(
        self,
        client: AnyClient,
        *,
        ttl: int | None = _DEFAULT.ttl,
        max_models: int | None = _DEFAULT.max_models,
        memory_limit: int | None = _DEFAULT.memory_limit,
        patience: float = _DEFAULT.patience,
        timeout: float = _DEFAULT.timeout,
        ways: Sequence[Way] | None = None,
    ) -> None:
        self._client = client
        limits = Limits(ttl, max_models, memory_limit, patience, timeout)
        self._state = ModelCache(client._state, limits, ways=ways)

    @staticmethod
    def _report(fault: Phi4Error, error: BaseException | None) -> None:
        """What could not be ejected is raised, unless an error is already on its way: that one matters more."""
        if error is None:
            raise fault
        log.warning("not ejected: %s", fault)


class ModelManager(Managing[LMStudio]):
    """Models loaded when they are asked for, and given up when others need the room.

    `ttl` is the seconds without use after which LM Studio unloads what was loaded here (None: never); `max_models`
    and `memory_limit` (estimated bytes) bound what is loaded here at a time, and the least recently used goes first.
    `patience` is how many seconds a busy model is waited for, `timeout` how long a load may take. Models that others
    have loaded are used too, but only unloaded where one is asked for with a setting it lacks, such as a longer
    context. As a context manager, it ejects on leaving what it has loaded. It may be shared
    by threads.
    """

    get: Final = blocking(ModelCache.get)
    eject: Final = blocking(ModelCache.eject)
    eject_all: Final = blocking(ModelCache.eject_all)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.eject_all()
        except Phi4Error as fault:
            self._report(fault, error)


class AsyncModelManager(Managing[AsyncLMStudio]):
    """As `ModelManager`, awaited."""

    get: Final = awaited(ModelCache.get)
    eject: Final = awaited(ModelCache.eject)
    eject_all: Final = awaited(ModelCache.eject_all)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.eject_all()
        except Phi4Error as fault:
            self._report(fault, error)
