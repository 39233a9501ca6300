"""`proxy` as a child process, with a real client."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from pathlib import Path

import httpx
from support import CHATS, GUARD, asked_by_name, child_environment, command, run_child

import phi4_http
from phi4_http.cli import parse
from phi4_http.cli.proxy import line
from phi4_http.proxy.asgi import Handled
from phi4_http.proxy.refused import _TOLD
from phi4_http.settings import SETTINGS
from phi4_http.tape.matching import Match
from phi4_http.tape.playback import AT_ONCE
from phi4_http.tape.server import ReplayServer

BODY = {"model": "several-closers", "messages": [{"role": "user", "content": "a secret"}]}


def served(*arguments: str) -> tuple[list[str], str, str]:
    """The proxy before the composed chats, asked once: its lines on stdout, those on stderr, and the answer."""
    chats = asked_by_name(CHATS.values())
    match = Match(ignore=("messages", "stream", "stream_options", "temperature", "top_p", "top_k"), loop=True)
    with ReplayServer(chats, playback=AT_ONCE, match=match) as server:
        line = command("proxy", "--url", server.url, "--port", "0", "--models", ".", "--system", "send", *arguments)
        environment = child_environment()
        child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            assert child.stdout is not None
            first = child.stdout.readline().strip()
            url = json.loads(first)["url"] if first.startswith("{") else first
            with httpx.Client(trust_env=False, timeout=GUARD) as client:
                answer = client.post(f"{url}/v1/chat/completions", json=BODY, headers={"Authorization": "Bearer sk-me"})
                assert client.get(f"{url}/healthz").status_code == 200
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=GUARD)
            assert child.returncode == 0, err
        finally:
            child.kill()
            child.communicate()
    return [first, *out.splitlines()], err, answer.text


def test_each_request_is_an_object_a_line() -> None:
    """With --json: its address, then each request, with no word of a prompt, and no token."""
    out, err, answer = served("--json", "--reasoning", "tags")
    assert "<think>" in json.loads(answer)["choices"][0]["message"]["content"]
    listening, chat, health = map(json.loads, out)
    assert listening["type"] == "listening"
    assert (chat["model"], chat["outcome"], chat["completion_tokens"]) == ("several-closers", "complete", 122)
    assert chat["repairs"] == ["text taken back 1×"]
    assert (health["path"], health["status"], health["model"]) == ("/healthz", 200, None)
    said = "".join([*out, err])
    assert "secret" not in said
    assert "sk-me" not in said


def test_a_person_reads_one_line_a_request() -> None:
    """The address on stdout, the requests on stderr."""
    out, err, answer = served("--reasoning", "drop")
    assert out[0].startswith("http://127.0.0.1:")
    assert "reasoning_content" not in answer
    assert "POST /v1/chat/completions, 200" in err
    assert "250 + 122 tokens" in err
    assert "GET /healthz, 200" in err


def test_what_can_not_be_is_refused() -> None:
    """Before anything listens."""
    for arguments in (("--models", "("), ("--port", "99999"), ("--reasoning", "loud"), ("--url", "ftp://x")):
        ran = run_child("proxy", *arguments)
        assert ran.code == 2, arguments
        assert "Traceback" not in ran.err


def test_a_line_says_who_left_and_what_failed() -> None:
    """In words."""
    left = Handled("POST", "/v1/chat/completions", None, 1.0, True, "m", "cancelled")
    assert line(left) == "POST /v1/chat/completions, -, 1.0 s, m, cancelled, the client left"
    failed = Handled("GET", "/x", 502, 0.1, False, error="upstream_unreachable")
    assert line(failed) == "GET /x, 502, 0.1 s, upstream_unreachable"


def test_the_guide_says_what_is() -> None:
    """Its commands are understood, its variables are settings, and each code of an error is in it."""
    guide = (Path(phi4_http.__file__).parent / "guide" / "proxy.md").read_text(encoding="utf-8")
    commands = re.findall(r"^phi4_http (proxy.*?)(?:#.*)?$", guide, re.MULTILINE)
    assert len(commands) == 2
    for each in commands:
        parse(shlex.split(each))
    assert set(re.findall(r"PHI4_HTTP_\w+", guide)) <= {setting.variable for setting in SETTINGS}
    assert [code for _, _, _, code in _TOLD if f"`{code}`" not in guide] == []
    for option in set(re.findall(r"`--([a-z-]+)", guide)) - {"json"}:
        assert option in {setting.name for setting in SETTINGS}
