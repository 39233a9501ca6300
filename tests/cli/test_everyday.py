"""What a person does every day: pipes, files, misspelt words, full disks, narrow terminals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import GOOD, GUARD, HEAD, RawServer, child_environment, command, framed, run_child

if sys.platform == "win32":
    pytest.skip("pseudo-terminals and signals of POSIX", allow_module_level=True)

import fcntl
import pty
import struct
import termios

import pyte

FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
ASK = ("--model", "m", "--system", "send")


def server() -> RawServer:
    """Answers every request with one reply."""
    return RawServer(lambda connection, request: connection.sendall(HEAD + framed(GOOD) + b"0\r\n\r\n"))


def asked(server: RawServer) -> str:
    """What the last question said."""
    text: str = json.loads(server.requests[-1].partition(b"\r\n\r\n")[2])["messages"][-1]["content"]
    return text


def screen(*arguments: str, columns: int) -> list[str]:
    """The lines that a person would see at the end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    seen = pyte.Screen(columns, 50)
    stream = pyte.ByteStream(seen)
    with subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=child_environment(TERM="xterm", COLUMNS=None),
    ):
        os.close(theirs)
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            if not data:
                break
            stream.feed(data)
    os.close(ours)
    return [line.rstrip() for line in seen.display if line.strip()]


# --- pipes ------------------------------------------------------------------------------------------------------------


def test_all_that_is_given_is_sent_in_the_order_prompt_files_stdin(tmp_path: Path) -> None:
    """Several files have their names as headings; nothing is left out."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"text {name}", encoding="utf-8")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with server() as to:
        for line, stdin, said in (
            (("Sum up.",), b"the file", "Sum up.\n\nthe file"),
            (("Sum up.", "--no-stdin"), b"the file", "Sum up."),
            (("Sum up.", "-f", a), b"", "Sum up.\n\ntext a"),
            (("Sum up.", "-f", a, "-f", b), b"", f"Sum up.\n\n{a}:\n\ntext a\n\n{b}:\n\ntext b"),
            (("Sum up.", "-f", "-"), b"the file", "Sum up.\n\nthe file"),
            (("-f", a), b"and this", "text a\n\nand this"),
        ):
            assert run_child("ask", *line, *ASK, "--url", to.url, stdin=stdin).code == 0
            assert asked(to) == said


def test_a_pipe_that_brings_nothing_yet_is_told(tmp_path: Path) -> None:
    """One line on stderr says what is waited for."""
    with (
        server() as to,
        subprocess.Popen(
            command("ask", "Sum up.", *ASK, "--url", to.url),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stderr is not None
        assert b"reading stdin" in child.stderr.readline()
        child.stdin.write(b"the file")
        child.stdin.close()
        assert child.wait(GUARD) == 0
        assert asked(to) == "Sum up.\n\nthe file"


def test_a_solution_goes_to_a_file_once_it_is_whole(tmp_path: Path) -> None:
    """The file is written in one go; a reply that is cut leaves the old one, and goes to stdout."""
    file = tmp_path / "answer"
    with server() as to:
        ran = run_child("ask", "x", "-o", str(file), *ASK, "--url", to.url)
    assert (ran.code, ran.out, file.read_text(encoding="utf-8")) == (0, "", "56\n")
    with RawServer(lambda connection, request: connection.sendall(HEAD + framed(GOOD.partition(b"finish")[0]))) as to:
        ran = run_child("ask", "x", "-o", str(file), *ASK, "--url", to.url)
    assert (ran.code, file.read_text(encoding="utf-8")) == (9, "56\n")
    assert run_child("ask", "x", "-o", str(tmp_path / "no" / "such"), *ASK).code == 2


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("aks", "x"), "there is no command 'aks': did you mean ask?"),
        (("ask", "--modle", "x", "hello"), "there is no option --modle: did you mean --model?"),
        (("ask", "hello", "world"), "'world' is one argument too many; put a prompt of several words in quotes"),
        (("ask", "x", "--temperature", "hot"), "--temperature: 'hot': it takes a number"),
        (("ask", "x", "--timeout", "-1"), "--timeout: '-1': it takes seconds, more than 0"),
    ],
)
def test_wrong_usage_is_two_lines(line: tuple[str, ...], said: str) -> None:
    """What is wrong and what may be meant, then the usage of this very command."""
    ran = run_child(*line)
    wrong, usage = ran.err.splitlines()
    assert (ran.code, ran.out) == (2, "")
    assert said in wrong
    assert usage.startswith(f"usage: phi4_http {line[0] if line[0] != 'aks' else '[OPTIONS]'}")


def test_a_demo_that_is_misspelt_is_guessed() -> None:
    """The name that may be meant is named."""
    assert "did you mean well-formed?" in run_child("demo", "wel-formed").err


@pytest.mark.parametrize("line", [(), ("help",), ("--help",)])
def test_a_bare_command_shows_help(line: tuple[str, ...]) -> None:
    """It is no error to look around."""
    ran = run_child(*line)
    assert (ran.code, ran.err) == (0, "")
    assert "commands:" in ran.out


def test_help_of_a_command_and_a_short_version_and_a_short_name() -> None:
    """As people type them."""
    assert run_child("help", "ask").out == run_child("ask", "--help").out
    assert run_child("-V").out == run_child("--version").out
    assert run_child("ls", "--help").code == 0


@FULL
@pytest.mark.parametrize("line", [("--help",), ("demo", "--list"), ("config",), ("demo", "--speed", "0")])
def test_a_full_disk_is_told_in_one_line(line: tuple[str, ...]) -> None:
    """No traceback, exit code 1."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(*line), stdout=full, stderr=subprocess.PIPE, env=child_environment(), check=False, timeout=GUARD
        )
    told = done.stderr.decode()
    assert done.returncode == 1
    assert "Traceback" not in told
    assert "stdout can't be written" in told.splitlines()[-1]


