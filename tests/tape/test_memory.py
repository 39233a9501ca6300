"""A long stream is recorded, loaded, served and replayed in pieces: memory does not grow with its length.

Each way is gone twice, with a stream and with one that is eight times as long. What the long one takes more at its
peak must be far less than it has more in bytes, or than a list of its cuts would take.
"""

from __future__ import annotations

import functools
import hashlib
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
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

SHORT, LONG = 1_500, 12_000
"""Events."""
MARGIN = 200_000
"""Bytes that the peak may differ by, whatever the length: buffers, and what Python happens to hold."""

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
    with httpx.Client(transport=Tape(folder).record(inner), trust_env=False) as client:
        assert read(client, "http://x") == checksum(events)
    return Tape(folder)


def read(client: httpx.Client, url: str) -> str:
    """Read the stream, keeping nothing but its checksum."""
    got = hashlib.sha256()
    with client.stream("POST", url + "/v1/chat/completions") as response:
        for data in response.iter_raw():
            got.update(data)
    return got.hexdigest()


def peak(work: Callable[[], object]) -> int:
    """The most that was held at any moment of this work, in bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def check_peaks(work: Callable[[int], object]) -> None:
    """Eight times as many events take no more memory."""
    work(SHORT)  # what is imported and cached at first is no matter
    short, long = (peak(functools.partial(work, events)) for events in (SHORT, LONG))
    assert long < short + MARGIN


@pytest.fixture(scope="module")
def tapes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Tape]:
    """A tape with the short stream, and one with the long one."""
    return {events: record(tmp_path_factory.mktemp("tape"), events) for events in (SHORT, LONG)}


def test_what_is_recorded_is_all_there(tapes: Mapping[int, Tape]) -> None:
    """The long recording has every byte, every cut, and its good end; and is long, beside what memory may differ by."""
    (recorded,), (shorter,) = tapes[LONG].exchanges, tapes[SHORT].exchanges
    assert recorded.content.sha256 == checksum(LONG)
    assert sum(1 for _ in recorded.content.cuts) == LONG + 1
    assert recorded.end is End.CLEAN
    assert recorded.content.size - shorter.content.size > 8 * MARGIN
    assert peak(lambda: recorded.cuts) - peak(lambda: shorter.cuts) > 4 * MARGIN


def test_recording_takes_no_more_memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pieces and cuts go to the disk as they come."""
    check_peaks(lambda events: record(tmp_path_factory.mktemp("tape"), events))


@pytest.mark.parametrize("recut", [None, 1000])
def test_loading_and_replaying_take_no_more_memory(tapes: Mapping[int, Tape], recut: int | None) -> None:
    """The events are loaded and replayed, byte for byte, with little memory at any moment."""

    def replay(events: int) -> None:
        with httpx.Client(transport=tapes[events].replay(recut=recut), trust_env=False) as client:
            assert read(client, "http://x") == checksum(events)

    check_peaks(replay)


def test_serving_and_the_proxy_take_no_more_memory(
    tapes: Mapping[int, Tape], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A stream over real HTTP, through server and proxy onto another tape, takes little memory."""

    def pass_on(events: int) -> None:
        folder = tmp_path_factory.mktemp("again")
        with (
            ReplayServer(tapes[events].exchanges, playback=AT_ONCE) as server,
            RecordingProxy(Tape(folder).recorder(), server.url) as proxy,
            httpx.Client(trust_env=False, timeout=60) as client,
        ):
            assert read(client, proxy.url) == checksum(events)
        (again,) = load_tape(folder)
        assert again.content.sha256 == checksum(events)

    check_peaks(pass_on)


def test_copying_an_exchange_takes_no_more_memory(
    tapes: Mapping[int, Tape], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Writing a loaded exchange somewhere else goes piece by piece."""

    def copy(events: int) -> None:
        folder = tmp_path_factory.mktemp("copy")
        write_exchange(folder, tapes[events].exchanges[0])
        assert load_tape(folder)[0].content.sha256 == checksum(events)

    check_peaks(copy)


def test_the_first_piece_is_played_without_reading_the_rest(tapes: Mapping[int, Tape]) -> None:
    """Of a long exchange the first piece and the first cut are there at once."""

    def begin(events: int) -> None:
        (loaded,) = tapes[events].exchanges
        first = next(loaded.pieces())
        assert first.data == next(pieces(1))
        assert next(iter(loaded.content.cuts)) == Cut(first.at, len(first.data))

    check_peaks(begin)
