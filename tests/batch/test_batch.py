"""A batch on both faces: answers as they come, servers that fail, restart or share the work."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from batch_server import EchoServer
from support import GOOD, Face, Recording, child_environment, command, run_child

from phi4_http import BatchAnswer, InvalidRequest, Phi4Error, ServerUnreachable
from phi4_http.batch.answered import BatchProgress
from phi4_http.cli.batch import duration, status


def answers(face: Face, batch: Any) -> list[BatchAnswer]:
    """All answers of a batch."""
    return list(each(face, batch))


def each(face: Face, batch: Any) -> Iterator[BatchAnswer]:
    """The answers of a batch, one at a time."""
    yield from face.events(batch)  # type: ignore[misc]  # an iterator of the face's kind, whatever it yields


@pytest.fixture
def server() -> Iterator[EchoServer]:
    """A server that serves four at once."""
    with EchoServer() as server:
        yield server


def test_every_question_is_answered_once(face: Face, server: EchoServer) -> None:
    """With its id, thought, solution and usage; those that fail in passing are asked again, others have their error."""
    faults = ("fine", "cut", "reset", "closed", "500", "frame", "503", "refused!", "length!")
    with face.phi(server.url) as phi:
        found = answers(face, phi.batch([{"id": fault, "prompt": f"x:{fault}"} for fault in faults]))
    assert sorted(str(answer.id) for answer in found) == sorted(faults)
    for answer in found:
        if not str(answer.id).endswith("!"):
            assert answer.error is None
            assert answer.reply is not None
            assert (answer.solution, answer.reply.thought) == (f"x:{answer.id}", f"x:{answer.id}?")
            assert (answer.outcome, answer.url) == ("complete", server.url)
    outcomes = {str(answer.id): str(answer.outcome) for answer in found if answer.error is not None}
    assert outcomes == {"refused!": "server_error", "length!": "solution_truncated"}


@pytest.mark.parametrize(("jobs", "most"), [(None, 4), (2, 2)])
def test_as_many_are_asked_at_once_as_are_served(face: Face, server: EchoServer, jobs: int | None, most: int) -> None:
    """Or as the caller says."""
    server.hold.clear()
    timer = threading.Timer(1.0, server.hold.set)
    timer.start()
    with face.phi(server.url) as phi:
        assert len(answers(face, phi.batch([f"{number}:fine" for number in range(9)], jobs=jobs))) == 9
    timer.join()
    assert server.most == most


def test_lm_studio_tells_how_many_it_serves(face: Face) -> None:
    """Its v1 list has `parallel` for each instance."""
    name = "microsoft/phi-4-reasoning-plus"
    instance = {"id": name, "config": {"context_length": 4096, "parallel": 3}}
    server = Recording(
        {
            "/api/v1/models": {"models": [{"type": "llm", "key": name, "loaded_instances": [instance]}]},
            "/v1/chat/completions": GOOD,
        }
    )
    with face.phi(server) as phi:
        batch = phi.batch(["a", "b"])
        assert [answer.solution for answer in answers(face, batch)] == ["56", "56"]
    assert batch.progress == BatchProgress(2, 0, 2)
    assert server.paths.count("GET /api/v1/models") == 2


def test_servers_share_the_work(face: Face, server: EchoServer) -> None:
    """Each is asked; one that is not there is left out, and told."""
    here, none = face.phi(server.url), face.phi("http://127.0.0.1:9")
    with EchoServer() as other, here as phi, face.phi(other.url) as more, none as missing:
        batch = phi.batch([f"{number}:fine" for number in range(20)], also=[more, missing])
        found = answers(face, batch)
    assert {answer.url for answer in found} == {server.url, other.url}
    assert len(found) == sum((server.asked + other.asked).values()) == 20
    assert [type(error) for error in batch.progress.lost] == [ServerUnreachable]


def test_a_server_that_restarts_is_waited_for(face: Face) -> None:
    """What it broke off at is asked again."""
    server = EchoServer(slots=1)
    server.start()
    port = server.port
    found = []
    with face.phi(server.url) as phi:
        batch = phi.batch([f"{number}:fine" for number in range(4)])
        came = each(face, batch)
        found.append(next(came))
        server.close()
        again = EchoServer(port=port, slots=1)
        timer = threading.Timer(0.5, again.start)
        timer.start()
        found += came
        timer.join()
        again.close()
    assert sorted(answer.id for answer in found) == [1, 2, 3, 4]
    assert [answer.error for answer in found] == [None] * 4


def test_where_no_server_is_left_it_is_told(face: Face, unused_port: int, tmp_path: Path) -> None:
    """What has come is kept; the rest is asked by the next run."""
    out = tmp_path / "out.jsonl"
    with EchoServer(slots=1) as server, face.phi(server.url) as phi:
        came = each(face, phi.batch(["1:fine", "2:fine"], out=out, patience=0.0))
        next(came)
        server.close()
        with pytest.raises(Phi4Error):
            list(came)
    first = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    with EchoServer() as server, face.phi(server.url) as phi:
        batch = phi.batch(["1:fine", "2:fine"], out=out)
        assert [answer.id for answer in answers(face, batch)] == [one for one in (1, 2) if one not in first]
        assert batch.progress.done == 2
    with face.phi(f"http://127.0.0.1:{unused_port}") as phi, pytest.raises(ServerUnreachable):
        answers(face, phi.batch(["x"]))


def test_what_was_answered_is_not_asked_again(face: Face, server: EchoServer, tmp_path: Path) -> None:
    """A batch that was left goes on, and its file is free for the next run at once."""
    out, asked = tmp_path / "out.jsonl", [f"{number}:fine" for number in range(12)]
    with face.phi(server.url) as phi:
        with face.entered(batch := phi.batch(asked, out=out)):
            next(each(face, batch))
        with face.entered(batch := phi.batch(asked, out=out)):
            kept = batch.progress.kept
            assert kept >= 1
            assert len(answers(face, batch)) == 12 - kept
        assert answers(face, phi.batch(asked, out=out)) == []
    assert len(out.read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"questions": ["x", ""]}, "question 2: the prompt is empty"),
        ({"questions": [{"prompt": "x", "top_p": 3}]}, "question 1: top_p is 3"),
        ({"questions": [{"id": 1, "prompt": "x"}, {"id": 1, "prompt": "y"}]}, "the id 1, which question 1 has"),
        ({"questions": ["x"], "jobs": 0}, "jobs is 0"),
        ({"questions": ["x"], "patience": -1}, "patience is -1"),
        ({"questions": ["x"], "retry_failed": True}, "retry_failed goes with out"),
        ({"questions": Path("not there")}, "not there can't be read"),
        ({"questions": ["x"], "temperature": -1}, "temperature is -1"),
    ],
)
def test_what_cannot_be_asked_is_told_before_anything_is(face: Face, options: Any, words: str) -> None:
    """With its place."""
    server = Recording()
    with face.phi(server) as phi, pytest.raises(InvalidRequest, match=words):
        phi.batch(**options)
    assert server.requests == []


def test_a_questions_own_parameters_count_first(face: Face) -> None:
    """Of `extra`, each field."""
    server = Recording({"/v1/chat/completions": GOOD})
    with face.phi(server, model="m") as phi:
        question = {"prompt": "x", "seed": 3, "extra": {"b": 2}}
        answers(face, phi.batch([question], seed=1, top_k=7, extra={"a": 1, "b": 1}))
    body = server.body
    assert [body[name] for name in ("seed", "top_k", "a", "b")] == [3, 7, 1, 2]


def test_a_client_of_ones_own_is_asked_through() -> None:
    """The blocking face works in a thread, with the caller's httpx client."""
    from phi4_http import LMStudio, Phi4

    server = Recording({"/v1/chat/completions": GOOD})
    with httpx.Client(transport=server, headers={"x-mine": "yes"}) as http:
        found = list(Phi4(LMStudio(http_client=http), model="m", system="send").batch(["x"]))
    assert [answer.solution for answer in found] == ["56"]
    assert server.requests[-1].headers["x-mine"] == "yes"


