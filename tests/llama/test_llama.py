"""Ask, count, window, probe and rescue against real llama.cpp servers, with a tiny model that speaks no sense."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from support import GUARD, PATIENT, AsyncFace, Face, Heard

from llama import tiny_model
from llama.servers import CONTEXT, Server, kinds, serving
from llama.tiny_model import NAME
from phi4_http.errors import CannotContinue, ContextOverflow, StreamCut
from phi4_http.events import Outcome, Reply, Solution, Thinking
from phi4_http.phi4.conversation import build_messages
from phi4_http.phi4.facts import SYSTEM_PROMPT
from phi4_http.phi4.template import renderings

CHAT, RAW = "/v1/chat/completions", "/v1/completions"
PROMPT = "Is it late?"
THINKS = 'root ::= "<think>" [a-z ]{20,60} "</think>" "so " [a-z]{5,20}'
THINKS_LONG = 'root ::= ("<think>" [a-z ]{300,400} "</think>")? "so " [a-z]{5,20}'
THINKS_ON = 'root ::= "<think>" [a-z ]{30,60} | "so " [a-z]{5,20}'
SAYS = 'root ::= "so " [a-z ]{10,30}'
ENDLESSLY = "1500,1600"
END = "\n</think>\n\n"
HISTORY = [
    {"role": role, "content": f"{number} {'and so it is ' * 12}"}
    for number in range(40)
    for role in ("user", "assistant")
]


# --- what is there ----------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What went out: path and body of each request."""

    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def note(self, request: httpx.Request) -> None:
        """One more."""
        self.requests.append((request.url.path, json.loads(request.content) if request.content else {}))

    @property
    def counting(self) -> int:
        """How many requests of one token."""
        return sum(body.get("max_tokens") == 1 for _, body in self.requests)

    def streamed(self, path: str) -> list[dict[str, Any]]:
        """The streams of one endpoint."""
        return [body for at, body in self.requests if at == path and body.get("stream")]


def answering(request: httpx.Request) -> httpx.Request:
    """The same; where a thought was ended, the grammar has the model answer, since its weights would think again."""
    body = json.loads(request.content) if request.content else {}
    if request.url.path != RAW or not body.get("stream") or "grammar" not in body or ENDLESSLY in body["grammar"]:
        return request
    headers = {name: value for name, value in request.headers.items() if name != "content-length"}
    body["grammar"] = 'root ::= "so " [a-z]{5,20}'
    return httpx.Request(request.method, request.url, headers=headers, json=body, extensions=request.extensions)


class Watched(httpx.HTTPTransport):
    """The network, watched."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Pass it on."""
        self._seen.note(request)
        return super().handle_request(answering(request))


class AsyncWatched(httpx.AsyncHTTPTransport):
    """The same, awaited."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Pass it on."""
        self._seen.note(request)
        return await super().handle_async_request(answering(request))


Serve = Callable[..., Server]


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Servers by kind and template, each started once."""
    folder = tmp_path_factory.mktemp("llama")
    running: dict[tuple[str, str, str], Server] = {}
    with contextlib.ExitStack() as stack:

        def start(kind: str, template: str = "own turn", reasoning: str = "none") -> Server:
            key = (kind, template, reasoning)
            if key not in running:
                name = "-".join(key).replace(" ", "_")
                model = tiny_model.write(folder / f"{name}.gguf", tiny_model.TEMPLATES[template])
                running[key] = stack.enter_context(serving(kind, model, folder / f"{name}.log", reasoning=reasoning))
            return running[key]

        yield start


@pytest.fixture(params=kinds())
def kind(request: pytest.FixtureRequest) -> str:
    """Each server that is there."""
    name: str = request.param
    return name


@contextlib.contextmanager
def phi_at(face: Face, server: Server, seen: Seen, **options: Any) -> Iterator[Any]:
    """A `Phi4` on a server, watched."""
    options.setdefault("system", "send")
    transport = AsyncWatched(seen) if isinstance(face, AsyncFace) else Watched(seen)
    client = face.LMStudio(server.url, transport=transport, timeouts=PATIENT)
    with face.closing(client):
        yield face.Phi4(client, **options)


def stated(kind: str) -> int | None:
    """The context length, for a server that does not tell it."""
    return CONTEXT if kind == "python" else None


def counted(server: Server, path: str, **body: Any) -> int:
    """What the server itself says of a prompt's tokens."""
    answer = httpx.post(
        server.url + path, json={"model": NAME, "max_tokens": 1, **body}, timeout=GUARD, trust_env=False
    )
    tokens: int = answer.json()["usage"]["prompt_tokens"]
    return tokens