@FULL
def test_an_answer_is_not_lost_to_a_stderr_that_fails() -> None:
    """It is on stdout, with its exit code."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("demo", "--speed", "0"), stdout=subprocess.PIPE, stderr=full, env=child_environment(), check=False
        )
    assert done.returncode == 0
    assert done.stdout.strip()


def test_ctrl_c_while_it_starts_is_no_traceback() -> None:
    """The signal comes while the first module of the command line is imported, and after the command has ended."""
    script = (
        "import os, signal, sys\nimport phi4_http.__main__ as start\n"
        "class Finder:\n    def find_spec(self, name, *_):\n"
        "        if name == 'phi4_http.cli':\n            os.kill(os.getpid(), signal.SIGINT)\n"
        "if sys.argv[1] == 'early':\n    sys.meta_path.insert(0, Finder())\n"
        "sys.argv[1:] = ['--version']\ncode = start.main()\nos.kill(os.getpid(), signal.SIGINT)\nsys.exit(code)\n"
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    early, late = (run_child("-c", script, when, python=True) for when in ("early", "late"))
    assert (early.code, early.out, early.err) == (130, "", "")
    assert (late.code, late.err) == (0, "")


# --- the screen -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_tables_fit_the_terminal(columns: int) -> None:
    """Each row is one line of the screen, however narrow that is."""
    listed = run_child("demo", "--list").out.splitlines()
    names = [line.split()[0] for line in screen("demo", "--list", columns=columns)]
    assert len(names) == min(len(listed), len(names))
    assert all(row[:4] == line[:4] for row, line in zip(names[::-1], listed[::-1], strict=False))


@pytest.mark.parametrize("columns", [40, 80])
def test_nothing_of_the_status_line_is_left(columns: int) -> None:
    """While a server is waited for, the line is there; at the end, the answer alone."""

    def slow(connection: object, request: bytes) -> None:
        import time

        time.sleep(1.2)
        connection.sendall(HEAD + framed(GOOD) + b"0\r\n\r\n")  # type: ignore[attr-defined]

    with RawServer(slow) as to:
        shown = screen("ask", "x", *ASK, "--url", to.url, columns=columns)
    assert shown == ["7 × 8", "56"]