def test_a_blocking_manager_holds_the_model_of_each_question() -> None:
    """It is entered before the question goes out, and left after its reply, though the work is asyncio's."""
    from phi4_http import LMStudio, Phi4

    told: list[str] = []

    class Manager:
        @contextlib.contextmanager
        def use(self, key: str, config: object = None) -> Iterator[Any]:
            told.append("held")
            yield SimpleNamespace(identifier=key)
            told.append("left")

    studio = LMStudio(transport=Recording({"/v1/chat/completions": GOOD}))
    found = list(Phi4(studio, model="m", system="send", manager=Manager()).batch(["x", "y"], jobs=1))
    assert [answer.solution for answer in found] == ["56", "56"]
    assert told == ["held", "left"] * 2


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_line_for_each_answer(server: EchoServer, tmp_path: Path) -> None:
    """To a file, or stdout; 15 where any failed; the thought only where it is wanted."""
    questions, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    questions.write_text('"1:fine"\n{"id": "a", "prompt": "2:refused!"}\n', encoding="utf-8")
    line = ["batch", str(questions), "--url", server.url, "--system", "send"]
    ran = run_child(*line, "-o", str(out))
    assert (ran.code, ran.out) == (15, "")
    assert ran.err.splitlines() == ["2 of 2 answered", "phi4_http: 1 failed: --retry-failed asks them again"]
    found = {answer["id"]: answer for answer in map(json.loads, out.read_text().splitlines())}
    assert (found[1]["solution"], found[1]["thought"], found[1]["usage"]["completion_tokens"]) == (
        "1:fine",
        "1:fine?",
        4,
    )
    assert found["a"]["error"] == {"type": "ServerError", "message": "the server failed (HTTP 400): it broke"}
    ran = run_child(*line[:1], "-", *line[2:], "--no-thinking", "--stats", stdin=b'"3:fine"')
    assert ran.code == 0, ran.err
    assert (ran.objects[0]["thought"], ran.objects[0]["solution"]) == (None, "3:fine")
    assert ran.objects[0]["stats"]["total_time"] > 0


