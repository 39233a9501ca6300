"""`chat`, `count` and the longer forms of `ask`, as real child processes: over pipes, and on a terminal."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from phi4 import standin
from phi4.standin import CHAT, MODEL, RAW, StandIn
from support import GUARD, Ran, child_environment, run_child

from phi4_http.phi4.conversation import build_messages
from phi4_http.phi4.facts import SAMPLING, SYSTEM_PROMPT

posix = pytest.mark.skipif(sys.platform == "win32", reason="terminals and signals of POSIX")

BEFORE = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "No."}]
ENDLESS = f"<think>{'I never end this. ' * 30}"


def run(server: StandIn, *arguments: str, stdin: str = "", **options: Any) -> Ran:
    """A command against a stand-in, to its end."""
    name, *rest = arguments
    return run_child(name, "--url", server.url, *rest, stdin=stdin.encode(), **options)


def saved(path: Path, messages: object = BEFORE) -> Path:
    """A file with a conversation."""
    path.write_text(json.dumps(messages), encoding="utf-8")
    return path


# --- a child that is talked to ----------------------------------------------------------------------------------------

# A shell that runs a job in the background has it ignore Ctrl-C, and that is inherited.
_LAUNCH = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
if sys.argv[1] == "terminal":
    import fcntl, termios
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "phi4_http", *sys.argv[2:]])
"""


