"""A loopback server with a chat template, a tokenizer and a scripted model: LM Studio, llama.cpp or vLLM from outside.

Composed from the documented wire format. The tokenizer is a real byte-level BPE, trained here on a few sentences, with
the model's special tokens; prompts are rendered, counted and continued as a server does it. What a test asks of it is
in its fields; what it was asked, and who left early, it keeps.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

from support import GUARD
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from phi4_http.phi4.facts import SYSTEM_PROMPT
from phi4_http.wire.fields import text_of

MODEL = "microsoft/phi-4-reasoning-plus"
SPECIAL = ("<|im_start|>", "<|im_sep|>", "<|im_end|>", "<think>", "</think>")
ANSWER = "<|im_start|>assistant<|im_sep|>"
CHAT, RAW = "/v1/chat/completions", "/v1/completions"

Message = Mapping[str, Any]
Template = Callable[[Sequence[Message]], str]


# --- the tokenizer ----------------------------------------------------------------------------------------------------


APART = " ?[A-Za-z]+| ?[0-9]+|[^A-Za-z0-9\\s]|\\s"
TOGETHER = "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+"
"""How a text is cut before pairs are merged: each line break alone; or, as the model's own tokenizer does, line breaks
together, and with the punctuation before them."""


@functools.cache
def tokenizer(pattern: str = APART) -> Tokenizer:
    """A byte-level BPE of some 600 tokens."""
    made = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    sentences = ["The answer to the question is a number, and the train is late.", "a:\nb:\n\nc.\nd.\n\n"] * 9
    made.train_from_iterator([SYSTEM_PROMPT, *sentences], trainer)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return made


def tokens(text: str, pattern: str = APART) -> list[str]:
    """The pieces of a text, as a stream brings them: a character of several tokens comes with its first one."""
    pieces, at = [], 0
    for _, end in tokenizer(pattern).encode(text).offsets:
        if end > at:
            pieces.append(text[at:end])
            at = end
    return pieces


def count(text: str, pattern: str = APART) -> int:
    """How many tokens a text has."""
    return len(tokenizer(pattern).encode(text).ids)


# --- templates --------------------------------------------------------------------------------------------------------


def said(message: Message) -> str:
    """What a message says, its tool calls included."""
    calls = message.get("tool_calls")
    return text_of(message.get("content")) + (json.dumps(calls) if calls else "")


def rendered_turn(role: str, text: str) -> str:
    """One turn."""
    return f"<|im_start|>{role}<|im_sep|>{text}<|im_end|>"


def own_turn(messages: Sequence[Message]) -> str:
    """Every message is a turn, the system message too."""
    return "".join(rendered_turn(message["role"], said(message)) for message in messages) + ANSWER


def split_system(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """The system message's text, and the other messages."""
    rest = [message for message in messages if message["role"] != "system"]
    return "".join(said(message) for message in messages if message["role"] == "system"), rest


def built_in(messages: Sequence[Message]) -> str:
    """The trained prompt, whatever the caller's system message says: it is dropped."""
    return rendered_turn("system", SYSTEM_PROMPT) + own_turn(split_system(messages)[1])


def dropped(messages: Sequence[Message]) -> str:
    """The caller's system message is dropped, and nothing put in its place."""
    return own_turn(split_system(messages)[1])


def merging(between: str) -> Template:
    """The system message goes into the first user's turn."""

    def template(messages: Sequence[Message]) -> str:
        system, (first, *rest) = split_system(messages)
        text = f"{system}{between}{said(first)}" if system else said(first)
        return own_turn([{"role": "user", "content": text}, *rest])

    return template


merged = merging("\n")
merged_blank = merging("\n\n")
merged_nothing = merging("")


def built_in_and_merged(messages: Sequence[Message]) -> str:
    """As llama.cpp does with a template that knows no system role and has a prompt of its own."""
    return rendered_turn("system", SYSTEM_PROMPT) + merged_nothing(messages)


def user_lost(messages: Sequence[Message]) -> str:
    """With a system message, the user's words are gone."""
    system, rest = split_system(messages)
    return rendered_turn("system", system) + ANSWER if system else own_turn(rest)


