"""The lists of models, parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmstudio import backend
from support import EXCHANGES

from phi4_http.wire.listings import (
    Instance,
    ModelInfo,
    parse_lms_ls,
    parse_lms_ps,
    parse_openai_models,
    parse_v0_models,
    parse_v1_models,
)


def parse_v0_model(data: Any) -> ModelInfo:
    """One model of a list."""
    (found,) = parse_v0_models({"data": [data]})
    return found


V0 = {
    "id": "microsoft/phi-4-reasoning-plus",
    "object": "model",
    "type": "llm",
    "publisher": "microsoft",
    "arch": "phi3",
    "compatibility_type": "gguf",
    "quantization": "Q4_K_M",
    "state": "loaded",
    "max_context_length": 32768,
    "loaded_context_length": 4096,
    "capabilities": ["tool_use"],
}
V1 = {
    "type": "embedding",
    "publisher": "nomic-ai",
    "key": "nomic",
    "display_name": "Nomic",
    "architecture": "bert",
    "quantization": {"name": "F16", "bits_per_weight": 16},
    "size_bytes": 84_106_624,
    "params_string": None,
    "loaded_instances": [
        {"id": "nomic", "config": {"context_length": 1024, "eval_batch_size": 512, "parallel": 2}},
        {"id": "nomic:2", "config": {"context_length": 2048}},
    ],
    "max_context_length": 2048,
    "format": "gguf",
    "capabilities": {"vision": False, "trained_for_tool_use": True, "reasoning": {"allowed_options": ["on"]}},
    "brand_new": [1],
}


def test_v0_fields_are_taken() -> None:
    """A v0 model has its state and both context lengths."""
    (model,) = parse_v0_models({"object": "list", "data": [V0]})
    assert (model.id, model.type, model.arch, model.quantization) == (V0["id"], "llm", "phi3", "Q4_K_M")
    assert (model.state, model.loaded) == ("loaded", True)
    assert (model.max_context_length, model.loaded_context_length) == (32768, 4096)
    assert model.capabilities == ("tool_use",)
    assert parse_v0_model(V0) == model


@pytest.mark.parametrize(
    ("state", "loaded"), [("loaded", True), ("not-loaded", False), ("loading", None), (None, None)]
)
def test_unknown_states_are_kept_and_not_guessed_at(state: str | None, loaded: bool | None) -> None:
    """Whether a model is loaded is None for a state that nobody has documented."""
    model = parse_v0_model({"id": "m", "state": state})
    assert (model.state, model.loaded) == (state, loaded)


def test_v1_instances_are_read_with_their_configs() -> None:
    """A v1 model has its instances; its state follows from them, and what is unknown is kept."""
    (model,) = parse_v1_models({"models": [V1]})
    assert model.type == "embeddings"
    assert (model.state, model.loaded_context_length, model.size_bytes) == ("loaded", 1024, 84_106_624)
    assert [(one.identifier, one.model, one.context_length) for one in model.instances] == [
        ("nomic", "nomic", 1024),
        ("nomic:2", "nomic", 2048),
    ]
    assert (model.instances[0].parallel, model.instances[0].extra) == (2, {"eval_batch_size": 512})
    assert model.capabilities == ("tool_use", "reasoning")
    assert model.quantization == "F16"
    assert (model.extra["brand_new"], model.extra["quantization"]["bits_per_weight"]) == ([1], 16)


def test_v1_without_instances_is_not_loaded_and_without_the_field_unknown() -> None:
    """An empty list of instances says something, a missing one nothing."""
    models = parse_v1_models({"models": [{"key": "a", "loaded_instances": []}, {"key": "b"}]})
    assert [model.loaded for model in models] == [False, None]


def test_llama_cpp_tells_its_context_in_meta() -> None:
    """`n_ctx` is the loaded context length and `n_ctx_train` the longest; `meta` can still be read."""
    meta = {"n_ctx": 4096, "n_ctx_train": 32768, "size": 468736, "n_vocab": 337}
    (model,) = parse_openai_models({"data": [{"id": "tiny", "object": "model", "meta": meta}]})
    assert (model.loaded_context_length, model.max_context_length, model.size_bytes) == (4096, 32768, 468736)
    assert (model.state, model.extra["meta"]) == (None, meta)


def test_the_aliases_of_llama_cpp_are_read_as_recorded() -> None:
    """Each further name that a request may use, beside the one that is listed."""
    (model,) = parse_openai_models(json.loads(EXCHANGES["cpp-aliases-models"].body))
    assert (model.id, model.aliases) == ("phi-4-reasoning-plus", ("phi-4-reasoning-plus", "second"))
    assert (model.state, model.loaded_context_length) == (None, 4096)
    assert "aliases" not in model.extra


@pytest.mark.parametrize(
    ("status", "state", "loaded"),
    [
        ({"value": "unloaded"}, "not-loaded", False),
        ({"value": "unloaded", "failed": True, "exit_code": 1}, "not-loaded", False),
        ({"value": "loaded", "args": ["-c", "4096"]}, "loaded", True),
        ({"value": "loading"}, "loading", None),
        ({"value": "sleeping"}, "sleeping", None),
        ({"value": "downloading"}, "downloading", None),
        ({"value": 3}, None, None),
        ("loaded", None, None),
        (None, None, None),
    ],
)
def test_the_states_of_llama_cpp_s_router_are_read(status: Any, state: str | None, loaded: bool | None) -> None:
    """Its word for what is not loaded becomes LM Studio's, the others stay; the details can still be read."""
    (model,) = parse_openai_models({"data": [{"id": "m", "status": status}]})
    assert (model.state, model.loaded, model.extra["status"]) == (state, loaded, status)


