"""The proxy before real llama.cpp servers: a model that speaks no sense, in the form that a client expects."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from proxy.support import asking, proxied
from support import GUARD

from llama import tiny_model
from llama.servers import CONTEXT, Server, kinds, serving
from llama.tiny_model import NAME
from phi4_http.proxy.repair import Repair

THINKS = 'root ::= "<think>" [a-z ]{20,60} "</think>" "so " [a-z]{5,20}'
LONG = [{"role": "user", "content": "and so it is " * 40}, {"role": "assistant", "content": "so it is"}] * 20


@pytest.fixture(scope="module", params=kinds())
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Each server that is there."""
    folder = tmp_path_factory.mktemp("llama")
    model = tiny_model.write(folder / "tiny.gguf", tiny_model.TEMPLATES["own turn"])
    with serving(request.param, model, folder / "log") as running:
        yield running


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_real_servers_are_repaired(server: Server, stream: bool) -> None:
    """Thought and content apart, counts where the server counts, and a history that is too long is cut."""
    repair = Repair(models=NAME)
    with (
        proxied(server.url, repair=repair, system="auto", context_length=CONTEXT) as proxy,
        httpx.Client(trust_env=False, timeout=GUARD) as client,
    ):
        got = asking(client, proxy.url, NAME, stream=stream, grammar=THINKS, seed=1)
        assert got.outcome == "complete"
        assert got.thought
        assert got.content.startswith("so ")
        history = [*LONG, {"role": "user", "content": "Is it late?"}]
        cut = asking(client, proxy.url, NAME, stream=stream, grammar=THINKS, messages=history, seed=1, max_tokens=200)
        assert cut.outcome == "complete"
        assert client.get(f"{proxy.url}/v1/models").status_code == 200
        if server.kind == "llama-server":
            assert client.get(f"{proxy.url}/v1/models").json()["data"][0]["context_length"] == CONTEXT
            assert got.usage["completion_tokens_details"]["reasoning_tokens"] > 0