class Talk:
    """A command that runs, and what it has written so far, standard output and standard error apart."""

    def __init__(
        self, server: StandIn, *arguments: str, terminal: bool = False, out_to_pipe: bool = False, **variables: str
    ) -> None:
        name, *rest = arguments
        line = [sys.executable, "-c", _LAUNCH, "terminal" if terminal else "pipe", name, "--url", server.url, *rest]
        self._changed = threading.Condition()
        self.text = {"out": "", "err": ""}
        self._ends: list[int] = []
        environment = child_environment(TERM="xterm", NO_COLOR="1", COLUMNS="200", **variables)
        if terminal:
            import pty

            master, slave = pty.openpty()
            self._ends.append(master)
            self.child = subprocess.Popen(
                line,
                stdin=slave,
                stdout=subprocess.PIPE if out_to_pipe else slave,
                stderr=slave,
                env=environment,
                cwd=os.path.abspath(os.sep),
            )
            os.close(slave)
            self._say: Callable[[bytes], int] = functools.partial(os.write, master)
            sources = {"err": master}
            if self.child.stdout is not None:
                sources["out"] = self.child.stdout.fileno()
        else:
            self.child = subprocess.Popen(
                line,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=os.path.abspath(os.sep),
            )
            assert self.child.stdin is not None
            assert self.child.stdout is not None
            assert self.child.stderr is not None
            self._stdin = self.child.stdin
            self._say = self._to_pipe
            sources = {"out": self.child.stdout.fileno(), "err": self.child.stderr.fileno()}
        self._readers = [threading.Thread(target=self._read, args=item, daemon=True) for item in sources.items()]
        for reader in self._readers:
            reader.start()

    def _to_pipe(self, data: bytes) -> int:
        written = self._stdin.write(data)
        self._stdin.flush()
        return written

    def _read(self, name: str, source: int) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(source, 65536):
                with self._changed:
                    self.text[name] += data.decode("utf-8", "replace").replace("\r\n", "\n")
                    self._changed.notify_all()

    def __enter__(self) -> Talk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait(GUARD)
        for reader in self._readers:
            reader.join(GUARD)
        for stream in (self.child.stdin, self.child.stdout, self.child.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        for end in self._ends:
            os.close(end)

    def say(self, text: str) -> None:
        """Type, or write into the pipe."""
        self._say(text.encode())

    def hear(self, text: str, times: int = 1, where: str = "err") -> None:
        """Wait until that has been written so many times."""
        with self._changed:
            heard = self._changed.wait_for(lambda: self.text[where].count(text) >= times, GUARD)
        assert heard, f"{text!r} was not written {times} times: {self.text}"

    def press_until(self, key: str, text: str) -> None:
        """Type a key until that has been written: Python notes a signal between two keys at the next one only."""
        for _ in range(int(GUARD)):
            self.say(key)
            with self._changed:
                if self._changed.wait_for(lambda: text in self.text["err"], 1.0):
                    return
        raise AssertionError(f"{text!r} was not written: {self.text}")

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.child.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Close the pipe, where there is one, and wait for its end and for all that it has written."""
        if self.child.stdin is not None:
            self.child.stdin.close()
        code = self.child.wait(GUARD)
        for reader in self._readers:
            reader.join(GUARD)
        return code


# --- ask: a thought that does not end ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reply", "reason"),
    [
        (["--thinking-budget", "5"], ENDLESS, "budget"),
        (["--on-unclosed", "answer"], "<think>I stop", "unclosed"),
        (["--on-loop", "answer"], ENDLESS.replace("this", "this long thought of mine"), "loop"),
    ],
)
def test_ask_ends_a_thought_on_request(arguments: list[str], reply: str, reason: str) -> None:
    """The solution alone goes to stdout, the thought to stderr; as JSON, it is told that the thought was ended."""
    with StandIn(reply=reply) as server:
        as_text = run(server, "ask", "Is it late?", "--stats", *arguments)
        assert (as_text.code, as_text.out) == (0, "So it is 4.\n")
        assert "I " in as_text.err
        assert f"thought ended for the model ({reason})" in as_text.err
        told = run(server, "ask", "Is it late?", "--json", *arguments)
        assert told.code == 0
    (thought,) = [each for each in told.objects if each["type"] == "thought"]
    assert (thought["closed"], thought["forced"]) == (True, True)
    finished = told.objects[-1]
    assert (finished["type"], finished["solution"]) == ("finished", "So it is 4.")
    assert finished["forced"]["reason"] == reason
    assert "".join(each["text"] for each in told.objects if each["type"] == "thinking") == finished["thought"]


def test_ask_leaves_a_thought_unclosed_where_nothing_is_asked_for() -> None:
    """Exit code 10, nothing on stdout."""
    with StandIn(reply="<think>I stop") as server:
        ran = run(server, "ask", "Is it late?", "--system", "send")
        assert (ran.code, ran.out) == (10, "")
        assert "stopped inside its thought" in ran.err
        assert [path for path, _ in server.asked] == [CHAT]


def test_ask_says_why_a_thought_cannot_be_continued() -> None:
    """An unknown template: exit code 10, and the counts that did not agree."""
    with StandIn(reply=ENDLESS, template=standin.unknown) as server:
        ran = run(server, "ask", "Is it late?", "--thinking-budget", "3")
        assert (ran.code, ran.out) == (10, "")
        assert "can't be continued" in ran.err
        told = run(server, "ask", "Is it late?", "--thinking-budget", "3", "--json")
    assert told.objects[-1]["error"] == "CannotContinue"
    assert told.objects[-1]["partial"]["thought"]
    assert set(told.objects[-1]["template_tokens"]) >= {"own turn", "merged, line between"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--thinking-budget", "0"], "--thinking-budget"),
        (["--thinking-budget", "many"], "--thinking-budget"),
        (["--on-unclosed", "ask"], "--on-unclosed"),
        (["--on-loop", "yes"], "--on-loop"),
    ],
)
def test_ask_refuses_what_cannot_be(arguments: list[str], said: str) -> None:
    """Exit code 2, the argument's name, nothing sent."""
    with StandIn() as server:
        ran = run(server, "ask", "Is it late?", *arguments)
        assert (ran.code, ran.out) == (2, "")
        assert said in ran.err
        assert server.asked == []


def test_ask_sends_the_models_sampling() -> None:
    """What the command line does not set is the model's own."""
    with StandIn() as server:
        run(server, "ask", "Is it late?", "--top-k", "7")
        (body,) = server.chats
    assert {name: body[name] for name in SAMPLING} == {**SAMPLING, "top_k": 7}


# --- ask: a file of messages ------------------------------------------------------------------------------------------


def test_ask_reads_and_appends_a_history(tmp_path: Path) -> None:
    """The messages are sent, and prompt and solution are added; a file that isn't there is begun."""
    file = tmp_path / "talk.json"
    with StandIn() as server:
        for number, prompt in enumerate(["Is it late?", "And now?"]):
            ran = run(server, "ask", prompt, "--history", str(file))
            assert (ran.code, ran.out) == (0, "The answer is 4.\n")
            messages = json.loads(file.read_text(encoding="utf-8"))
            assert len(messages) == 2 * (number + 1)
        assert server.chats[1]["messages"] == build_messages("And now?", history=messages[:2])
    assert [message["content"] for message in messages] == [
        "Is it late?",
        "The answer is 4.",
        "And now?",
        "The answer is 4.",
    ]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"refuses": lambda path, body: "failed"}, 8),
        ({"refuses": lambda path, body: "cut"}, 9),
        ({"refuses": lambda path, body: "overflow"}, 7),
        ({"refuses": lambda path, body: "html"}, 3),
        ({"reply": "<think>I stop"}, 10),
        ({"reply": "<think>I</think>"}, 12),
        ({"context_length": 300, "reply": "It"}, 7),
    ],
)
def test_a_turn_that_fails_leaves_the_file_as_it_was(tmp_path: Path, options: Mapping[str, Any], code: int) -> None:
    """Byte for byte, with nothing beside it."""
    file = saved(tmp_path / "talk.json")
    before = file.read_bytes()
    with StandIn(**options) as server:
        ran = run(server, "ask", "Why? " * 200, "--history", str(file))
    assert ran.code == code
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["talk.json"]


