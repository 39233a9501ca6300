"""A batch as a process of its own: killed at random and started again, every question has one answer, none is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from batch_server import FAULTS, PASSES, EchoServer
from examples import PROFILE
from support import GUARD, child_environment, command, run_child

LINES = 1_000 if PROFILE == "fuzz" else 120


def answers(out: Path) -> list[Any]:
    """The lines of a file of answers."""
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def line(*urls: str, folder: Path) -> list[str]:
    """The command."""
    files = [str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")]
    return ["batch", *files, "--system", "send", *(part for url in urls for part in ("--url", url))]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_killed_at_random_every_line_is_answered_once(tmp_path: Path) -> None:
    """With failures planted, over two servers; what failed for itself is kept with its error and can be asked again."""
    chance = random.Random(7)
    faults = [chance.choice((*FAULTS, *["fine"] * 10)) for _ in range(LINES)]
    prompts = [f"{number}:{fault}" for number, fault in enumerate(faults)]
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": f"q{at}", "prompt": prompt}) + "\n" for at, prompt in enumerate(prompts))
    )
    out, kills = tmp_path / "out.jsonl", 0
    with EchoServer() as one, EchoServer(asked=one.asked) as other:
        arguments = line(one.url, other.url, folder=tmp_path)
        while True:
            child = subprocess.Popen(
                command(*arguments),
                env=child_environment(),
                cwd=os.path.abspath(os.sep),
                stderr=subprocess.PIPE,
            )
            before = out.stat().st_size if out.exists() else 0
            try:
                if kills < 4:
                    until = time.monotonic() + GUARD
                    wanted = before + chance.randrange(200, 200 * LINES // 6)
                    while child.poll() is None and time.monotonic() < until:
                        if out.exists() and out.stat().st_size >= wanted:
                            break
                        time.sleep(0.002)
                    if child.poll() is None:
                        child.send_signal(signal.SIGKILL)
                        kills += 1
                _, err = child.communicate(timeout=GUARD * 20)
            finally:
                child.kill()
            if child.returncode != -signal.SIGKILL:
                break
        assert child.returncode == 15, err
        assert kills == 4
        found = answers(out)
        assert sorted(each["id"] for each in found) == sorted(f"q{at}" for at in range(LINES))
        for answer in found:
            fault = faults[int(answer["id"][1:])]
            if fault in PASSES:
                assert answer["solution"] == prompts[int(answer["id"][1:])], answer
                assert (answer["outcome"], answer["error"]) == ("complete", None)
            else:
                assert answer["error"]["message"], answer
        asked = one.asked.copy()
        again = run_child(*arguments)
        assert (again.code, one.asked) == (15, asked)
        assert "--retry-failed" in again.err
        assert run_child(*arguments, "--retry-failed").code == 15
        assert sorted(each["id"] for each in answers(out)) == sorted(f"q{at}" for at in range(LINES))
        failing = sum(fault not in PASSES for fault in faults)
        assert one.asked.total() == asked.total() + failing
