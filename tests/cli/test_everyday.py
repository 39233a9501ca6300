"""What a person does every day: pipes, files, misspelt words, full disks, narrow terminals."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import GOOD, GUARD, HEAD, RawServer, child_environment, command, delta, framed, run_child, sse, usage
from tools import completions

from phi4_http import Timeouts
from phi4_http.cli import demo, main
from phi4_http.cli.text import Wrapping, in_words
from phi4_http.errors import ContextOverflow, ModelNotFound

if sys.platform == "win32":
    pytest.skip("pseudo-terminals and signals of POSIX", allow_module_level=True)

import fcntl
import pty
import struct
import termios

import pyte

FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
ASK = ("--model", "m", "--system", "send")
SHORT = GOOD.replace(b'"stop"', b'"length"')
UNCLOSED = sse(delta("<think>"), delta("7 × 8"), delta(finish="length"), usage(9, 4))


def server() -> RawServer:
    """Answers every request with one reply."""
    return RawServer(lambda connection, request: connection.sendall(HEAD + framed(GOOD) + b"0\r\n\r\n"))


def asked(server: RawServer) -> str:
    """What the last question said."""
    text: str = json.loads(server.requests[-1].partition(b"\r\n\r\n")[2])["messages"][-1]["content"]
    return text


def screen(*arguments: str, columns: int, lines: int = 50, seen_on_the_way: list[str] | None = None) -> list[str]:
    """The lines that a person would see at the end; `seen_on_the_way` gets every screen before it, too."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    seen = pyte.Screen(columns, lines)
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
            if seen_on_the_way is not None:
                seen_on_the_way.append("\n".join(line.rstrip() for line in seen.display).rstrip("\n"))
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
    listed = [line.split()[0] for line in run_child("demo", "--list").out.splitlines()]
    rows = screen("demo", "--list", columns=columns, lines=2 * len(listed))
    assert len(rows) == len(listed)
    assert all(name.startswith(row.split()[0].rstrip("…")) for name, row in zip(listed, rows, strict=True))


@pytest.mark.parametrize("columns", [40, 80])
def test_what_doctor_says_stands_beside_its_mark(columns: int, unused_port: int) -> None:
    """No word is broken at the edge; what goes on does so below the text."""
    line = ("doctor", "--url", f"http://127.0.0.1:{unused_port}", "--lms", "/nowhere/lms")
    said = run_child(*line)
    rows = screen(*line, columns=columns)[:-1]  # the last is a message
    assert " ".join(" ".join(rows).split()) == " ".join(said.out.split())
    assert all(row[:6].strip() in ("", "ok", "note", "?", "BAD") and row[6] != " " for row in rows)