def first_forced(face: Face, phi: Any, grammar: str = THINKS_LONG, **options: Any) -> Heard:
    """The first of some tries in which the model thinks, and answers when its thought is ended for it."""
    for seed in range(1, 40):
        heard = face.read(phi.stream(PROMPT, seed=seed, extra={"grammar": grammar}, **options))
        if heard.error is not None or (heard.reply.forced and heard.reply.solution.startswith("so ")):
            return heard
    raise AssertionError("with none of 40 seeds did it think and answer")


def own_text(reply: Reply) -> str:
    """What the model wrote before its thought was ended."""
    return reply.raw.partition(END)[0]


# --- asking, counting -------------------------------------------------------------------------------------------------


def test_thought_and_solution_are_told_apart(face: Face, serve: Serve, kind: str) -> None:
    """Streamed from a real server, tags and all."""
    server, seen = serve(kind), Seen()
    with phi_at(face, server, seen) as phi:
        heard = face.read(phi.stream(PROMPT, seed=1, extra={"grammar": THINKS}))
    reply = heard.reply
    assert heard.error is None
    assert (reply.outcome, reply.thought_closed, reply.model) == (Outcome.COMPLETE, True, NAME)
    assert 20 <= len(reply.thought or "") <= 60
    assert reply.solution.startswith("so ")
    assert reply.raw == f"<think>{reply.thought}</think>{reply.solution}" or "<think> " in reply.raw
    if kind == "llama-server":
        assert reply.usage is not None
        assert reply.usage.prompt_tokens == counted(server, CHAT, messages=build_messages(PROMPT))


def test_a_prompt_is_counted_as_the_server_counts_it(face: Face, serve: Serve, kind: str) -> None:
    """For nothing where it can; with one request of one token where it can't."""
    server, seen = serve(kind), Seen()
    with phi_at(face, server, seen) as phi:
        found = face.wait(phi.count(PROMPT, history=HISTORY[:4]))
        assert found.tokens == counted(server, CHAT, messages=build_messages(PROMPT, history=HISTORY[:4]))
        assert found.requests == seen.counting == (1 if kind == "python" else 0)
        assert found.context_length == (None if kind == "python" else CONTEXT)


SEEN = {
    ("own turn", "python"): ("used", True, "send"),
    ("own turn", "llama-server"): ("used", True, "send"),
    ("built-in instead", "python"): ("ignored", True, "omit"),
    # It notices that the template drops the system message, and puts that into the user's.
    ("built-in instead", "llama-server"): ("merged", True, "omit"),
    ("user lost", "python"): ("used", False, "omit"),
    ("user lost", "llama-server"): ("used", False, "omit"),
    ("unknown", "python"): ("used", True, "send"),
    ("unknown", "llama-server"): ("used", True, "send"),
}


@pytest.mark.parametrize("template", ["own turn", "built-in instead", "user lost", "unknown"])
def test_a_template_is_seen_for_what_it_does(face: Face, serve: Serve, kind: str, template: str) -> None:
    """Four requests of one token, or two renderings."""
    server, seen = serve(kind, template), Seen()
    with phi_at(face, server, seen, model=NAME) as phi:
        found = face.wait(phi.probe())
    assert (found.system, found.user_kept, found.advice) == SEEN[template, kind]
    posted = [path for path, body in seen.requests if body]
    assert posted == ([CHAT] * 4 if kind == "python" else ["/apply-template"] * 2) or (
        kind == "python" and posted == ["/apply-template", *[CHAT] * 4]
    )