@pytest.mark.parametrize(("milliseconds", "seconds"), [(600_000, 600), (1, 1), (1001, 2), (0, 0), (None, None)])
def test_a_time_to_live_is_in_whole_seconds(milliseconds: int | None, seconds: int | None) -> None:
    """Rounded up: what lives is not said to be dead."""
    (one,) = parse_lms_ps([{"identifier": "a", "modelKey": "m", "ttlMs": milliseconds}])
    assert one.ttl == seconds
    assert not isinstance(one.ttl, float)


def test_openai_names_alone_are_a_list() -> None:
    """A name is all that it takes; a `meta` of null is no fault."""
    models = parse_openai_models({"data": [{"id": "a"}, {"id": "b", "meta": None}]})
    assert [(model.id, model.loaded, model.loaded_context_length) for model in models] == [
        ("a", None, None),
        ("b", None, None),
    ]


def recorded(label: str) -> Any:
    return json.loads(next(run["stdout"] for run in backend.recorded() if run["label"] == label))


def test_lms_ls_as_recorded() -> None:
    """`lms ls --json` gives key, path, size and longest context."""
    models = parse_lms_ls(recorded("ls --json"))
    gpt = next(model for model in models if model.id == "openai/gpt-oss-20b")
    assert (gpt.path, gpt.size_bytes, gpt.max_context_length) == ("openai/gpt-oss-20b", 12_109_565_632, 131_072)
    assert (gpt.quantization, gpt.compatibility_type, gpt.capabilities) == ("MXFP4", "gguf", ("tool_use",))
    assert gpt.extra["selectedVariant"] == "openai/gpt-oss-20b@mxfp4"
    assert {model.type for model in models} == {"llm", "embeddings"}


def test_lms_ps_as_recorded() -> None:
    """`lms ps --json` gives the instance, who it is, and seconds where it says milliseconds."""
    (one,) = parse_lms_ps(recorded("ps --json after full options"))
    assert (one.identifier, one.model) == ("my-model", "openai/gpt-oss-20b")
    assert (one.context_length, one.ttl, one.parallel) == (8192, 600.0, 2)
    assert (one.status, one.queued, one.busy) == ("idle", 0, False)


def test_an_instance_may_have_an_empty_name() -> None:
    """`lms load --identifier ""` is accepted by LM Studio, and what it makes must not break the list."""
    assert [one.identifier for one in parse_lms_ps(recorded("development build warning on stderr"))][-1] == ""


@pytest.mark.parametrize(
    ("status", "queued", "busy"),
    [(None, None, None), ("idle", None, False), ("idle", 0, False), ("idle", 2, True), ("generating", 0, True),
     ("newWork", None, True), (None, 0, False), (None, 1, True)],
)  # fmt: skip
def test_busy_is_unknown_where_nobody_tells(status: str | None, queued: int | None, busy: bool | None) -> None:
    """Old versions tell neither status nor queue: that is not the same as idle."""
    assert Instance("i", "m", status=status, queued=queued).busy is busy


@pytest.mark.parametrize(
    ("parse", "data", "field"),
    [
        (parse_v0_models, {"error": "Unexpected endpoint or method. (GET /api/v0/models)"}, "data"),
        (parse_v0_models, [], "data"),
        (parse_v0_models, {"data": [{"object": "model"}]}, "data[0].id"),
        (parse_v0_models, {"data": [{"id": "a"}, 3]}, "data[1]"),
        (parse_v1_models, {"models": None}, "models"),
        (parse_v1_models, {"models": [{"key": "k", "loaded_instances": [{"config": {}}]}]},
         "models[0].loaded_instances[0].id"),
        (parse_openai_models, {"data": "x"}, "data"),
        (parse_lms_ls, {"models": []}, "output"),
        (parse_lms_ls, [{"modelKey": 5}], "ls[0].modelKey"),
        (parse_lms_ps, [{"identifier": "x"}], "ps[0].modelKey"),
        (parse_v0_models, {"data": [None]}, "data[0]"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_models_is_said_with_the_field(parse: Any, data: Any, field: str) -> None:
    """Something else than a list of models raises ValueError, which names where it stopped being one."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is what is looked at
        parse(data)
    assert str(caught.value).startswith(f"{field}:")


FIELDS = sorted({*V0, *V1, "meta", "new"})
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 4096, 2**70, 0.5, -0.0, float("inf"), float("nan")),
    *("", "loaded", "llm", "4096", "\x00é🧠", "\ud800"),
    *([], [1], [None], ["tool_use"], [{}], {}, {"n_ctx": "x"}, {"id": 1}),
)


def listed(draws: bytes) -> dict[str, Any]:
    """Two bytes a field: which, and with what in it."""
    pairs = zip(draws[::2], draws[1::2])  # noqa: B905  # an odd byte at the end means nothing
    return {FIELDS[field % len(FIELDS)]: ODD[value % len(ODD)] for field, value in pairs}


@given(st.binary(max_size=40).map(listed))
def test_known_fields_of_any_shape_are_read_or_kept(fields: dict[str, Any]) -> None:
    """Nothing is lost: a value of an unexpected shape is found in `extra`, and never raises."""
    for parse, name in ((parse_v0_models, "id"), (parse_openai_models, "id")):
        (model,) = parse({"data": [fields | {name: "m"}]})
        assert isinstance(model, ModelInfo)
        assert model.id == "m"
        if isinstance(fields.get("new"), (int, str)):
            assert model.extra["new"] == fields["new"]
    context = fields.get("loaded_context_length")
    read = parse_v0_model(fields | {"id": "m"})
    if context is not None and read.loaded_context_length is None:
        assert "loaded_context_length" in read.extra
