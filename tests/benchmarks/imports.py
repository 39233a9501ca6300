"""What an import costs: this library against `import httpx, httpx_sse`, which whoever sends a request pays anyway.

Each is timed inside a child process of its own, in turn; the figure is the ratio, pair by pair. Run it with
`nox -s benchmark`, or

    python tests/benchmarks/imports.py [--pairs 20]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys

BASE = "import httpx, httpx_sse"
CASES = {
    "import phi4_http": "import phi4_http",
    "… and every public name": "import phi4_http\nfor name in phi4_http.__all__: getattr(phi4_http, name)",
    "… the blocking client alone": "from phi4_http import LMStudio, Phi4",
    "phi4_http --help": """
import contextlib, io
from phi4_http.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["--help"])""",
}
_TIMED = """
import time
before = time.perf_counter()
{code}
print(time.perf_counter() - before)"""


def seconds(code: str) -> float:
    """How long the code takes in an interpreter that has just started."""
    child = [sys.executable, "-c", _TIMED.format(code=code)]
    return float(subprocess.run(child, check=True, capture_output=True, text=True).stdout)


def compare(name: str, code: str, pairs: int) -> None:
    """Print how one compares with the base, pair by pair; who is first alternates."""
    ratios = []
    for pair in range(pairs):
        times = {which: seconds(which) for which in ((code, BASE) if pair % 2 else (BASE, code))}
        ratios.append(times[code] / times[BASE])
    ratios.sort()
    faster = sum(ratio <= 1 for ratio in ratios)
    print(
        f"{name:28} {statistics.median(ratios):.2f} times {BASE!r} (lowest {ratios[0]:.2f}, highest {ratios[-1]:.2f}); "
        f"not slower in {faster} of {pairs} pairs"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=20)
    arguments = parser.parse_args()
    for code in (BASE, *CASES.values()):
        seconds(code)  # byte code is written and the disk is warm
    print(
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {arguments.pairs} pairs each"
    )
    for name, code in CASES.items():
        compare(name, code, arguments.pairs)


if __name__ == "__main__":
    main()
