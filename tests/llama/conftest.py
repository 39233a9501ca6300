"""These tests drive real llama.cpp servers, which take half an hour to compile: only `nox -s llama_cpp` runs them."""

from __future__ import annotations

import os

if "PHI4_HTTP_LLAMA_CPP" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
