"""A long stream is recorded, loaded, served and replayed in pieces: memory does not grow with its length."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from phi4_http.tape.exchange import Cut, End
from phi4_http.tape.format import load_tape, write_exchange
from phi4_http.tape.playback import AT_ONCE
from phi4_http.tape.proxy import RecordingProxy
from phi4_http.tape.server import ReplayServer
from phi4_http.tape.tape import Tape

from .support import EVENT_STREAM, chunk

EVENTS = 100_000
OVER_HTTP = 20_000
"""Events that go over real HTTP, twice: fewer, since memory is traced and that takes its time."""
LIMIT = 1_500_000
"""Bytes: far less than the streams, or than a list of the cuts of the long one."""

_BEFORE, _, _AFTER = chunk("word").partition(b"word")


def pieces(events: int) -> Iterator[bytes]:
    """So many events, made as they are read."""
    for index in range(events):
        yield b"%bword%d%b" % (_BEFORE, index, _AFTER)
    yield b"data: [DONE]\n\n"


class Long(httpx.SyncByteStream):
    """A body of so many events."""

    def __init__(self, events: int) -> None:
        self.events = events

    def __iter__(self) -> Iterator[bytes]:
        return pieces(self.events)


def checksum(events: int) -> str:
    """The checksum of the stream."""
    made = hashlib.sha256()
    for data in pieces(events):
        made.update(data)
    return made.hexdigest()


def record(folder: Path, events: int) -> Tape:
    """A tape with the stream on it."""
    inner = httpx.MockTransport(lambda request: httpx.Response(200, headers=EVENT_STREAM, stream=Long(events)))
    with httpx.Client(transport=Tape(folder).record(inner)) as client:
        assert read(client, "http://x") == checksum(events)
    return Tape(folder)


def read(client: httpx.Client, url: str) -> str:
    """Read the stream, keeping nothing but its checksum."""
    got = hashlib.sha256()
    with client.stream("POST", url + "/v1/chat/completions") as response:
        for data in response.iter_raw():
            got.update(data)
    return got.hexdigest()


@contextmanager
def little_memory() -> Iterator[None]:
    """No moment in this block may hold more than the limit."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LIMIT


@pytest.fixture(scope="module")
def long_tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    """A tape with 100,000 events, recorded with little memory."""
    folder = tmp_path_factory.mktemp("long")
    with little_memory():
        return record(folder, EVENTS)


@pytest.mark.parametrize("recut", [None, 1000])
def test_recording_and_replaying_take_no_more_memory(long_tape: Tape, recut: int | None) -> None:
    """100,000 events are recorded, loaded and replayed, byte for byte, with little memory at any moment."""
    with little_memory(), httpx.Client(transport=long_tape.replay(recut=recut)) as client:
        assert read(client, "http://x") == checksum(EVENTS)


def test_what_is_recorded_is_all_there(long_tape: Tape) -> None:
    """The long recording has every byte, every cut, and its good end."""
    (recorded,) = long_tape.exchanges
    assert recorded.content.size > 10 * LIMIT
    assert recorded.content.sha256 == checksum(EVENTS)
    assert sum(1 for _ in recorded.content.cuts) == EVENTS + 1
    assert recorded.end is End.CLEAN


def test_serving_and_the_proxy_take_no_more_memory(tmp_path: Path) -> None:
    """A long stream over real HTTP, through server and proxy onto another tape, takes little memory."""
    tape = record(tmp_path / "long", OVER_HTTP)
    with (
        little_memory(),
        ReplayServer(tape.exchanges, playback=AT_ONCE) as server,
        RecordingProxy(Tape(tmp_path / "again").recorder(), server.url) as proxy,
        httpx.Client(trust_env=False, timeout=60) as client,
    ):
        assert read(client, proxy.url) == checksum(OVER_HTTP)
    (again,) = load_tape(tmp_path / "again")
    assert again.content.sha256 == checksum(OVER_HTTP)
    assert again.content.size > 2 * LIMIT


def test_copying_an_exchange_takes_no_more_memory(long_tape: Tape, tmp_path: Path) -> None:
    """Writing a loaded exchange somewhere else goes piece by piece."""
    (loaded,) = long_tape.exchanges
    with little_memory():
        write_exchange(tmp_path, loaded)
    assert load_tape(tmp_path)[0].content.sha256 == checksum(EVENTS)


def test_the_first_piece_is_played_without_reading_the_rest(long_tape: Tape) -> None:
    """Of a long exchange the first piece and the first cut are there at once."""
    (loaded,) = long_tape.exchanges
    with little_memory():
        first = next(loaded.pieces())
        assert first.data == next(pieces(1))
        assert next(iter(loaded.content.cuts)) == Cut(first.at, len(first.data))
