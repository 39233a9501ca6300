"""The command line, as a script and as a person meets it: real child processes against real HTTP."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ends import ENDS, End
from support import (
    ANY_CHAT,
    EXCHANGES,
    GOOD,
    GUARD,
    HEAD,
    Ran,
    RawServer,
    asked_by_name,
    await_leaving,
    child_environment,
    command,
    delta,
    framed,
    run_child,
    run_several,
    sse,
    whole,
)
from tools import replies as say

from phi4_http import (
    SYSTEM_PROMPT,
    AuthError,
    ContextOverflow,
    EmptyReply,
    LoadFailed,
    ModelLoading,
    ModelNotFound,
    NotLMStudio,
    ServerError,
    ServerUnreachable,
    StreamCut,
    __version__,
)
from phi4_http.cli import main
from phi4_http.errors import SilentOverflow
from phi4_http.tape.matching import Match
from phi4_http.tape.playback import AT_ONCE, Playback
from phi4_http.tape.server import ReplayServer

if os.name == "posix":
    import fcntl
    import pty
    import struct
    import termios

posix = pytest.mark.skipif(os.name != "posix", reason="terminals and signals are those of POSIX")

Address = Callable[..., str]

# --- every shipped chat -----------------------------------------------------------------------------------------------

CODE_OF: Mapping[Any, int] = {
    "complete": 0,
    "thought_unclosed": 10,
    "solution_truncated": 11,
    NotLMStudio: 3,
    ServerUnreachable: 3,
    AuthError: 4,
    ModelNotFound: 5,
    LoadFailed: 6,
    ContextOverflow: 7,
    SilentOverflow: 7,
    ServerError: 8,
    ModelLoading: 8,
    StreamCut: 9,
    EmptyReply: 12,
}
"""The contract: how a reply ended, and the exit code that says so."""


def code_of(end: End) -> int:
    return CODE_OF[end.error or end.outcome]


def line(url: str, name: str, *options: str) -> list[str]:
    silence = ("--timeout", "1") if name == "stalled" else ()
    return ["ask", "What is 7 × 8?", "--url", url, "--model", name, *silence, *options]


def asked(names: Sequence[str], url: str, *options: str) -> dict[str, Ran]:
    """Ask for each in a process of its own, a few at a time."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: run_child(*line(url, name, *options)), names), strict=True))


