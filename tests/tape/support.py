"""What the tests of the tape share: exchanges made up, exchanges of any shape, and ways to compare them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from phi4_http.tape.exchange import Cut, End, Exchange, Origin, RecordedRequest, RecordedResponse

ORIGIN = Origin("composed", source="a test")
EVENT_STREAM = (("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked"))
SECRET = "sk-lm-Ab3dEf9h:Zy8xWv7uTs6rQp5o"


def exchange(
    name: str = "hello",
    *,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    body: Any = None,
    pieces: list[tuple[float, bytes]] | None = None,
    status: int = 200,
    headers: tuple[tuple[str, str], ...] = EVENT_STREAM,
    seconds: float = 0.0,
    end: End = End.CLEAN,
) -> Exchange:
    """An exchange with these pieces."""
    pieces = [(0.0, b"data: 1\n\n"), (0.0, b"data: [DONE]\n\n")] if pieces is None else pieces
    return Exchange.of(
        name,
        RecordedRequest(method, path, body),
        RecordedResponse(status, headers, seconds),
        b"".join(data for _, data in pieces),
        cuts=[(at, len(data)) for at, data in pieces],
        end=end,
        origin=ORIGIN,
    )


def stream(events: int, *, name: str = "long", pause: float = 0.0, body: Any = None) -> Exchange:
    """An event stream as LM Studio sends it, one event a piece."""
    pieces = [(round(i * pause, 6), chunk(f" word{i}")) for i in range(events)]
    return exchange(name, body=body, pieces=[*pieces, (round(events * pause, 6), b"data: [DONE]\n\n")])


def chunk(text: str) -> bytes:
    """One event with one delta."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": None}
    event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "phi", "choices": [choice]}
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def facts(one: Exchange, *, timed: bool = True) -> dict[str, Any]:
    """Everything about an exchange, wherever its body is; without times and origin, where `timed` is False."""
    told = {
        "request": one.request,
        "status": one.response.status,
        "headers": one.response.headers,
        "body": one.body,
        "sizes": [cut.size for cut in one.cuts],
        "end": one.end,
    }
    return told | (
        {"times": [cut.at for cut in one.cuts], "response": one.response, "origin": one.origin} if timed else {}
    )


def edit(file: Path, change: Callable[[Any], None]) -> None:
    """Change the JSON of an exchange as a person with an editor would: any layout."""
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    file.write_text(json.dumps(data), encoding="utf-8")


# --- exchanges of any shape ------------------------------------------------------------------------------------------

_words = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_bodies = (
    st.none()
    | st.dictionaries(st.text(max_size=8), _json, max_size=3)
    | st.lists(_json, max_size=3)
    | _words.filter(lambda text: text != "")
    | st.binary(min_size=1, max_size=30).filter(lambda data: data.decode("utf-8", "replace").count("\ufffd") > 0)
)
_tokens = st.text("abcdefghijklmnopqrstuvwxyzABC-0123456789", min_size=1, max_size=12)
_values = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    """Any exchange that the format can hold."""
    sizes = draw(st.lists(st.integers(1, 40), max_size=12))
    times = sorted(draw(st.lists(st.floats(0, 1e6), min_size=len(sizes), max_size=len(sizes))))
    body = draw(st.binary(min_size=sum(sizes), max_size=sum(sizes)))
    kind = draw(st.sampled_from(["text/event-stream", "text/event-stream; charset=utf-8", "application/json"]))
    headers = [("Content-Type", kind), *draw(st.lists(st.tuples(_tokens, _values), max_size=3))]
    return Exchange.of(
        draw(st.text("abc-_ é7", min_size=1, max_size=8)),
        RecordedRequest(draw(st.sampled_from(["GET", "POST"])), "/" + draw(_words), draw(_bodies)),
        RecordedResponse(draw(st.integers(200, 599)), tuple(headers), draw(st.floats(0, 1e6))),
        body,
        cuts=[Cut(at, size) for at, size in zip(times, sizes, strict=True)],
        end=draw(st.sampled_from(End)),
        origin=Origin(draw(st.sampled_from(["recorded", "composed"])), draw(_words), draw(_words), "", draw(_words)),
    )
