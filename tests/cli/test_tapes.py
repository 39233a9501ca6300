"""`serve`, `record` and `tape` as child processes, with real clients."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support import CHAT, EXCHANGES, GUARD, RawServer, child_environment, command, run_child

from phi4_http.tape.format import load_tape
from phi4_http.tape.server import ReplayServer
from phi4_http.tape.shipped import shipped

PROMPT = "Is 391 a prime number?"


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[str]:
    """A command that serves until it is interrupted; its address."""
    child = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment()
    )
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip()
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=GUARD)
        assert child.returncode == 0
        assert "Traceback" not in said
    finally:
        child.kill()
        child.communicate()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The composed tape, served."""
    with running("serve", "phi4", "--speed", "0", "--any-body", "--loop") as url:
        yield url


def test_serve_answers_any_client_byte_for_byte() -> None:
    """A request of the tape gets its body, another one a 404 that says what is."""
    exchange = EXCHANGES["well-formed"]
    with running("serve", "phi4", "--speed", "0") as url, httpx.Client(base_url=url) as client:
        assert client.post(CHAT, json=exchange.request.body).content == exchange.body
        missing = client.post(CHAT, json={"model": "other", "messages": []})
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "not_on_tape"


def test_serve_says_what_it_was_asked(server: str) -> None:
    """With --json, its address and then each request is an object a line."""
    with running("serve", "phi4", "--speed", "0", "--json") as line:
        assert json.loads(line)["type"] == "listening"
        assert httpx.get(json.loads(line)["url"] + "/api/v0/models").status_code == 200


def test_what_ask_gets_is_recorded_and_replayed(server: str, tmp_path: Path) -> None:
    """The same solution from the tape, with no server there; another prompt is not on it."""
    tape = str(tmp_path / "tape")
    asked = run_child("record", tape, "--", "ask", PROMPT, "--model", "m", "--url", server)
    again = run_child("ask", PROMPT, "--model", "m", "--replay", tape)
    assert (again.code, again.out) == (asked.code, asked.out)
    other = run_child("ask", "Is 17 a prime number?", "--model", "m", "--replay", tape)
    assert other.code == 14
    assert PROMPT in other.err
    assert "Is 17 a prime number?" in other.err


def test_a_tape_is_not_overwritten_unless_asked(server: str, tmp_path: Path) -> None:
    """By default only an empty one is recorded onto; `new` adds, `all` replaces."""
    tape = str(tmp_path / "tape")
    ask = ("--", "ask", PROMPT, "--model", "m", "--url", server)
    run_child("record", tape, *ask)
    assert run_child("record", tape, *ask).code == 2
    assert len(load_tape(tape)) == 1
    run_child("record", tape, "--mode", "new", *ask)
    assert len(load_tape(tape)) == 2
    run_child("record", tape, "--mode", "all", *ask)
    assert len(load_tape(tape)) == 1


def test_the_proxy_records_any_client(server: str, tmp_path: Path) -> None:
    """What passes through is what the server sent, and what the tape has; the token is not on it."""
    with (
        running("record", str(tmp_path / "tape"), "--listen", "0", "--upstream", server) as url,
        httpx.Client(headers={"Authorization": "Bearer sk-very-secret"}) as client,
    ):
        body = client.post(url + CHAT, json={"model": "m", "messages": [{"role": "user", "content": PROMPT}]}).content
    (exchange,) = load_tape(tmp_path / "tape")
    assert exchange.body == body
    assert body
    assert all(b"sk-very-secret" not in file.read_bytes() for file in (tmp_path / "tape").iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ("record", "{}"),
        ("record", "{}", "--upstream", "nowhere"),
        ("record", "{}", "--", "split"),
        ("record", "{}", "--scrub", "(", "--", "ask", "x"),
        ("serve", "{}"),
        ("serve", "phi4", "--speed", "-1"),
        ("serve", "phi4", "--port", "99999"),
        ("tape", "show", "phi4", "nope"),
        ("tape", "cat", "nope"),
        ("tape", "check", "{}"),
    ],
)
def test_wrong_usage_is_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """It says what was wrong, with no traceback, and leaves no file."""
    ran = run_child(*(argument.format(tmp_path / "none") for argument in arguments))
    assert ran.code in (2, 14)
    assert ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_cat_writes_the_body_and_nothing_else() -> None:
    """Byte for byte, by path or by the name of one that comes along."""
    body = EXCHANGES["cpp-utf8-stream"].body.decode()
    assert run_child("tape", "cat", "cpp-utf8-stream").out == body
    assert run_child("tape", "cat", str(shipped("llama_cpp") / "cpp-utf8-stream")).out == body


