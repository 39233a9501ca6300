"""The table of faults: what a server does, how the reply ends, the text that is kept, the command's exit code.

A fault is what follows the request on the wire, byte for byte, and how the connection ends: `FIN`, `RST`, or `STAY`
(open and silent). The rows are composed from a few parts: dialects of errors at every position, garbage, wrong lengths,
missing ends, heads, encodings, silences.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from support import HEAD, delta, framed, sse, usage

from phi4_http import Timeouts

FIN, RST, STAY = "FIN", "RST", "STAY"
LAST = b"0\r\n\r\n"
TEXT = sse(delta("<think>a</think>"), delta("b"), done=False)
FINISHED = TEXT + sse(delta(finish="stop"), usage(9, 4), done=False)
DONE = b"data: [DONE]\n\n"
NONE, AB = (None, ""), ("a", "b")


class Fault(NamedTuple):
    """One row."""

    name: str
    sent: bytes
    end: str
    outcome: str
    kept: tuple[str | None, str]
    """Thought and solution. After a reset, what is kept may be less."""
    code: int
    timeouts: Timeouts = Timeouts(first_byte=20.0, idle=20.0)


def stream(body: bytes, *, last: bytes = LAST, head: bytes = HEAD) -> bytes:
    """A body as a chunked stream."""
    return head + (framed(body) if body else b"") + last


def answer(status: str, body: bytes, kind: str = "application/json", *further: str) -> bytes:
    """A whole answer."""
    head = [f"HTTP/1.1 {status}", *([f"Content-Type: {kind}"] if kind else []), f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "Connection: close", *further, "", ""]).encode() + body


# --- dialects of errors, at every position ----------------------------------------------------------------------------

OVERFLOW = (
    "Input does not fit in context length. The input has 31430 tokens, but the context length only supports 30000"
)
# How it is said, the outcome, the exit code.
DIALECTS: tuple[tuple[str, str, str, int], ...] = (
    ("object", '{"error":{"message":"CUDA out of memory"}}', "server_error", 8),
    ("object and message", '{"error":{"message":"broke"},"message":"broke"}', "server_error", 8),
    ("text", '{"error":"broke"}', "server_error", 8),
    ("null and message", '{"error":null,"message":"boom"}', "server_error", 8),
    ("code alone", '{"error":{"code":7}}', "server_error", 8),
    ("of a class", '{"error":{"message":"no","type":"server_error","code":500,"param":null}}', "server_error", 8),
    ("nested 500 deep", '{"error":' + '{"a":' * 500 + "1" + "}" * 500 + "}", "server_error", 8),
    ("half a character", '{"error":"\\ud83e"}', "server_error", 8),
    ("template", '{"error":"Error rendering prompt with jinja template: \\"x\\""}', "server_error", 8),
    ("overflow", json.dumps({"error": {"message": f"{OVERFLOW} tokens."}}), "overflow", 7),
    (
        "overflow, by code",
        '{"error":{"type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":8}}',
        "overflow",
        7,
    ),
    ("overflow, later", '{"error":{"message":"Context size has been exceeded."}}', "overflow", 7),
    (
        "no token",
        '{"error":{"code":"invalid_api_key","message":"An LM Studio API token is required"}}',
        "server_error",
        4,
    ),
    ("no model", '{"error":{"code":"model_not_found","message":"no such model"}}', "server_error", 5),
    ("no load", '{"error":"Failed to load model \\"x\\". Error: Operation canceled."}', "server_error", 6),
)


def at_every_position() -> Iterator[Fault]:
    """Each dialect before text, after it, after the finish reason, half ended, and instead of the head."""
    for name, said, outcome, code in DIALECTS:
        event = f"data: {said}\n\n".encode()
        named = b"event: error\n" + event
        # A prompt that was answered has fitted: what is too long then is the reply.
        later = ("server_error", AB, 8) if outcome == "overflow" else (outcome, AB, code)
        yield Fault(f"error {name}: before text", stream(named), FIN, outcome, NONE, code)
        yield Fault(f"error {name}: after text", stream(TEXT + event), FIN, *later)
        yield Fault(f"error {name}: after the finish reason", stream(FINISHED + named), FIN, *later)
        yield Fault(f"error {name}: last, then a broken end", stream(TEXT + event[:-1], last=b""), FIN, *later)
        yield Fault(f"error {name}: last, with no line end", stream(TEXT + event[:-2], last=b""), FIN, *later)
        yield Fault(
            f"error {name}: 400 in place of the head", answer("400 Bad", said.encode()), FIN, outcome, NONE, code
        )
        yield Fault(
            f"error {name}: 200 in place of the head", answer("200 OK", said.encode()), FIN, outcome, NONE, code
        )


# --- bytes that are no events -----------------------------------------------------------------------------------------

GARBAGE: tuple[tuple[str, bytes, str, int], ...] = (
    ("words", b"hello\nworld\n", "not_lm_studio", 3),
    ("binary", bytes(range(128, 256)) * 3, "not_lm_studio", 3),
    ("zeros", bytes(200), "not_lm_studio", 3),
    ("JSON lines without data:", b'{"choices":[]}\n{"choices":[]}\n', "not_lm_studio", 3),
    ("a page", b"<!doctype html><title>x</title>", "not_lm_studio", 3),
    ("comments alone", b": ping\n\n: ping\n\n", "cut", 9),
    ("a comment, no line end", b": pi", "cut", 9),
    ("blank lines", b"\n\n\n", "cut", 9),
    ("a name alone", b"event: error\n\n", "cut", 9),
    ("empty data", b"data:\n\ndata: \n\n", "cut", 9),
    ("the start of a field", b"dat", "cut", 9),
    ("half a chunk", b'data: {"choices":[{"del', "cut", 9),
    ("data that is no JSON", b"data: hello\n\n", "cut", 9),
    ("a list", b"data: [1]\n\n", "cut", 9),
    ("an empty object", b"data: {}\n\n", "cut", 9),
    ("done alone", DONE, "cut", 9),
    ("a role alone", sse(delta(role="assistant"), done=False), "cut", 9),
)


def garbage() -> Iterator[Fault]:
    """Each kind with a clean end and a broken one."""
    for name, body, outcome, code in GARBAGE:
        yield Fault(f"{name}: clean end", stream(body), FIN, outcome, NONE, code)
        yield Fault(f"{name}: broken end", stream(body, last=b""), FIN, outcome, NONE, code)
    yield Fault("nothing at all", stream(b""), FIN, "overflow", NONE, 7)
    yield Fault("nothing, broken end", stream(b"", last=b""), FIN, "cut", NONE, 9)


# --- lengths, ends, heads ---------------------------------------------------------------------------------------------

SIZED = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {}\r\n\r\n"
CLOSED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def lengths() -> Iterator[Fault]:
    """What HTTP says of the length is wrong."""
    size = len(FINISHED)
    yield Fault("length as it is", SIZED.format(size).encode() + FINISHED, FIN, "complete", AB, 0)
    yield Fault("length one too long", SIZED.format(size + 1).encode() + FINISHED, FIN, "complete", AB, 0)
    yield Fault("length one too short", SIZED.format(size - 1).encode() + FINISHED, FIN, "complete", AB, 0)
    yield Fault("length of the text alone", SIZED.format(len(TEXT)).encode() + FINISHED, FIN, "cut", AB, 9)
    yield Fault("length too long after text", SIZED.format(size).encode() + TEXT, FIN, "cut", AB, 9)
    yield Fault("length 0", SIZED.format(0).encode() + FINISHED, FIN, "overflow", NONE, 7)
    yield Fault("length negative", SIZED.format(-5).encode() + FINISHED, FIN, "unreachable", NONE, 3)
    yield Fault("length no number", SIZED.format("x").encode() + FINISHED, FIN, "unreachable", NONE, 3)
    yield Fault("length huge", SIZED.format(10**18).encode() + FINISHED, FIN, "complete", AB, 0)
    yield Fault("no length", CLOSED + FINISHED, FIN, "complete", AB, 0)
    yield Fault("no length, text alone", CLOSED + TEXT, FIN, "cut", AB, 9)
    yield Fault("chunk size no number", stream(TEXT, last=b"xyz\r\n"), FIN, "cut", AB, 9)
    yield Fault("chunk size missing", HEAD + TEXT, FIN, "cut", NONE, 9)
    yield Fault("chunk too short", HEAD + b"4\r\n" + TEXT, FIN, "cut", NONE, 9)
    yield Fault("chunk too long", HEAD + b"fffff\r\n" + TEXT, FIN, "cut", AB, 9)
    yield Fault("chunk size of 40 digits", HEAD + b"f" * 40 + b"\r\n" + TEXT, FIN, "cut", NONE, 9)
    yield Fault("last chunk and more", stream(FINISHED) + b"more", FIN, "complete", AB, 0)


def ends() -> Iterator[Fault]:
    """How it stops."""
    for name, body, outcome, code in (
        ("after text", TEXT, "cut", 9),
        ("after the finish reason", FINISHED, "complete", 0),
        ("after [DONE]", FINISHED + DONE, "complete", 0),
        ("[DONE] with no finish reason", TEXT + DONE, "cut", 9),
        ("inside a chunk", TEXT + b'data: {"cho', "cut", 9),
        ("inside a chunk after the finish reason", FINISHED + b'data: {"cho', "complete", 0),
        ("the finish reason last, no line end", (TEXT + sse(delta(finish="stop"), done=False))[:-2], "complete", 0),
    ):
        yield Fault(f"clean end {name}", stream(body), FIN, outcome, AB, code)
        yield Fault(f"broken end {name}", stream(body, last=b""), FIN, outcome, AB, code)
        yield Fault(f"reset {name}", stream(body, last=b""), RST, outcome, AB, code)
    yield Fault("FIN in place of an answer", b"", FIN, "unreachable", NONE, 3)
    yield Fault("RST in place of an answer", b"", RST, "unreachable", NONE, 3)
    yield Fault("open after the finish reason", stream(FINISHED, last=b""), STAY, "complete", AB, 0)
    yield Fault("open after [DONE]", stream(FINISHED + DONE, last=b""), STAY, "complete", AB, 0)


def heads() -> Iterator[Fault]:
    """What stands before the body."""
    for kind in ("TEXT/Event-Stream", "text/event-stream; charset=utf-8", " text/event-stream;charset=latin-1"):
        head = HEAD.replace(b" text/event-stream", f" {kind}".encode())
        yield Fault(f"type {kind}", stream(FINISHED + DONE, head=head), FIN, "complete", AB, 0)
    for kind in ("text/plain", "application/octet-stream", ""):
        whole = answer("200 OK", b"hello", kind)
        yield Fault(f"type {kind or 'missing'}", whole, FIN, "not_lm_studio", NONE, 3)
    for status, body, kind, outcome, code in (
        ("204 None", b"", "", "not_lm_studio", 3),
        ("301 Moved", b"", "", "not_lm_studio", 3),
        ("401 No", b"", "", "server_error", 4),
        ("403 No", b"{}", "application/json", "server_error", 4),
        ("404 No", b"", "", "not_lm_studio", 3),
        ("404 No", b"<html>no</html>", "text/html", "not_lm_studio", 3),
        ("405 No", b"no", "text/plain", "not_lm_studio", 3),
        ("429 Busy", b'{"error":"busy"}', "application/json", "server_error", 8),
        ("500 Broken", b"", "", "server_error", 8),
        ("500 Broken", b"words", "text/plain", "server_error", 8),
        ("502 Bad", b"<!doctype html>bad", "text/html", "not_lm_studio", 3),
        ("504 Late", b"late", "text/plain", "server_error", 8),
        ("200 OK", b'{"error":"Unexpected endpoint or method. (POST /x)"}', "application/json", "not_lm_studio", 3),
        ("200 OK", b"<html>hello</html>", "text/html", "not_lm_studio", 3),
    ):
        yield Fault(f"status {status}, {body[:20]!r}", answer(status, body, kind), FIN, outcome, NONE, code)
    loading = answer("503 Loading", b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}')
    yield Fault("status 503, loading", loading, FIN, "server_error", NONE, 8, Timeouts(first_byte=0.5))
    long = b"x" * (2 << 20)
    yield Fault("a refusal of 2 MiB", answer("500 Broken", long, "text/plain"), FIN, "server_error", NONE, 8)
    half = answer("500 Broken", b'{"error":"broke"}', "application/json")
    yield Fault("a refusal that breaks off", half[:-3], FIN, "server_error", NONE, 8)
    yield Fault("no HTTP", b"220 mail.invalid ESMTP\r\n", FIN, "unreachable", NONE, 3)
    yield Fault("TLS", b"\x15\x03\x01\x00\x02\x02\x16", FIN, "unreachable", NONE, 3)
    yield Fault("half a head", HEAD[:30], FIN, "unreachable", NONE, 3)
    yield Fault("a head of 200 KB", HEAD[:-2] + b"X: " + b"x" * 200_000, FIN, "unreachable", NONE, 3)
    complete = {"choices": [{"index": 0, "message": {"content": "<think>a</think>b"}, "finish_reason": "stop"}]}
    yield Fault("a whole completion", answer("200 OK", json.dumps(complete).encode()), FIN, "not_lm_studio", AB, 3)


def encodings() -> Iterator[Fault]:
    """What the body is written in."""
    bom = "\ufeff".encode()
    yield Fault("a byte-order mark", stream(bom + FINISHED), FIN, "complete", AB, 0)
    error = b'data: {"error":"broke"}\n\n'
    yield Fault("a byte-order mark before an error", stream(bom + error), FIN, "server_error", NONE, 8)
    yield Fault("lines that end with CR LF", stream(FINISHED.replace(b"\n", b"\r\n")), FIN, "complete", AB, 0)
    yield Fault("lines that end with CR", stream(FINISHED.replace(b"\n", b"\r")), FIN, "complete", AB, 0)
    yield Fault(
        "bytes that are no UTF-8", stream(FINISHED.replace(b'"b"', b'"\xff"')), FIN, "complete", ("a", "\ufffd"), 0
    )
    for name, packed, outcome, kept, code in (
        ("gzip", gzip.compress(FINISHED), "complete", AB, 0),
        ("gzip", gzip.compress(FINISHED)[:30], "cut", NONE, 9),
        ("gzip", b"no gzip", "cut", NONE, 9),
        ("deflate", zlib.compress(FINISHED), "complete", AB, 0),
        ("br", FINISHED, "not_lm_studio", NONE, 3),
        ("gzip", gzip.compress(b"\n" * (64 << 20)), "not_lm_studio", NONE, 3),
        ("gzip", gzip.compress(b"x" * (64 << 20)), "not_lm_studio", NONE, 3),
    ):
        head = HEAD[:-2] + f"Content-Encoding: {name}\r\n\r\n".encode()
        yield Fault(f"{name}: {len(packed)} bytes", stream(packed, head=head), FIN, outcome, kept, code)
    yield Fault("an event of 17 MiB", stream(b"data: " + b"x" * (17 << 20)), FIN, "not_lm_studio", NONE, 3)
    deep = FINISHED[: -len(sse(usage(9, 4), done=False))] + b'data: {"x":' + b"[" * 500 + b"]" * 500 + b"}\n\n"
    yield Fault("a chunk nested 500 deep", stream(deep), FIN, "complete", AB, 0)
    deeper = TEXT + b'data: {"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n\n"
    yield Fault("a chunk nested 100,000 deep", stream(deeper), FIN, "cut", AB, 9)


def silences() -> Iterator[Fault]:
    """Open, and nothing comes: the limit that ends the wait."""
    short = Timeouts(first_byte=0.1, idle=0.1)
    for name, sent, outcome, kept, code in (
        ("nothing", b"", "unreachable", NONE, 3),
        ("half a head", HEAD[:30], "unreachable", NONE, 3),
        ("a head", HEAD, "unreachable", NONE, 3),
        ("comments", stream(b": ping\n\n", last=b""), "unreachable", NONE, 3),
        ("a role", stream(sse(delta(role="assistant"), done=False), last=b""), "unreachable", NONE, 3),
        ("text", stream(TEXT, last=b""), "cut", AB, 9),
        ("half a chunk", stream(TEXT + b'data: {"ch', last=b""), "cut", AB, 9),
        ("an error with no blank line", stream(TEXT + b'data: {"error":"broke"}\n', last=b""), "server_error", AB, 8),
        (
            "a finish reason with no blank line",
            stream((TEXT + sse(delta(finish="stop"), done=False))[:-1], last=b""),
            "complete",
            AB,
            0,
        ),
        ("a refusal's head", b"HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\n", "unreachable", NONE, 3),
    ):
        yield Fault(f"silence after {name}", sent, STAY, outcome, kept, code, short)


FAULTS = (
    *at_every_position(),
    *garbage(),
    *lengths(),
    *ends(),
    *heads(),
    *encodings(),
    *silences(),
)
