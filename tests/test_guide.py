"""The guide: every page is short, every example in it is run, and what it says of messages and codes is so.

What stands in a page is a claim by its fence:

    python      a program; a block of `text` right after it is what it prints
    console     commands after `$ `, each with all that it writes, to stdout and stderr; `…` is any lines
    ini         a configuration file
    sh          under a paragraph that begins with `*Not run`: only the options are checked

They run against a stand-in for LM Studio on loopback, or against the tapes that come along. The address of the
stand-in is put into `Phi4()` and the like, and into `PHI4_HTTP_URL`.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from lmstudio import backend, world
from phi4.standin import MODEL, StandIn
from support import EXCHANGES, GUARD, child_environment, run_child
from test_public import every_error, example

from phi4_http import settings
from phi4_http.cli import GROUPS, exits, parse
from phi4_http.cli.guide import PAGES, topics
from phi4_http.errors import ServerUnreachable
from phi4_http.server import DEFAULT_URL
from phi4_http.tape.matching import Match
from phi4_http.tape.server import ReplayServer

LONGEST_PAGE = 130  # lines
COLUMNS = 80  # of prose: a page is read in a terminal, too
RUN = re.compile(r"^(\$ .*(?:\n> .*)*)$", re.MULTILINE)
ADDRESS = re.compile(r"\b((?:Async)?(?:Phi4|LMStudio))\((?=\)|\w+ ?=)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `before` is the paragraph above it, `printed` the `text` block that follows it."""

    page: str
    line: int
    kind: str
    text: str
    before: str
    printed: str | None = None

    @property
    def runs(self) -> bool:
        return not self.before.startswith("*Not run")


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for at, match in enumerate(found):
        before = text[: match.start()].strip().rpartition("\n\n")[2]
        after = found[at + 1] if at + 1 < len(found) else None
        printed = after[2] if after and after[1] == "text" and not text[match.end() : after.start()].strip() else None
        kind = "pytest" if "def test_" in match[2] else match[1]
        yield Block(page.name, text.count("\n", 0, match.start()) + 1, kind, match[2], before, printed)


ALL = [block for page in sorted(PAGES.glob("*.md")) for block in blocks(page)]


def of(kind: str, *, runs: bool = True) -> pytest.MarkDecorator:
    chosen = [block for block in ALL if block.kind == kind and block.runs is runs]
    return pytest.mark.parametrize("block", chosen, ids=[f"{block.page}:{block.line}" for block in chosen])


def fits(said: str, claimed: str) -> bool:
    """Whether a text is the claimed one, where a line of `…` is any lines, and `…` in a line any characters."""
    pattern = "\n".join(
        "(?s:.*?)" if line == "…" else re.escape(line.rstrip()).replace("…", ".*")
        for line in claimed.strip().splitlines()
    )
    return re.fullmatch(pattern, "\n".join(line.rstrip() for line in said.strip().splitlines())) is not None


# --- the stand-in -----------------------------------------------------------------------------------------------------

_SMALL = "I try the primes up to 19. "


def reply(prompt: str) -> str:
    """What the model writes: each question of the guide has its answer."""
    question = prompt.rpartition("<|im_start|>user<|im_sep|>")[2].partition("<|im_end|>")[0]
    if "Think long" in question:
        return "<think>" + "".join(f"And {number} is not it. " for number in range(2000)) + "</think>It is 17."
    answers = {
        "JSON value": "[17, 23]",
        "393": "No: 393 = 3 × 131.",
        "391": "No: 391 = 17 × 23.",
        "7 × 8": "56",
        "capital of France": "Paris",
    }
    answer = next((answer for key, answer in answers.items() if key in question), "I have read it.")
    return f"<think>{_SMALL}</think>{answer}"


@dataclass(frozen=True)
class There:
    """What the examples ask: the address of a server, and LM Studio's command."""

    url: str
    lms: str = os.path.join(os.devnull, "lms")