def test_a_solution_cut_by_the_limit_is_kept(tmp_path: Path) -> None:
    """Exit code 11; the next turn may ask for the rest."""
    file = saved(tmp_path / "talk.json")
    with StandIn() as server:
        ran = run(server, "ask", "Why?", "--history", str(file), "--max-tokens", "9")
    assert ran.code == 11
    assert json.loads(file.read_text(encoding="utf-8"))[2:] == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": ran.out.rstrip("\n")},
    ]


@pytest.mark.parametrize(
    "content", ["", "{", "{}", '"x"', "[1]", '[{"role": "robot", "content": "x"}]', '[{"role": "user"}]']
)
def test_a_file_that_is_no_conversation_is_refused(tmp_path: Path, content: str) -> None:
    """Exit code 2, nothing sent, the file untouched."""
    file = tmp_path / "talk.json"
    file.write_text(content, encoding="utf-8")
    with StandIn() as server:
        ran = run(server, "ask", "Why?", "--history", str(file))
        assert server.asked == []
    assert (ran.code, ran.out) == (2, "")
    assert file.read_text(encoding="utf-8") == content
    assert "Traceback" not in ran.err


def test_a_history_that_cannot_be_saved_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    """Exit code 2, and the file's name: no minutes of a model are spent on what would be lost."""
    file = tmp_path / "missing" / "talk.json"
    with StandIn() as server:
        ran = run(server, "ask", "Why?", "--history", str(file))
        assert server.chats == []
    assert (ran.code, ran.out) == (2, "")
    assert "talk.json" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.skipif(sys.platform == "darwin", reason="the cache folder there has no variable")
def test_what_the_template_does_is_found_out_once_for_all_runs(tmp_path: Path) -> None:
    """Four requests before the first question, none before the second, in whatever process; `--system` asks nothing."""
    folder = {"XDG_CACHE_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    with StandIn() as server:
        asked = []
        for more in (["--system", "send"], [], []):
            before = len(server.asked)
            assert run(server, "ask", "Why?", *more, **folder).code == 0
            asked.append(len(server.asked) - before)
    assert asked == [1, 5, 1]


def test_askers_at_once_keep_each_others_turns(tmp_path: Path) -> None:
    """Six of them, one file: twelve messages, each question followed by its answer."""
    file = tmp_path / "talk.json"
    with StandIn() as server, ThreadPoolExecutor(6) as pool:
        ran = list(pool.map(lambda n: run(server, "ask", f"Question {n}?", "--history", str(file)), range(6)))
    assert [one.code for one in ran] == [0] * 6, ran
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert sorted(message["content"] for message in kept[::2]) == [f"Question {number}?" for number in range(6)]
    assert [message["role"] for message in kept] == ["user", "assistant"] * 6
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]


