"""What this machine says of itself that bears on reaching LM Studio: proxies, WSL, containers, memory, `localhost`."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known of this machine."""

    system: str = ""
    """`Linux`, `Darwin`, `Windows`."""
    wsl: bool = False
    container: bool = False
    memory: int | None = None
    """Bytes; None where the system does not tell."""
    proxies: Mapping[str, str] = field(default_factory=dict)
    """The proxies of the environment by scheme, and `no`: hosts that go without."""
    localhost: tuple[str, ...] = ()
    """What `localhost` stands for, in the order in which it is tried."""


def this_machine() -> Machine:
    """What this one says."""
    memory = None
    with contextlib.suppress(AttributeError, ValueError, OSError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: list[str] = []
    with contextlib.suppress(OSError):
        found = [str(entry[4][0]) for entry in socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)]
    return Machine(
        system=platform.system(),
        wsl="microsoft" in platform.release().lower(),
        container=any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv"))),
        memory=memory,
        proxies=urllib.request.getproxies(),
        localhost=tuple(found),
    )


def bypassed(host: str) -> bool:
    """Whether the environment says that no proxy is used for a host."""
    return bool(urllib.request.proxy_bypass(host))
