"""The tags around a thought: which there are, and how one is found in text that may end inside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import InvalidRequest

PROFILES: dict[str, tuple[str, ...]] = {
    # The model card's variant of the system prompt spells the closing tag with a backslash.
    "phi": ("<think>", "</think>", r"<\think>"),
    "plain": ("<think>", "</think>"),
}
"""Opening tag first, then every closing tag."""


class Tags:
    """The tags that mean something at one place of a reply."""

    def __init__(self, tags: Sequence[str]) -> None:
        # Nothing matches where there is no tag; the longer of two alternatives is tried first.
        any_of_them = "|".join(map(re.escape, sorted(tags, key=len, reverse=True)))
        self.pattern: re.Pattern[str] = re.compile(any_of_them or r"(?!)")
        self.starts: frozenset[str] = frozenset(tag[0] for tag in tags)
        self._prefixes = frozenset(tag[:end] for tag in tags for end in range(1, len(tag)))
        self._longest = max(map(len, tags), default=1) - 1

    def partial(self, text: str, position: int) -> int:
        """Where the proper prefix of a tag begins that `text` ends on; its length where there is none."""
        for start in range(max(position, len(text) - self._longest), len(text)):
            if text[start:] in self._prefixes:
                return start
        return len(text)


def chosen_tags(opener: str, closer: str, tags: Sequence[str] | None = None, profile: str = "phi") -> Sequence[str]:
    """The opening tag, then every closing tag. Raises InvalidRequest for settings of a splitter that can't work."""
    if opener not in ("auto", "assumed"):
        raise InvalidRequest(f"opener is {opener!r}: it can be 'auto' or 'assumed'")
    if closer not in ("last", "first"):
        raise InvalidRequest(f"closer is {closer!r}: it can be 'last' or 'first'")
    if tags is None:
        if profile not in PROFILES:
            raise InvalidRequest(f"profile is {profile!r}: it can be one of {', '.join(map(repr, PROFILES))}")
        return PROFILES[profile]
    if isinstance(tags, str) or len(tags) < 2 or not all(isinstance(tag, str) and tag.strip() for tag in tags):
        raise InvalidRequest(f"tags is {tags!r}: it takes the opening tag, then one or more closing tags")
    for tag in tags:
        if any(tag is not other and other.startswith(tag) for other in tags):
            raise InvalidRequest(f"tags is {tags!r}: one must not begin with another ({tag!r})")
    return tags
