"""The composed exchanges that are no streams: lists of models, completions in one piece, embeddings, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from phi4_http.phi4.facts import MODEL_KEY, SAMPLING, SYSTEM_PROMPT
from phi4_http.tape.exchange import Exchange

from . import replies as say
from .composing import CREATED, Stream, answer, chat_body, completion, figures, identity, tokens

V0 = "LM Studio docs: REST API v0"
V1 = "LM Studio docs: REST API v1"
OPENAI = "LM Studio docs: OpenAI-compatible endpoints"
REPORTS = "reports of LM Studio's users"

EMBEDDER = "text-embedding-nomic-embed-text-v1.5"
PHI = {
    "id": MODEL_KEY,
    "object": "model",
    "type": "llm",
    "publisher": "microsoft",
    "arch": "phi3",
    "compatibility_type": "gguf",
    "quantization": "Q4_K_M",
    "state": "loaded",
    "max_context_length": 32768,
    "loaded_context_length": 8192,
    "capabilities": [],
}
OTHERS = [
    {
        "id": "qwen/qwen3-8b",
        "object": "model",
        "type": "llm",
        "publisher": "qwen",
        "arch": "qwen3",
        "compatibility_type": "gguf",
        "quantization": "Q4_K_M",
        "state": "not-loaded",
        "max_context_length": 40960,
        "capabilities": ["tool_use"],
    },
    {
        "id": EMBEDDER,
        "object": "model",
        "type": "embeddings",
        "publisher": "nomic-ai",
        "arch": "nomic-bert",
        "compatibility_type": "gguf",
        "quantization": "Q4_K_M",
        "state": "not-loaded",
        "max_context_length": 2048,
    },
]
TEXT = f"<think>{say.SHORT_THOUGHT}</think>{say.SHORT_SOLUTION}"


def all_answers() -> Iterator[Exchange]:
    yield from model_lists()
    yield from native_v1()
    yield from completions()
    yield from refusals()
    yield from not_lm_studio()


def model_lists() -> Iterator[Exchange]:
    yield answer(
        "greeting", "GET", "/lmstudio-greeting", None, {"lmstudio": True}, source="the lms CLI", note="is it LM Studio?"
    )
    models = {"object": "list", "data": [PHI, *OTHERS]}
    yield answer(
        "v0-models", "GET", "/api/v0/models", None, models, source=V0, note="Phi-4 loaded with 8,192 of 32,768 tokens"
    )
    yield answer("v0-model", "GET", f"/api/v0/models/{MODEL_KEY}", None, PHI, source=V0, note="one model")
    names = [{"id": model["id"], "object": "model", "owned_by": "organization_owner"} for model in (PHI, *OTHERS)]
    models = {"object": "list", "data": names}
    yield answer("v1-models", "GET", "/v1/models", None, models, source=OPENAI, note="names alone")


def native_v1() -> Iterator[Exchange]:
    config = {
        "context_length": 8192,
        "eval_batch_size": 512,
        "parallel": 4,
        "flash_attention": True,
        "num_experts": 0,
        "offload_kv_cache_to_gpu": True,
    }
    model = {
        "type": "llm",
        "publisher": "microsoft",
        "key": MODEL_KEY,
        "display_name": "Phi 4 Reasoning Plus",
        "architecture": "phi3",
        "quantization": {"name": "Q4_K_M", "bits_per_weight": 4},
        "size_bytes": 9053114464,
        "params_string": "15B",
        "loaded_instances": [{"id": MODEL_KEY, "config": config}],
        "max_context_length": 32768,
        "format": "gguf",
        "capabilities": {"vision": False, "trained_for_tool_use": False},
    }
    path = "/api/v1/models"
    yield answer("native-v1-models", "GET", path, None, {"models": [model]}, source=V1, note="with loaded instances")
    asked = {"model": MODEL_KEY, "context_length": 8192, "echo_load_config": True}
    loaded = {
        "type": "llm",
        "instance_id": MODEL_KEY,
        "load_time_seconds": 9.099,
        "status": "loaded",
        "load_config": config,
    }
    yield answer("native-v1-load", "POST", f"{path}/load", asked, loaded, source=V1, note="a load of 9 s", seconds=9.1)
    freed = {"instance_id": MODEL_KEY}
    yield answer("native-v1-unload", "POST", f"{path}/unload", freed, freed, source=V1, note="an unload", seconds=0.3)


def completions() -> Iterator[Exchange]:
    body = chat_body(say.SHORT, stream=False)
    for name, path, native in (
        ("v0-chat", "/api/v0/chat/completions", True),
        ("v1-chat", "/v1/chat/completions", False),
    ):
        reply = completion(name, TEXT, body, native=native)
        note = "unstreamed, with stats, model_info and runtime" if native else "unstreamed"
        yield answer(name, "POST", path, body, reply, source=V0 if native else OPENAI, note=note, seconds=2.1)

    turns = (("system", SYSTEM_PROMPT), ("user", say.SHORT))
    prompt = "".join(f"<|im_start|>{role}<|im_sep|>{text}<|im_end|>" for role, text in turns)
    prompt += "<|im_start|>assistant<|im_sep|>"
    raw = {"model": MODEL_KEY, "prompt": prompt, **SAMPLING}
    for name, path, native in (
        ("v0-completion", "/api/v0/completions", True),
        ("v1-completion", "/v1/completions", False),
    ):
        reply = text_completion(name, prompt, native=native)
        note = "raw prompt, with stats" if native else "raw prompt"
        yield answer(name, "POST", path, raw, reply, source=V0 if native else OPENAI, note=note, seconds=2.1)
    yield streamed_completion(raw | {"stream": True})

    text = {"model": EMBEDDER, "input": "Some text to embed"}
    vector = [-0.016731496900320053, 0.028460891917347908, -0.1407836228609085, 0.02505224384367466]
    reply = {
        "object": "list",
        "data": [{"object": "embedding", "embedding": vector, "index": 0}],
        "model": EMBEDDER,
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
    yield answer("v0-embeddings", "POST", "/api/v0/embeddings", text, reply, source=V0, note="four numbers of 768")
    yield answer("v1-embeddings", "POST", "/v1/embeddings", text, reply, source=OPENAI, note="four numbers of 768")


def text_completion(name: str, prompt: str, *, native: bool) -> dict[str, Any]:
    """A completion of a raw prompt, in one piece."""
    made, asked = len(tokens(TEXT)), len(tokens(prompt))
    reply: dict[str, Any] = {
        "id": identity(name, "cmpl"),
        "object": "text_completion",
        "created": CREATED,
        "model": MODEL_KEY,
        "choices": [{"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made},
    }
    return reply | (figures(made, "stop") if native else {})


def streamed_completion(body: dict[str, Any]) -> Exchange:
    """A completion of a raw prompt, streamed."""
    name = "v1-completion-stream"
    made = Stream(name, "", source=OPENAI, note="raw prompt, streamed", path="/v1/completions")
    made.body = body
    head = {"id": identity(name, "cmpl"), "object": "text_completion", "created": CREATED, "model": MODEL_KEY}
    for token in tokens(TEXT):
        choice = {"index": 0, "text": token, "logprobs": None, "finish_reason": None}
        made.data({**head, "choices": [choice]}, after=0.037)
    made.data({**head, "choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]}, after=0.004)
    return made.done().exchange()


def refusals() -> Iterator[Exchange]:
    """Answers that say no, with the status that fits."""
    token = {
        "type": "invalid_request",
        "code": "invalid_api_key",
        "message": "An LM Studio API token is required to make requests to this server.",
    }
    missing = {
        "type": "invalid_request_error",
        "code": "model_not_found",
        "param": "model",
        "message": 'Model "microsoft/phi-5" not found.',
    }
    none_loaded = "No models loaded. Please load a model in the developer page or use the 'lms load' command."
    memory = (
        'Failed to load model "microsoft/phi-4-reasoning-plus". Error: Model loading was stopped due to insufficient '
        "system resources. Under the current settings, this model requires approximately 12.60 GB of memory."
    )
    cases: list[tuple[str, int, Any, str]] = [
        ("unauthorized", 401, token, "a token is required"),
        ("model-not-found", 404, missing, "no such model"),
        ("no-models-loaded", 404, {"message": none_loaded}, "nothing is loaded"),
        ("loading", 503, {"message": "Loading model", "type": "unavailable_error", "code": 503}, "a model is loading"),
        (
            "load-failed",
            400,
            {"message": 'Failed to load model "x". Error: Operation canceled.'},
            "a load was cancelled",
        ),
        ("load-refused", 400, {"message": memory}, "the model does not fit in the memory"),
        (
            "template-error",
            400,
            'Error rendering prompt with jinja template: "Unknown test: sequence".',
            "a broken template",
        ),
        ("internal-error", 500, {"message": "Internal server error", "type": "server_error"}, "a fault of the server"),
    ]
    for name, status, error, note in cases:
        model = "microsoft/phi-5" if name == "model-not-found" else MODEL_KEY
        body = chat_body(f"{say.SHORT} [{name}]", model=model)
        reply = {"error": error}
        yield answer(name, "POST", "/v1/chat/completions", body, reply, source=REPORTS, note=note, status=status)


def not_lm_studio() -> Iterator[Exchange]:
    """Answers with status 200 that are no answers."""
    path = "/v1/chat/completions"
    error = {"error": f"Unexpected endpoint or method. (POST {path})"}
    body = chat_body(f"{say.SHORT} [unexpected-endpoint]")
    yield answer(
        "unexpected-endpoint", "POST", path, body, error, source=REPORTS, note="200 for a route that is not there"
    )

    page = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body><h1>Sign in</h1></body></html>\n"
    body = chat_body(f"{say.SHORT} [html-instead-of-stream]")
    note = "a proxy's page where a stream was asked for"
    yield answer(
        "html-instead-of-stream",
        "POST",
        path,
        body,
        page,
        source=REPORTS,
        note=note,
        content_type="text/html; charset=utf-8",
    )

    body = chat_body(f"{say.SHORT} [json-instead-of-stream]")
    reply = completion("json-instead-of-stream", TEXT, body)
    note = "the whole completion where a stream was asked for"
    yield answer("json-instead-of-stream", "POST", path, body, reply, source=REPORTS, note=note, seconds=2.1)
