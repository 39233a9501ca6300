"""Which LM Studio `lms` speaks to: the one at the address, or it is no way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lmstudio import world as worlds
from lmstudio.conftest import FACES
from lmstudio.faces import Face
from lmstudio.test_lifecycle import LLAMA, LMS_ONLY, LONG, QWEN
from lmstudio.world import World
from phi4_http.errors import LmsFailed, LmsNotFound, LoadFailed, ModelNotFound
from phi4_http.flow import Completed
from phi4_http.lmstudio.lms.text import load_error, parse_json


@pytest.fixture
def other(tmp_path: Path, world: World) -> Iterator[World]:
    """Another LM Studio on this machine, with three models loaded."""
    folder = tmp_path / "other"
    folder.mkdir()
    with worlds.running(folder) as made:
        for name in ("a", "b", "c"):
            made.put(LLAMA, name)
        yield made


@pytest.fixture(params=FACES)
def astray(request: pytest.FixtureRequest, world: World, other: World) -> Iterator[Face]:
    """A face for one LM Studio, with the `lms` of the other."""
    made = FACES[request.param](world.url, other.lms)
    yield made
    made.close()


def test_every_run_names_the_port(face: Face, world: World) -> None:
    """So that no run starts or finds a LM Studio by itself."""
    face.call("load", LLAMA)
    face.call("estimate", LLAMA)
    face.call("unload", LLAMA)
    face.call("downloaded")
    with world.state() as state:
        runs = [call["argv"] for call in state["calls"]]
    assert {run[0] for run in runs} == {"load", "unload", "ps", "ls"}
    assert all(run[-2:] == ["--port", str(world.port)] for run in runs)


def test_lms_reaches_the_lm_studio_of_the_address(astray: Face, world: World, other: World) -> None:
    """The `lms` of one, told the port of the other, loads and unloads there."""
    other.beside(world)
    astray.call("load", LLAMA, **LMS_ONLY)
    assert (world.loaded, other.loaded) == ([LLAMA], ["a", "b", "c"])
    astray.call("unload_all", **LMS_ONLY)
    assert (world.loaded, other.loaded) == ([], ["a", "b", "c"])


def test_an_lms_that_speaks_to_another_is_passed_over(astray: Face, world: World, other: World) -> None:
    """What it lists is not what the address lists: REST loads and unloads, and the other one keeps its models."""
    other.set(ignores_port=True)
    world.put(QWEN)
    astray.call("load", LLAMA, LONG)
    assert world.loaded == [QWEN, LLAMA]
    astray.call("unload_all")
    assert world.loaded == []
    with pytest.raises(LmsFailed, match="does not speak to the LM Studio at"):
        astray.call("load", LLAMA, **LMS_ONLY)
    with pytest.raises(LmsFailed, match="does not speak to the LM Studio at"):
        astray.call("unload_all", **LMS_ONLY)
    assert other.loaded == ["a", "b", "c"]
    assert other.calls("load") + other.calls("unload") == []


def test_what_was_loaded_elsewhere_is_unloaded_there(astray: Face, world: World, other: World) -> None:
    """Where both were empty, they look alike: what the address does not show afterwards is no load, and is undone."""
    with other.state() as state:
        state["loaded"] = []
    other.set(ignores_port=True)
    with pytest.raises(LoadFailed, match=r"another LM Studio.*unloaded again"):
        astray.call("load", LLAMA)
    assert (world.loaded, other.loaded) == ([], [])


def test_a_busy_server_is_asked_again(face: Face, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`lms` waits 500 ms for the greeting; who waits longer knows better, and runs it again."""
    monkeypatch.setattr("phi4_http.lmstudio.lms.reach._PAUSE", 0.01)
    world.set(busy_greetings=3)
    assert face.call("load", LLAMA, **LMS_ONLY).identifier == LLAMA


