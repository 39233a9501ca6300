"""Fixtures of the layer-1 tests: a world, and the two faces of the library in one dress."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lmstudio.faces import AsyncFace, BlockingFace, Face
from lmstudio.world import World

FACES: dict[str, type[BlockingFace] | type[AsyncFace]] = {"blocking": BlockingFace, "async": AsyncFace}


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest, world: World) -> Iterator[Face]:
    """Each behaviour is tested through both faces."""
    made = FACES[request.param](world.url, world.lms)
    yield made
    made.close()


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, and a home that is empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    return folder


@pytest.fixture(params=FACES)
def no_lms(request: pytest.FixtureRequest, world: World, bare: Path) -> Iterator[Face]:
    """A face on a machine without the command."""
    made = FACES[request.param](world.url, None)
    yield made
    made.close()
