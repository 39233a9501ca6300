"""The pytest plugin, as a project that uses it sees it: whole runs of pytest in a project of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from phi4_http.tape import pytest_plugin
from phi4_http.tape.format import load_tape, write_exchange
from phi4_http.tape.matching import Match
from phi4_http.tape.playback import AT_ONCE
from phi4_http.tape.server import ReplayServer
from phi4_http.tape.shipped import shipped

from .support import exchange, stream

pytest_plugins = ["pytester"]

FIXTURES = {one.name: one for one in load_tape(shipped("phi4"))}
CLIENT = """
    import asyncio
    import pytest

    @pytest.mark.phi4_tape("models")
    def test_blocking(phi4_client):
        assert [model.id for model in phi4_client.models()][0] == "microsoft/phi-4-reasoning-plus"

    @pytest.mark.phi4_tape("models")
    def test_async(phi4_async_client):
        async def ask():
            async with phi4_async_client as client:
                return await client.models()
        assert len(asyncio.run(ask())) == 3
"""


@pytest.fixture
def project(
    pytester: pytest.Pytester, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """A project of its own, with the plugin loaded as its entry point would."""
    if not request.config.pluginmanager.has_plugin("phi4_http"):  # not installed: this is the source tree
        pytester.plugins.append("phi4_http.tape.pytest_plugin")
    monkeypatch.setenv("PYTHONPATH", str(Path(pytest_plugin.__file__).parents[2]))
    return pytester


@pytest.fixture
def server() -> Iterator[ReplayServer]:
    """An LM Studio that answers about its models and with one reply, again and again."""
    tape = [FIXTURES["v0-models"], FIXTURES["well-formed"]]
    with ReplayServer(tape, playback=AT_ONCE, match=Match(body=False, loop=True)) as running:
        yield running


def run(project: pytest.Pytester, *arguments: str, apart: bool = False) -> pytest.RunResult:
    """Run pytest in the project; `apart`: in a process of its own, as people do."""
    if apart or "-n" in arguments:
        return project.runpytest_subprocess("-W", "error", *arguments)
    plugins = [pytest_plugin] if project.plugins else []
    return project.runpytest_inprocess("-W", "error", *arguments, plugins=plugins)


def example() -> str:
    """The example in the plugin's documentation."""
    text = (pytest_plugin.__doc__ or "").partition("\n\n")[2].partition("\n\nThe tape is")[0]
    return textwrap.dedent(text)


def test_the_example_can_be_pasted(project: pytest.Pytester, server: ReplayServer) -> None:
    """The documented example records once from a server, and then passes without one, with a check that can fail."""
    project.makepyfile(test_it=example().replace("hello", "catches"))
    run(project, "--phi4-record=once", f"--phi4-url={server.url}", apart=True).assert_outcomes(passed=1)
    recorded = load_tape(project.path / "tapes" / "catches")
    assert [one.request.path for one in recorded] == ["/api/v0/models", "/v1/chat/completions"]
    result = run(project, apart=True)
    result.assert_outcomes(passed=1)
    assert "phi4_http tapes" not in result.stdout.str()
    project.makepyfile(test_it=example().replace("hello", "catches", 1))
    run(project).assert_outcomes(failed=1)


def test_both_faces_share_a_tape(project: pytest.Pytester, server: ReplayServer) -> None:
    """Tests may share a tape: recorded anew the tape has what each of them asked, and each finds its own."""
    project.makepyfile(test_it=CLIENT)
    for mode in ("once", "all", "all"):
        result = run(project, f"--phi4-record={mode}", f"--phi4-url={server.url}")
        result.assert_outcomes(passed=2)
        result.stdout.fnmatch_lines([f"*tapes{'?'}models: recorded 2 exchanges"])
        assert len(load_tape(project.path / "tapes" / "models")) == 2
    result = run(project)
    result.assert_outcomes(passed=2)
    # Each test begins at the beginning of the tape, so the second recording of the same request is not needed.
    result.stdout.fnmatch_lines(["*models: 1 of 2 exchanges not played: 0002-get-api-v0-models"])


def test_new_adds_to_a_tape(project: pytest.Pytester, server: ReplayServer) -> None:
    """With `new` what is on the tape is played, and what is not is added."""
    project.makepyfile(test_it=CLIENT)
    run(project, "--phi4-record=new", f"--phi4-url={server.url}", "-k", "blocking").assert_outcomes(passed=1)
    server.close()
    run(project, "--phi4-record=new", f"--phi4-url={server.url}").assert_outcomes(passed=2)
    assert len(load_tape(project.path / "tapes" / "models")) == 1


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_unused_exchanges_are_reported(project: pytest.Pytester, workers: tuple[str, ...]) -> None:
    """What no test played is told at the end, over all tests of the tape, also from other processes."""
    for name, path in (("1", "/a"), ("2", "/b"), ("3", "/c")):
        write_exchange(project.path / "tapes" / "t", exchange(name, method="GET", path=path))
    project.makepyfile(
        test_it="""
        import httpx, pytest
        pytestmark = pytest.mark.phi4_tape("t")

        @pytest.mark.parametrize("path", ["/a", "/b"])
        def test_it(phi4_transport, path):
            with httpx.Client(transport=phi4_transport, base_url="http://x") as client:
                assert client.get(path).status_code == 200
        """
    )
    result = run(project, *workers)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*phi4_http tapes*", f"tapes{'?'}t: 1 of 3 exchanges not played: 3"])


