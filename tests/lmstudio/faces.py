"""The two faces of the library in one dress, so that a test of what they do is written once and run on both."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from phi4_http.client.aio import AsyncLMStudio
from phi4_http.client.blocking import LMStudio
from phi4_http.client.manager import AsyncModelManager, ModelManager


class Face(Protocol):
    """A client whose methods are called by name, and managers of it."""

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """What the client's method gives, awaited where it must be."""

    def events(self, name: str, *arguments: Any, **options: Any) -> list[Any]:
        """What the iterator that the client's method gives yields."""

    def manager(self, **limits: Any) -> Any:
        """A model manager, whose methods give their values at once."""

    def close(self) -> None:
        """Close the client."""


class BlockingFace:
    def __init__(self, url: str, lms: str) -> None:
        self._client = LMStudio(url, lms=lms)

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self._client, name)(*arguments, **options)

    def events(self, name: str, *arguments: Any, **options: Any) -> list[Any]:
        return list(getattr(self._client, name)(*arguments, **options))

    def manager(self, **limits: Any) -> Any:
        return ModelManager(self._client, **limits)

    def close(self) -> None:
        self._client.close()


class AsyncFace:
    def __init__(self, url: str, lms: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncLMStudio(url, lms=lms)

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return self._loop.run_until_complete(getattr(self._client, name)(*arguments, **options))

    def events(self, name: str, *arguments: Any, **options: Any) -> list[Any]:
        async def read() -> list[Any]:
            return [event async for event in getattr(self._client, name)(*arguments, **options)]

        return self._loop.run_until_complete(read())

    def manager(self, **limits: Any) -> Any:
        return _Awaited(self._loop, AsyncModelManager(self._client, **limits))

    def close(self) -> None:
        self._loop.run_until_complete(self._client.aclose())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class _Awaited:
    """An async manager whose methods are run to their end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, manager: AsyncModelManager) -> None:
        self._loop = loop
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._manager, name)
        return lambda *arguments, **options: self._loop.run_until_complete(method(*arguments, **options))

    def __enter__(self) -> Any:
        self._loop.run_until_complete(self._manager.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self._loop.run_until_complete(self._manager.__aexit__(*error))
