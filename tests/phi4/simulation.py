"""A long chat, played against a server that counts with a real tokenizer and has a prompt cache that is a prefix."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from phi4 import standin
from phi4.histories import Message
from phi4_http.flow import Flow, Step, run
from phi4_http.phi4.conversation import build_messages
from phi4_http.phi4.counting import Count
from phi4_http.phi4.window import Policy, Reserve, fit, learn
from phi4_http.server import Histories

WORDS = ("the", "answer", "to", "question", "is", "a", "number", "and", "train", "late", "why", "of", "it", "reasons")


@dataclass(frozen=True)
class Played:
    """One turn: what it cost, and where its window began."""

    counts: int
    """How often a prompt was counted."""
    generating: int
    """Requests for which the model ran, the turn's own among them."""
    anew: int
    """Tokens that the server had to process, over all of these requests."""
    prompt: int
    dropped: int


@dataclass
class Server:
    """Counts each prompt; what it has processed last is in its cache."""

    limit: int
    free: bool
    counts: int = 0
    generating: int = 0
    anew: int = 0
    cached: tuple[int, ...] = ()

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        """By a request of one token, or for nothing; too long a prompt is refused."""
        self.counts += 1
        tokens = len(encoded(messages))
        if self.free:
            return Count(tokens)
        if tokens > self.limit:
            self.generating += 1
            return Count(tokens, 1, too_long=True)
        self.process(messages)
        return Count(tokens, 1)
        yield

    def process(self, messages: Sequence[Message]) -> int:
        """Its tokens; those that are not in the cache are processed."""
        prompt = encoded(messages)
        pairs = zip(prompt, self.cached, strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.generating += 1
        self.anew += len(prompt) - shared
        self.cached = prompt
        return len(prompt)


def encoded(messages: Sequence[Message]) -> tuple[int, ...]:
    """The tokens of a prompt."""
    return tuple(standin.tokenizer().encode(standin.own_turn(messages)).ids)


@functools.cache
def text(tokens: int, seed: str) -> str:
    """About so many tokens of words, and no two texts alike."""
    drawn, words = random.Random(seed), [seed]
    taken = standin.count(seed)
    while taken < tokens:
        words.append(drawn.choice(WORDS))
        taken += standin.count(f" {words[-1]}")
    return " ".join(words)


def play(
    window: Policy,
    *,
    turns: int = 50,
    limit: int = 4096,
    room: Reserve,
    user: int = 80,
    answer: int = 84,
    thought: int = 0,
    usage: bool = True,
    free: bool = False,
) -> list[Played]:
    """A chat of so many turns, of `user` and `answer` tokens each; a thought is written, and not sent back."""
    server, histories, history, played = Server(limit, free), Histories(), list[Message](), list[Played]()
    for number in range(turns):
        before = (server.counts, server.generating, server.anew)
        messages = build_messages(text(user, f"q{number}"), history=history)
        view = run(fit(messages, limit=limit, room=room, counter=server, histories=histories, window=window), refuse)
        prompt = server.process(view.messages)
        assert prompt <= limit - room.wanted
        reply: Message = {"role": "assistant", "content": text(answer, f"a{number}")}
        thinks = text(thought, f"t{number}") if thought else ""
        written = standin.count(thinks) + standin.count(str(reply["content"])) + 1
        if usage:
            learn(histories, view.messages, prompt, answer=reply, answer_tokens=written, thought=thinks)
        history = [*messages[1:], reply]
        counts, generating, anew = (
            now - then for now, then in zip((server.counts, server.generating, server.anew), before, strict=True)
        )
        played.append(Played(counts, generating, anew, prompt, len(view.dropped)))
    return played


def refuse(step: Step) -> None:
    """Nothing is sent here."""
    raise AssertionError(f"{step} was sent")


def past_the_end(played: Sequence[Played]) -> list[Played]:
    """The turns from the first one on that did not hold all."""
    return list(itertools.dropwhile(lambda turn: not turn.dropped, played))


def mean(values: Sequence[int]) -> float:
    """The average."""
    return sum(values) / max(1, len(values))


def report() -> str:
    """The figures, as a table."""
    lines = [
        "policy   server      reserve thought | requests before/past | anew before/past | counts most | use | moves"
    ]
    rooms = {"90": Reserve(90, 90), "default": Reserve(2048, 512)}
    for (name, room), (server, options), thought in itertools.product(
        rooms.items(), {"LM Studio": {}, "no usage": {"usage": False}, "free": {"free": True}}.items(), (0, 600)
    ):
        for policy in ("steady", "longest"):
            played = play(policy, room=room, thought=thought, **options)
            past = past_the_end(played)
            before = played[: len(played) - len(past)]
            moves = sum(1 for one, other in itertools.pairwise(played) if one.dropped != other.dropped)
            lines.append(
                f"{policy:8} {server:11} {name:7} {thought:7} | "
                f"{mean([turn.generating for turn in before]):.2f} {mean([turn.generating for turn in past]):.2f} | "
                f"{mean([turn.anew for turn in before]):.0f} {mean([turn.anew for turn in past]):.0f} | "
                f"{max(turn.counts for turn in played)} | "
                f"{mean([turn.prompt for turn in past]) / (4096 - room.wanted):.2f} | {moves}/{len(past)}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