# --- a history that does not fit --------------------------------------------------------------------------------------


def test_a_history_that_does_not_fit_is_shortened(face: Face, serve: Serve, kind: str) -> None:
    """To the longest that does, in few counts; of llama-cpp-python's server, which does not tell it, the context is
    stated."""
    server, seen = serve(kind), Seen()
    with phi_at(face, server, seen, reserve=500, window="longest", context_length=stated(kind)) as phi:
        reply = face.ask(phi, PROMPT, history=HISTORY, max_tokens=20, seed=1, extra={"grammar": THINKS}).reply
    (chat,) = seen.streamed(CHAT)
    system, *sent, _ = chat["messages"]
    assert [*reply.dropped, *sent] == HISTORY
    assert 0 < len(sent) < len(HISTORY)
    assert sent[0]["role"] == "user"
    assert counted(server, CHAT, messages=chat["messages"]) <= CONTEXT - 500
    one_more = [system, *HISTORY[len(reply.dropped) - 2 :], chat["messages"][-1]]
    assert counted(server, CHAT, messages=one_more) > CONTEXT - 500
    assert seen.counting <= (math.ceil(math.log2(41)) + 1 if kind == "python" else 0)
    print(f"{kind}: {len(reply.dropped)} of 80 messages dropped, {seen.counting} requests of one token")


def test_where_the_context_is_not_told_the_servers_refusal_comes_back(face: Face, serve: Serve) -> None:
    """llama-cpp-python's server answers a stream that does not fit with 200 and nothing; the next chat works."""
    server, seen = serve("python"), Seen()
    with phi_at(face, server, seen) as phi:
        heard = face.ask(phi, PROMPT, history=HISTORY)
        assert isinstance(heard.error, (ContextOverflow, StreamCut))
        assert seen.counting == 0
        assert face.ask(phi, PROMPT, seed=1, extra={"grammar": THINKS}).reply.outcome is Outcome.COMPLETE


def test_a_chat_goes_on_past_its_context(face: Face, serve: Serve, kind: str) -> None:
    """Turn after turn, each taken by the server; thoughts are not sent back."""
    server, seen = serve(kind), Seen()
    dropped = []
    with phi_at(face, server, seen, reserve=1500, context_length=stated(kind), extra={"grammar": THINKS}) as phi:
        chat = phi.chat()
        for number in range(10):
            reply = face.wait(chat.ask(f"{number} {'and so it is ' * 40}", seed=number))
            assert reply.outcome is Outcome.COMPLETE
            dropped.append(len(reply.dropped))
        assert len(chat.history) == 20
    assert dropped[0] == 0 < dropped[-1]
    for body in seen.streamed(CHAT):
        assert "<think>" not in json.dumps(body["messages"][1:])
    print(f"{kind}: ten turns, {dropped} messages dropped, {seen.counting} requests of one token")