@pytest.mark.parametrize("columns", [40, 80])
def test_nothing_of_the_status_line_is_left(columns: int) -> None:
    """While a server is waited for, the line is there; at the end, the answer alone."""

    def slow(connection: socket.socket, request: bytes) -> None:
        time.sleep(1.2)
        connection.sendall(HEAD + framed(GOOD) + b"0\r\n\r\n")

    on_the_way: list[str] = []
    with RawServer(slow) as to:
        shown = screen("ask", "x", *ASK, "--url", to.url, columns=columns, seen_on_the_way=on_the_way)
    assert shown == ["7 × 8", "56"]
    status = [each for each in on_the_way if each.startswith("processing the prompt")]
    assert status
    assert all("\n" not in each and len(each) < columns for each in status)


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize(
    ("line", "said"),
    [(("ask", "x"), "looking for the model"), (("count", "x"), "counting"), (("ps",), "asking what is loaded")],
)
def test_a_look_up_says_what_is_waited_for(line: tuple[str, ...], said: str, columns: int) -> None:
    """Each phase has its line, which never wraps, and leaves nothing behind."""

    def slow(connection: socket.socket, request: bytes) -> None:
        time.sleep(0.6)
        connection.sendall(b"HTTP/1.1 500 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    on_the_way: list[str] = []
    with RawServer(slow) as to:
        shown = screen(*line, "--url", to.url, columns=columns, seen_on_the_way=on_the_way)
    assert any(each.startswith(said) and "\n" not in each for each in on_the_way), on_the_way
    assert not any(row.startswith(said) for row in shown)


@pytest.mark.parametrize("columns", [40, 80])
def test_words_wrap_and_a_pipe_is_left_alone(columns: int) -> None:
    """No word of an answer is broken on a terminal; the words are the same as in a pipe, in the same order."""
    piped = run_child("demo", "well-formed", "--speed", "0", "--no-stats")
    assert max(map(len, (piped.err + piped.out).splitlines())) > 80
    rows = screen("demo", "well-formed", "--speed", "0", "--no-stats", columns=columns, lines=400)
    assert piped.out.split() == " ".join(rows).split()[-len(piped.out.split()) :]


@settings(deadline=None)
@given(
    words=st.lists(st.text("abc中é", min_size=1, max_size=9), min_size=1, max_size=40),
    columns=st.integers(20, 50),
    cut=st.integers(1, 7),
)
def test_wherever_a_text_is_cut_its_words_wrap_the_same(words: list[str], columns: int, cut: int) -> None:
    """Piece by piece or at once: the same screen, with whole words."""
    text = " ".join(words)
    screens = []
    for size in (cut, len(text)):
        seen = pyte.Screen(columns, 60)
        seen.set_mode(pyte.modes.LNM)
        stream = pyte.Stream(seen)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("phi4_http.cli.text.columns", lambda _: columns)
            wrapping = Wrapping(sys.stdout)
            for at in range(0, len(text), size):
                stream.feed(wrapping.feed(text[at : at + size]))
        screens.append([line.rstrip() for line in seen.display])
    assert screens[0] == screens[1]
    assert " ".join(screens[0]).split() == words


def test_markdown_stays_as_it_is() -> None:
    """Code and tables get no breaks."""
    code = "```python\n" + "x = " + "y + " * 40 + "1\n```\n"
    table = "| " + "cell | " * 30 + "\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("phi4_http.cli.text.columns", lambda _: 40)
        assert Wrapping(sys.stdout).feed(code + table + "    " + "deep " * 20) == code + table + "    " + "deep " * 20
        assert Wrapping(sys.stdout).feed("word " * 20).count("\n") > 1
    assert Wrapping(None).feed("word " * 40) == "word " * 40


# --- what is said of a request, and completions -----------------------------------------------------------------------


def test_verbose_says_what_was_sent_and_received_and_no_secret() -> None:
    """Method, path, sizes, status; neither the token nor a word of the prompt."""
    with server() as to:
        line = ("ask", "my-secret-prompt", *ASK, "--instructions", "my-secret-order", "--url", to.url)
        ran = run_child(*line, "-v", LM_API_TOKEN="my-secret-token")
        plain = run_child(*line, LM_API_TOKEN="my-secret-token")
        rows = screen(*line, "-v", columns=80)
    assert (ran.code, ran.out) == (0, "56\n")
    sent = next(each for each in ran.err.splitlines() if "sent: POST" in each)
    assert "/v1/chat/completions" in sent
    assert "bytes: model='m'" in sent
    assert "temperature=0.8" in sent
    assert "received: 200 text/event-stream after" in ran.err
    assert "bytes in" in ran.err
    assert "my-secret" not in ran.err + ran.out
    assert "sent:" not in plain.err
    assert rows[-2] == "56"  # no message is glued to a line of the answer
    assert rows[-1].startswith("phi4_http: received: ")
    assert run_child("ask", "x", "-q", "-v").code == 2


@pytest.mark.parametrize("shell", completions.SHELLS)
def test_completions_are_up_to_date(shell: str) -> None:
    """What is printed is what the parser of today makes: `python -m tools.completions` writes it."""
    ran = run_child("completion", shell)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == completions.script(shell)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize("name", ["phi4_http", "phi4-http"])
@pytest.mark.parametrize(
    ("words", "found"), [(("ba",), "batch"), (("ask", "--max-t"), "--max-tokens"), (("server", "sta"), "status")]
)
def test_bash_completes(name: str, words: tuple[str, ...], found: str) -> None:
    """Commands, options and choices, under both names."""
    script = (
        f"source <({sys.executable} -m phi4_http completion bash)\ncomplete -p {name} >/dev/null || exit 3\n"
        f"COMP_WORDS=({name} {' '.join(words)}); COMP_CWORD={len(words)}\n_shtab_phi4_http\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, env=child_environment(), check=False, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert found in done.stdout.split()


# --- settings, texts and streams that are odd -------------------------------------------------------------------------


def test_quiet_leaves_errors_alone_on_stderr(unused_port: int) -> None:
    """Nothing but errors."""
    with server() as to:
        assert run_child("ask", "x", *ASK, "-q", "--stats", "--url", to.url).err == ""
    ran = run_child("ask", "x", *ASK, "-q", "--url", f"http://127.0.0.1:{unused_port}")
    assert (ran.code, len(ran.err.splitlines())) == (3, 1)


def test_a_reply_that_takes_longer_than_max_time_is_ended() -> None:
    """However much still comes."""

    def endless(connection: socket.socket, request: bytes) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(HEAD)
            while True:
                connection.sendall(framed(b": still here\n\n"))
                time.sleep(0.05)

    with RawServer(endless) as to:
        ran = run_child("ask", "x", *ASK, "--url", to.url, "--max-time", "0.5")
    assert ran.code == 3
    assert "0.5 s (--max-time)" in ran.err


def test_the_token_comes_from_the_variable_that_is_named() -> None:
    """By the option; a variable that is not set is told before anything is sent."""
    with server() as to:
        line = ("ask", "x", *ASK, "--url", to.url, "--token-variable", "MINE")
        assert run_child(*line, MINE="abc", LM_API_TOKEN="other").code == 0
        assert b"Bearer abc" in to.requests[-1]
        count = len(to.requests)
        ran = run_child(*line)
        assert (ran.code, len(to.requests)) == (2, count)
    assert "the variable MINE" in ran.err


def test_a_models_name_that_is_misspelt_is_guessed() -> None:
    """From what the server says that it has."""
    there = ("phi-4-reasoning", "llama")
    said = in_words(ModelNotFound("no", status=404, model="phi-4-resoning", available=there))
    assert said.endswith("did you mean phi-4-reasoning?")


def test_text_can_not_seem_to_stand_in_another_order() -> None:
    """What turns the direction of writing is shown on a terminal, and left as it is in a pipe."""
    answer = GOOD.replace(b'"56"', b'"5\\u202e6\\u2066"')
    assert answer != GOOD
    with RawServer(lambda connection, request: connection.sendall(HEAD + framed(answer) + b"0\r\n\r\n")) as to:
        assert screen("ask", "x", *ASK, "--url", to.url, columns=80)[-1] == "5\\u202e6\\u2066"
        assert run_child("ask", "x", *ASK, "--url", to.url).out == "5\u202e6\u2066\n"


@pytest.mark.parametrize("locale", ["no_SUCH.locale", "C"])
def test_a_broken_locale_breaks_nothing(locale: str) -> None:
    """What can't be written is an escape at worst."""
    with server() as to:
        ran = run_child("ask", "é", *ASK, "--url", to.url, PYTHONUTF8=None, LC_ALL=locale)
    assert (ran.code, ran.out) == (0, "56\n")
    assert "Traceback" not in ran.err


def test_a_closed_stderr_costs_no_answer() -> None:
    """It is on stdout."""
    with server() as to:
        line = shlex.join(command("ask", "x", *ASK, "--stats", "--url", to.url))
        done = subprocess.run(
            ["sh", "-c", f"{line} 2>&-"], stdout=subprocess.PIPE, env=child_environment(), check=False, timeout=GUARD
        )
    assert (done.returncode, done.stdout) == (0, b"56\n")


def test_the_stalled_demo_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A reply that stops in the middle is given up, by a limit that is on by itself."""
    assert demo._PATIENCE.idle is not None
    monkeypatch.setattr(demo, "_PATIENCE", Timeouts(idle=0.5))
    assert main(["demo", "stalled", "--speed", "0"]) == 9
    assert "was cut" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "code", "out"), [(SHORT, 11, "56\n"), (UNCLOSED, 10, "")])
def test_a_reply_that_is_not_whole_leaves_the_file_as_it_was(
    tmp_path: Path, answer: bytes, code: int, out: str
) -> None:
    """What came of the solution is on stdout, and an older answer is not lost to half of a new one."""
    file = tmp_path / "answer"
    file.write_text("old", encoding="utf-8")
    with RawServer(lambda connection, request: connection.sendall(HEAD + framed(answer) + b"0\r\n\r\n")) as to:
        ran = run_child("ask", "x", "-o", str(file), *ASK, "--url", to.url)
    assert (ran.code, ran.out, file.read_text(encoding="utf-8")) == (code, out, "old")


def test_an_overflow_says_what_takes_what_and_which_option_changes_it() -> None:
    """In the words of the command line, and whether the figure was counted."""
    said = in_words(ContextOverflow(needed=9137, limit=8192, at_least=True, reserve=2048))
    assert "takes at least 9,137 tokens, the context holds 8,192, of which 2,048 are kept for the reply" in said
    assert "(--reserve, or a smaller --max-tokens)" in said
    assert "(--context-length)" in said
    assert "at least" not in in_words(ContextOverflow(needed=9137, limit=8192))
