"""A model of a few hundred kilobytes with random weights, in the format that llama.cpp loads.

Its architecture, tokenizer kind, special tokens and turn format are Phi-4's, so that prompts are rendered, counted and
continued as with the real one. What it says makes no sense; tests force the tags with a grammar.
"""

from __future__ import annotations

import re
from collections import Counter
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from phi4_http.phi4.facts import SYSTEM_PROMPT

NAME = "tiny-phi-4-reasoning-plus"
TRAINED_CONTEXT = 32_768
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>")
TAGS = ("<think>", "</think>")

_ONE_TURN = "{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}"
_ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
_BUILT_IN = "<|im_start|>system<|im_sep|>" + SYSTEM_PROMPT + "<|im_end|>"
_OTHERS = "{% for message in messages %}{% if message['role'] != 'system' %}" + _ONE_TURN + "{% endif %}{% endfor %}"
_SYSTEM_FIRST = "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}\
{% set ns.system = message['content'] %}{% endif %}{% endfor %}"

TEMPLATES = {
    "own turn": "{% for message in messages %}" + _ONE_TURN + "{% endfor %}" + _ANSWER,
    "built-in instead": _BUILT_IN + _OTHERS + _ANSWER,
    "opening": "{% for message in messages %}" + _ONE_TURN + "{% endfor %}" + _ANSWER + "{{ '<think>\\n' }}",
    "in a language": "{% if language is defined %}{{ '<|im_start|>system<|im_sep|>Speak ' + language + '<|im_end|>' }}"
    "{% endif %}{% for message in messages %}" + _ONE_TURN + "{% endfor %}" + _ANSWER,
    "unknown": "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}[me] ",
    "thought apart": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' }}"
    "{% if message['role'] == 'assistant' and message['reasoning_content'] %}"
    "{{ '<think>' + message['reasoning_content'] + '</think>' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>' }}{% endfor %}" + _ANSWER,
    "user lost": _SYSTEM_FIRST
    + "{% if ns.system %}<|im_start|>system<|im_sep|>{{ ns.system }}<|im_end|>{% else %}"
    + _OTHERS
    + "{% endif %}"
    + _ANSWER,
}
"""Chat templates that are seen with this model; by this library's names, where it has any."""

_EMBEDDING, _HEADS, _LAYERS, _INNER = 64, 4, 2, 128


def write(path: Path, template: str) -> Path:
    """The model, with a chat template; the same weights every time."""
    gguf: Any = import_module("gguf")
    numpy: Any = import_module("numpy")
    random = numpy.random.default_rng(4)
    tokens, merges = _vocabulary()
    special, normal, user_defined = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.USER_DEFINED
    kinds = [special if token in SPECIAL else user_defined if token in TAGS else normal for token in tokens]

    writer = gguf.GGUFWriter(str(path), "phi3")
    writer.add_name(NAME)
    writer.add_context_length(TRAINED_CONTEXT)
    writer.add_embedding_length(_EMBEDDING)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_rope_dimension_count(_EMBEDDING // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("dbrx")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)

    def weights(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.1, shape).astype(numpy.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name, numpy.ones(_EMBEDDING, dtype=numpy.float32))

    weights("token_embd.weight", len(tokens), _EMBEDDING)
    weights("output.weight", len(tokens), _EMBEDDING)
    ones("output_norm.weight")
    for layer in range(_LAYERS):
        ones(f"blk.{layer}.attn_norm.weight")
        weights(f"blk.{layer}.attn_qkv.weight", 3 * _EMBEDDING, _EMBEDDING)
        weights(f"blk.{layer}.attn_output.weight", _EMBEDDING, _EMBEDDING)
        ones(f"blk.{layer}.ffn_norm.weight")
        weights(f"blk.{layer}.ffn_up.weight", 2 * _INNER, _EMBEDDING)
        weights(f"blk.{layer}.ffn_down.weight", _EMBEDDING, _INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE, trained on the model's own system prompt."""
    letters = _letters_of_bytes()
    split = [[letters[byte] for byte in word.encode()] for word in re.findall(r" ?[A-Za-z]+", SYSTEM_PROMPT)]
    merges: list[tuple[str, str]] = []
    for _ in range(80):
        pairs = Counter(pair for word in split for pair in pairwise(word))
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = [_merged(word, best) for word in split]
    tokens = [*sorted(letters.values()), *map("".join, merges), *SPECIAL, *TAGS]
    return tokens, [" ".join(pair) for pair in merges]


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    made: list[str] = []
    for letter in word:
        if made and (made[-1], letter) == pair:
            made[-1] += letter
        else:
            made.append(letter)
    return made


def _letters_of_bytes() -> dict[int, str]:
    """How a byte-level BPE writes each byte as a letter (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + at) for at, byte in enumerate(others)}}
