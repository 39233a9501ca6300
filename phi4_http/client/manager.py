"""The just-in-time cache of models, for both clients. What it does is in `lmstudio.cache`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic

from ..errors import Phi4Error
from ..lmstudio.cache import Leasing, ModelCache
from ..lmstudio.config import Way
from ..lmstudio.memory import Limits
from ..wire.listings import Instance
from .base import AnyClient
from .binding import awaited, blocking, making

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


class Lease:
    """A block with an instance that is not unloaded before the block is left; `ModelManager.use` makes it."""

    def __init__(self, client: LMStudio, leasing: Leasing) -> None:
        self._client = client
        self._leasing = leasing

    def __enter__(self) -> Instance:
        return self._client._run(self._leasing.enter())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leasing.leave()


class AsyncLease:
    """As `Lease`, for `async with`."""

    def __init__(self, client: AsyncLMStudio, leasing: Leasing) -> None:
        self._client = client
        self._leasing = leasing

    async def __aenter__(self) -> Instance:
        return await self._client._run(self._leasing.enter())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leasing.leave()


class ModelManager(Managing[LMStudio]):
    """Models loaded when they are asked for, and given up when others need the room.

    `ttl` is the seconds without use after which LM Studio unloads what was loaded here (None: never); `max_models`
    and `memory_limit` (estimated bytes) bound what is loaded here at a time, and the least recently used goes first.
    `patience` is how many seconds a busy model is waited for, `timeout` how long a load may take. Models that others
    have loaded are used too, and loaded anew where one is asked for with a setting it lacks, such as a longer context:
    only where it is seen to be idle and can keep its time to live, and it stays theirs. `use` keeps what it gives from
    being unloaded; `get` does not. As a context manager, it ejects on leaving what it has loaded. It may be shared by
    threads.
    """

    get: Final = blocking(ModelCache.get)
    use: Final = making(ModelCache.use, Lease)
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
    use: Final = making(ModelCache.use, AsyncLease)
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
