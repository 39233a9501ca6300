"""Tapes in pytest: a marker names the tape, a fixture hands out a client on it.

    import pytest

    @pytest.mark.phi4_tape("hello")
    def test_hello(phi4_client):
        reply = phi4_client.phi4().ask("Say hello.")
        assert "hello" in reply.solution.lower()

The tape is the folder `tapes/hello` beside the test. `pytest --phi4-record=once` records it from a running LM Studio
(`--phi4-url` says where); after that the test runs without one, everywhere. Exchanges that no test played are told at
the end of the run.

Loaded by every run of pytest where this library is installed, so nothing heavy is imported before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .mode import MODES, Mode

if TYPE_CHECKING:
    from ..aio import AsyncLMStudio
    from ..client import LMStudio
    from .recorder import Recorder
    from .transport import TapeTransport

_MARKER = (
    "phi4_tape(name, *, folder=None, speed=None, recut=None, seed=None, fail_after=None, match=None, scrub=()): "
    "play the tape `name` from `folder`, by default `tapes` beside the test; the options are those of Tape and replay."
)
_REPORT = "phi4_tape"
_TAPE_OPTIONS = ("match", "scrub")
_PLAY_OPTIONS = ("speed", "recut", "seed", "fail_after")


@dataclass
class _Usage:
    """What the tests of this run did with one tape."""

    names: set[str] = field(default_factory=set)
    played: set[str] = field(default_factory=set)
    recorded: int = 0
    missed: list[str] = field(default_factory=list)
    failed: bool = False


_recorders = pytest.StashKey[dict[Path, "Recorder"]]()
_usages = pytest.StashKey[dict[str, _Usage]]()
_done = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("phi4_http", "tapes of LM Studio")
    group.addoption(
        "--phi4-record",
        metavar="MODE",
        choices=MODES,
        default="none",
        help="record tapes: none (default: play only), once (only tapes that are empty), new (what is not on its tape "
        "yet), all (everything again)",
    )
    group.addoption(
        "--phi4-url", metavar="URL", default=None, help="the server to record from; by default LM Studio's address"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    config.stash[_recorders] = {}
    config.stash[_usages] = {}
    parallel = hasattr(config, "workerinput") or getattr(config.option, "numprocesses", None)
    if parallel and config.getoption("--phi4-record") != "none":
        raise pytest.UsageError("--phi4-record needs a single process (-n 0): several would write into one tape")


@pytest.fixture
def phi4_transport(request: pytest.FixtureRequest) -> Iterator[TapeTransport]:
    """The tape of this test as an httpx transport, for a client of your own."""
    from .tape import Tape

    marker = request.node.get_closest_marker("phi4_tape")
    if marker is None or not marker.args:
        raise pytest.UsageError(f'{request.node.nodeid} needs @pytest.mark.phi4_tape("name") to know its tape')
    options = dict(marker.kwargs)
    folder = Path(options.pop("folder", None) or request.node.path.parent / "tapes") / marker.args[0]
    unknown = options.keys() - {*_TAPE_OPTIONS, *_PLAY_OPTIONS}
    if unknown:
        raise pytest.UsageError(f"{request.node.nodeid}: phi4_tape has no option {', '.join(sorted(unknown))}")
    tape = Tape(folder, **{name: options[name] for name in _TAPE_OPTIONS if name in options})
    before = {exchange.name for exchange in tape.exchanges}
    transport = _open(request.config, tape, {name: options[name] for name in _PLAY_OPTIONS if name in options})
    yield transport
    after = {exchange.name for exchange in tape.exchanges}
    request.node.stash[_done] = {
        "folder": str(folder),
        "names": sorted(before & after),
        "played": sorted(before - {exchange.name for exchange in transport.unused}),
        "recorded": transport.recorded,
        "missed": [f"{miss.method} {miss.path}" for miss in transport.mismatches],
    }


@pytest.fixture
def phi4_client(request: pytest.FixtureRequest, phi4_transport: TapeTransport) -> Iterator[LMStudio]:
    """An `LMStudio` on the tape of this test."""
    from ..client import LMStudio

    with LMStudio(**_address(request.config), transport=phi4_transport) as client:
        yield client


@pytest.fixture
def phi4_async_client(request: pytest.FixtureRequest, phi4_transport: TapeTransport) -> AsyncLMStudio:
    """An `AsyncLMStudio` on the tape of this test; close it with `async with` when recording."""
    from ..aio import AsyncLMStudio

    return AsyncLMStudio(**_address(request.config), transport=phi4_transport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash.setdefault(_done, {})["failed"] = report.failed
    elif report.when == "teardown" and "folder" in (done := item.stash.get(_done, {})):
        # In the report, so that it comes from xdist's workers to the process that prints.
        setattr(report, _REPORT, done)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Only here to be seen by `_Collector`, which knows the configuration."""


def _open(config: pytest.Config, tape: Any, options: dict[str, Any]) -> TapeTransport:
    ...


def _address(config: pytest.Config) -> dict[str, str]:
    url = config.getoption("--phi4-url")
    return {"base_url": url} if url else {}
