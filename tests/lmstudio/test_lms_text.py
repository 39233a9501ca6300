"""What `lms` prints, read: over all that was recorded of it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstudio import backend
from phi4_http.errors import DoesNotFit, LmsFailed, LoadFailed, ModelNotFound
from phi4_http.flow import Completed
from phi4_http.lmstudio.lms.text import (
    Progress,
    is_unreachable,
    load_error,
    message_of,
    parse_estimate,
    parse_json,
    parse_size,
    unknown_option,
)

RUNS = {run["label"]: run for run in backend.recorded()}


def done(label: str) -> Completed:
    run = RUNS[label]
    return Completed(tuple(run["argv"][1:]), run["exit_code"], run.get("stdout", ""), run.get("stderr", ""))


def said(stderr: str, stdout: str = "", code: int = 1) -> Completed:
    return Completed(("x",), code, stdout, stderr)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0 Bytes", 0),
        ("512 Bytes", 512),
        ("1.50 KiB", 1536),
        ("305.81 MiB", 320_665_027),
        ("4.67 GiB", 5_014_374_318),
        ("1.00 TiB", 1024**4),
        ("12.11 GB", 12_110_000_000),
        ("84.11 MB", 84_110_000),
    ],
)
def test_sizes_of_both_bases_are_read(text: str, size: int) -> None:
    """`GiB` counts in 1024, and the `GB` of older releases in 1000."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "4.67", "GiB", "4,67 GiB", "1 PiB", "-1 KiB", "... GiB", "1.2.3 GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """A size that is misread would let a model through that does not fit."""
    with pytest.raises(ValueError, match="a size such as"):
        parse_size(text)


GIB = 1024**3


@pytest.mark.parametrize(
    ("label", "model", "gpu", "total", "fits", "confident"),
    [
        ("estimate-only", "qwen2.5-7b-instruct", 4.67, 4.67, True, True),
        ("estimate-only -c --gpu", "openai/gpt-oss-20b", 5.55, 18.50, True, True),
        ("estimate-only --gpu off", "qwen2.5-7b-instruct", 0, 4.67, True, True),
        ("estimate-only fails guardrails (exit code?) low confidence", "qwen2.5-7b-instruct", 4.89, 4.89, False, False),
        ("estimate-only LC_ALL=de_DE.UTF-8 --gpu 0.07", "llama-3.2-1b-instruct", 591.72 / 1024, 8.25, True, True),
        ("estimate-only FORCE_COLOR=1", "llama-3.2-1b-instruct", 1.47, 1.47, True, True),
        ("estimate-only --verbose (prefix I)", "llama-3.2-1b-instruct", 1.47, 1.47, True, True),
        ("estimate-only without -y (blank line on stdout)", "llama-3.2-1b-instruct", 1.47, 1.47, True, True),
    ],
)
def test_recorded_estimates_are_read(
    label: str, model: str, gpu: float, total: float, fits: bool, confident: bool
) -> None:
    """Whether it fits is in the text alone: the exit code is 0 either way."""
    guess = parse_estimate(done(label))
    assert (guess.model, guess.fits, guess.confident) == (model, fits, confident)
    assert (guess.gpu_bytes, guess.total_bytes) == (round(gpu * GIB), round(total * GIB))


def test_silence_is_no_estimate() -> None:
    """A run that says nothing and exits with 0 is an error, not an estimate of nothing."""
    with pytest.raises(LmsFailed, match="it said nothing"):
        parse_estimate(done("estimate-only --quiet prints nothing"))


def test_a_new_wording_of_the_verdict_is_an_error() -> None:
    """What can't be read as yes or no is not guessed."""
    text = "Model: m\nEstimated GPU Memory: 1 GiB\nEstimated Total Memory: 1 GiB\n\nEstimate: This model might do."
    with pytest.raises(LmsFailed):
        parse_estimate(said(text, code=0))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("load -y no match", 'No model found that matches model key "zzz-nope".'),
        ("load --exact with model key (fails)", 'No model found with path being exactly "llama-3.2-1b-instruct".'),
        ("unload unknown id", 'Cannot find a model with the identifier "nope".'),
        ("unload id + --all", "You cannot provide [path] when the flag --all is set."),
        ("load bad option --quiet --verbose", "Only one of --logLevel, --verbose, or --quiet can be specified."),
        (
            "load duplicate --identifier",
            'Model identifier "my-model" is already in use. '
            "Suggestion: Please use a different identifier, or unload the model that uses it.",
        ),
        ("load backend failure", "Error loading model. Cause: (Exit code: 137). Unknown error."),
        ("ps --json RPC error", "Boom Cause: why"),
        ("load, connection dropped mid-load", "WebSocket connection closed"),
        ("SIGINT during load", "Load cancelled."),
        ("service cannot start: ps --json", "Failed to start or connect to local LM Studio API server."),
        ("load bad option --bogus", "unknown option '--bogus'"),
    ],
)
def test_recorded_faults_become_one_line(label: str, message: str) -> None:
    """The fault alone: no box, no title, no colours, no advice to somebody who types."""
    assert message_of(done(label)) == message