def test_a_swallowed_mismatch_is_reported(project: pytest.Pytester) -> None:
    """A request that is not on the tape is told at the end, where a test passes in spite of it."""
    write_exchange(project.path / "tapes" / "t", exchange("1", method="GET", path="/a"))
    project.makepyfile(
        test_it="""
        import contextlib, httpx, pytest

        @pytest.mark.phi4_tape("t")
        def test_it(phi4_transport):
            with httpx.Client(transport=phi4_transport, base_url="http://x") as client:
                client.get("/a")
                with contextlib.suppress(Exception):
                    client.get("/b")
        """
    )
    result = run(project)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*t: asked for, and not on the tape: GET /b"])


def test_a_mismatch_fails_the_test_with_the_difference(project: pytest.Pytester) -> None:
    """A test that asks something else fails, and the failure shows what differs."""
    write_exchange(project.path / "tapes" / "t", exchange("1", body={"prompt": "old"}))
    project.makepyfile(
        test_it="""
        import httpx, pytest

        @pytest.mark.phi4_tape("t")
        def test_it(phi4_transport):
            with httpx.Client(transport=phi4_transport, base_url="http://x") as client:
                client.post("/v1/chat/completions", json={"prompt": "new"})
        """
    )
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*TapeMismatch*POST /v1/chat/completions*", '*-  "prompt": "old"*', '*+  "prompt": "new"*']
    )
    assert "not played" not in result.stdout.str()


def test_the_marker_takes_options(project: pytest.Pytester) -> None:
    """Folder, matching and playback can be given with the marker."""
    write_exchange(project.path / "elsewhere" / "t", stream(5, body={"n": 1}))
    project.makepyfile(
        test_it="""
        import httpx, pytest
        from phi4_http.tape import Match

        @pytest.mark.phi4_tape("t", folder="elsewhere", recut=1, fail_after=20, match=Match(ignore=("n",)))
        def test_it(phi4_transport):
            with httpx.Client(transport=phi4_transport, base_url="http://x") as client:
                with client.stream("POST", "/v1/chat/completions", json={"n": 2}) as response:
                    pieces = []
                    with pytest.raises(httpx.RemoteProtocolError):
                        pieces.extend(response.iter_raw())
            assert [len(piece) for piece in pieces] == [1] * 20
        """
    )
    run(project).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("marker", "problem"),
    [
        ("", '*needs @pytest.mark.phi4_tape("name"), which names its tape*'),
        ("@pytest.mark.phi4_tape", '*needs @pytest.mark.phi4_tape("name"), which names its tape*'),
        ('@pytest.mark.phi4_tape("t", sped=2)', "*phi4_tape has no option sped*"),
        ('@pytest.mark.phi4_tape("t", speed=0)', "*speed must be above 0*"),
        (
            '@pytest.mark.phi4_tape("nothing")',
            "*nothing on the tape *nothing; record it with --phi4-record=once*",
        ),
    ],
)
def test_a_slip_in_the_marker_is_told(project: pytest.Pytester, marker: str, problem: str) -> None:
    """A marker without a name, an unknown option and a tape that is not there are errors that say so."""
    write_exchange(project.path / "tapes" / "t", exchange())
    project.makepyfile(test_it=f"import pytest\n{marker}\ndef test_it(phi4_transport): pass\n")
    result = run(project)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([problem])


def test_recording_needs_one_process(project: pytest.Pytester) -> None:
    """Recording under xdist is refused at the start: several processes would write into one tape."""
    project.makepyfile(test_it=CLIENT)
    result = run(project, "-n", "2", "--phi4-record=once")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--phi4-record needs a single process (-n 0)*"])


def test_an_unknown_mode_is_refused(project: pytest.Pytester) -> None:
    """The modes are those that are documented."""
    result = run(project, "--phi4-record=always")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*invalid choice*always*"])


def test_marker_and_options_are_documented(project: pytest.Pytester) -> None:
    """pytest's own help knows the marker and the options."""
    run(project, "--markers").stdout.fnmatch_lines(["@pytest.mark.phi4_tape(name, *"])
    run(project, "--help").stdout.fnmatch_lines(["*--phi4-record*MODE*", "*--phi4-url*URL*"])


def test_loading_the_plugin_imports_no_http() -> None:
    """Every run of pytest loads the plugin, so it must be light."""
    code = (
        "import sys, pytest; before = set(sys.modules); import phi4_http.tape.pytest_plugin\n"
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('phi4_http')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../x", "", ".", "..", "C:x", "..\\x", "a\0b"])
def test_a_tape_stays_in_its_folder(project: pytest.Pytester, name: str) -> None:
    """A name that leads out of it, or to nothing, is refused, and nothing is written."""
    project.makepyfile(
        test_it=f"""
        import pytest

        @pytest.mark.phi4_tape({name!r})
        def test_it(phi4_transport):
            raise AssertionError
        """
    )
    before = sorted(project.path.parent.rglob("*.part"))
    result = run(project, "--phi4-record=once")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*can't be the name of a tape*"])
    assert sorted(project.path.parent.rglob("*.part")) == before
    assert not (project.path / "tapes").exists()
