"""Tapes in pytest: a marker names the tape, a fixture hands out a client on it.

    import pytest
    from phi4_http import Phi4

    @pytest.mark.phi4_tape("hello")
    def test_hello(phi4_client):
        reply = Phi4(phi4_client).ask("Say hello.")
        assert "hello" in reply.solution.lower()

The tape is the folder `tapes/hello` beside the test. `pytest --phi4-record=once` records it from a running LM Studio
(`--phi4-url` says where); after that the test runs without one, everywhere. Exchanges that no test played are told at
the end of the run.

Loaded by every run of pytest where this library is installed, so nothing heavy is imported before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import pytest

from .mode import MODES, Mode, records

if TYPE_CHECKING:
    from ..client.aio import AsyncLMStudio
    from ..client.blocking import LMStudio
    from .recorder import Recorder
    from .tape import Tape
    from .transport import TapeTransport

_MARKER = (
    "phi4_tape(name, *, folder=None, speed=None, recut=None, seed=None, fail_after=None, match=None, scrub=()): "
    "play the tape `name` from `folder`, by default `tapes` beside the test; the options are those of Tape and replay."
)
_REPORT = "phi4_tape"
_OPTIONS = frozenset({"folder", "match", "scrub", "speed", "recut", "seed", "fail_after"})


_recorders = pytest.StashKey[dict[Path, "Recorder"]]()
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
    worker = hasattr(config, "workerinput")
    if config.getoption("--phi4-record") != "none" and (worker or getattr(config.option, "numprocesses", None)):
        raise pytest.UsageError("--phi4-record needs a single process (-n 0): several would write into one tape")
    if not worker:
        config.pluginmanager.register(_Summary(), "phi4_http summary")


@pytest.fixture
def phi4_transport(request: pytest.FixtureRequest) -> Iterator[TapeTransport]:
    """The tape of this test as an httpx transport, for a client of your own."""
    from .tape import Tape

    name, options = _marked(request)
    folder = Path(options.pop("folder", None) or request.path.parent / "tapes") / name
    tape = Tape(folder, match=options.pop("match", None), scrub=options.pop("scrub", ()))
    names = [exchange.name for exchange in tape.exchanges]
    transport = _open(request.config, tape, options)
    yield transport
    request.node.stash[_done] = {
        "folder": str(folder),
        "names": names if transport.plays else [],
        "played": [exchange.name for exchange in transport.played],
        "recorded": transport.recorded,
        "missed": [f"{miss.method} {miss.path}" for miss in transport.mismatches],
    }


@pytest.fixture
def phi4_client(request: pytest.FixtureRequest, phi4_transport: TapeTransport) -> Iterator[LMStudio]:
    """An `LMStudio` on the tape of this test."""
    from ..client.blocking import LMStudio

    with LMStudio(_address(request.config), transport=phi4_transport) as client:
        yield client


@pytest.fixture
def phi4_async_client(request: pytest.FixtureRequest, phi4_transport: TapeTransport) -> AsyncLMStudio:
    """An `AsyncLMStudio` on the tape of this test; close it with `async with` when recording."""
    from ..client.aio import AsyncLMStudio

    return AsyncLMStudio(_address(request.config), transport=phi4_transport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "teardown" and _done in item.stash:
        # In the report, so that it comes from xdist's workers to the process that prints.
        setattr(report, _REPORT, item.stash[_done])
    return report


def _marked(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The tape's name and the options, as the marker gives them."""
    marker = request.node.get_closest_marker("phi4_tape")
    if marker is None or len(marker.args) != 1:
        raise pytest.UsageError(f'{request.node.nodeid} needs @pytest.mark.phi4_tape("name"), which names its tape')
    unknown = marker.kwargs.keys() - _OPTIONS
    if unknown:
        raise pytest.UsageError(f"{request.node.nodeid}: phi4_tape has no option {', '.join(sorted(unknown))}")
    name = marker.args[0]
    if not _stays_in_its_folder(name):
        raise pytest.UsageError(f"{request.node.nodeid}: {name!r} can't be the name of a tape (`folder` says where)")
    return name, dict(marker.kwargs)


def _stays_in_its_folder(name: object) -> bool:
    """Whether a name is a relative path that goes down only, on any system."""
    if not isinstance(name, str) or "\0" in name:
        return False
    path = PureWindowsPath(name)  # which takes both kinds of slash
    return bool(path.parts) and not path.anchor and ".." not in path.parts


def _open(config: pytest.Config, tape: Tape, options: dict[str, Any]) -> TapeTransport:
    """The tape to play or to record, as the command line says.

    Tests may share a tape: the first one that records it empties it, where it is to be emptied; the others add to it.
    """
    mode: Mode = config.getoption("--phi4-record") or "none"
    recorders = config.stash[_recorders]
    recorder = recorders.get(tape.folder)
    if recorder is None and records(mode, empty=tape.empty):
        recorder = recorders[tape.folder] = tape.recorder(anew=mode == "all")
    if recorder is not None:
        return tape.record(mode=mode, recorder=recorder)
    if tape.empty:
        pytest.fail(f"there is nothing on the tape {tape.folder}; record it with --phi4-record=once", pytrace=False)
    return tape.replay(**options)


def _address(config: pytest.Config) -> str:
    from ..server import DEFAULT_URL

    return config.getoption("--phi4-url") or DEFAULT_URL


@dataclass
class _Usage:
    """What the tests of this run did with one tape."""

    names: set[str] = field(default_factory=set)
    played: set[str] = field(default_factory=set)
    recorded: int = 0
    missed: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """What is worth telling."""
        unused = sorted(self.names - self.played)
        if self.recorded:
            yield f"recorded {self.recorded} exchange{'s' * (self.recorded > 1)}"
        if unused:
            yield f"{len(unused)} of {len(self.names)} exchanges not played: {', '.join(unused)}"
        if self.missed:
            yield f"asked for, and not on the tape: {', '.join(self.missed)}"


class _Summary:
    """Adds up what the tests report, and tells it at the end."""

    def __init__(self) -> None:
        self._usages: dict[str, _Usage] = {}
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)
        done = getattr(report, _REPORT, None)
        if done is None:
            return
        usage = self._usages.setdefault(done["folder"], _Usage())
        usage.played.update(done["played"])
        usage.recorded += done["recorded"]
        if report.nodeid not in self._failed:  # a test that failed has its own story, and may have stopped early
            usage.names.update(done["names"])
            usage.missed += done["missed"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        lines = [
            f"{_relative(folder, config.rootpath)}: {line}"
            for folder, usage in sorted(self._usages.items())
            for line in usage.lines()
        ]
        if lines:
            terminalreporter.section("phi4_http tapes")
            for line in lines:
                terminalreporter.line(line)


def _relative(folder: str, root: Path) -> str:
    path = Path(folder)
    return str(path.relative_to(root)) if path.is_relative_to(root) else folder
