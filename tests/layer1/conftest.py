"""Fixtures of the layer-1 tests: a world, and the two faces of the library in one dress."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layer1.faces import AsyncFace, BlockingFace, Face
from layer1.world import World, running

FACES: dict[str, type[BlockingFace] | type[AsyncFace]] = {"blocking": BlockingFace, "async": AsyncFace}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A LM Studio with five models, nothing loaded, and its server on."""
    with running(tmp_path) as world:
        yield world


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest, world: World) -> Iterator[Face]:
    """Each behaviour is tested through both faces."""
    made = FACES[request.param](world.url, world.lms)
    yield made
    made.close()


@pytest.fixture(params=FACES)
def no_lms(request: pytest.FixtureRequest, world: World) -> Iterator[Face]:
    """A face on a machine without the command."""
    made = FACES[request.param](world.url, "/nowhere/lms")
    yield made
    made.close()
