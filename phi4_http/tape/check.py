"""Is this folder a good tape? Everything that is wrong with it, not only the first thing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import TapeError
from .exchange import Exchange
from .files import BODY_SUFFIX, PART_SUFFIX, STREAM_SUFFIX, body_file, exchange_files, opened
from .format import load_exchange
from .scrub import find_secrets

_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `harmless`: the tape can be played all the same."""

    file: str
    problem: str
    field: str | None = None
    harmless: bool = False

    def __str__(self) -> str:
        return str(TapeError(self.file, self.problem, self.field))


def check_tape(folder: str | os.PathLike[str]) -> Iterator[Problem]:
    """What is wrong with a tape: exchanges that can't be read, files left over, what looks like a secret.

    Raises `TapeError` where there is no such folder.
    """
    files = exchange_files(folder)
    if not files:
        yield Problem(str(folder), "there is no exchange in it")
    for file in files:
        try:
            yield from _check_exchange(file, load_exchange(file))
        except TapeError as error:
            yield Problem(error.file, error.problem, error.field)
    names = {file.stem for file in files}
    for file in sorted(Path(folder).iterdir()):
        if file.name.endswith(PART_SUFFIX):
            yield Problem(str(file), "left over from an interrupted recording; it can be deleted", harmless=True)
        elif file.suffix in (STREAM_SUFFIX, BODY_SUFFIX) and file.stem not in names:
            yield Problem(str(file), "a body without its .json; it can be deleted", harmless=True)


def _check_exchange(file: Path, exchange: Exchange) -> Iterator[Problem]:
    body = body_file(file)
    if exchange.response.is_event_stream != body.name.endswith(STREAM_SUFFIX):
        wanted = STREAM_SUFFIX if exchange.response.is_event_stream else BODY_SUFFIX
        yield Problem(str(body), f"by its content type it should end with {wanted}", harmless=True)
    for place in (file, body):
        with opened(place) as data:
            found = find_secrets(iter(lambda: data.read(_BLOCK), b""))
        for secret in found:
            yield Problem(str(place), f"what looks like a secret: {secret}")
