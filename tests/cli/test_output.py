"""What a person sees, where no child process is needed: tables, a terminal, and how a command is ended."""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import pytest

from phi4_http.cli import history, run_command
from phi4_http.cli.loading import progress
from phi4_http.cli.output import Output, ReplyPrinter, gibibytes, number
from phi4_http.cli.text import aligned
from phi4_http.errors import InvalidRequest
from phi4_http.events import Revised, Solution
from phi4_http.lmstudio.ways import Loading


class Terminal(io.StringIO):
    """A stream that is one, as far as a program can tell."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def test_columns_are_aligned_and_numbers_stand_to_the_right() -> None:
    """As wide as the widest cell; no line ends with spaces."""
    rows = [("NAME", "BYTES", "END"), ("a", "1,234", "clean"), ("longer", "5", "")]
    assert list(aligned(rows, {"BYTES"})) == ["NAME    BYTES  END", "a       1,234  clean", "longer      5"]


def test_what_nobody_tells_is_unknown() -> None:
    """Not 0, and not an empty cell."""
    assert (number(None), number(0), number(32768)) == ("?", "0", "32,768")
    assert (gibibytes(None), gibibytes(2**30)) == ("?", "1.00 GiB")


def test_on_a_terminal_a_load_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far it is, and for how long; it vanishes at the end."""
    monkeypatch.setenv("TERM", "xterm")
    err = Terminal()
    with progress(Output(out=io.StringIO(), err=err), "loading phi") as tell:
        tell(Loading("phi", "lms", 0.5))
        until = time.monotonic() + 5
        while "50%" not in err.getvalue():
            assert time.monotonic() < until
            time.sleep(0.01)
    assert f"loading phi [{'█' * 12}{'·' * 12}] 50%" in err.getvalue()
    assert err.getvalue().endswith("\r\x1b[K")


def test_on_a_terminal_a_revision_begins_a_new_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was shown as solution can't be taken back: it is said that it was the thought."""
    monkeypatch.setenv("NO_COLOR", "1")
    out, err = Terminal(), Terminal()
    printer = ReplyPrinter(Output(out=out, err=err))
    for event in (Solution("so it is"), Revised("so it is"), Solution("4")):
        printer.show(event)
    printer.finish("4")
    assert out.getvalue() == "so it is\n4\n"
    assert err.getvalue() == "(all of that was the thought)\n\n"


def test_an_interrupted_command_has_its_exit_code() -> None:
    """Whatever it was doing."""

    def interrupted(options: argparse.Namespace, output: Output) -> int:
        raise KeyboardInterrupt

    assert run_command(argparse.Namespace(run=interrupted)) == 130


def test_a_conversation_that_cannot_be_put_in_its_place_leaves_nothing_behind(tmp_path: Path) -> None:
    """The file that was written beside it is gone."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidRequest, match="can't be written"):
        history.save(tmp_path / "folder", [{"role": "user", "content": "x"}])
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]
