"""The scheduler by itself: whatever fails, every question ends once, and no server gets more than it serves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4_http import (
    AuthError,
    ContextOverflow,
    InvalidRequest,
    LoadFailed,
    ModelLoading,
    ModelNotFound,
    NotLMStudio,
    Phi4Error,
    ServerError,
    ServerUnreachable,
    StreamCut,
    ThoughtUnclosed,
)
from phi4_http.batch.lines import BatchQuestion
from phi4_http.batch.schedule import TRIES, Ask, Look, Schedule, Verdict, judge

GONE = ServerUnreachable("http://x", "refused")
CUT = StreamCut("the connection broke")
ERRORS: tuple[tuple[Phi4Error, Verdict], ...] = (
    (GONE, Verdict.AWAY),
    (ServerUnreachable("u", "late", timed_out=True, limit="connect"), Verdict.AWAY),
    (ModelLoading("Loading model", status=503), Verdict.AWAY),
    (ServerError("busy", status=429), Verdict.AWAY),
    (NotLMStudio("u", "a page", status=502), Verdict.AWAY),
    (ServerUnreachable("u", "late", timed_out=True, limit="first_byte"), Verdict.AGAIN),
    (ServerUnreachable("u", "broke off", answered=True), Verdict.AGAIN),
    (CUT, Verdict.AGAIN),
    (ServerError("broke", status=500), Verdict.AGAIN),
    (ServerError("crashed", status=200), Verdict.AGAIN),
    (AuthError("no", status=401), Verdict.OVER),
    (NotLMStudio("u", "a page", status=200), Verdict.OVER),
    (ModelNotFound("no", status=404), Verdict.OVER),
    (LoadFailed("no", status=400), Verdict.OVER),
    (ServerError("no template", status=400), Verdict.FAILED),
    (ContextOverflow(9, 8), Verdict.FAILED),
    (ThoughtUnclosed("length"), Verdict.FAILED),
    (InvalidRequest("no"), Verdict.FAILED),
)


@pytest.mark.parametrize(("error", "verdict"), ERRORS, ids=lambda value: str(value)[:40])
def test_what_a_failure_means(error: Phi4Error, verdict: Verdict) -> None:
    """Each kind has one meaning."""
    assert judge(error) is verdict


def test_a_model_that_the_question_names_is_its_own_matter() -> None:
    """The other questions go on."""
    assert judge(ModelNotFound("no", status=404), own_model=True) is Verdict.FAILED


@given(
    questions=st.integers(0, 12),
    servers=st.integers(1, 3),
    jobs=st.none() | st.integers(1, 3),
    slots=st.integers(1, 4),
    data=st.data(),
)
def test_every_question_ends_once(
    questions: int, servers: int, jobs: int | None, slots: int, data: st.DataObject
) -> None:
    """Or no server is left, and those that did not end are still there to be asked."""
    asked = [BatchQuestion(number, "x") for number in range(questions)]
    now = 0.0
    schedule = Schedule(asked, servers, jobs=jobs, patience=60.0, now=now)
    running: list[Ask | Look] = []
    ended: list[str | int] = []
    errors = st.none() | st.sampled_from([error for error, _ in ERRORS])
    while True:
        while (step := schedule.next(now)) is not None:
            running.append(step)
            for server in range(servers):
                mine = [one for one in running if one.server == server]
                assert sum(isinstance(one, Ask) for one in mine) <= (jobs or slots)
                assert sum(isinstance(one, Look) for one in mine) <= 1
        assert schedule.running == sum(isinstance(one, Ask) for one in running)
        if not running:
            seconds = schedule.seconds(now)
            if seconds is None:
                break
            now += seconds
            continue
        step = running.pop(data.draw(st.integers(0, len(running) - 1)))
        now += data.draw(st.floats(0, 5))
        error = data.draw(errors)
        if isinstance(step, Look):
            schedule.looked(step, now, slots, error)
        elif schedule.answered(step, now, error):
            ended.append(step.question.id)
        assert schedule.tries(asked[0]) <= TRIES if asked else True
    assert len(ended) == len(set(ended))
    assert schedule.left == questions - len(ended)
    assert (schedule.stranded is None) == (schedule.left == 0)


def test_a_question_that_crashes_its_server_ends() -> None:
    """It was asked three times, and the server was looked at between; the other question is answered."""
    schedule = Schedule([BatchQuestion("bad", "x"), BatchQuestion("good", "x")], 1, jobs=1, patience=60.0, now=0.0)
    now, ended = 0.0, []
    for _ in range(2 * TRIES + 2):
        step = schedule.next(now)
        if isinstance(step, Look):
            schedule.looked(step, now)
        elif step is not None and schedule.answered(step, now, CUT if step.question.id == "bad" else None):
            ended.append(step.question.id)
        now += schedule.seconds(now) or 0.0
    assert ended == ["bad", "good"]


def test_a_server_that_is_gone_is_waited_for_within_the_limit() -> None:
    """Looked at again and again, its question not lost; then it is told."""
    schedule = Schedule([BatchQuestion(1, "x")], 1, jobs=None, patience=60.0, now=0.0)
    look = schedule.next(0.0)
    assert isinstance(look, Look)
    schedule.looked(look, 0.0)
    ask = schedule.next(0.0)
    assert isinstance(ask, Ask)
    assert not schedule.answered(ask, 0.0, GONE)
    assert schedule.away == (0,)
    now, looks = 0.0, 0
    while (seconds := schedule.seconds(now)) is not None:
        now += seconds
        step = schedule.next(now)
        assert isinstance(step, Look)
        looks += 1
        schedule.looked(step, now, error=GONE)
    assert (now, looks > 5, schedule.stranded, schedule.left) == (60.0, True, GONE, 1)


def test_a_server_that_never_was_there_is_not_waited_for() -> None:
    """The other one does the work."""
    schedule = Schedule([BatchQuestion(1, "x")], 2, jobs=None, patience=60.0, now=0.0)
    first, second = schedule.next(0.0), schedule.next(0.0)
    assert isinstance(first, Look)
    assert isinstance(second, Look)
    schedule.looked(first, 0.0, error=GONE)
    schedule.looked(second, 0.0, 2)
    assert schedule.lost == (GONE,)
    assert schedule.next(0.0) == Ask(1, BatchQuestion(1, "x"))
