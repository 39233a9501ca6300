"""The two faces of the library in one dress, so that a test of what they do is written once and run on both."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from phi4_http.client.aio import AsyncLMStudio, AsyncPhi4
from phi4_http.client.blocking import LMStudio, Phi4
from phi4_http.client.manager import AsyncModelManager, ModelManager


class Face(Protocol):
    """A client whose methods are called by name, and managers of it."""

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """What the client's method gives, awaited where it must be."""

    def events(self, name: str, *arguments: Any, **options: Any) -> list[Any]:
        """What the iterator that the client's method gives yields."""

    def manager(self, **limits: Any) -> Any:
        """A model manager, whose methods give their values at once."""

    def phi(self, **options: Any) -> Any:
        """A Phi4 of it, whose methods give their values at once."""

    def close(self) -> None:
        """Close the client."""


class BlockingFace:
    def __init__(self, url: str, lms: str | None) -> None:
        self._client = LMStudio(url, lms=lms)

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self._client, name)(*arguments, **options)

    def events(self, name: str, *arguments: Any, **options: Any) -> list[Any]:
        return list(getattr(self._client, name)(*arguments, **options))

    def manager(self, **limits: Any) -> Any:
        return ModelManager(self._client, **limits)

    def phi(self, **options: Any) -> Any:
        return Phi4(self._client, **options)

    def close(self) -> None:
        self._client.close()


class AsyncFace:
    def __init__(self, url: str, lms: str | None) -> None:
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

    def phi(self, **options: Any) -> Any:
        manager = options.get("manager")
        if isinstance(manager, _Awaited):
            options["manager"] = manager._made
        return _Awaited(self._loop, AsyncPhi4(self._client, **options))

    def close(self) -> None:
        self._loop.run_until_complete(self._client.aclose())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class _Awaited:
    """What is asynchronous, with its methods run to their end, and its blocks and iterators as plain ones."""

    def __init__(self, loop: asyncio.AbstractEventLoop, made: Any) -> None:
        self._loop = loop
        self._made = made

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._made, name)

        def call(*arguments: Any, **options: Any) -> Any:
            found = method(*arguments, **options)
            return self._loop.run_until_complete(found) if asyncio.iscoroutine(found) else _Awaited(self._loop, found)

        return call

    def __enter__(self) -> Any:
        entered = self._loop.run_until_complete(self._made.__aenter__())
        return self if entered is self._made else entered

    def __exit__(self, *error: Any) -> None:
        self._loop.run_until_complete(self._made.__aexit__(*error))
