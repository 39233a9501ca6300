"""Builds LM Studio's answers piece by piece, as its documents describe them, with times like those of a real model.

Everything is deterministic: ids, times and pieces follow from the name of the exchange.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping
from typing import Any

from phi4_http.phi4.facts import MODEL_KEY, SAMPLING, SYSTEM_PROMPT
from phi4_http.tape.exchange import End, Exchange, Origin, RecordedRequest, RecordedResponse

CREATED = 1_763_800_000
FIRST_TOKEN = 0.8
"""Seconds before the first token: the prompt is processed."""
RATE = 27.0
"""Tokens per second."""

_TOKEN = re.compile(r" ?[A-Za-z]{1,9}|\d{1,3}| ?[^\sA-Za-z\d]|\n+| +")

Json = Mapping[str, Any]


def tokens(text: str) -> list[str]:
    """The text in pieces about as large as a tokenizer's; joined, they are the text."""
    found = _TOKEN.findall(text)
    assert "".join(found) == text, text
    return found


def identity(name: str, prefix: str = "chatcmpl") -> str:
    """An id in LM Studio's form, always the same for the same name."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
    digits = ""
    for _ in range(22):
        number, rest = divmod(number, 36)
        digits += "0123456789abcdefghijklmnopqrstuvwxyz"[rest]
    return f"{prefix}-{digits}"


def chat_body(prompt: str, *, stream: bool = True, **fields: Any) -> dict[str, Any]:
    """A chat request for Phi-4: its system prompt, one question, its sampling."""
    body: dict[str, Any] = {
        "model": MODEL_KEY,
        "messages": [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": prompt}],
        **SAMPLING,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body | fields


def prompt_tokens(body: Json) -> int:
    """About how many tokens a request has."""
    text = body["prompt"] if "prompt" in body else "".join(message["content"] or "" for message in body["messages"])
    return len(tokens(text)) + 12


class Stream:
    """An event stream in the making; each method adds one write of the server, at its time."""

    def __init__(
        self, name: str, prompt: str, *, source: str, note: str, path: str = "/v1/chat/completions", **fields: Any
    ) -> None:
        self.name = name
        self.path = path
        self.body = chat_body(prompt, **fields)
        self.origin = Origin("composed", source=source, note=note)
        self.completion_tokens = 0
        self.at = FIRST_TOKEN
        self.cuts: list[tuple[float, int]] = []
        self.bytes = b""
        self._random = random.Random(name)

    def write(self, data: str | bytes, *, after: float = 0.0) -> Stream:
        """Bytes as they are, `after` seconds from the last."""
        raw = data.encode() if isinstance(data, str) else data
        self.at = round(self.at + after, 6)
        self.cuts.append((self.at, len(raw)))
        self.bytes += raw
        return self

    def data(self, value: Json | str, *, event: str = "", after: float = 0.0) -> Stream:
        """One server-sent event."""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return self.write(f"event: {event}\ndata: {text}\n\n" if event else f"data: {text}\n\n", after=after)

    def chunk(self, choices: list[Json], *, after: float = 0.0, **fields: Any) -> Stream:
        """One completion chunk."""
        return self.data(
            {
                "id": identity(self.name),
                "object": "chat.completion.chunk",
                "created": CREATED,
                "model": MODEL_KEY,
                "system_fingerprint": MODEL_KEY,
                "choices": choices,
                **fields,
            },
            after=after,
        )

    def delta(self, delta: Json, *, finish: str | None = None, after: float = 0.0) -> Stream:
        """One delta of the only choice."""
        return self.chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], after=after)

    def say(self, text: str, *, field: str = "content") -> Stream:
        """The text as the model writes it: one or two tokens a delta, some 27 tokens a second."""
        left = tokens(text)
        while left:
            number = 2 if self._random.random() < 0.2 else 1
            taken, left = left[:number], left[number:]
            pause = len(taken) / RATE * self._random.uniform(0.9, 1.1) if self.completion_tokens else 0.0
            self.completion_tokens += len(taken)
            self.delta({"role": "assistant", field: "".join(taken)}, after=pause)
        return self

    def stop(self, reason: str = "stop") -> Stream:
        """The chunk with the finish reason."""
        return self.delta({}, finish=reason, after=0.004)

    def usage(self, *, zero: bool = False) -> Stream:
        """The chunk with the counts."""
        prompt = 0 if zero else prompt_tokens(self.body)
        completion = 0 if zero else self.completion_tokens
        counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return self.chunk([], usage=counts, after=0.001)

    def done(self) -> Stream:
        """`[DONE]`."""
        return self.data("[DONE]", after=0.0005)

    def close(self, reason: str = "stop") -> Stream:
        """What a good stream ends with."""
        return self.stop(reason).usage().done()

    def exchange(self, end: End = End.CLEAN, *, status: int = 200, content_type: str = "text/event-stream") -> Exchange:
        """What has been built."""
        headers = (
            ("X-Powered-By", "Express"),
            ("Content-Type", content_type),
            ("Cache-Control", "no-cache"),
            ("Connection", "keep-alive"),
            ("Transfer-Encoding", "chunked"),
        )
        head = self.cuts[0][0] - 0.002 if self.cuts else FIRST_TOKEN
        return Exchange.of(
            self.name,
            RecordedRequest("POST", self.path, self.body),
            RecordedResponse(status, headers, round(head, 6)),
            self.bytes,
            cuts=self.cuts,
            end=end,
            origin=self.origin,
        )


def answer(
    name: str,
    method: str,
    path: str,
    body: Any,
    reply: Any,
    *,
    source: str,
    note: str,
    status: int = 200,
    seconds: float = 0.012,
    content_type: str = "application/json; charset=utf-8",
) -> Exchange:
    """An answer in one piece: JSON, or a text as it is."""
    raw = reply.encode() if isinstance(reply, str) else json.dumps(reply, indent=2, ensure_ascii=False).encode()
    headers = (
        ("X-Powered-By", "Express"),
        ("Content-Type", content_type),
        ("Content-Length", str(len(raw))),
        ("Connection", "keep-alive"),
        ("Keep-Alive", "timeout=5"),
    )
    return Exchange.of(
        name,
        RecordedRequest(method, path, body),
        RecordedResponse(status, headers, seconds),
        raw,
        cuts=[(seconds, len(raw))] if raw else [],
        origin=Origin("composed", source=source, note=note),
    )


def completion(
    name: str, text: str, body: Json, *, finish: str = "stop", message: Json | None = None, native: bool = False
) -> dict[str, Any]:
    """A chat completion in one piece; the native API's with its figures."""
    made, asked = len(tokens(text)), prompt_tokens(body)
    reply: dict[str, Any] = {
        "id": identity(name),
        "object": "chat.completion",
        "created": CREATED,
        "model": MODEL_KEY,
        "choices": [
            {
                "index": 0,
                "logprobs": None,
                "finish_reason": finish,
                "message": message or {"role": "assistant", "content": text},
            }
        ],
        "usage": {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made},
    }
    return reply | (figures(made, finish) if native else {"system_fingerprint": MODEL_KEY})