@pytest.fixture
def there(block: Block, tmp_path: Path) -> Iterator[There]:
    """A server that answers the guide's questions; for tools, one that calls them; for loading, one that loads."""
    if block.page == "memory.md":
        if sys.platform == "win32":
            pytest.skip("scripts as commands")
        (tmp_path / "world").mkdir()
        with world.running(tmp_path / "world") as made:
            with made.state() as state:
                model = backend.model_of(state, "qwen2.5-7b-instruct")
                assert model is not None
                model |= {"modelKey": MODEL, "sizeBytes": 9_053_114_816}
                state["knobs"]["downloads"] = [{"status": "already_downloaded"}]
            yield There(made.url, made.lms)
    elif "tools=" in block.text:
        names = ("v0-models", "tool-calls", "no-tags")
        with ReplayServer([EXCHANGES[name] for name in names], match=Match(body=False, loop=True)) as server:
            yield There(server.url)
    else:
        with StandIn(reply=reply, answer="So it is 17.", context_length=8192) as standin:
            yield There(standin.url)


# --- what is run ------------------------------------------------------------------------------------------------------


@of("python")
def test_a_program_of_the_guide_runs_and_prints_what_it_says(
    block: Block, there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is run as it stands, but for the address."""
    monkeypatch.chdir(tmp_path)
    where = f"{there.url!r}, lms={there.lms!r}"
    text = ADDRESS.sub(lambda found: f"{found[0]}{where if 'LM' in found[1] else repr(there.url)}, ", block.text)
    text = text.replace(", )", ")").replace(DEFAULT_URL, there.url)
    exec(compile("\n" * block.line + text, block.page, "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    if block.printed is not None:
        assert fits(out, block.printed), out


@of("pytest")
def test_a_test_of_the_guide_records_its_tape_and_plays_it(block: Block, there: There, tmp_path: Path) -> None:
    """Recorded from a server, then run without one."""
    (tmp_path / "test_it.py").write_text(block.text, encoding="utf-8")
    run = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if not installed_plugin():
        run += ["-p", "phi4_http.tape.pytest_plugin"]
    recorded = run_child(*run, "--phi4-record=once", f"--phi4-url={there.url}", folder=tmp_path, python=True)
    assert recorded.code == 0, recorded.out
    played = run_child(*run, folder=tmp_path, python=True)
    assert (played.code, "1 passed" in played.out) == (0, True), played.out


def installed_plugin() -> bool:
    """Whether pytest finds the plugin by itself."""
    from importlib.metadata import entry_points

    return any(point.value.startswith("phi4_http.") for point in entry_points(group="pytest11"))


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX")
@of("console")
def test_commands_of_the_guide_write_what_they_say(block: Block, there: There, tmp_path: Path) -> None:
    """In one shell, one after the other; one that fails is followed by `echo $?`."""
    program = tmp_path / "bin" / "phi4_http"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m phi4_http "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    _, *parts = RUN.split(block.text)
    commands = [re.sub(r"^[$>] ", "", part, flags=re.MULTILINE) for part in parts[::2]]
    script = "rc=0\n" + "".join(f"(exit $rc)\n{command}\nrc=$?; printf '\\036%s\\036' $rc\n" for command in commands)
    environment = child_environment(
        PHI4_HTTP_URL=there.url,
        PHI4_HTTP_LMS=there.lms,
        PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        LANG="C.UTF-8",
    )
    done = subprocess.run(
        ["/bin/sh"], input=script.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=home,
        env=environment, timeout=2 * GUARD, check=False,
    )  # fmt: skip
    said = done.stdout.decode().split("\036")
    assert len(said) == 2 * len(commands) + 1, done.stdout.decode()
    for at, (command, claimed) in enumerate(zip(commands, parts[1::2], strict=True)):
        assert fits(said[2 * at], claimed), f"{command}\n{said[2 * at]}"
        if said[2 * at + 1] != "0":
            assert commands[at + 1 : at + 2] == ["echo $?"], f"{command} ends with {said[2 * at + 1]}"


@of("sh", runs=False)
def test_commands_that_are_not_run_have_options_that_there_are(block: Block) -> None:
    """Each is read by the parser."""
    plugin = (PAGES.parent / "tape" / "pytest_plugin.py").read_text(encoding="utf-8")
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "pytest":
            assert all(f'"{word.partition("=")[0]}"' in plugin for word in words if word.startswith("--"))
        elif "phi4_http" in words:
            parse(words[words.index("phi4_http") + 1 :])
        else:
            (where,) = (word for word in words if word.startswith("phi4_http."))
            module, _, name = where.partition(":")
            assert hasattr(importlib.import_module(module), name)


@of("ini")
def test_a_configuration_file_of_the_guide_can_be_read(block: Block, tmp_path: Path) -> None:
    """Its settings are known, and take their values."""
    file = tmp_path / "config.ini"
    file.write_text(block.text, encoding="utf-8")
    found = settings.read_file(file)
    assert found
    assert all(settings.BY_FIELD[field].read(value) is not None for field, value in found.items())


# --- the pages --------------------------------------------------------------------------------------------------------


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    """Nothing in a fence goes unseen."""
    printed = [block.printed for block in ALL if block.kind == "python"]
    for block in ALL:
        known = block.kind in ("python", "pytest", "console", "ini") and block.runs
        known |= block.kind == "sh" and not block.runs
        assert known or (block.kind == "text" and block.text in printed), f"{block.page}:{block.line}"


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.name)
def test_a_page_is_short_and_its_links_lead_somewhere(page: Path) -> None:
    """One heading of the first order, no wall, and no link into nothing."""
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^# ", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)) == 1
    assert text.count("\n") <= LONGEST_PAGE
    prose = [line for line in re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S).splitlines() if line[:1] != "|"]
    assert max(map(len, prose)) <= COLUMNS
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).is_file(), link


def test_every_topic_is_printed_and_listed() -> None:
    """Byte for byte; one that is a command too names its options."""
    assert "first-steps" in topics()
    listing = run_child("help").out
    for topic in topics():
        assert topic in listing
    for topic in ("first-steps", "batch"):
        ran = run_child("help", topic)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith((PAGES / f"{topic}.md").read_text(encoding="utf-8"))
        assert ("--help" in ran.out.splitlines()[-1]) == (topic in GROUPS)


def test_a_topic_that_is_misspelt_is_guessed() -> None:
    """In two lines, as wrong usage is told; a command is guessed too."""
    for said, meant in (("streming", "streaming"), ("modles", "models")):
        ran = run_child("help", said)
        assert (ran.code, ran.out) == (2, "")
        assert f"did you mean {meant}?" in ran.err
        assert len(ran.err.splitlines()) == 2


def test_the_exit_codes_of_the_guide_are_the_real_ones() -> None:
    """All of them, in the words of the help."""
    page = (PAGES / "exit-codes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", page, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == exits.CODES


def test_troubleshooting_has_the_words_of_every_error() -> None:
    """Each message that can be raised is found by its words, and each that is listed can be raised."""
    page = (PAGES / "troubleshooting.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\*\*`(.+?)`\*\*", page, re.MULTILINE)
    patterns = [".*".join(map(re.escape, words.split("…"))) for words in listed]
    said = {kind.__name__: str(example(kind)) for kind in every_error() if kind.__name__ not in ROOTS}
    missing = [name for name, text in said.items() if not any(re.search(each, text) for each in patterns)]
    assert missing == []
    unreached = [
        ServerUnreachable("http://h", "it", timed_out=True),
        ServerUnreachable("http://h", "it", answered=True),
    ]
    everything = "\n".join([*said.values(), *map(str, unreached)])
    assert [words for words, each in zip(listed, patterns, strict=True) if not re.search(each, everything)] == []


ROOTS = ("Phi4Error", "LmsError", "InvalidRequest", "TapeError")  # whose sentence is what they are given