def test_show_has_a_line_an_exchange_and_a_time_line() -> None:
    """Every name is in the table; a named one is drawn, with its first pieces."""
    table = run_child("tape", "show", "llama_cpp").out
    assert all(exchange.name in table for exchange in load_tape(shipped("llama_cpp")))
    drawn = run_child("tape", "show", "phi4", "well-formed", "--pieces", "2").out
    assert "usual pause" in drawn
    assert "more pieces" in drawn


def test_check_tells_a_whole_tape_from_a_broken_one(tmp_path: Path) -> None:
    """0 for the shipped ones; 14, file and field for one that was tampered with."""
    assert run_child("tape", "check", "llama_cpp").code == 0
    for suffix in (".json", ".sse"):
        source = shipped("llama_cpp") / f"cpp-utf8-stream{suffix}"
        (tmp_path / source.name).write_bytes(source.read_bytes())
    with open(tmp_path / "cpp-utf8-stream.sse", "ab") as body:
        body.write(b"x")
    told = run_child("tape", "check", str(tmp_path))
    assert (told.code, "cpp-utf8-stream.json: body.bytes: " in told.out) == (14, True)
    ran = run_child("tape", "check", str(tmp_path), "--json")
    assert ran.code == 14
    assert [problem["file"].endswith("cpp-utf8-stream.json") for problem in ran.objects] == [True]


def test_replay_finds_what_serve_finds() -> None:
    """A tape that comes along, by its name."""
    ran = run_child("models", "--replay", "phi4")
    assert ran.code == 0
    assert "microsoft/phi-4-reasoning-plus" in ran.out
    assert run_child("models", "--replay", "phi5").code == 14


@pytest.mark.parametrize("place", ["q.txt", "q.txt/x", "/proc/x", "/dev/null/x"])
def test_a_tape_that_can_be_none_is_told_before_anything_is_sent(tmp_path: Path, place: str) -> None:
    """A file in its place, or one that can hold no folder: by name, with nothing asked and nothing left."""
    (tmp_path / "q.txt").write_text("hi")
    asked: list[bytes] = []
    with RawServer(lambda connection, request: asked.append(request)) as server:
        for arguments in (("--", "ask", "hi", "--url", server.url), ("--listen", "0", "--upstream", server.url)):
            ran = run_child("record", str(tmp_path / place), *arguments)
            assert ran.code in (2, 14)
            assert place.rpartition("/")[2] in ran.err
            assert ran.err.count("\n") == 1
    assert asked == []
    assert [file.name for file in tmp_path.iterdir()] == ["q.txt"]


def test_a_server_that_is_not_there_leaves_no_folder(tmp_path: Path) -> None:
    """Nothing was recorded, so nothing is there."""
    with ReplayServer([]) as server:
        url = server.url
    assert run_child("record", str(tmp_path / "t"), "--", "ask", "hi", "--model", "m", "--url", url).code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["serve {}", "tape show {}", "models --replay {}"])
def test_an_empty_tape_is_refused(tmp_path: Path, command: str) -> None:
    """A folder with no exchange in it says so."""
    ran = run_child(*command.format(tmp_path).split())
    assert ran.code == 14
    assert "no exchange on this tape" in ran.err


def test_a_client_knows_a_tape_that_is_served(server: str) -> None:
    """A request that its tape lacks is a mismatch with the code of one, and says how it is recorded."""
    with running("serve", "phi4", "--speed", "0") as url:
        ran = run_child("ask", "not on it", "--model", "m", "--url", url)
    assert ran.code == 14
    assert "is not on the tape" in ran.err
    assert "--mode new" in ran.err
    assert "--phi4-record=new" in ran.err


def test_a_taken_port_is_named(server: str) -> None:
    """By both that listen."""
    port = server.rpartition(":")[2]
    for arguments in (("serve", "phi4", "--port", port), ("record", "t", "--listen", port, "--upstream", server)):
        ran = run_child(*arguments)
        assert ran.code == 2
        assert f"127.0.0.1:{port}" in ran.err


def test_another_name_has_to_be_allowed() -> None:
    """For a web page that makes its own name lead here, nothing is served."""
    with running("serve", "phi4", "--speed", "0", "--loop", "--allow-host", "box.lan") as url, httpx.Client() as client:
        for host, code in (("localhost", 200), ("box.lan:99", 200), ("evil.example", 403)):
            assert client.get(url + "/api/v0/models", headers={"Host": host}).status_code == code