@posix
def test_a_saved_file_keeps_who_may_read_it_and_where_it_is(tmp_path: Path) -> None:
    """Its mode stays, and a link still is one; a new file is the writer's own."""
    real = saved(tmp_path / "real.json")
    real.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(real)
    new = tmp_path / "new.json"
    with StandIn() as server:
        for file in (link, new):
            assert run(server, "ask", "Why?", "--history", str(file)).code == 0
    assert link.is_symlink()
    assert len(json.loads(real.read_text(encoding="utf-8"))) == 4
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


Stalls = Callable[[dict[str, Any]], bool]
WHEN: Mapping[str, Stalls] = {
    "in the thought": lambda body: False,
    "before the first byte": lambda body: bool(body.get("stream")),
    "while the prompt is counted": lambda body: body.get("max_tokens") == 1,
}
"""When Ctrl-C comes: after which requests the server says nothing."""


@posix
@pytest.mark.parametrize("when", WHEN)
def test_ctrl_c_ends_ask(tmp_path: Path, when: str) -> None:
    """Exit code 130, whenever it comes; the file stays as it was, and the server's model is stopped."""
    file = saved(tmp_path / "talk.json")
    before = file.read_bytes()
    with StandIn(
        reply=ENDLESS,
        holds=lambda path, body: True,
        refuses=lambda path, body: "stalled" if WHEN[when](body) else None,
    ) as server:
        with Talk(server, "ask", "Why?", "--no-stdin", "--history", str(file), "--system", "send") as talk:
            if when == "in the thought":
                talk.hear("I never end this.")
            else:
                assert server.wait_asked(1 if "counted" in when else 2)
            talk.interrupt()
            assert talk.end() == 130
            assert "Traceback" not in talk.text["err"]
            assert "interrupted" in talk.text["err"]
        assert server.wait_left(CHAT)
    assert file.read_bytes() == before


# --- count ------------------------------------------------------------------------------------------------------------


def test_count_says_how_many_and_what_it_took(tmp_path: Path) -> None:
    """The number alone on stdout; the context and the requests on stderr."""
    file = saved(tmp_path / "talk.json")
    cases: list[tuple[list[str], list[dict[str, Any]]]] = [
        (["Why?"], build_messages("Why?")),
        (["Why?", "--history", str(file)], build_messages("Why?", history=BEFORE)),
        (["--history", str(file)], build_messages(None, history=BEFORE)),
        (["Why?", "-i", "Be brief."], build_messages("Why?", instructions="Be brief.")),
    ]
    for arguments, messages in cases:
        with StandIn() as server:
            ran = run(server, "count", *arguments)
            tokens = standin.count(standin.own_turn(messages))
            assert (ran.code, ran.out) == (0, f"{tokens}\n")
            assert f"{tokens} tokens of the 4,096 that the model is loaded with" in ran.err
            assert "requests of one token: 1" in ran.err
            assert server.counting[0]["messages"] == messages


def test_count_reads_stdin_and_speaks_json() -> None:
    """One object, with the same facts."""
    with StandIn(native=False, free="llama.cpp") as server:
        ran = run(server, "count", "-", "--json", stdin="Why?\nWhy?")
    tokens = standin.count(standin.own_turn(build_messages("Why?\nWhy?")))
    assert ran.objects == [{"type": "count", "tokens": tokens, "context_length": 4096, "requests": 0, "model": MODEL}]


