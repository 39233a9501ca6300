"""Real clients read every shipped chat through the proxy: does each see what the library itself says?

    python tests/clients/check.py openai results/        one client, in an environment that has it
    python tests/clients/check.py --table results/       the table of all that were checked, in Markdown

`nox -s clients` does both. A chat is asked whole and cut anew, streamed and not, with either closer. A client *agrees*
where it gives the same content and, of a reply that failed, raises its own error; what it makes of the error's code is
noted too. One that reports a success for a reply that failed is the fault that this looks for.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast

from ends import ENDS
from proxy.support import OUTCOMES, proxied
from support import ANY_CHAT, CHATS, asked_by_name

from phi4_http import LMStudio, Phi4, Phi4Error, Reply, Timeouts
from phi4_http.proxy.repair import Repair
from phi4_http.tape.matching import Match
from phi4_http.tape.playback import Playback
from phi4_http.tape.server import ReplayServer

CLIENTS = {
    "openai": "openai-python",
    "litellm": "litellm",
    "pydantic_ai": "pydantic-ai",
    "langchain": "langchain-openai",
    "llm": "llm",
    "node": "openai (Node)",
}
Closer: TypeAlias = Literal["last", "first"]
CLOSERS: tuple[Closer, ...] = ("last", "first")
QUESTION = "What is 7 × 8?"
PLAYBACKS = {"recorded": Playback(speed=None), "cut anew": Playback(speed=None, recut=13)}
LIMITS = Timeouts(idle=0.5)
COLUMNS = (
    "complete",
    "thought_unclosed",
    "solution_truncated",
    "overflow",
    "server_error",
    "cut",
    "empty",
    "not_lm_studio",
)


class Seen(NamedTuple):
    """What a client tells of one chat. `error` is whatever its error says, None where it raised none."""

    content: str
    thought: str | None
    """None where it has no place for it."""
    finish: str | None
    error: str | None


class Case(NamedTuple):
    """One chat, asked in one way."""

    name: str
    closer: Closer
    cuts: str
    stream: bool


def cases() -> Iterator[Case]:
    """All of them."""
    for closer in CLOSERS:
        for cuts in PLAYBACKS:
            for stream in (True, False):
                for name in ENDS:
                    yield Case(name, closer, cuts, stream)


def library(url: str, name: str, closer: Closer) -> Reply:
    """What the library says of it."""
    with LMStudio(url, timeouts=LIMITS) as studio:
        try:
            return Phi4(studio, system="send", closer=closer).ask(QUESTION, model=name)
        except Phi4Error as error:
            return cast(Reply, error.partial)


def verdict(seen: Seen, reply: Reply) -> str:
    """What a client has made of a reply."""
    outcome = str(reply.outcome)
    if seen.error is None:
        if outcome not in ("complete", "thought_unclosed", "solution_truncated"):
            return "a success that is none"
        if seen.content != reply.solution:
            return "another text"
        if seen.thought is not None and seen.thought != (reply.thought or ""):
            return "another thought"
        # A thought that ended at the limit: the content is empty, and the finish reason says why.
        return "as it is" if seen.finish in (reply.finish_reason, None) else f"finish reason {seen.finish!r}"
    if outcome in ("complete", "thought_unclosed", "solution_truncated"):
        return f"an error that is none: {seen.error[:100]}"
    told = {OUTCOMES[code] for code in OUTCOMES if code in seen.error}
    return "as it is" if outcome in told else "an error, without its code"


@contextlib.contextmanager
def running() -> Iterator[tuple[dict[str, str], dict[tuple[Closer, str], str]]]:
    """Addresses of servers that have every shipped chat, by how it is cut, and of proxies before them."""
    with contextlib.ExitStack() as stack:
        servers: dict[str, str] = {}
        proxies: dict[tuple[Closer, str], str] = {}
        for cuts, playback in PLAYBACKS.items():
            match = Match(ignore=(*ANY_CHAT, "n"), loop=True)
            server = ReplayServer(asked_by_name(CHATS.values()), playback=playback, match=match)
            servers[cuts] = stack.enter_context(server).url
            for closer in CLOSERS:
                proxy = proxied(server.url, repair=Repair(models=".", closer=closer), timeouts=LIMITS)
                proxies[closer, cuts] = stack.enter_context(proxy).url
        yield servers, proxies


def check(client: str, folder: Path) -> bool:
    """Ask everything; keep what came. Whether no failure was taken for a success."""
    module = importlib.import_module(f"clients.{client}_client")
    ask_all: Callable[[Callable[[Case], str], list[Case]], Iterator[Seen]] = module.ask_all
    asked = list(cases())
    found: dict[str, Counter[str]] = defaultdict(Counter)
    odd: list[str] = []
    with running() as (servers, proxies):
        wanted = {(name, closer): library(servers["recorded"], name, closer) for name in ENDS for closer in CLOSERS}
        seen_all = ask_all(lambda case: f"{proxies[case.closer, case.cuts]}/v1", asked)
        for case, seen in zip(asked, seen_all, strict=True):
            reply, how = wanted[case.name, case.closer], "streamed" if case.stream else "whole"
            said = verdict(seen, reply)
            found[f"{how} {reply.outcome}"][said] += 1
            if said != "as it is":
                odd.append(f"{case.name}, closer {case.closer}, {case.cuts}, {how}: {said}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{client}.json").write_text(json.dumps({"version": module.version(), "found": found}, indent=1))
    print("\n".join(odd))
    return not any("success that is none" in said for said in odd)


def table(folder: Path) -> str:
    """Client × fault, of all that were checked."""
    rows = [["client", "", *COLUMNS], ["---"] * (len(COLUMNS) + 2)]
    for client, name in CLIENTS.items():
        file = folder / f"{client}.json"
        if not file.is_file():
            continue
        kept = json.loads(file.read_text())
        for how in ("streamed", "whole"):
            cells = [cell(kept["found"].get(f"{how} {outcome}", {})) for outcome in COLUMNS]
            rows.append([f"{name} {kept['version']}", how, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(counts: dict[str, int]) -> str:
    """How many agree, and what the others say."""
    total, good = sum(counts.values()), counts.get("as it is", 0)
    others: Counter[str] = Counter()
    for said, count in counts.items():
        if said != "as it is":
            others[said.partition(":")[0]] += count
    return ", ".join([f"{good}/{total}", *(f"{count} {said}" for said, count in others.items())])


if __name__ == "__main__":
    if sys.argv[1] == "--table":
        print(table(Path(sys.argv[2])))
    else:
        sys.exit(0 if check(sys.argv[1], Path(sys.argv[2])) else 1)