def test_a_chat_costs_one_request_a_turn_and_moves_its_window_seldom(face: Face, serve: Serve) -> None:
    """llama-server counts for nothing: forty turns make the model run forty times, with two free calls a turn at most
    past the end; of its prompts, most is in the cache."""
    server, seen = serve("llama-server"), Seen()
    moves, anew = 0, []
    with phi_at(face, server, seen, max_tokens=20, extra={"grammar": SAYS}) as phi:
        chat, before = phi.chat(), 0
        for number in range(40):
            reply = face.wait(chat.ask(f"{number} {'and so it is ' * 40}", seed=number))
            moves += len(reply.dropped) > before
            before = len(reply.dropped)
            anew.append(reply.stats.server["prompt_n"])
    free = [path for path, _ in seen.requests if path in ("/apply-template", "/tokenize")]
    lists = [path for path, _ in seen.requests if path.endswith("/models")]
    assert len(seen.requests) - len(free) - len(lists) == 40
    assert len(lists) <= 3
    assert len(free) <= 80
    assert 0 < moves <= 8
    assert sorted(anew)[len(anew) // 2] < 400
    print(f"forty turns: {moves} moves, {len(free)} free calls, {sum(anew) / len(anew):.0f} tokens anew a turn")


# --- a thought that does not end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["own turn", "built-in instead"])
def test_a_thought_over_its_budget_is_ended_and_answered(face: Face, serve: Serve, kind: str, template: str) -> None:
    """The prompt that goes on is the server's own, letter for letter and token for token."""
    server, seen = serve(kind, template), Seen()
    with phi_at(face, server, seen) as phi:
        heard = first_forced(face, phi, thinking_budget=25)
        assert heard.error is None
    reply, chat, raw = heard.reply, seen.streamed(CHAT)[-1], seen.streamed(RAW)[-1]
    assert reply.forced is not None
    assert (reply.outcome, reply.forced.reason) == (Outcome.COMPLETE, "budget")
    assert reply.forced.thought_tokens >= 25
    assert reply.forced.template == (template if kind == "python" else "server")
    merges = kind == "llama-server" and template == "built-in instead"
    prompt = renderings(chat["messages"])["built-in, and merged, line between" if merges else template]
    assert raw["prompt"] == prompt + own_text(reply) + END
    tokens = counted(server, CHAT, messages=chat["messages"])
    assert counted(server, RAW, prompt=prompt) == tokens
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == tokens
    if kind == "llama-server":
        _, second = reply.forced.usage
        assert second is not None
        assert second.prompt_tokens == counted(server, RAW, prompt=raw["prompt"])
        assert reply.usage.completion_tokens == second.prompt_tokens - tokens + (second.completion_tokens or 0)
        assert second.cached_tokens is not None
        # The thought's as well, as far as the model wrote it in the tokens that its text is cut into.
        assert second.cached_tokens >= tokens
        print(f"{kind}: {second.cached_tokens} of {second.prompt_tokens} tokens of the second prompt from the cache")
    print(f"{kind}, {template}: {reply.forced.requests} requests of one token")


def test_the_second_rescue_costs_less_than_the_first(face: Face, serve: Serve, kind: str) -> None:
    """What was found out about the template is kept."""
    server, seen = serve(kind), Seen()
    with phi_at(face, server, seen) as phi:
        first, second = (first_forced(face, phi, thinking_budget=25).reply.forced for _ in range(2))
    assert first is not None
    assert second is not None
    # Unless it was another try that paid for the first.
    assert (first.requests, second.requests) in (((4, 1), (1, 1)) if kind == "python" else ((0, 0),))
    assert seen.counting >= (5 if kind == "python" else 0)


def test_a_model_that_stops_inside_its_thought_is_asked_on(face: Face, serve: Serve, kind: str) -> None:
    """On request; without it, the thought comes back unclosed."""
    server, seen = serve(kind), Seen()
    with phi_at(face, server, seen) as phi:
        heard = first_forced(face, phi, THINKS_ON, on_unclosed="answer")
        assert heard.error is None
        assert heard.reply.forced is not None
        assert (heard.reply.outcome, heard.reply.forced.reason) == (Outcome.COMPLETE, "unclosed")
        at = len(seen.requests)
        alone = face.ask(phi, PROMPT, seed=1, max_tokens=9, extra={"grammar": THINKS}).reply
        assert alone.outcome is Outcome.THOUGHT_UNCLOSED
        assert [path for path, body in seen.requests[at:] if body] == [CHAT]


def test_an_unknown_template_is_refused_or_told(face: Face, serve: Serve, kind: str) -> None:
    """By counts it can't be found: nothing is continued. `/apply-template` tells it, whatever it is."""
    server, seen = serve(kind, "unknown"), Seen()
    with phi_at(face, server, seen) as phi:
        heard = first_forced(face, phi, thinking_budget=25)
    if kind == "python":
        assert isinstance(heard.error, CannotContinue)
        assert heard.error.chat_tokens == counted(server, CHAT, messages=build_messages(PROMPT))
        assert heard.error.chat_tokens not in heard.error.template_tokens.values()
        assert seen.streamed(RAW) == []
        assert heard.reply.thought
    else:
        assert heard.error is None
        messages = seen.streamed(CHAT)[-1]["messages"]
        told = httpx.post(f"{server.url}/apply-template", json={"messages": messages}, trust_env=False).json()
        assert seen.streamed(RAW)[-1]["prompt"] == told["prompt"] + own_text(heard.reply) + END
        assert told["prompt"].startswith("[system] You are Phi")


def test_leaving_a_stream_frees_the_server(face: Face, serve: Serve, kind: str) -> None:
    """In the thought, and in the answer of one that was ended; the next request is answered."""
    server, seen = serve(kind), Seen()
    endless = 'root ::= ("<think>" [a-z ]{1500,1600} "</think>")? "so " [a-z]{1500,1600}'
    with phi_at(face, server, seen) as phi:
        for options, until in (({}, Thinking), ({"thinking_budget": 10}, Solution)):
            for seed in range(1, 40):
                stream = phi.stream(PROMPT, seed=seed, extra={"grammar": endless}, **options)
                with face.entered(stream) as reply:
                    first = next(event for event in face.events(reply) if isinstance(event, (Thinking, until)))
                    found = isinstance(first, Thinking)
                    if found and until is Solution:
                        found = any(isinstance(event, Solution) for event in face.events(reply))
                again = (Outcome.THOUGHT_UNCLOSED, until is Solution)  # it began to think again each time
                assert stream.result.outcome is Outcome.CANCELLED or (stream.result.outcome, True) == again
                if found:
                    break
            assert found
        assert face.ask(phi, PROMPT, seed=1, extra={"grammar": THINKS}).reply.outcome is Outcome.COMPLETE


@pytest.mark.skipif("llama-server" not in kinds(), reason="there is no llama-server")
def test_a_thought_in_a_field_of_its_own_is_ended_too(face: Face, serve: Serve) -> None:
    """The server takes the tags out; they are put back where the model goes on."""
    server, seen = serve("llama-server", "thought apart", "deepseek"), Seen()
    with phi_at(face, server, seen) as phi:
        whole = face.read(phi.stream(PROMPT, seed=1, extra={"grammar": THINKS})).reply
        assert (whole.outcome, whole.raw) == (Outcome.COMPLETE, whole.solution)
        assert whole.thought
        heard = first_forced(face, phi, thinking_budget=25)
        assert heard.error is None
    reply = heard.reply
    raw, chat = seen.streamed(RAW)[-1], seen.streamed(CHAT)[-1]
    assert reply.thought is not None
    assert raw["prompt"].startswith(renderings(chat["messages"])["own turn"] + "<think>")
    assert raw["prompt"].endswith(END)
    assert (reply.outcome, reply.thought_closed) == (Outcome.COMPLETE, True)


# --- what a template does, and a context that is full -----------------------------------------------------------------


@pytest.mark.parametrize("template", ["own turn", "built-in instead", "user lost", "unknown", "opening"])
def test_prompt_instructions_and_words_reach_the_model_once(face: Face, serve: Serve, kind: str, template: str) -> None:
    """In what llama-server itself makes of the messages that were sent, for either server."""
    server, seen = serve(kind, template), Seen()
    with phi_at(face, server, seen, system="auto", instructions="Be brief, Zoe.") as phi:
        assert face.ask(phi, PROMPT, history=BEFORE, seed=1, max_tokens=5).error is None
    messages = seen.streamed(CHAT)[-1]["messages"]
    if kind == "llama-server":
        prompt = httpx.post(f"{server.url}/apply-template", json={"messages": messages}, trust_env=False).json()[
            "prompt"
        ]
        for words in (SYSTEM_PROMPT, "Be brief, Zoe.", PROMPT, BEFORE[0]["content"]):
            assert prompt.count(words) == 1
        assert seen.counting == 0
    else:
        roles = [message["role"] for message in messages]
        assert ("system" in roles) == (template not in ("built-in instead", "user lost"))
        assert json.dumps(messages).count("Be brief, Zoe.") == 1


BEFORE = [{"role": "user", "content": "Is it Monday?"}, {"role": "assistant", "content": "It is."}]
INSIDE = 'root ::= [a-z ]{300,400} "</think>" "so " [a-z]{5,20} | "so " [a-z]{5,20}'


def test_a_thought_that_the_template_begins_is_ended_and_answered(face: Face, serve: Serve, kind: str) -> None:
    """The tag stands in the continued prompt once; llama-server says it in the content, too."""
    server, seen = serve(kind, "opening"), Seen()
    with phi_at(face, server, seen, system="auto") as phi:
        heard = first_forced(face, phi, INSIDE, thinking_budget=25)
        assert heard.error is None
    raw, chat = seen.streamed(RAW)[-1], seen.streamed(CHAT)[-1]
    assert isinstance(heard.events[0], Thinking)
    assert raw["prompt"].startswith(renderings(chat["messages"])["own turn"] + "<think>\n")
    assert raw["prompt"].count("<think>") == 1 + SYSTEM_PROMPT.count("<think>")
    assert raw["prompt"].endswith(END)
    print(f"{kind}: raw begins {heard.reply.raw[:20]!r}; {seen.counting} requests of one token")


@pytest.mark.skipif("llama-server" not in kinds(), reason="there is no llama-server")
def test_fields_that_change_the_template_reach_its_rendering(face: Face, serve: Serve) -> None:
    """The continued prompt is the server's own for these fields, with and without them."""
    server, seen = serve("llama-server", "in a language"), Seen()
    fields = {"chat_template_kwargs": {"language": "German"}}
    with phi_at(face, server, seen) as phi:
        for extra in (fields, {}, fields):
            for seed in range(1, 40):
                options = {"grammar": THINKS_LONG, **extra}
                heard = face.read(phi.stream(PROMPT, seed=seed, thinking_budget=25, extra=options))
                assert heard.error is None
                if heard.reply.solution.startswith("so ") and heard.reply.forced:
                    break
            assert ("Speak German" in seen.streamed(RAW)[-1]["prompt"]) == bool(extra)
            assert heard.reply.notes == ()


@pytest.mark.skipif("llama-server" not in kinds(), reason="there is no llama-server")
def test_a_thought_that_fills_the_context_is_answered(face: Face, serve: Serve) -> None:
    """Without its middle; what ended it is known."""
    server, seen = serve("llama-server"), Seen()
    endless = 'root ::= "<think>" on | "so " [a-z]{5,20}\non ::= [a-z ] on'
    long = "and so it is late, " * 200
    with phi_at(face, server, seen) as phi:
        for seed in range(1, 40):
            heard = face.read(phi.stream(long, seed=seed, on_unclosed="answer", extra={"grammar": endless}))
            assert heard.error is None
            if heard.reply.forced or heard.reply.outcome is Outcome.THOUGHT_UNCLOSED:
                break
        alone = face.read(phi.stream(long, seed=seed, extra={"grammar": endless})).reply
    print(heard.reply.outcome, heard.reply.usage, heard.reply.notes, alone.usage, alone.length_reason)
    assert (alone.outcome, alone.length_reason) == (Outcome.THOUGHT_UNCLOSED, "context")
    assert any("context" in note for note in heard.reply.notes)
    if heard.reply.forced:
        assert "[…]" in seen.streamed(RAW)[-1]["prompt"]


def test_the_limit_is_for_both_parts(face: Face, serve: Serve, kind: str) -> None:
    """No more tokens are asked for than the caller allows."""
    server, seen = serve(kind), Seen()
    with phi_at(face, server, seen) as phi:
        heard = first_forced(face, phi, thinking_budget=25, max_tokens=60)
    raw = seen.streamed(RAW)[-1]
    assert raw["max_tokens"] <= 60 - 25
    if heard.reply.usage and heard.reply.usage.completion_tokens:
        assert heard.reply.usage.completion_tokens <= 60