@pytest.mark.parametrize(
    ("options", "arguments", "code", "said"),
    [
        ({"says": lambda tokens: 0}, ["Why?"], 1, "does not count"),
        ({"refuses": lambda path, body: "failed"}, ["Why?"], 8, "the engine is gone"),
        ({}, ["Why?", "--history", "no such file"], 2, "no such file"),
        ({}, ["--history", "no such file"], 2, "no such file"),
        ({}, [""], 2, "empty"),
    ],
)
def test_count_fails_as_told(options: Mapping[str, Any], arguments: list[str], code: int, said: str) -> None:
    """Its exit codes are those of every command."""
    with StandIn(**options) as server:
        ran = run(server, "count", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert "Traceback" not in ran.err


# --- chat over a pipe -------------------------------------------------------------------------------------------------


def test_chat_over_a_pipe_answers_line_by_line() -> None:
    """Each turn sees the ones before; only solutions on stdout; the end of the input ends it, code 0."""
    with StandIn() as server:
        ran = run(server, "chat", stdin="Is it late?\n\n  \nAnd now?\n")
        first, second = server.chats
    assert (ran.code, ran.out) == (0, "The answer is 4.\n" * 2)
    assert ran.err.count("I reason.") == 2
    assert first["messages"] == build_messages("Is it late?")
    said = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "The answer is 4."}]
    assert second["messages"] == build_messages("And now?", history=said)
    assert re.search(r"\[prompt \d+ of 4,096 tokens \(\d+%\)\]", ran.err)


def test_chat_has_its_commands(tmp_path: Path) -> None:
    """Save, clear, load, history, stats, help, and one that isn't there; none of them is asked of the model."""
    file = tmp_path / "talk.json"
    script = [
        "/stats",
        "/history",
        "Is it late?",
        f"/save {file}",
        "/clear",
        "/history",
        f"/load {file}",
        "/history",
        "/stats",
        "/help",
        "/nonsense",
        "/save",
        "/load nowhere",
        "/quit",
        "Never asked",
    ]
    with StandIn() as server:
        ran = run(server, "chat", stdin="\n".join(script) + "\n", folder=tmp_path)
        assert len(server.chats) == 1
    assert (ran.code, ran.out) == (0, "The answer is 4.\n")
    said = [
        "no reply yet",
        "nothing has been said yet",
        "I reason.",
        "nothing has been said yet",
        "user: Is it late?",
        "assistant: The answer is 4.",
        "complete, first token after",
        "/thinking on|off",
        "there is no command /nonsense",
        "/save takes a file's name",
        "nowhere: there is no such file",
    ]
    places = [-1]
    for text in said:
        places.append(ran.err.find(text, places[-1] + 1))
        assert places[-1] > places[-2], f"{text!r} is not where it should be in {ran.err}"
    assert json.loads(file.read_text(encoding="utf-8")) == [
        {"role": "user", "content": "Is it late?"},
        {"role": "assistant", "content": "The answer is 4."},
    ]


def test_a_retry_puts_another_answer_in_place_of_the_last(tmp_path: Path) -> None:
    """The same question again, without the answer that it had; with nothing asked, it says so."""
    file = tmp_path / "talk.json"
    script = f"/retry\nIs it late?\n/retry\nAnd now?\n/save {file}\n/exit\nNever asked\n"
    with StandIn(reply=lambda _: f"<think>I reason.</think>Number {len(server.chats)}.") as server:
        ran = run(server, "chat", stdin=script)
        asked = [body["messages"] for body in server.chats]
    assert len(set(ran.out.splitlines())) == 3
    one, two, three = ran.out.splitlines()
    assert "/retry: nothing has been asked yet" in ran.err
    assert one not in file.read_text(encoding="utf-8")
    assert asked[0] == asked[1] == build_messages("Is it late?")
    assert [each["content"] for each in json.loads(file.read_text(encoding="utf-8"))] == [
        *("Is it late?", two),
        *("And now?", three),
    ]


def test_a_retry_that_fails_leaves_the_answer_that_was(tmp_path: Path) -> None:
    """And the exit code in a pipe is that of the worst turn."""
    file = tmp_path / "talk.json"
    with StandIn(reply=lambda _: "<think>I reason.</think>One." if len(server.chats) < 2 else "") as server:
        ran = run(server, "chat", stdin=f"Is it late?\n/retry\n/save {file}\n")
        assert len(server.chats) == 2
    assert (ran.code, ran.out) == (7, "One.\n")  # an empty reply is how servers say that it does not fit
    assert json.loads(file.read_text(encoding="utf-8"))[-1]["content"] == "One."


