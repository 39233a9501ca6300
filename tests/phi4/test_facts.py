"""Facts of the model: which names mean it, and what goes out for it."""

from __future__ import annotations

import pytest

from phi4_http.phi4.facts import CONTEXT_LENGTH, MODEL_KEY, SAMPLING, choose_model, is_phi4_reasoning_plus
from phi4_http.wire.listings import ModelInfo


@pytest.mark.parametrize(
    "name",
    [
        "microsoft/phi-4-reasoning-plus",
        "phi-4-reasoning-plus",
        "phi-4-reasoning-plus-bf16",
        "phi-4-reasoning-plus@q4_k_m",
        "microsoft/phi-4-reasoning-plus@q8_0",
        "microsoft/phi-4-reasoning-plus:2",
        "lmstudio-community/Phi-4-reasoning-plus-GGUF/Phi-4-reasoning-plus-Q4_K_M.gguf",
        "lmstudio-community/Phi-4-reasoning-plus-MLX-4bit",
        "unsloth/Phi-4-reasoning-plus-GGUF",
        "bartowski/microsoft_Phi-4-reasoning-plus-GGUF",
        "PHI-4-REASONING-PLUS",
        "phi_4_reasoning_plus",
        "phi4-reasoning-plus",
        "tiny-phi-4-reasoning-plus",
    ],
)
def test_a_name_of_any_build_means_the_model(name: str) -> None:
    """Publisher, quantisation, format and instance may stand around it."""
    assert is_phi4_reasoning_plus(name)


@pytest.mark.parametrize(
    "name",
    [
        "phi-4",
        "microsoft/phi-4",
        "microsoft/phi-4-reasoning",
        "unsloth/Phi-4-reasoning-GGUF",
        "microsoft/phi-4-mini-reasoning",
        "microsoft/phi-4-mini-reasoning-plus",
        "microsoft/phi-4-reasoning-vision-15b",
        "phi-4-reasoning-plusplus",
        "phi-40-reasoning-plus",
        "graphi-4-reasoning-plus",
        "phi-3-reasoning-plus",
        "qwen/qwen3-8b",
        "",
    ],
)
def test_another_models_name_does_not(name: str) -> None:
    """Above all not that of Phi-4 and of Phi-4-reasoning."""
    assert not is_phi4_reasoning_plus(name)


def listed(*models: tuple[str, str | None]) -> list[ModelInfo]:
    return [ModelInfo(id=id, state=state) for id, state in models]


@pytest.mark.parametrize(
    ("models", "chosen"),
    [
        ([], None),
        ([("microsoft/phi-4", "loaded"), ("microsoft/phi-4-reasoning", "loaded")], None),
        ([("microsoft/phi-4", "loaded"), ("phi-4-reasoning-plus", "not-loaded")], "phi-4-reasoning-plus"),
        ([("a/phi-4-reasoning-plus", "not-loaded"), ("b/phi-4-reasoning-plus", "loaded")], "b/phi-4-reasoning-plus"),
        ([("a/phi-4-reasoning-plus", None), ("b/phi-4-reasoning-plus", "loaded")], "b/phi-4-reasoning-plus"),
        ([("a/phi-4-reasoning-plus", "strange"), ("b/phi-4-reasoning-plus", None)], "a/phi-4-reasoning-plus"),
        ([("a/phi-4-reasoning-plus", None), ("b/phi-4-reasoning-plus", None)], "a/phi-4-reasoning-plus"),
    ],
)
def test_a_loaded_one_is_chosen_before_others(models: list[tuple[str, str | None]], chosen: str | None) -> None:
    """Among several the first loaded one, else the first; another model never."""
    assert choose_model(listed(*models)) == chosen
    assert choose_model(iter(listed(*models))) == chosen


def test_the_facts_of_the_model() -> None:
    """Published: sampling, context length, usual key."""
    assert dict(SAMPLING) == {"temperature": 0.8, "top_p": 0.95, "top_k": 50}
    assert CONTEXT_LENGTH == 32_768
    assert is_phi4_reasoning_plus(MODEL_KEY)