@pytest.fixture(scope="module")
def as_json(chat_server: Address, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Every chat, asked with `--json`."""
    lines = [(line(chat_server(), name, "--json"), "") for name in ENDS]
    return dict(zip(ENDS, run_several(lines, tmp_path_factory.mktemp("lines")), strict=True))


def test_a_command_says_the_same_in_a_process_of_its_own(as_json: dict[str, Ran], chat_server: Address) -> None:
    """Whatever ran before it: same lines, but for the times, and same code."""
    names = ["several-closers", "overflow-1-frame", "end-inside-a-chunk", "json-instead-of-stream"]
    for name, ran in asked(names, chat_server(), "--json").items():
        timeless = [re.sub(r'"stats": \{[^}]*\}', "", json.dumps(told.objects)) for told in (ran, as_json[name])]
        assert timeless[0] == timeless[1]
        assert (ran.code, ran.err) == (as_json[name].code, "")


@pytest.mark.parametrize("name", ENDS)
def test_json_lines_add_up_and_the_exit_code_says_how_it_ended(as_json: dict[str, Ran], name: str) -> None:
    """Each line is an object; deltas add up to the last one, which has all of the reply or of the error."""
    end, ran = ENDS[name], as_json[name]
    *events, last = ran.objects
    assert ran.code == code_of(end)
    assert ran.err == ""
    thought, solution, kept = None, "", ""
    for event in events:
        match event["type"]:
            case "thinking":
                thought = (thought or "") + event["text"]
            case "thought":
                thought = thought or ""
                assert (event["text"], set(event)) == (thought, {"type", "text", "closed"})
                kept = solution
            case "solution":
                solution += event["text"]
            case "revised":
                thought, solution = (thought or "") + event["text"], kept
            case "waiting":
                assert set(event) == {"type", "phase", "seconds", "share"}
                assert (thought, solution) == (None, ""), "it waits no more once something was said"
            case other:
                pytest.fail(f"a line of type {other}")
    if end.error is None:
        assert (last["type"], last["outcome"]) == ("finished", end.outcome)
        reply = last
    else:
        assert (last["type"], last["error"]) == ("error", end.error.__name__)
        assert last["message"].strip()
        for fact, value in end.facts.items():
            assert fact == "message" or last[fact] == value
        reply = last["partial"]
    if name == "connection-reset":
        return  # how much of it has come is chance
    assert (reply["thought"], reply["solution"], reply["finish_reason"]) == (end.thought, end.solution, end.finish)
    if events:
        assert (thought, solution) == (end.thought, end.solution)
    counts = reply["usage"] and (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"])
    assert counts == end.usage
    assert {"outcome", "stats", "tool_calls", "revisions", "model", "id"} <= set(reply)


AS_TEXT = [
    *("well-formed", "opener-swallowed", "several-closers", "no-tags", "reasoning-content", "tool-calls"),
    *("thought-never-closes", "solution-truncated", "all-in-reasoning", "empty", "cpp-utf8-stream"),
    *("end-inside-a-chunk", "error-frame-object", "overflow-1-400", "unauthorized", "stalled"),
]


@pytest.fixture(scope="module")
def as_text(chat_server: Address, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Some of them, asked as a person would."""
    lines = [(line(chat_server(), name), "") for name in AS_TEXT]
    return dict(zip(AS_TEXT, run_several(lines, tmp_path_factory.mktemp("lines")), strict=True))


@pytest.mark.parametrize("name", AS_TEXT)
def test_stdout_holds_the_solution_and_nothing_else(as_text: dict[str, Ran], name: str) -> None:
    """In a pipe: the solution with a line end; thought and what went wrong on stderr; the code says how it ended."""
    end, ran = ENDS[name], as_text[name]
    assert ran.out == (f"{end.solution}\n" if end.solution else "")
    assert ran.code == code_of(end)
    assert "Traceback" not in ran.err
    assert "\x1b" not in ran.out + ran.err
    if end.revisions == 0:
        assert ran.err.startswith(end.thought or "")
    else:
        for line in (end.thought or "").replace("</think>", "").split("\n"):
            assert line.strip() in ran.err
    if ran.code:
        assert ran.err.splitlines()[-1].startswith("phi4_http: ")


def test_the_thought_can_be_left_out(chat_server: Address) -> None:
    """With --no-thinking nothing but the solution is printed anywhere; in JSON its deltas are left out."""
    ran = run_child(*line(chat_server(), "opener-swallowed", "--no-thinking"))
    assert (ran.out, ran.err) == (f"{say.PRIME_SOLUTION}\n", "")
    quiet = run_child(*line(chat_server(), "well-formed", "--no-thinking", "--json"))
    types = [told["type"] for told in quiet.objects]
    assert "thinking" not in types
    assert types[-1] == "finished"


def test_the_figures_are_told_on_request(chat_server: Address) -> None:
    """--stats is one more line on stderr."""
    ran = run_child(*line(chat_server(), "well-formed", "--stats", "--no-thinking"))
    assert ran.out == f"{say.TRAINS_SOLUTION}\n"
    (figures,) = ran.err.strip().splitlines()
    assert figures.startswith("complete, first token after ")
    assert "286 + 479 tokens" in figures


def test_tool_calls_are_shown(as_text: dict[str, Ran]) -> None:
    """Each on a line of stderr, with its arguments."""
    assert 'tool call weather({"city": "Zürich"})' in as_text["tool-calls"].err


def test_an_error_has_its_own_sentence_in_json(as_json: dict[str, Ran]) -> None:
    """`message` is what a person would read, also where the server said nothing at all."""
    assert "loaded context length" in as_json["overflow-8-no-done"].objects[-1]["message"]
    assert "8,192" in as_json["overflow-1-400"].objects[-1]["message"]


# --- where the prompt comes from, and what is sent --------------------------------------------------------------------


@contextlib.contextmanager
def good_server(answer: bytes = GOOD) -> Iterator[RawServer]:
    """A server that answers every request with one reply, keeps what it was asked, and says that it closes then."""
    head = HEAD.removesuffix(b"\r\n") + b"Connection: close\r\n\r\n"
    with RawServer(lambda connection, request: connection.sendall(head + framed(answer) + b"0\r\n\r\n")) as server:
        yield server


def body_of(request: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(request.partition(b"\r\n\r\n")[2])
    return value


TEXT = "Wie groß ist 7 × 8?\n🧠\n"


@pytest.mark.parametrize("source", ["argument", "file", "dash", "pipe"])
def test_the_prompt_comes_from_wherever_it_is(tmp_path: Path, source: str) -> None:
    """An argument, a file, stdin by `-`, or stdin because it is a pipe: the same text goes out."""
    file = tmp_path / "prompt.txt"
    file.write_bytes(TEXT.encode())
    line, stdin = {
        "argument": ((TEXT,), b""),
        "file": (("--file", str(file), "--no-stdin"), b"not this"),
        "dash": (("-",), TEXT.encode()),
        "pipe": ((), TEXT.encode()),
    }[source]
    with good_server() as server:
        ran = run_child("ask", *line, "--url", server.url, "--model", "m", "--system", "send", stdin=stdin)
    assert (ran.code, ran.out) == (0, "56\n")
    assert body_of(server.requests[0])["messages"][-1] == {"role": "user", "content": TEXT}


def test_every_option_of_a_request_reaches_the_server() -> None:
    """Model, instructions, sampling and further fields are in the body, with the types that they have."""
    options = {
        **{"-m": "some/model", "-i": "Be brief.", "--temperature": "0.5", "--top-p": "0.9", "--top-k": "40"},
        **{"--min-p": "0.05", "--repeat-penalty": "1.1", "--presence-penalty": "-0.5", "--frequency-penalty": "0.25"},
        **{"--seed": "7", "--max-tokens": "-1", "--ttl": "300"},
    }
    several = ["--stop", "A", "--stop", "B", "--param", 'a="high"', "--param", "n=1", "--param", 'x={"y":[1,null]}']
    line = [part for option in options.items() for part in option]
    with good_server() as server:
        ran = run_child("ask", "Hello", "--url", server.url, "--system", "send", *line, *several)
    assert ran.code == 0, ran.err
    assert body_of(server.requests[0]) == {
        "model": "some/model",
        "messages": [
            {"role": "system", "content": f"{SYSTEM_PROMPT}\n\nBe brief."},
            {"role": "user", "content": "Hello"},
        ],
        **{"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repeat_penalty": 1.1},
        **{"presence_penalty": -0.5, "frequency_penalty": 0.25, "seed": 7, "max_tokens": -1, "ttl": 300},
        **{"stop": ["A", "B"], "a": "high", "n": 1, "x": {"y": [1, None]}},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_models_own_sampling_goes_out_by_default() -> None:
    """And nothing else that was not asked for; the model is the server's own."""
    listed = {"data": [{"id": "x/phi-4-reasoning-plus@q8_0", "state": "loaded"}]}

    def script(connection: Any, request: bytes) -> bool:
        get = request.startswith(b"GET")
        connection.sendall(whole(json.dumps(listed).encode()) if get else HEAD + framed(GOOD) + b"0\r\n\r\n")
        return True

    with RawServer(script) as server:
        ran = run_child("ask", "Hello", "--url", server.url)
    assert ran.code == 0, ran.err
    body = body_of(server.requests[-1])
    del body["messages"]
    assert body == {
        "model": "x/phi-4-reasoning-plus@q8_0",
        **{"temperature": 0.8, "top_p": 0.95, "top_k": 50},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_token_comes_from_the_environment_and_is_shown_nowhere() -> None:
    """It is in the request's header; there is no option for it, which other people could see."""
    token = "lms-7f3a-secret"
    refused = whole(b'{"error":{"message":"no","code":"invalid_api_key"}}').replace(b"200 OK", b"401 No")
    with RawServer(lambda connection, request: connection.sendall(refused)) as server:
        ran = run_child("ask", "x", "--url", server.url, "--model", "m", LM_API_TOKEN=token)
        assert f"Authorization: Bearer {token}".encode() in server.requests[0]
    assert ran.code == 4
    assert "LM_API_TOKEN" in ran.err
    assert token not in ran.out + ran.err
    assert run_child("ask", "x", "--token", token).code == 2


# --- nothing there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [["ask", "Hello"], ["models"]])
def test_with_nothing_listening_it_says_what_to_do(unused_port: int, line: list[str]) -> None:
    """Exit code 3, in two lines at most, with the address and the command that starts a server."""
    ran = run_child(*line, "--url", f"http://127.0.0.1:{unused_port}")
    assert (ran.code, ran.out) == (3, "")
    assert len(ran.err.splitlines()) <= 2
    assert "Traceback" not in ran.err
    assert f"127.0.0.1:{unused_port}" in ran.err
    assert "lms server start" in ran.err


def test_with_nothing_listening_json_says_so_too(unused_port: int) -> None:
    """One object, on stdout."""
    ran = run_child("ask", "Hello", "--json", "--url", f"http://127.0.0.1:{unused_port}")
    (line,) = ran.objects
    assert (ran.code, ran.err) == (3, "")
    assert (line["type"], line["error"], line["timed_out"]) == ("error", "ServerUnreachable", False)


# --- wrong usage ------------------------------------------------------------------------------------------------------

WRONG = {
    "unknown command": ["aks", "x"],
    "unknown option": ["ask", "x", "--colour"],
    "empty prompt": ["ask", ""],
    "blank prompt": ["ask", " \n"],
    "stdin twice": ["ask", "-", "--file", "-"],
    "stdin that is forbidden": ["ask", "-", "--no-stdin"],
    "no such file": ["ask", "--file", "no/such/file"],
    "a folder": ["ask", "--file", os.path.dirname(__file__)],
    "temperature below 0": ["ask", "x", "--temperature", "-1"],
    "temperature no number": ["ask", "x", "--temperature", "hot"],
    "temperature nan": ["ask", "x", "--temperature", "nan"],
    "top-p above 1": ["ask", "x", "--top-p", "2"],
    "top-k no whole number": ["ask", "x", "--top-k", "1.5"],
    "max-tokens 0": ["ask", "x", "--max-tokens", "0"],
    "ttl 0": ["ask", "x", "--ttl", "0"],
    "param without a value": ["ask", "x", "--param", "seed"],
    "param without a name": ["ask", "x", "--param", "=1"],
    "param that is no JSON": ["ask", "x", "--param", "name=text"],
    "param of the call itself": ["ask", "x", "--param", 'model="x"'],
    "param that JSON can't hold": ["ask", "x", "--param", "x=NaN"],
    "blank model": ["ask", "x", "--model", " "],
    "url of another scheme": ["ask", "x", "--url", "ftp://127.0.0.1"],
    "url with a wrong port": ["models", "--url", "http://127.0.0.1:99999"],
    "timeout 0": ["ask", "x", "--timeout", "0"],
    "timeout without end": ["ask", "x", "--timeout", "inf"],
    "half a character": ["ask", "a\udc80"],
    "demo of nothing": ["demo", "no-such-reply"],
    "demo at a speed below 0": ["demo", "--speed", "-1"],
    "demo at no speed": ["demo", "--speed", "nan"],
    "demo at any speed": ["demo", "--speed", "inf"],
    "split with one tag": ["split", "--tags", "<a>"],
    "split with a tag in a tag": ["split", "--tags", "<a>", "<a>b"],
}


@pytest.mark.parametrize("line", WRONG.values(), ids=WRONG)
def test_wrong_usage_is_told_and_nothing_is_sent(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, words on stderr, nothing on stdout, and no request."""
    with good_server() as server:
        if line[:1] == ["ask"] and "--url" not in line:
            line = [*line, "--url", server.url, *([] if "--model" in line else ["--model", "m"])]
        try:
            code: Any = main(line)
        except SystemExit as exit:
            code = exit.code
        assert server.connections == 0
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert told.err.strip()


def test_an_empty_stdin_is_no_prompt() -> None:
    """A pipe that brings nothing is wrong usage."""
    with good_server() as server:
        ran = run_child("ask", "--url", server.url, "--model", "m")
    assert (ran.code, ran.out, server.requests) == (2, "", [])
    assert "prompt is empty" in ran.err


def test_input_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    """From stdin and from a file: told as such, nothing is sent, no character is guessed."""
    file = tmp_path / "latin-1.txt"
    file.write_bytes(b"gr\xf6\xdfer")
    with good_server() as server:
        for line, stdin in ((["-"], b"gr\xf6\xdfer"), (["-f", str(file)], b"")):
            ran = run_child("ask", *line, "--url", server.url, "--model", "m", "--system", "send", stdin=stdin)
            assert (ran.code, ran.out) == (2, "")
            assert "UTF-8" in ran.err or "utf-8" in ran.err
            assert len(ran.err.splitlines()) == 1
    assert server.requests == []


@posix
def test_an_argument_that_is_no_utf8_is_refused() -> None:
    """Bytes that the shell passed on and Python could not read."""
    with good_server() as server:
        line = [*map(os.fsencode, command("ask", "--url", server.url, "--model", "m")), b"gr\xf6\xdfer"]
        done = subprocess.run(line, capture_output=True, env=child_environment(), cwd="/", timeout=GUARD, check=False)
    assert (done.returncode, done.stdout, server.requests) == (2, b"", [])
    assert b"Traceback" not in done.stderr


# --- characters -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_server() -> Iterator[str]:
    """A server whose reply has every kind of character, half ones included."""
    answer = sse(delta("<think>中 🧠"), delta("</think>é \ud83d x 🧠"), delta(finish="stop"))
    with good_server(answer) as server:
        yield server.url


def test_half_a_character_in_a_reply_is_written_as_the_sign_for_it(odd_server: str) -> None:
    """As text and in JSON, which stays valid and says the same."""
    ran = run_child("ask", "x", "--url", odd_server, "--model", "m")
    assert (ran.code, ran.out) == (0, "é \ufffd x 🧠\n")
    assert ran.err == "中 🧠\n"
    last = run_child("ask", "x", "--url", odd_server, "--model", "m", "--json").objects[-1]
    assert last["solution"] == "é \ufffd x 🧠"


def test_an_output_that_holds_ascii_only_gets_escapes(odd_server: str) -> None:
    """No character breaks the output, whatever the locale; JSON says the same in ASCII."""
    settings: dict[str, Any] = {"PYTHONUTF8": None, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    ran = run_child("ask", "x", "--url", odd_server, "--model", "m", **settings)
    assert (ran.code, ran.out) == (0, "\\xe9 \\ufffd x \\U0001f9e0\n")
    assert ran.err == "\\u4e2d \\U0001f9e0\n"
    ran = run_child("ask", "x", "--url", odd_server, "--model", "m", "--json", **settings)
    assert ran.out.isascii()
    assert ran.objects[-1]["solution"] == "é \ufffd x 🧠"


# --- leaving ----------------------------------------------------------------------------------------------------------


class Child:
    """A child process whose output is read while it runs."""

    def __init__(self, *arguments: str, out: int = subprocess.PIPE, err: int = subprocess.PIPE, **more: Any) -> None:
        env = child_environment(**more.pop("variables", {}))
        self.process = subprocess.Popen(
            command(*arguments), stdin=more.pop("stdin", subprocess.DEVNULL), stdout=out, stderr=err, env=env, cwd="/"
        )
        self.out = self.err = ""

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def read_until(self, found: Callable[[], bool]) -> None:
        """Read both pipes until something is there, or both have ended."""
        pipes: dict[Any, str] = {self.process.stdout: "out", self.process.stderr: "err"}
        until = time.monotonic() + GUARD
        while not found():
            ready, _, _ = select.select([pipe for pipe in pipes if pipe], [], [], 0.5)
            for pipe in ready:
                data = os.read(pipe.fileno(), 65536).decode()
                setattr(self, pipes[pipe], getattr(self, pipes[pipe]) + data)
                if not data:
                    del pipes[pipe]
            assert time.monotonic() < until, (self.out, self.err)
            if not [pipe for pipe in pipes if pipe]:
                return

    def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        self.read_until(lambda: False)
        return self.process.wait(GUARD)


@posix
def test_an_interrupt_inside_the_reply_prints_what_came(chat_server: Address) -> None:
    """Ctrl-C: exit code 130, the solution so far on stdout, one word on stderr."""
    with Child("ask", "x", "--url", chat_server(), "--model", "stalled", "--system", "send") as child:
        child.read_until(lambda: "7 × 8 = 56." in child.err)
        time.sleep(0.5)  # so that the rest has come, too
        code = child.interrupt()
    assert (code, child.out) == (130, "7 × 8\n")
    assert child.err == "7 × 8 = 56.\nphi4_http: interrupted\n"


@posix
def test_an_interrupt_in_json_is_the_end_of_the_reply(chat_server: Address) -> None:
    """The last line has what came, and says that it was cancelled."""
    with Child("ask", "x", "--json", "--url", chat_server(), "--model", "stalled", "--system", "send") as child:
        child.read_until(lambda: child.out.count('"solution"') == 4)
        code = child.interrupt()
    last = json.loads(child.out.splitlines()[-1])
    assert (code, child.err) == (130, "")
    assert (last["type"], last["outcome"]) == ("finished", "cancelled")
    assert (last["thought"], last["solution"]) == ("7 × 8 = 56.", "7 × 8")


@posix
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_interrupt_while_the_prompt_is_processed_is_an_interrupt(options: list[str]) -> None:
    """Before the first byte too, which can take minutes: exit code 130, no traceback, and the server is left."""

    def silent(connection: Any, request: bytes) -> None:
        await_leaving(connection)
        server.left.set()

    line = ("ask", "x", "--system", "send", "--model", "m", *options)
    with RawServer(silent) as server, Child(*line, "--url", server.url) as child:
        assert server.asked.wait(GUARD)
        time.sleep(0.2)  # so that it waits for the answer
        assert child.interrupt() == 130
        assert server.left.wait(GUARD)
    if options:
        assert json.loads(child.out)["outcome"] == "cancelled"
    else:
        assert (child.out, child.err) == ("", "phi4_http: interrupted\n")


@posix
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_leaves_is_no_traceback(chat_server: Address, options: list[str]) -> None:
    """As in `… | head -c1`: the end is quiet, and it is not 0."""
    with Child("ask", "x", "--url", chat_server(), "--model", "well-formed", "--no-thinking", *options) as child:
        assert child.process.stdout is not None
        if options:
            os.read(child.process.stdout.fileno(), 1)
        child.process.stdout.close()
        child.process.stdout = None
        child.read_until(lambda: False)
        code = child.process.wait(GUARD)
    assert child.err == ""
    assert code not in (0, 1)


@posix
@pytest.mark.parametrize("closed", ["0<&-", ">&-", "2>&-"])
def test_a_stream_that_is_closed_is_no_traceback(chat_server: Address, closed: str) -> None:
    """A process may be started with no stdin, no stdout or no stderr at all."""
    line = " ".join(command("ask", "x", "--url", chat_server(), "--model", "no-tags"))
    done = subprocess.run(
        f"{line} {closed}",
        shell=True,
        capture_output=True,
        env=child_environment(),
        cwd="/",
        timeout=GUARD,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    if closed != ">&-":
        assert (done.returncode, done.stdout.decode()) == (0, f"{say.SHORT_SOLUTION}\n")


# --- on a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """A child process on a terminal: what it wrote, and what would be seen of it."""

    def __init__(self, *arguments: str, out: bool = True, **variables: str | None) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 2000, 0, 0))  # no line is broken here
        settings = {"TERM": "xterm-256color", **variables}
        self.piped = ""
        with Child(
            *arguments, stdin=theirs, out=theirs if out else subprocess.PIPE, err=theirs, variables=settings
        ) as child:
            os.close(theirs)
            self.written = self._read(ours)
            if child.process.stdout is not None:
                self.piped = child.process.stdout.read().decode()
            self.code = child.process.wait(GUARD)
        os.close(ours)

    @staticmethod
    def _read(ours: int) -> str:
        data = b""
        until = time.monotonic() + GUARD
        while time.monotonic() < until:
            if not select.select([ours], [], [], 0.5)[0]:
                continue
            try:
                more = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not more:
                break
            data += more
        return data.decode().replace("\r\n", "\n")

    @property
    def seen(self) -> str:
        """What is left on the screen: lines that were cleared are gone, colours are no text."""
        lines = re.sub(r"\x1b\[[02]m", "", self.written).split("\n")
        return "\n".join(line.rpartition("\r\x1b[K")[2] for line in lines)


@pytest.fixture(scope="module")
def slow_server() -> Iterator[str]:
    """Servers that take their time: half a second before the first word, or most of one inside the thought."""
    names = {"keep-alive-comments": 5.0, "thought-never-closes": 20.0}
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                ReplayServer(
                    asked_by_name([EXCHANGES[name]]),
                    playback=Playback(speed=speed),
                    match=Match(ignore=ANY_CHAT, loop=True),
                )
            )
            for name, speed in names.items()
        }
        yield json.dumps({name: server.url for name, server in servers.items()})


@posix
def test_on_a_terminal_a_status_line_shows_the_wait_and_vanishes(slow_server: str) -> None:
    """It is there while nothing comes, nothing of it is left, and the thought is dim where the solution is not."""
    url = json.loads(slow_server)["keep-alive-comments"]
    terminal = Terminal("ask", "x", "--url", url, "--model", "keep-alive-comments")
    assert terminal.code == 0
    assert "processing the prompt 0 s" in terminal.written
    assert terminal.seen == f"{say.SHORT_THOUGHT}\n\n{say.SHORT_SOLUTION}\n"
    dim = "".join(re.findall(r"\x1b\[2m(.*?)\x1b\[0m", terminal.written, re.DOTALL))
    assert say.SHORT_THOUGHT in dim.rpartition(" s")[2]
    assert "**56**" not in dim


@posix
def test_on_a_terminal_the_status_tells_how_the_thought_goes_where_it_is_not_shown(slow_server: str) -> None:
    """With --no-thinking there is something to see all the same: how many tokens it has thought."""
    url = json.loads(slow_server)["thought-never-closes"]
    terminal = Terminal("ask", "x", "--no-thinking", "--url", url, "--model", "thought-never-closes")
    assert re.search(r"thinking \d+ tokens \d+ s", terminal.written)
    assert terminal.code == 10
    assert terminal.seen.startswith("phi4_http: the model stopped inside its thought")


@posix
def test_a_pipe_beside_a_terminal_gets_the_solution_alone(slow_server: str) -> None:
    """`ask … > file`: status and thought are on the terminal, and not a byte of them in the file."""
    url = json.loads(slow_server)["keep-alive-comments"]
    terminal = Terminal("ask", "x", "--url", url, "--model", "keep-alive-comments", out=False)
    assert terminal.piped == f"{say.SHORT_SOLUTION}\n"
    assert "processing the prompt" in terminal.written
    assert terminal.seen == f"{say.SHORT_THOUGHT}\n"


@posix
def test_json_on_a_terminal_is_json_alone(slow_server: str) -> None:
    """No status, no colour."""
    url = json.loads(slow_server)["keep-alive-comments"]
    terminal = Terminal("ask", "x", "--json", "--url", url, "--model", "keep-alive-comments")
    assert [json.loads(line) for line in terminal.written.splitlines()][-1]["type"] == "finished"


@posix
def test_no_color_is_honoured(slow_server: str) -> None:
    """NO_COLOR takes the dimness away, and nothing else."""
    url = json.loads(slow_server)["keep-alive-comments"]
    terminal = Terminal("ask", "x", "--url", url, "--model", "keep-alive-comments", NO_COLOR="1")
    assert "\x1b[2m" not in terminal.written
    assert terminal.seen == f"{say.SHORT_THOUGHT}\n\n{say.SHORT_SOLUTION}\n"


@posix
def test_a_terminal_that_knows_nothing_gets_plain_text(slow_server: str) -> None:
    """TERM=dumb: no escape at all, so no status line either."""
    url = json.loads(slow_server)["keep-alive-comments"]
    terminal = Terminal("ask", "x", "--url", url, "--model", "keep-alive-comments", TERM="dumb")
    assert "\x1b" not in terminal.written
    assert "processing" not in terminal.written
    assert say.SHORT_THOUGHT in terminal.written
    assert terminal.written.endswith(f"{say.SHORT_SOLUTION}\n")


@posix
def test_on_a_terminal_a_revision_is_told(chat_server: Address) -> None:
    """Text that was shown as the solution and was thought is followed by a word on it, and then by the solution."""
    terminal = Terminal("ask", "x", "--url", chat_server(), "--model", "opener-swallowed")
    shown, told, rest = terminal.seen.partition("(all of that was the thought)")
    assert told
    assert shown.strip() == say.PRIME_THOUGHT.strip()
    assert rest.strip() == say.PRIME_SOLUTION


@posix
def test_without_a_prompt_a_terminal_is_not_waited_for() -> None:
    """`ask` with neither prompt nor pipe is wrong usage: it never asks back."""
    terminal = Terminal("ask")
    assert terminal.code == 2
    assert "no prompt was given" in terminal.seen


# --- split ------------------------------------------------------------------------------------------------------------


def cases() -> list[dict[str, Any]]:
    folder = Path(__file__).parent.parent / "cases"
    files = [folder / "think_cases.json", folder / "more_think_cases.json"]
    found = [case for file in files for case in json.loads(file.read_text(encoding="utf-8"))]
    return [case for case in found if "reasoning" not in case]


def options_of(case: Mapping[str, Any]) -> list[str]:
    line = []
    for name, value in case.get("options", {}).items():
        line += [f"--{name}", *([value] if isinstance(value, str) else value)]
    return line


def test_split_holds_every_case(tmp_path: Path) -> None:
    """Every case of the think rules through the command: thought, closed, solution and revisions are as written."""
    wanted = cases()
    assert len(wanted) > 50
    wrong = []
    told = run_several([(["split", "--json", *options_of(case)], case["text"]) for case in wanted], tmp_path)
    for case, ran in zip(wanted, told, strict=True):
        last = ran.objects[-1]
        got = (last["thought"], last["thought_closed"], last["solution"], last["revisions"])
        if (ran.code, got) != (0, (case["thought"], case["closed"], case["solution"], case["revisions"])):
            wrong.append((case["id"], ran.code, got))
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("<think>a</th", [("thinking", "a"), ("thinking", "</th"), ("thought", "a</th"), ("finished", None)]),
        ("<think>a</think>b", [("thinking", "a"), ("thought", "a"), ("solution", "b"), ("finished", None)]),
        ("a</think>b", [("solution", "a"), ("revised", "a"), ("thought", "a"), ("solution", "b"), ("finished", None)]),
        ("", [("finished", None)]),
    ],
)
def test_split_is_a_filter(text: str, lines: list[tuple[str, str | None]]) -> None:
    """Text on stdin, events out, the last one with everything."""
    ran = run_child("split", "--json", stdin=text.encode())
    assert ran.code == 0
    assert [(line["type"], line.get("text")) for line in ran.objects] == lines


def test_split_without_json_parts_the_two() -> None:
    """Solution to stdout, thought to stderr; a revision does not reach stdout."""
    ran = run_child("split", stdin=b"was thought</think>\n\nthe answer")
    assert (ran.code, ran.out) == (0, "the answer\n")
    assert "was thought" in ran.err


def test_split_of_what_is_no_utf8_replaces_it() -> None:
    """A filter goes on; a character that was cut at the end of the input is replaced, too."""
    ran = run_child("split", stdin=b"<think>\xff</think>gr\xf6\xdfe \xe4\xb8")
    assert (ran.code, ran.out) == (0, "gr\ufffd\ufffde \ufffd\n")


@posix
def test_split_hands_on_what_it_has() -> None:
    """It does not wait for more than it needs: an event is out before the input has ended."""
    with Child("split", "--json", stdin=subprocess.PIPE) as child:
        assert child.process.stdin is not None
        child.process.stdin.write(b"<think>\xe4\xb8\xade")
        child.process.stdin.flush()
        child.read_until(lambda: "\n" in child.out)
        assert json.loads(child.out.splitlines()[0]) == {"type": "thinking", "text": "中e"}
        child.process.stdin.close()
        child.read_until(lambda: False)
        assert child.process.wait(GUARD) == 0


# --- models -----------------------------------------------------------------------------------------------------------


def test_the_models_are_a_table() -> None:
    """Name, state, context and build, what is unknown as such; in JSON all there is, one model a line."""
    with ReplayServer([EXCHANGES["v0-models"]], playback=AT_ONCE, match=Match(loop=True)) as server:
        table = run_child("models", "--url", server.url)
        lines = run_child("models", "--url", f"{server.url}/v1", "--json")
    assert table.out.splitlines() == [
        "NAME                                  STATE       CONTEXT         QUANTIZATION  SIZE",
        "microsoft/phi-4-reasoning-plus        loaded      8,192 / 32,768  Q4_K_M        ?",
        "qwen/qwen3-8b                         not-loaded  - / 40,960      Q4_K_M        ?",
        "text-embedding-nomic-embed-text-v1.5  not-loaded  - / 2,048       Q4_K_M        ?",
    ]
    assert (table.code, table.err, lines.code) == (0, "", 0)
    phi = lines.objects[0]
    assert (phi["type"], phi["id"], phi["state"], phi["loaded_context_length"]) == (
        "model",
        "microsoft/phi-4-reasoning-plus",
        "loaded",
        8192,
    )


def test_the_models_of_a_server_that_tells_names_alone() -> None:
    """What it does not tell is unknown, and what llama.cpp tells is there."""
    with ReplayServer([EXCHANGES["cpp-models"]], playback=AT_ONCE, match=Match(loop=True)) as server:
        ran = run_child("models", "--url", server.url)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[1].split() == [
        "tiny-phi-4-reasoning-plus",
        "?",
        "4,096",
        "/",
        "32,768",
        "?",
        "0.00",
        "GiB",
    ]


def test_a_server_with_no_model_says_so() -> None:
    """On stderr: stdout is empty, as is the list."""
    empty = whole(b'{"object":"list","data":[]}')
    with RawServer(lambda connection, request: connection.sendall(empty)) as server:
        ran = run_child("models", "--url", server.url)
    assert (ran.code, ran.out, ran.err) == (0, "", "the server lists no model\n")


# --- demo -------------------------------------------------------------------------------------------------------------


def test_the_demo_needs_no_server() -> None:
    """State, context and a streamed reply, over real HTTP, with nothing installed but this."""
    ran = run_child("demo", "--speed", "0")
    assert (ran.code, ran.out) == (0, f"{say.TRAINS_SOLUTION}\n")
    assert "microsoft/phi-4-reasoning-plus: loaded, context 8,192 / 32,768 tokens" in ran.err
    assert say.TRAINS in ran.err
    assert say.TRAINS_THOUGHT in ran.err
    assert "composed" in ran.err


def test_the_demo_lists_every_reply_that_it_has() -> None:
    """Names with where they come from; in JSON one a line."""
    table = run_child("demo", "--list")
    assert table.code == 0
    assert {line.split()[0] for line in table.out.splitlines()[1:]} == set(ENDS)
    lines = run_child("demo", "--list", "--json").objects
    assert {line["name"] for line in lines} == set(ENDS)
    assert {line["origin"] for line in lines} == {"recorded", "composed"}


def test_the_demo_keeps_the_pauses_divided_by_the_speed() -> None:
    """1.18 s were recorded; at four times the speed a quarter of it is the least that it takes."""
    last = run_child("demo", "no-tags", "--json", "--speed", "4").objects[-1]
    assert last["stats"]["total_time"] > 0.28


@pytest.mark.parametrize("name", [name for name in ENDS if name != "stalled"])
def test_every_reply_can_be_seen_in_the_demo(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ends with the exit code of its outcome."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["demo", name, "--speed", "0", "--no-thinking"]) == code_of(ENDS[name])
    told = capsys.readouterr()
    if name != "connection-reset":
        assert told.out == (f"{ENDS[name].solution}\n" if ENDS[name].solution else "")


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_every_exit_code() -> None:
    """What a script needs to know is on the first page."""
    ran = run_child("--help")
    assert (ran.code, ran.err) == (0, "")
    for name in ("ask", "split", "models", "demo"):
        assert re.search(rf"^ +{name} ", ran.out, re.MULTILINE)
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 130):
        assert re.search(rf"^ +{code} +\w", ran.out, re.MULTILINE)


def test_the_version_is_that_of_the_package() -> None:
    """On stdout, alone."""
    assert run_child("--version").out == f"phi4_http {__version__}\n"
