"""What a model costs that is loaded already: `ModelManager.get` and `use`, beside the one GET that they need.

Milliseconds on loopback, median and slowest tenth, before a stand-in that does nothing but answer. Run it with
`nox -s benchmark`, or

    python tests/benchmarks/warm.py
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median, quantiles
from threading import Thread

from phi4_http import LMStudio, LoadConfig, ModelManager
from phi4_http.lmstudio.lease import Leases

KEY = "microsoft/phi-4-reasoning-plus"
ONE = {"key": KEY, "type": "llm", "loaded_instances": [{"id": KEY, "config": {"context_length": 16384}}]}
LISTED = json.dumps({"models": [ONE, *({"key": f"m{n}", "type": "llm", "loaded_instances": []} for n in range(20))]})
TIMES = 400


class Answering(BaseHTTPRequestHandler):
    """The list of models, at once."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(LISTED)))
        self.end_headers()
        self.wfile.write(LISTED.encode())


def told(name: str, call: Callable[[], object]) -> None:
    """One line of figures."""
    call()
    took: list[float] = []
    for _ in range(TIMES):
        began = time.perf_counter()
        call()
        took.append(1000 * (time.perf_counter() - began))
    print(f"  {name:24} {median(took):6.2f} ms, slowest tenth {quantiles(took, n=10)[-1]:6.2f} ms and more")


def main() -> None:
    """Each, alone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    Thread(target=server.serve_forever, daemon=True).start()
    config = LoadConfig(context_length=8192)
    print(f"a model that is loaded, {TIMES} times, Python {sys.version.split()[0]}")
    with LMStudio(f"http://127.0.0.1:{server.server_address[1]}") as studio, tempfile.TemporaryDirectory() as folder:
        manager = ModelManager(studio)
        manager._state._leases = Leases("benchmark", Path(folder))

        def use() -> None:
            with manager.use(KEY, config):
                pass

        told("GET, by httpx alone", lambda: studio._http.get(f"{studio.url}/api/v1/models").json())
        told("get (target 5 ms)", lambda: manager.get(KEY, config))
        told("use, entered and left", use)
    server.shutdown()


if __name__ == "__main__":
    main()
