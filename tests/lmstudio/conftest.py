"""Fixtures of the layer-1 tests: a world, and the two faces of the library in one dress."""

from __future__ import annotations

from collections.abc import Iterator

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


@pytest.fixture(params=FACES)
def no_lms(request: pytest.FixtureRequest, world: World) -> Iterator[Face]:
    """A face on a machine without the command."""
    made = FACES[request.param](world.url, "/nowhere/lms")
    yield made
    made.close()
