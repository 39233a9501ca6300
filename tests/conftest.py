"""Fixtures that every test may use."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from examples import PROFILE
from hypothesis import settings
from lmstudio.world import World, running
from support import ANY_CHAT, CHATS, FACES, NOTHING_KEPT, Face, asked_by_name

from phi4_http.tape.matching import Match
from phi4_http.tape.playback import Playback
from phi4_http.tape.server import ReplayServer

settings.load_profile(PROFILE)

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test depends on the proxies, tokens, findings and locks of whoever runs it, or leaves any there."""
    home = str(tmp_path_factory.getbasetemp() / "home")
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, home)
    for name, value in NOTHING_KEPT.items():
        monkeypatch.setenv(name, value)
    for name in (*_PROXIES, *map(str.upper, _PROXIES), "LM_API_TOKEN", "LMSTUDIO_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """Each face in turn."""
    made = FACES[request.param]()
    yield made
    made.close()


@pytest.fixture(scope="session")
def chat_server() -> Iterator[Callable[..., str]]:
    """Addresses of servers that have every shipped chat, asked by name; one server for each way of playing."""
    servers: dict[Playback, ReplayServer] = {}

    def address(**playback: int | float | None) -> str:
        key = Playback(**{"speed": None, **playback})  # type: ignore[arg-type]  # each keyword has its own type
        if key not in servers:
            match = Match(ignore=ANY_CHAT, loop=True)
            servers[key] = ReplayServer(asked_by_name(CHATS.values()), playback=key, match=match)
            servers[key].start()
        return servers[key].url

    yield address
    for server in servers.values():
        server.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A LM Studio with five models, nothing loaded, and its server on."""
    with running(tmp_path) as world:
        yield world


@pytest.fixture
def unused_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