def test_a_server_that_stays_busy_ends_the_trying(face: Face, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for ever: then `lms` is no way, and REST is."""
    monkeypatch.setattr("phi4_http.lmstudio.lms.reach._PAUSE", 0.01)
    world.set(busy_greetings=1000)
    assert face.call("load", LLAMA).identifier == LLAMA
    assert len(world.calls("ls")) == 5
    assert len(world.requests("/api/v1/models/load")) == 1


@pytest.mark.parametrize("text", ["echo hello", "exit 1", "echo '{}'; exit 3", "echo '[]x' >&2; exit 127"])
def test_a_program_of_that_name_that_is_not_lm_studios_is_left_alone(
    text: str, no_lms: Face, world: World, bare: Path
) -> None:
    """It happens to be called `lms`: REST is there."""
    program(bare / "lms", text)
    assert no_lms.call("load", LLAMA, LONG).context_length == 8192
    with pytest.raises(LmsNotFound, match="not LM Studio's"):
        no_lms.call("load", LLAMA, **LMS_ONLY, timeout=1)


def test_a_file_of_that_name_that_cant_be_run_is_left_alone(no_lms: Face, world: World, bare: Path) -> None:
    """For another processor, perhaps."""
    (bare / "lms").write_bytes(b"\x00\x01")
    (bare / "lms").chmod(0o755)
    assert no_lms.call("load", LLAMA, LONG).context_length == 8192


@pytest.mark.parametrize("kind", FACES)
def test_an_lms_that_was_named_and_is_none_is_an_error(kind: str, world: World, tmp_path: Path) -> None:
    """Who says where it is does not get another way in silence."""
    missing = FACES[kind](world.url, "/nowhere/lms")
    with pytest.raises(LmsNotFound) as caught:
        missing.call("load", LLAMA)
    assert (caught.value.tried, caught.value.given) == (("/nowhere/lms",), True)
    missing.close()
    program(tmp_path / "mine", "echo hello")
    wrong = FACES[kind](world.url, str(tmp_path / "mine"))
    with pytest.raises(LmsFailed, match="can't be read"):
        wrong.call("load", LLAMA)
    wrong.close()
    assert world.loaded == []


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


# --- its dialects


def test_errors_without_boxes_are_understood(face: Face, world: World) -> None:
    """Newer sources print titles as plain lines: the same error, and no advice for another command."""
    world.set(plain=True, deleted_meanwhile=LLAMA)
    with pytest.raises(ModelNotFound, match="No model found") as caught:
        face.call("load", LLAMA, **LMS_ONLY)
    assert "lms ls" not in str(caught.value)


@pytest.mark.parametrize(
    "stderr",
    [
        'Model not found\n\nNo model found that matches model key "x".\n\nTo see a list of all, run:\n\n    lms ls\n',
        'Error: Model not found\n\n\nNo model found with path being exactly "x".\n\nTo disable exact matching, …\n',
        'Error: No model found that matches model key "x".\n    at load (file.js:1:1)\n',
    ],
)
def test_a_model_that_is_not_found_is_that_in_every_dialect(stderr: str) -> None:
    """With its title or without, in one line or several."""
    error = load_error(Completed(("load", "x"), 1, "", stderr), "x")
    assert isinstance(error, ModelNotFound)
    assert error.message.startswith("No model found")
    assert error.message.endswith('"x".')


LISTED = '[{"modelKey": "a", "variants": []}]'


@pytest.mark.parametrize(
    "stdout",
    [
        LISTED,
        f"\ufeff{LISTED}\n",
        f"W a warning [see docs] on its line {LISTED}\n",
        f"W 2 models []{LISTED}",
        f"{LISTED}\n[]\n",
        f"{LISTED} W an afterword {{}} []",
        f"\x1b[2K{LISTED}\x1b[0m\n",
        '[\n  {\n    "modelKey": "a",\n    "variants": []\n  }\n]\n',
    ],
)
def test_the_list_is_found_among_what_else_is_printed(stdout: str) -> None:
    """A byte-order mark, warnings on its own line, a second, empty list, colours."""
    assert parse_json(Completed((), 0, stdout, "")) == [{"modelKey": "a", "variants": []}]


@pytest.mark.parametrize("stdout", ["[]", "\ufeff[]\n", "W a warning []\n"])
def test_an_empty_list_is_one(stdout: str) -> None:
    """Where nothing else could be the list."""
    assert parse_json(Completed((), 0, stdout, "")) == []


@pytest.mark.parametrize("stdout", [LISTED[:-1], LISTED[:-2], "[" * 100_000, '{"a": []}', "[1]", "nothing", ""])
def test_a_list_that_was_cut_is_not_an_empty_one(stdout: str) -> None:
    """Half a list says nothing, least of all that nothing is loaded."""
    with pytest.raises(LmsFailed):
        parse_json(Completed((), 0, stdout, ""))