def test_a_narrow_box_without_line_breaks_is_read_too() -> None:
    """In 80 columns the line breaks of a box vanish; what it says is still found."""
    message = message_of(done("load backend-only failure shown in long box"))
    assert message.startswith("No model found that matches model key")
    assert "│" not in message


def test_stack_traces_are_left_out() -> None:
    """An uncaught error prints its stack, which is nobody's business here."""
    text = "Error: Boom\n    at foo (/snapshot/index.js:1:2)\n    at bar (x:3:4)\n"
    assert message_of(said(text)) == "Boom"


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("load -y no match", ModelNotFound),
        ("load fails guardrails (backend error)", DoesNotFit),
        ("load backend failure", LoadFailed),
        ("load duplicate --identifier", LoadFailed),
        ("load bad option --port 59999", LmsFailed),
        ("SIGTERM during load", LoadFailed),
    ],
)
def test_a_failed_load_has_its_own_exception(label: str, kind: type[Exception]) -> None:
    """Not found, no room, not loaded, nobody there: four things for a caller to do."""
    assert type(load_error(done(label), "k")) is kind


def test_memory_that_is_missing_is_read_where_it_is_told() -> None:
    """The guardrails' text may say how much it takes."""
    text = "Error: Model loading was stopped due to insufficient system resources. It requires approximately 24.00 GB."
    error = load_error(said(text), "k")
    assert isinstance(error, DoesNotFit)
    assert error.needed == 24_000_000_000


@pytest.mark.parametrize(
    ("label", "unreachable"),
    [
        ("load bad option --port 59999", True),
        ("service cannot start: ps --json", True),
        ("--host localhost (nothing listening)", True),
        ("ps --json RPC error", False),
    ],
)
def test_nobody_there_is_told_from_other_faults(label: str, unreachable: bool) -> None:
    """Only a run that reached nobody may be followed by another way."""
    assert is_unreachable(message_of(done(label))) is unreachable


def test_options_that_a_release_lacks_are_found() -> None:
    """An old `lms` names the option that it does not know."""
    assert unknown_option(message_of(done("load bad option --bogus"))) == "--bogus"
    assert unknown_option("option '-c' argument missing") is None


def test_json_is_found_behind_other_lines() -> None:
    """Something printed before the JSON does not hide it."""
    assert parse_json(said("", "hello\n[{}]\n", 0)) == [{}]


@pytest.mark.parametrize(("stdout", "code"), [("", 0), ("no JSON\n", 0), ("[]\n", 1)])
def test_no_json_is_an_error(stdout: str, code: int) -> None:
    """An exit code of 0 with nothing to read is a failure, and so is JSON from a run that failed."""
    with pytest.raises(LmsFailed):
        parse_json(said("Error: Boom\n", stdout, code))


LOADS = [label for label, run in RUNS.items() if "100% " in run.get("stdout", "")]


@given(st.sampled_from(LOADS), st.lists(st.integers(0, 400), max_size=8))
def test_progress_is_the_same_however_it_is_cut(label: str, cuts: list[int]) -> None:
    """Each share is told once, rising to 1, wherever the pipe cuts the text."""
    text = RUNS[label]["stdout"]
    told: list[float] = []
    progress = Progress()
    edges = sorted({0, len(text), *(cut % len(text) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        told += progress.feed(text[start:end])
    assert told == sorted(set(told))
    assert told[-1] == 1.0
    assert set(told) <= {0.25, 0.75, 1.0}


@pytest.mark.parametrize("key", ["at 99% ready", "x 50% y", "100% "])
def test_percentages_in_a_key_are_no_progress(key: str) -> None:
    """Only the number before the spinner counts."""
    told = Progress().feed(f"\rLoading {key} 25% ⠋\rLoading {key} 75% ⠋\r\x1b[K")
    assert told == [0.25, 0.75]