def test_a_file_goes_with_the_next_question_and_with_no_other(tmp_path: Path) -> None:
    """Under its name; one that is not there is told."""
    (tmp_path / "notes").write_text("It rains.", encoding="utf-8")
    with StandIn() as server:
        ran = run(server, "chat", stdin="/file nowhere\n/file notes\nSum up.\nAnd?\n/exit\n", folder=tmp_path)
        first, second = (body["messages"][-1]["content"] for body in server.chats)
    assert (first, second) == ("Sum up.\n\nnotes:\n\nIt rains.", "And?")
    assert "nowhere can't be read" in ran.err
    assert "notes goes with the next question" in ran.err


def test_chat_shows_the_thought_or_not() -> None:
    """From the next reply on."""
    with StandIn() as server:
        ran = run(server, "chat", stdin="a\n/thinking off\nb\n/thinking on\nc\n/thinking maybe\n/thinking\n")
        assert len(server.chats) == 3
        quiet = run(server, "chat", "--no-thinking", stdin="a\n")
    assert ran.err.count("I reason.") == 2
    assert ran.err.count("/thinking takes on or off") == 2
    assert "I reason." not in quiet.err


@pytest.mark.parametrize(
    ("script", "prompt"),
    [
        ("one \\\ntwo\\\nthree\n", "one \ntwo\nthree"),
        ('"""\none\n\n  two\n"""\n', "one\n\n  two"),
        ('"""one\ntwo"""\n', "one\ntwo"),
        ('"""one"""\n', "one"),
        ("one\\\n", "one"),
        ("one\\", "one"),
        ('"""one\ntwo', "one\ntwo"),
        ("/usr/bin is a folder?\n", "/usr/bin is a folder?"),
        ("日本 🧠 é?\n", "日本 🧠 é?"),
    ],
)
def test_chat_takes_several_lines(script: str, prompt: str) -> None:
    """With a backslash, or between triple quotes; the end of the input ends them, too."""
    with StandIn() as server:
        ran = run(server, "chat", stdin=script)
        assert (ran.code, ran.out) == (0, "The answer is 4.\n")
        assert server.chats[0]["messages"][1:] == [{"role": "user", "content": prompt}]


def test_chat_goes_on_after_a_failure() -> None:
    """The error is told, the turn forgotten."""
    with StandIn(refuses=lambda path, body: "cut" if "fail" in body["messages"][-1]["content"] else None) as server:
        ran = run(server, "chat", stdin="fail\nIs it late?\n")
        assert server.chats[1]["messages"] == build_messages("Is it late?")
    assert (ran.code, ran.out) == (9, "The answer is 4.\n")
    assert "phi4_http: the reply was cut" in ran.err


def test_chat_begins_with_a_saved_conversation(tmp_path: Path) -> None:
    """It is sent with the first turn, and has the new ones after it; a file that is not there yet is made."""
    file, new = saved(tmp_path / "talk.json"), tmp_path / "new.json"
    with StandIn() as server:
        assert run(server, "chat", "--history", str(file), stdin="Why?\n").code == 0
        assert server.chats[0]["messages"] == build_messages("Why?", history=BEFORE)
        assert run(server, "chat", "--history", str(new), stdin="Why?\n").code == 0
        assert server.chats[1]["messages"] == build_messages("Why?")
    turn = json.loads(new.read_text(encoding="utf-8"))
    assert [message["role"] for message in turn] == ["user", "assistant"]
    assert json.loads(file.read_text(encoding="utf-8")) == [*BEFORE, *turn]


def test_a_conversation_goes_on_where_it_cannot_be_saved(tmp_path: Path) -> None:
    """The command's error is told; the turns before it are still there."""
    with StandIn() as server:
        ran = run(server, "chat", stdin=f"Why?\n/save {tmp_path / 'missing' / 'talk.json'}\nAnd then?\n")
        assert [message["role"] for message in server.chats[1]["messages"][1:]] == ["user", "assistant", "user"]
    assert ran.code == 0
    assert "talk.json can't be written" in ran.err