def test_the_command_refuses_bad_lines_before_it_asks(server: EchoServer, tmp_path: Path) -> None:
    """2, with the lines' numbers; no file of answers is made."""
    questions = tmp_path / "in.jsonl"
    questions.write_text('"x"\nwhat\n', encoding="utf-8")
    ran = run_child("batch", str(questions), "-o", str(tmp_path / "out"), "--url", server.url)
    assert (ran.code, server.asked.total()) == (2, 0)
    assert "in.jsonl: line 2: it is no JSON" in ran.err
    assert not (tmp_path / "out").exists()
    ran = run_child("batch", str(tmp_path / "none"), "--url", server.url)
    assert (ran.code, "No such file" in ran.err) == (2, True)


def test_the_command_says_how_to_go_on_where_no_server_is_left(unused_port: int, tmp_path: Path) -> None:
    """3, the error, and how far it was."""
    line = ["batch", "-", "-o", str(tmp_path / "out"), "--url", f"http://127.0.0.1:{unused_port}", "-m", "m"]
    ran = run_child(*line, stdin=b'"x"')
    assert (ran.code, ran.err.splitlines()[0]) == (3, "phi4_http: 0 of 1 are answered; the same command goes on")
    assert "no server at" in ran.err


def test_ctrl_c_keeps_what_has_come(server: EchoServer, tmp_path: Path) -> None:
    """130, and one line that says how to go on."""
    import signal
    import subprocess
    import sys

    from sockets import until

    if sys.platform == "win32":
        pytest.skip("a child can't be sent a Ctrl-C alone there")
    questions, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    questions.write_text("".join(f'"{number}:fine"\n' for number in range(400)), encoding="utf-8")
    line = command("batch", str(questions), "-o", str(out), "--url", server.url, "--system", "send")
    with subprocess.Popen(line, env=child_environment(), stderr=subprocess.PIPE, text=True) as child:
        until(lambda: out.exists() and out.stat().st_size, 20)
        server.hold.clear()
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=20)
    server.hold.set()
    kept = len(out.read_text().splitlines())
    assert (child.returncode, err) == (
        130,
        f"phi4_http: interrupted: {kept} of 400 are answered; the same command goes on\n",
    )


def test_the_status_says_how_far_it_is() -> None:
    """What matters most first: how much is done, how long it will take; who is waited for."""
    assert status(BatchProgress(1000, 100, 150, 3), 300) == "250/1,000 [██········] 25 min 00 s left 30.0/min 3 failed"
    assert status(BatchProgress(10, away=("http://x",)), 3) == "0/10 [··········] waiting for http://x"
    assert status(BatchProgress(10, answered=5), 1) == "5/10 [█████·····] 1 s left 5.0/s"
    assert (duration(59), duration(60), duration(7265)) == ("59 s", "1 min 00 s", "2 h 01 min")