def figures(made: int, finish: str) -> dict[str, Any]:
    """What LM Studio's native API adds to an answer."""
    seconds = round(made / RATE, 3)
    return {
        "stats": {
            "tokens_per_second": round(made / seconds, 6),
            "time_to_first_token": FIRST_TOKEN,
            "generation_time": seconds,
            "stop_reason": "eosFound" if finish == "stop" else "maxPredictedTokensReached",
        },
        "model_info": {"arch": "phi3", "quant": "Q4_K_M", "format": "gguf", "context_length": 8192},
        "runtime": {
            "name": "llama.cpp-linux-x86_64-nvidia-cuda-avx2",
            "version": "1.50.2",
            "supported_formats": ["gguf"],
        },
    }


def recut(exchange: Exchange, sizes: Iterable[int]) -> Exchange:
    """The same answer, cut without regard to events or characters; each piece comes when its last byte did."""
    starts = [at for at, size in exchange.cuts for _ in range(size)]
    cuts, start = [], 0
    for size in sizes:
        if start >= len(starts):
            break
        taken = min(size, len(starts) - start)
        cuts.append((starts[start + taken - 1], taken))
        start += taken
    return Exchange.of(
        exchange.name,
        exchange.request,
        exchange.response,
        exchange.body,
        cuts=cuts,
        end=exchange.end,
        origin=exchange.origin,
    )