def opening(template: Template, tail: str = "") -> Template:
    """The same, and the thought is begun for the model."""
    return lambda messages: f"{template(messages)}<think>{tail}"


def unknown(messages: Sequence[Message]) -> str:
    """A template that this library does not know."""
    return "".join(f"[{message['role']}] {said(message)}\n" for message in messages) + "[assistant] "


KNOWN: Mapping[str, Template] = {
    "own turn": own_turn,
    "built-in instead": built_in,
    "merged, nothing between": merged_nothing,
    "built-in, and merged, nothing between": built_in_and_merged,
    "ignored": dropped,
}
"""Templates that the library can tell, by its names for them."""


# --- the server -------------------------------------------------------------------------------------------------------


@dataclass
class StandIn:
    """A server on loopback; a context manager. `asked` keeps the requests: path and body."""

    template: Template = own_turn
    pattern: str = APART
    """How its tokenizer cuts a text."""
    reply: str | Callable[[str], str] = "<think>I reason.</think>The answer is 4."
    """What the model writes after a prompt."""
    answer: str | Callable[[str], str] = "So it is 4."
    """What it writes where the prompt ends with a closed thought."""
    repeats: bool = False
    """Whether a chat's content begins with the `<think>` that its prompt ends on, as llama-server does."""
    plainly: bool = False
    """Whether a chat's special tokens are only those of the template: in what is said, they are text."""
    context_length: int = 4096
    loaded: bool = True
    """Whether the model is loaded; the first request of one that isn't loads it."""
    native: bool = True
    """Whether it has LM Studio's own API."""
    lists: tuple[str, ...] = ("v0",)
    """The versions of it that list models."""
    aliases: tuple[str, ...] = ()
    """Further names of the model, as llama-server has them."""
    router: bool = False
    """Whether it is llama-server's router: several models, of which each request has to name one."""
    free: Literal["", "llama.cpp", "vllm"] = ""
    """Whose endpoints it has that count for nothing."""
    overflows_in_stream: bool = False
    """Whether a stream says in its first event that the prompt does not fit, as LM Studio does."""
    split_field: bool = False
    """Whether the server takes the thought out of the content itself."""
    says: Callable[[int], object] = int
    """What it says of a prompt's tokens."""
    says_streaming: Callable[[int], object] | None = int
    """What its streams end with; None: no count."""
    cached: Callable[[int], int] | None = None
    """What it says of a prompt's tokens that were in its cache."""
    refuses: Callable[[str, dict[str, Any]], Trouble | None] = lambda path, body: None
    """What goes wrong with a request, by path and body."""
    holds: Callable[[str, dict[str, Any]], bool] = lambda path, body: False
    """Whether a stream, after its last piece, goes on without a word until the client leaves."""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    """Every request, method and path."""
    left: list[str] = field(default_factory=list)
    """The paths of requests that the client left before their end."""

    def __enter__(self) -> StandIn:
        standin = self

        class Handler(_Handler):
            state = standin

        self._leaving = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def note_asked(self, path: str, body: dict[str, Any]) -> None:
        """A request has come."""
        with self._leaving:
            self.asked.append((path, body))
            self._leaving.notify_all()

    def wait_asked(self, times: int) -> bool:
        """Wait until so many requests have come; False where they don't within the guard."""
        with self._leaving:
            return self._leaving.wait_for(lambda: len(self.asked) >= times, GUARD)

    def note_left(self, path: str) -> None:
        """A client has left a stream."""
        with self._leaving:
            self.left.append(path)
            self._leaving.notify_all()

    def wait_left(self, *paths: str) -> bool:
        """Wait until the client has left exactly these streams; False where it doesn't within the guard."""
        with self._leaving:
            return self._leaving.wait_for(lambda: self.left == list(paths), GUARD)

    @property
    def counting(self) -> list[dict[str, Any]]:
        """The requests of one token."""
        return [body for _, body in self.asked if body.get("max_tokens") == 1 and not body.get("stream")]

    @property
    def chats(self) -> list[dict[str, Any]]:
        """The streamed chats."""
        return [body for path, body in self.asked if path == CHAT and body.get("stream")]

    @property
    def completions(self) -> list[dict[str, Any]]:
        """The streamed continuations of a raw prompt."""
        return [body for path, body in self.asked if path == RAW and body.get("stream")]

    def rendered(self, body: Mapping[str, Any]) -> str:
        """The prompt of a chat."""
        tools, messages = body.get("tools"), body["messages"]
        settings = {name: body[name] for name in ("chat_template_kwargs", "reasoning_effort") if name in body}
        if self.plainly:
            messages = [{**message, "content": said(message).replace("<|", "< |")} for message in messages]
        before = "".join(rendered_turn("tools", json.dumps(what)) for what in (tools, settings) if what)
        return before + self.template(messages)

    def written(self, prompt: str) -> str:
        """What the model writes after this prompt."""
        if prompt.rstrip().endswith("</think>"):
            return self.answer(prompt) if callable(self.answer) else self.answer
        return self.reply(prompt) if callable(self.reply) else self.reply