def test_chat_says_what_was_not_sent() -> None:
    """How many of the oldest messages no longer fit."""
    with StandIn(context_length=700) as server:
        ran = run(server, "chat", stdin="".join(f"{number}: {'and then ' * 6}?\n" for number in range(9)))
        assert len(server.chats) == 9
    assert ran.code == 0
    assert "oldest messages not sent]" in ran.err
    assert "oldest messages did not fit and were not sent" in ran.err


def test_chat_passes_on_what_was_asked_for() -> None:
    """Sampling, instructions and what is done about a thought hold for each turn."""
    with StandIn(reply=ENDLESS) as server:
        ran = run(server, "chat", "--seed", "7", "-i", "Be brief.", "--thinking-budget", "4", stdin="a\nb\n")
        assert [body["seed"] for body in server.chats] == [7, 7]
        assert all(body["messages"][0]["content"] == f"{SYSTEM_PROMPT}\n\nBe brief." for body in server.chats)
        assert len(server.completions) == 2
    assert ran.out == "So it is 4.\n" * 2


def test_input_that_is_no_text_ends_chat_with_a_message() -> None:
    """Bytes that are not UTF-8: code 2, or the error of a turn; no traceback."""
    with StandIn() as server:
        ran = run_child(
            "chat", "--url", server.url, stdin=b"\xff\xfe\n", PYTHONUTF8="0", PYTHONIOENCODING="utf-8:strict"
        )
        assert (ran.code, ran.out) == (2, "")
        assert "stdin is not text" in ran.err
        lax = run_child("chat", "--url", server.url, stdin=b"\xff\xfe\nIs it late?\n")
        assert (lax.code, lax.out) == (2, "The answer is 4.\n")
        assert "surrogate" in lax.err
        assert "Traceback" not in ran.err + lax.err


@posix
@pytest.mark.parametrize("when", WHEN)
def test_ctrl_c_stops_the_reply_and_keeps_the_chat(when: str) -> None:
    """The turn is forgotten, the model stopped, and the next turn sees the ones before."""
    with StandIn(
        says_streaming=None,
        reply=lambda prompt: ENDLESS if "never" in prompt.rpartition("user")[2] else "<think>I reason.</think>It is 4.",
        holds=lambda path, body: "never" in body["messages"][-1]["content"],
        refuses=lambda path, body: (
            "stalled" if WHEN[when](body) and "never" in body["messages"][-1]["content"] else None
        ),
    ) as server:
        with Talk(server, "chat", "--system", "send") as talk:
            talk.say("Is it late?\n")
            talk.hear("It is 4.\n", where="out")
            talk.say("Is it never late?\n")
            if when == "in the thought":
                talk.hear("I never end this.")
            else:
                assert server.wait_asked(2 if "counted" in when else 3)
            talk.interrupt()
            assert server.wait_left(CHAT)
            talk.say("And now?\n")
            talk.hear("It is 4.\n", times=2, where="out")
            talk.say("/history\n")
            talk.hear("user: And now?")
            assert talk.end() == 0
            assert "Traceback" not in talk.text["err"]
            assert "never late" not in talk.text["err"].partition("user: ")[2]
        said = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "It is 4."}]
        assert server.chats[-1]["messages"] == build_messages("And now?", history=said)


# --- chat on a terminal -----------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[Callable[..., Talk]]:
    """Chats on a terminal; they are ended after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda server, *arguments, **options: stack.enter_context(
            Talk(server, "chat", *arguments, terminal=True, **options)
        )


@posix
def test_on_a_terminal_chat_has_a_prompt_and_ctrl_d_leaves(terminal: Callable[..., Talk]) -> None:
    """It says how to get help, shows thought and solution, and ends with code 0."""
    with StandIn() as server:
        talk = terminal(server)
        talk.hear("Ctrl-D leaves")
        talk.hear("> ")
        talk.say("Is it late?\n")
        talk.hear("I reason.")
        talk.hear("The answer is 4.\n")
        talk.hear("tokens (")
        talk.hear("> ", times=2)
        talk.say("\x04")
        assert talk.end() == 0
        assert server.chats[0]["messages"] == build_messages("Is it late?")


@posix
def test_on_a_terminal_several_lines_have_a_prompt_of_their_own(terminal: Callable[..., Talk]) -> None:
    """Each further line is asked for."""
    with StandIn() as server:
        talk = terminal(server)
        talk.hear("> ")
        talk.say('"""\n')
        talk.hear("... ")
        talk.say("one\n")
        talk.hear("... ", times=2)
        talk.say('two"""\n')
        talk.hear("The answer is 4.")
        talk.say("/quit\n")
        assert talk.end() == 0
        assert server.chats[0]["messages"][-1]["content"] == "one\ntwo"


