"""Downloads: followed to their end, on both faces, with what LM Studio does not tell left unknown."""

from __future__ import annotations

from typing import Any

import pytest
from support import run_child

from lmstudio.faces import Face
from lmstudio.world import World
from phi4_http import Download, InvalidRequest, NotLMStudio, ServerError
from phi4_http.lmstudio import download

KEY = "microsoft/phi-4-reasoning-plus"
BEGUN = {"job_id": "j/1", "status": "downloading", "total_size_bytes": 200}
STEPS: list[dict[str, Any]] = [
    BEGUN,
    {**BEGUN, "downloaded_bytes": 50, "bytes_per_second": 25.5},
    {"status": "paused", "downloaded_bytes": 50, "total_size_bytes": 200},
    {**BEGUN, "status": "completed", "downloaded_bytes": 200},
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "REPORT", 0.0)


def test_a_download_is_followed_to_its_end(face: Face, world: World) -> None:
    """An event for each look, in its order; the job's name is quoted in the path; the last one is over."""
    world.set(downloads=STEPS)
    seen: list[Download] = face.events("downloading", KEY)
    assert [(one.status, one.bytes, one.total, one.speed, one.share) for one in seen] == [
        ("downloading", None, 200, None, None),
        ("downloading", 50, 200, 25.5, 0.25),
        ("paused", 50, 200, None, 0.25),
        ("completed", 200, 200, None, 1.0),
    ]
    assert [one.over for one in seen] == [False, False, False, True]
    assert world.requests("/api/v1/models/download") == [{"model": KEY}]


def test_download_waits_for_it(face: Face, world: World) -> None:
    """And gives the last event; of a model that is here already, the only one."""
    world.set(downloads=STEPS)
    assert face.call("download", KEY).status == "completed"
    world.set(downloads=[{"status": "already_downloaded"}])
    assert face.call("download", KEY).over


def test_a_quantization_goes_with_a_page_on_hugging_face(face: Face, world: World) -> None:
    """With a name of the catalogue it is refused, and nothing is sent."""
    world.set(downloads=[{"status": "already_downloaded"}])
    page = "https://huggingface.co/lmstudio-community/Phi-4-reasoning-plus-GGUF"
    face.call("download", page, "Q4_K_M")
    assert world.requests("/api/v1/models/download") == [{"model": page, "quantization": "Q4_K_M"}]
    with pytest.raises(InvalidRequest, match="catalogue"):
        face.call("download", KEY, "Q4_K_M")
    assert len(world.requests("/api/v1/models/download")) == 1


def test_where_the_server_cannot_the_error_names_what_can(face: Face, world: World) -> None:
    """LM Studio 0.3 has no such endpoint: `lms get` downloads."""
    world.set(v0_3=True)
    with pytest.raises(NotLMStudio, match=f"lms get {KEY}"):
        face.events("downloading", KEY)


@pytest.mark.parametrize(
    ("steps", "error", "words"),
    [
        ([BEGUN, {**BEGUN, "status": "failed"}], ServerError, f"download of {KEY} failed"),
        ([{"status": "downloading"}], NotLMStudio, "no job is named"),
        ([{"job_id": "j/1"}], NotLMStudio, "status"),
    ],
)
def test_a_download_that_fails_is_an_error(face: Face, world: World, steps: Any, error: type, words: str) -> None:
    """One that LM Studio gives up, one that names no job, an answer with no status."""
    world.set(downloads=steps)
    with pytest.raises(error, match=words):
        face.events("downloading", KEY)


def test_the_command_shows_events(world: World) -> None:
    """One object for each, on one line each; nothing of it without --json but that it is here."""
    world.set(downloads=[BEGUN, {**BEGUN, "status": "completed"}])
    ran = run_child("download", KEY, "--json", "--url", world.url)
    assert ran.code == 0, ran.err
    assert [one["status"] for one in ran.objects] == ["downloading", "completed"]
    world.set(downloads=[{"status": "already_downloaded"}])
    ran = run_child("download", KEY, "--url", world.url)
    assert (ran.code, ran.out, ran.err) == (0, "", f"{KEY} was here already\n")