Trouble = Literal[
    "missing", "failed", "loading", "html", "overflow", "stalled", "silent", "cut", "reset", "framed", "unreadable"
]
"""How a request goes wrong: refused with 404, 500, 503, a page or too many tokens; not a byte until the client leaves;
a stream with nothing in it, or one that after some text ends, breaks, says that it failed, or says what is no JSON."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is not worth a word."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: StandIn

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is said."""

    def do_GET(self) -> None:
        state = self.state
        state.seen.append(f"GET {self.path}")
        if self.path == "/v1/models":
            model: dict[str, Any] = {"id": MODEL, "object": "model", "aliases": list(state.aliases)}
            if state.router:
                model["status"] = {"value": "loaded" if state.loaded else "unloaded"}
            if state.free == "llama.cpp" and (state.loaded or not state.router):
                model["meta"] = {"n_ctx": state.context_length, "n_ctx_train": 32768}
            elif state.free == "vllm":
                model["max_model_len"] = state.context_length
            others = [{"id": "other", "status": {"value": "unloaded"}}] if state.router else []
            self._json({"object": "list", "data": [model, *others]})
        elif self.path == "/api/v1/models" and state.native and "v1" in state.lists:
            instance = {"id": MODEL, "config": {"context_length": state.context_length}}
            loaded = [instance] if state.loaded else []
            self._json({"models": [{"key": MODEL, "type": "llm", "loaded_instances": loaded}]})
        elif not state.native or "v0" not in state.lists or self.path != "/api/v0/models":
            self._not_there()
        else:
            length = {"loaded_context_length": state.context_length} if state.loaded else {}
            model = {
                "id": MODEL,
                "object": "model",
                "type": "llm",
                "state": "loaded" if state.loaded else "not-loaded",
                "max_context_length": 32768,
                **length,
            }
            self._json({"object": "list", "data": [model]})

    def do_POST(self) -> None:
        state = self.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state.seen.append(f"POST {self.path}")
        state.note_asked(self.path, body)
        trouble = state.refuses(self.path, body)
        if trouble is not None and self._refused(trouble):
            return
        if state.router and "model" not in body:
            self._json({"error": {"message": "model name is missing from the request", "code": 400}}, 400)
        elif self.path == "/apply-template" and state.free == "llama.cpp":
            self._json({"prompt": state.rendered(body)})
        elif self.path == "/tokenize" and state.free == "llama.cpp":
            self._json({"tokens": list(range(count(body["content"], state.pattern)))})
        elif self.path == "/tokenize" and state.free == "vllm" and "messages" in body:
            self._json({"count": count(state.rendered(body), state.pattern), "max_model_len": state.context_length})
        elif self.path in (CHAT, RAW):
            self._complete(body, state.rendered(body) if self.path == CHAT else body["prompt"], trouble)
        else:
            self._not_there()

    def _not_there(self) -> None:
        if self.state.native:
            self._json({"error": f"Unexpected endpoint or method. ({self.command} {self.path})"})
        else:
            self._json({"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}, 404)

    def _refused(self, trouble: Trouble) -> bool:
        """Whether that was an answer already."""
        if trouble == "missing":
            self._json({"detail": "Not Found"}, 404)
        elif trouble == "failed":
            self._json({"error": {"message": "the engine is gone"}}, 500)
        elif trouble == "loading":
            self._json({"error": {"message": "Loading model", "code": 503}}, 503)
        elif trouble == "html":
            self._send(b"<!doctype html><title>no</title>", "text/html", 200)
        elif trouble == "overflow":
            self._overflow(5000)
        elif trouble == "stalled":
            self._hold()
        else:
            return False
        return True

    def _overflow(self, needed: int, *, framed: bool = False) -> None:
        message = (
            f"Input does not fit in context length. The input has {needed} tokens, but the context length only "
            f"supports {self.state.context_length} tokens."
        )
        if framed:
            data = b"event: error\ndata: " + json.dumps({"error": {"message": message}}).encode() + b"\n\n"
            self._send(data, "text/event-stream", 200)
        else:
            self._json({"error": {"message": message}}, 400)

    def _complete(self, body: dict[str, Any], prompt: str, trouble: Trouble | None) -> None:
        state, chat = self.state, self.path == CHAT
        state.loaded = True
        needed = count(prompt, state.pattern)
        if needed > state.context_length:
            self._overflow(needed, framed=state.overflows_in_stream and bool(body.get("stream")))
            return
        pieces = tokens(state.written(prompt), state.pattern)
        if chat and state.repeats and prompt.rstrip().endswith("<think>"):
            pieces.insert(0, "<think>")
        limit, room = body.get("max_tokens") or -1, state.context_length - needed
        finish = "stop"
        if 0 < limit < len(pieces):
            pieces, finish = pieces[:limit], "length"
        if room < len(pieces):
            pieces, finish = pieces[:room], "length"
        says = state.says_streaming if body.get("stream") else state.says
        usage = says and {"prompt_tokens": says(needed), "completion_tokens": len(pieces)}
        if usage and state.cached:
            usage["prompt_tokens_details"] = {"cached_tokens": state.cached(needed)}
        if not body.get("stream"):
            text = "".join(pieces)
            choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            self._json({"id": "x", "choices": [{"index": 0, "finish_reason": finish, **choice}], "usage": usage})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if trouble == "silent":
            self._chunk(b"")
            return
        try:
            self._stream(pieces[:2] if trouble else pieces, chat, trouble)
            if trouble:
                return
            if state.holds(self.path, body):
                self._hold()
                return
            self._event({"id": "x", "choices": [{"index": 0, "finish_reason": finish, "delta": {}}]})
            if usage:
                self._event({"id": "x", "choices": [], "usage": usage})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except OSError:
            self.close_connection = True
            state.note_left(self.path)

    def _stream(self, pieces: Sequence[str], chat: bool, trouble: Trouble | None) -> None:
        for delta in self._deltas(pieces, chat):
            self._event({"id": "x", "choices": [{"index": 0, "finish_reason": None, **delta}]})
        if trouble == "cut":
            self._chunk(b"")
        elif trouble == "reset":
            self.close_connection = True  # inside a chunked body: the client sees it break
        elif trouble == "framed":
            self._chunk(b'event: error\ndata: {"error":{"message":"the engine is gone"}}\n\n')
            self._chunk(b"")
        elif trouble == "unreadable":
            self._chunk(b'data: {"id": "x", "choi\n\n')
            self._chunk(b"")

    def _hold(self) -> None:
        """Say nothing until the client leaves."""
        self.connection.settimeout(GUARD)
        self.close_connection = True
        if not self.connection.recv(1):
            self.state.note_left(self.path)

    def _deltas(self, pieces: Sequence[str], chat: bool) -> Iterator[dict[str, Any]]:
        inside = False
        for piece in pieces:
            if not chat:
                yield {"text": piece}
            elif self.state.split_field and piece in ("<think>", "</think>"):
                inside = piece == "<think>"
            else:
                yield {"delta": {"reasoning_content" if inside else "content": piece}}

    def _event(self, payload: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(payload).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _json(self, payload: dict[str, Any], status: int = 200) -> None:
        self._send(json.dumps(payload).encode(), "application/json", status)

    def _send(self, data: bytes, content_type: str, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