@posix
def test_on_a_terminal_a_line_can_be_called_back(terminal: Callable[..., Talk]) -> None:
    """The arrow up brings the last line, where Python has a readline."""
    pytest.importorskip("readline")
    with StandIn() as server:
        talk = terminal(server)
        talk.hear("> ")
        talk.say("Is it late?\n")
        talk.hear("tokens (")
        talk.hear("> ", times=2)
        talk.say("\x1b[A\n")
        talk.hear("tokens (", times=2)
        talk.say("/quit\n")
        assert talk.end() == 0
        assert [body["messages"][-1]["content"] for body in server.chats] == ["Is it late?"] * 2


@posix
def test_on_a_terminal_lines_of_an_earlier_chat_come_back_and_commands_complete(
    terminal: Callable[..., Talk], tmp_path: Path
) -> None:
    """The arrow up brings the last line of the chat before; the tabulator finishes a command's name."""
    pytest.importorskip("readline")
    kept = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    with StandIn() as server:
        for typed in ("Is it late?\n", "\x1b[A\x1b[A\n"):
            talk = terminal(server, **kept)
            talk.hear("> ")
            talk.say(typed)
            talk.hear("tokens (")
            talk.hear("> ", times=2)
            talk.say("/exi\t\n")
            assert talk.end() == 0
        assert [body["messages"][-1]["content"] for body in server.chats] == ["Is it late?"] * 2
    (lines,) = tmp_path.rglob("chat-lines")
    assert lines.parent.stat().st_mode & 0o077 == 0


@posix
def test_on_a_terminal_ctrl_c_stops_a_reply_and_a_line_and_nothing_else(terminal: Callable[..., Talk]) -> None:
    """Typed during a reply, it ends that; typed at the prompt, it says how to leave; the chat goes on."""
    with StandIn(
        reply=lambda prompt: ENDLESS if "never" in prompt.rpartition("user")[2] else "<think>I reason.</think>It is 4.",
        holds=lambda path, body: "never" in body["messages"][-1]["content"],
    ) as server:
        talk = terminal(server)
        talk.hear("> ")
        talk.say("Is it never late?\n")
        talk.hear("I never end this.")
        talk.say("\x03")
        talk.hear("interrupted")
        assert server.wait_left(CHAT)
        talk.hear("> ", times=2)
        talk.say("half a li")
        talk.hear("half a li")
        talk.press_until("\x03", "/quit leaves")
        talk.hear("> ", times=3)
        talk.say("And now?\n")
        talk.hear("It is 4.")
        talk.say("/quit\n")
        assert talk.end() == 0
        assert "Traceback" not in talk.text["err"]
        assert server.chats[-1]["messages"] == build_messages("And now?")


@posix
def test_answers_can_be_piped_away_from_a_terminal(terminal: Callable[..., Talk]) -> None:
    """With stdout in a pipe, the prompt goes to the terminal and the solutions alone into the pipe."""
    with StandIn() as server:
        talk = terminal(server, out_to_pipe=True)
        talk.hear("> ")
        talk.say("Is it late?\n")
        talk.hear("The answer is 4.\n", where="out")
        talk.hear("> ", times=2)
        talk.say("\x04")
        assert talk.end() == 0
    assert talk.text["out"] == "The answer is 4.\n"


def test_help_names_every_command_of_chat() -> None:
    """And every exit code that a thought can lead to."""
    ran = run_child("chat", "--help")
    assert ran.code == 0
    for flag in ("--history", "--thinking-budget", "--on-unclosed", "--on-loop", "--no-thinking", "--instructions"):
        assert flag in ran.out
    assert RAW not in ran.out
