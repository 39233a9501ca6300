"""Compose the tape `fixtures/phi4`, and write the index of all fixtures.

    cd tests; python -m tools.compose_fixtures

Real LM Studio servers with Phi-4 are not at hand wherever this project is worked on; what they send is documented, and
how they go wrong is reported by their users. These exchanges are written after both, and say so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from phi4_http.tape.exchange import End, Exchange
from phi4_http.tape.format import load_tape, remove_exchange, write_exchange
from phi4_http.tape.playback import random_sizes

from . import plain_answers
from . import replies as say
from .composing import Stream, answer, chat_body, recut, tokens

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"

DOCS = "LM Studio docs: OpenAI-compatible chat completions, streamed"
REPORTS = "reports of LM Studio's users"
LLAMA_CPP = "measured on llama.cpp servers"

MARKER = "__LM_STUDIO_INTERNAL_LSEP_SYNTHETIC_REASONING_END_6f1c2a9b0e__"

OVERFLOWS = {
    1: "Trying to keep the first 9137 tokens when context the overflows. However, the model is loaded with context "
    "length of only 8192 tokens, which is not enough. Try to load the model with a larger context length, or provide "
    "a shorter input",
    2: "The number of tokens to keep from the initial prompt is greater than the context length (n_keep: 9137>= "
    "n_ctx: 8192). Try to load the model with a larger context length, or provide a shorter input.",
    3: "Cannot truncate prompt with n_keep (9137) >= n_ctx (8192)",
    4: "Input does not fit in context length. The input has 31430 tokens, but the context length only supports 30000 "
    "tokens.",
    5: "Reached context length of 8192 tokens with model (arch: phi3) that does not currently support mid-generation "
    "context overflow. Try reloading with a larger context length or shortening the prompt/chat.",
    6: "Context size has been exceeded",
    7: "request (9137 tokens) exceeds the available context size (8192 tokens), try increasing it",
}
CRASHED = "The model has crashed without additional information. (Exit code: 18446744072635812000)"
LLAMA_CPP_OVERFLOW = {
    "code": 400,
    "message": OVERFLOWS[7],
    "type": "exceed_context_size_error",
    "n_prompt_tokens": 9137,
    "n_ctx": 8192,
}


def stream(name: str, prompt: str, note: str, *, source: str = DOCS, **fields: Any) -> Stream:
    return Stream(name, prompt, source=source, note=note, **fields)


def good_replies() -> Iterator[Exchange]:
    """Replies that are complete, in every form in which a server tells thought and solution apart."""
    text = f"<think>\n{say.TRAINS_THOUGHT}</think>\n\n{say.TRAINS_SOLUTION}"
    yield stream("well-formed", say.TRAINS, "thought, solution, finish reason, usage").say(text).close().exchange()

    text = f"<think>{say.LIGHT_THOUGHT}</think>\n\n{say.LIGHT_SOLUTION}"
    whole = stream("cut-anywhere", say.LIGHT, "pieces cut inside events, characters and tags").say(text).close()
    yield recut(whole.exchange(), random_sizes(37, 200))

    made = stream("reasoning-content", say.HEPTAGON, "the server split the reply: delta.reasoning_content")
    yield made.say(say.HEPTAGON_THOUGHT, field="reasoning_content").say(say.HEPTAGON_SOLUTION).close().exchange()

    made = stream(
        "reasoning-field", say.POWERS, "the server split the reply: delta.reasoning (LM Studio 0.3.23 and later)"
    )
    yield made.say(say.POWERS_THOUGHT, field="reasoning").say(say.POWERS_SOLUTION).close().exchange()

    made = stream("no-usage", say.SHORT, "a server that ignores include_usage")
    yield made.say(f"<think>{say.SHORT_THOUGHT}</think>{say.SHORT_SOLUTION}").stop().done().exchange()

    prompt = f"{say.SHORT} Take your time over the long text above."
    made = stream("keep-alive-comments", prompt, "comments and a long wait while the prompt is processed")
    for _ in range(3):
        made.write(": keep-alive\n\n", after=1.0)
    yield made.say(f"<think>{say.SHORT_THOUGHT}</think>{say.SHORT_SOLUTION}").close().exchange()

    prompt = f"{say.SHORT} No need to think."
    yield stream("no-tags", prompt, "no thought at all").say(say.SHORT_SOLUTION).close().exchange()
    yield tool_calls()


def tool_calls() -> Exchange:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = {"name": "weather", "description": "The weather in a city.", "parameters": parameters}
    made = stream(
        "tool-calls",
        say.WEATHER,
        "two tool calls over several deltas",
        tools=[{"type": "function", "function": function}],
    )
    made.say("<think>I need the weather of two cities, so I call the tool twice.</think>\n\n")
    for index, arguments in enumerate((['{"ci', 'ty":', ' "Zür', 'ich"}'], ['{"city"', ': "Oslo"}'])):
        head = {"index": index, "id": str(365174485 + index), "type": "function"}
        call = {**head, "function": {"name": "weather", "arguments": ""}}
        made.delta({"role": "assistant", "tool_calls": [call]}, after=0.05)
        for part in arguments:
            made.delta({"tool_calls": [{"index": index, "function": {"arguments": part}}]}, after=0.04)
    return made.close("tool_calls").exchange()


def odd_replies() -> Iterator[Exchange]:
    """Replies that need care: tags lost, doubled, misspelt, or in the wrong field."""
    text = f"{say.PRIME_THOUGHT}</think>\n\n{say.PRIME_SOLUTION}"
    made = stream(
        "opener-swallowed", say.PRIME, "only </think> arrives: a server or template ate the opener", source=REPORTS
    )
    yield made.say(text).close().exchange()

    text = f"<think>{say.PERCENT_DRAFT}</think>\n\n{say.PERCENT_AGAIN}\n</think>\n\n{say.PERCENT_SOLUTION}"
    made = stream(
        "several-closers", say.PERCENT, "two closing tags: the last one counts", source="evaluations of Phi-4-reasoning"
    )
    yield made.say(text).close().exchange()

    made = stream(
        "backslash-closer",
        say.WEEKS,
        "the closing tag as the model card spells it",
        source="the model card, and " + REPORTS,
    )
    yield made.say(f"<think>{say.WEEKS_THOUGHT}<\\think>\n\n{say.WEEKS_SOLUTION}").close().exchange()

    made = stream("synthetic-marker", say.SOCKS, "LM Studio's internal end marker in the text", source=REPORTS)
    made.say(say.SOCKS_THOUGHT, field="reasoning_content").delta({"role": "assistant", "content": MARKER}, after=0.03)
    yield made.say(say.SOCKS_SOLUTION).close().exchange()

    prompt = f"{say.POWERS} Answer in one sentence."
    made = stream("all-in-reasoning", prompt, "LM Studio 0.4.6: all in reasoning_content, usage 0/0/0", source=REPORTS)
    made.say(f"{say.POWERS_THOUGHT}\n\n{say.POWERS_SOLUTION}", field="reasoning_content")
    yield made.stop().usage(zero=True).done().exchange()


def unfinished_replies() -> Iterator[Exchange]:
    """Replies that stopped, or broke off, before the end."""
    made = stream(
        "thought-never-closes", say.LETTERS, "a loop inside the thought, until the length limit", max_tokens=420
    )
    yield limited(made, f"<think>\n{say.LETTERS_THOUGHT}" + say.LETTERS_LOOP * 9, 420).close("length").exchange()

    text = f"<think>{say.ODD_NUMBERS_THOUGHT}</think>\n\n{say.ODD_NUMBERS_SOLUTION}"
    made = stream("solution-truncated", say.ODD_NUMBERS, "the length limit came inside the solution", max_tokens=256)
    yield made.say(text).close("length").exchange()

    prompt = f"{say.SHORT} Say nothing."
    yield (
        stream("empty", prompt, "finish reason and usage, and no text").delta({"role": "assistant"}).close().exchange()
    )

    start = f"<think>{say.SHORT_THOUGHT}</think>7 × 8"
    made = stream(
        "done-without-finish-reason", f"{say.SHORT} (1)", "a running reply was killed: [DONE] alone", source=LLAMA_CPP
    )
    yield made.say(start).done().exchange()
    made = stream(
        "end-without-finish-reason", f"{say.SHORT} (2)", "a clean end of HTTP, and nothing else", source=LLAMA_CPP
    )
    yield made.say(start).exchange()
    made = stream("end-inside-a-chunk", f"{say.SHORT} (3)", "the server died inside an HTTP chunk", source=LLAMA_CPP)
    yield made.say(start).write('data: {"id":"chatcmpl-', after=0.03).exchange(End.CUT_INSIDE_CHUNK)
    made = stream("connection-reset", f"{say.SHORT} (4)", "the connection was reset inside the reply", source=LLAMA_CPP)
    yield made.say(start).exchange(End.RESET)
    made = stream("stalled", f"{say.SHORT} (5)", "the server went quiet inside the reply", source=REPORTS)
    yield made.say(start).exchange(End.STALLED)


def limited(made: Stream, text: str, most: int) -> Stream:
    """Say the text up to a number of tokens."""
    return made.say("".join(tokens(text)[:most]))


def overflows() -> Iterator[Exchange]:
    """Every known way to say that the prompt does not fit: inside a stream, as a plain 400, and by saying nothing."""
    for number, message in OVERFLOWS.items():
        source = LLAMA_CPP if number == 7 else REPORTS
        prompt = "Summarise the report below in five sentences. (Imagine 9,000 tokens here.)"
        name, note = f"overflow-{number}", f"overflow, text {number}"
        made = stream(
            f"{name}-frame", f"{prompt} [{name}-frame]", f"{note}: error frame in a 200 stream", source=source
        )
        if number in (5, 6):
            made.say("<think>The report is long. Let me go through its sections one by one")
        if number == 7:
            yield made.data({"error": LLAMA_CPP_OVERFLOW}, after=0.1).exchange()
        else:
            yield made.data({"error": {"message": message}, "message": message}, event="error", after=0.1).exchange()
        error = {"error": LLAMA_CPP_OVERFLOW if number == 7 else message if number < 4 else {"message": message}}
        body = chat_body(f"{prompt} [{name}-400]")
        yield answer(
            f"{name}-400", "POST", "/v1/chat/completions", body, error,
            source=source, note=f"{note}: plain 400", status=400, seconds=0.4,
        )  # fmt: skip
    made = stream(
        "overflow-8-no-delta", f"{prompt} [8 a]", "overflow said by nothing: a stream without a delta", source=REPORTS
    )
    yield made.stop().usage(zero=True).done().exchange()
    made = stream(
        "overflow-8-no-done",
        f"{prompt} [8 b]",
        "overflow said by nothing: a clean end at once",
        source="measured on llama-cpp-python",
    )
    yield made.exchange()


def server_errors() -> Iterator[Exchange]:
    """Failures inside a stream."""
    frames: dict[str, tuple[str, dict[str, Any]]] = {
        "error-frame-object": ("error", {"error": {"message": CRASHED}}),
        "error-frame-string": ("error", {"error": "Model unloaded by user."}),
        "error-as-last-data": ("", {"error": {"code": 500, "message": "Compute error.", "type": "server_error"}}),
    }  # fmt: skip
    for name, (event, error) in frames.items():
        source = REPORTS if event else LLAMA_CPP
        made = stream(name, f"{say.SHORT} [{name}]", "the server failed inside the reply", source=source)
        yield made.say("<think>7 × 8 is").data(error, event=event, after=0.05).exchange()


def composed() -> list[Exchange]:
    """All exchanges of the tape."""
    groups = (good_replies, odd_replies, unfinished_replies, overflows, server_errors, plain_answers.all_answers)
    return [exchange for group in groups for exchange in group()]


def index(tapes: Mapping[str, Iterable[Exchange]]) -> str:
    """The text of `fixtures/README.md`."""
    lines = [
        "# Fixtures",
        "",
        "Tapes that the tests and the demo play. One exchange is `NAME.json` beside `NAME.sse` (an event stream) or",
        "`NAME.body`; the format is described in `phi4_http/tape/FORMAT.md`. *Recorded* are real bytes of the server",
        "named; *composed* are written after the document or report named, by `tests/tools/compose_fixtures.py`, which",
        "also writes this page.",
    ]
    for title, exchanges in tapes.items():
        lines += ["", f"## {title}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines += [f"| {' | '.join(row(exchange))} |" for exchange in exchanges]
    return "\n".join(lines) + "\n"


COLUMNS = ("name", "kind", "request", "answer", "ends", "from", "what it shows")


def row(exchange: Exchange) -> tuple[str, ...]:
    """One line of the index."""
    origin, head = exchange.origin, exchange.response
    seconds = exchange.cuts[-1].at if exchange.cuts else head.seconds
    kind = "stream" if head.is_event_stream else "body"
    return (
        f"`{exchange.name}`",
        origin.kind,
        f"`{exchange.request.method} {exchange.request.path}`",
        f"{head.status}, {kind} of {exchange.content.size:,} bytes, {seconds:.2f} s",
        str(exchange.end),
        origin.server or origin.source,
        origin.note.replace("<", "&lt;"),
    )


def main(fixtures: Path = FIXTURES) -> None:
    """Write the tape anew, then the index."""
    folder = fixtures / "phi4"
    exchanges = composed()
    folder.mkdir(parents=True, exist_ok=True)
    for stale in {file.stem for file in folder.iterdir()} - {exchange.name for exchange in exchanges}:
        remove_exchange(folder, stale)
    for exchange in exchanges:
        write_exchange(folder, exchange)
    tapes = {"phi4: composed": load_tape(folder), "llama_cpp: recorded": load_tape(FIXTURES / "llama_cpp")}
    (fixtures / "README.md").write_text(index(tapes), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
