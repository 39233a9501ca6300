"""What is known of Phi-4-reasoning-plus: its prompt, its sampling, its names, its turn format.

Sources: the model's published card and `generation_config`, and the system prompt as three independent public code
bases carry it, letter for letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..wire.listings import ModelInfo

SYSTEM_PROMPT = (
    "You are Phi, a language model trained by Microsoft to help users. Your role as an assistant involves thoroughly "
    "exploring questions through a systematic thinking process before providing the final precise and accurate "
    "solutions. This requires engaging in a comprehensive cycle of analysis, summarizing, exploration, reassessment, "
    "reflection, backtracing, and iteration to develop well-considered thinking process. Please structure your "
    "response into two main sections: Thought and Solution using the specified format: <think> {Thought section} "
    "</think> {Solution section}. In the Thought section, detail your reasoning process in steps. Each step should "
    "include detailed considerations such as analysing questions, summarizing relevant findings, brainstorming new "
    "ideas, verifying the accuracy of the current steps, refining any errors, and revisiting previous steps. In the "
    "Solution section, based on various attempts, explorations, and reflections from the Thought section, "
    "systematically present the final solution that you deem correct. The Solution section should be logical, "
    "accurate, and concise and detail necessary steps needed to reach the conclusion. Now, try to solve the following "
    "question through the above guidelines:"
)
"""The prompt that the model was trained with, 1,232 characters, no newline at its end. The wording is part of the
model, slips included ("backtracing"): without it the model often does not think at all."""

SAMPLING: Mapping[str, Any] = {"temperature": 0.8, "top_p": 0.95, "top_k": 50}
"""The model's own sampling. Sent with every request, since some quantised builds carry a temperature of 0 in their
metadata, and greedy decoding makes this model loop."""

CONTEXT_LENGTH = 32_768
"""Tokens that the model was trained for; what it is loaded with may be less, commonly 4,096."""

MODEL_KEY = "microsoft/phi-4-reasoning-plus"
"""The name under which LM Studio usually lists the model."""

_NAME = re.compile(r"(?<![a-z0-9])phi[-_]?4[-_]reasoning[-_]plus(?![a-z0-9])", re.IGNORECASE)


def is_phi4_reasoning_plus(name: str) -> bool:
    """Whether a model name means this model, in any build: publisher, quantisation and instance suffixes may follow.

    `phi-4`, `phi-4-reasoning` and `phi-4-mini-reasoning` are other models.
    """
    return _NAME.search(name) is not None


def choose_model(models: Iterable[ModelInfo]) -> str | None:
    """The id of the model to ask, of those a server lists: a loaded one first; None where there is none."""
    found = [model for model in models if is_phi4_reasoning_plus(model.id)]
    found.sort(key=lambda model: not model.loaded)
    return found[0].id if found else None
