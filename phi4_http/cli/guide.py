"""`help TOPIC`: a page of the guide, as it stands in `phi4_http/guide`, so that it is there without a network."""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from pathlib import Path

from ..settings import near
from .output import Output

PAGES: Path = Path(__file__).resolve().parent.parent / "guide"


def topics() -> list[str]:
    """The names of the pages."""
    return sorted(page.stem for page in PAGES.glob("*.md"))


def listed() -> str:
    """The topics, for the help."""
    return textwrap.fill(", ".join(topics()), 78, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def wanted(name: str, commands: Collection[str]) -> bool:
    """Whether `help NAME` is about a page, or about nothing that there is: a command alone has its own help."""
    return name not in commands or name in topics()


def show(topic: str, commands: Collection[str], output: Output) -> int:
    """Print the page. Wrong usage (2) where there is none of this name."""
    known = topics()
    if topic not in known:
        meant = near(topic, [*known, *commands])
        output.told_plainly(
            f"phi4_http: there is no topic or command {topic!r}{meant}\n"
            f"usage: phi4_http help [TOPIC|COMMAND] (topics: {', '.join(known)})\n"
        )
        return 2
    output.written((PAGES / f"{topic}.md").read_text(encoding="utf-8"))
    if topic in commands:
        output.written(f"\n(Its options: `phi4_http {topic} --help`.)\n")
    return 0
