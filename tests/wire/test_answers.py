"""Unstreamed answers as values."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import EXCHANGES

from phi4_http.events import ToolCall, Usage
from phi4_http.wire.answers import (
    AnsweringModel,
    ChatMessage,
    Runtime,
    ServerStats,
    parse_chat,
    parse_completion,
    parse_embeddings,
)
from phi4_http.wire.fields import text_of
from phi4_http.wire.parts import parse_tool_call, parse_usage

PARSERS: dict[str, Callable[[Any], Any]] = {
    "v0-chat": parse_chat,
    "v1-chat": parse_chat,
    "v0-completion": parse_completion,
    "v1-completion": parse_completion,
    "v0-embeddings": parse_embeddings,
    "v1-embeddings": parse_embeddings,
    "cpp-think-nonstream": parse_chat,
    "cpp-reasoning-nonstream": parse_chat,
    "py-think-nonstream": parse_chat,
}
each_answer = pytest.mark.parametrize("name", PARSERS)


def recorded(name: str) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(EXCHANGES[name].body)
    return payload


@each_answer
def test_a_recorded_answer_is_read(name: str) -> None:
    """Every shipped unstreamed answer is a value, and reading it leaves the JSON as it was."""
    payload = recorded(name)
    before = copy.deepcopy(payload)
    value = PARSERS[name](payload)
    assert value.model == payload["model"]
    assert payload == before


def test_the_native_api_tells_its_figures() -> None:
    """v0 adds stats, model_info and runtime to an answer."""
    chat = parse_chat(recorded("v0-chat"))
    assert chat.stats == ServerStats(26.998962, 0.8, 0.963, "eosFound")
    assert chat.model_info == AnsweringModel("phi3", "Q4_K_M", "gguf", 8192)
    assert chat.runtime == Runtime("llama.cpp-linux-x86_64-nvidia-cuda-avx2", "1.50.2", ("gguf",))
    assert chat.usage == Usage(249, 26, 275)
    assert chat.choices[0].message == ChatMessage("assistant", "<think>7 × 8 = 56.</think>7 × 8 = **56**.")
    assert (chat.choices[0].finish_reason, chat.choices[0].index) == ("stop", 0)
    assert chat.choices[0].extra == {"logprobs": None}


def test_the_other_api_tells_none() -> None:
    """What is not there is None, not an empty record; unknown fields are kept."""
    chat = parse_chat(recorded("v1-chat"))
    assert (chat.stats, chat.model_info, chat.runtime) == (None, None, None)
    assert chat.extra == {"system_fingerprint": "microsoft/phi-4-reasoning-plus"}


def test_unknown_fields_and_values_are_kept_everywhere() -> None:
    """New fields stay reachable at every level, and a new stop reason is just a text."""
    payload = recorded("v0-chat")
    payload["news"] = 1
    payload["stats"] |= {"stop_reason": "somethingNew", "draft_tokens": 7}
    payload["model_info"]["vision"] = False
    payload["runtime"]["gpu"] = {"name": "x"}
    payload["usage"]["cost"] = 0.1
    payload["choices"][0]["logprobs"] = [1]
    payload["choices"][0]["message"]["refusal"] = None
    chat = parse_chat(payload)
    assert chat.extra == {"news": 1}
    assert chat.stats is not None
    assert (chat.stats.stop_reason, chat.stats.extra) == ("somethingNew", {"draft_tokens": 7})
    assert chat.model_info is not None
    assert chat.model_info.extra == {"vision": False}
    assert chat.runtime is not None
    assert chat.runtime.extra == {"gpu": {"name": "x"}}
    assert chat.usage is not None
    assert chat.usage.extra == {"cost": 0.1}
    assert chat.choices[0].extra == {"logprobs": [1]}
    assert chat.choices[0].message.extra == {"refusal": None}


def test_a_known_field_of_an_odd_kind_is_kept_in_the_rest() -> None:
    """A value has the types that it says it has, and nothing is lost."""
    parts = [{"type": "image_url", "image_url": {}}, {"type": "text", "text": "a"}]
    message = {"role": 7, "content": parts, "reasoning": {"a": 1}}
    choice = {"index": "x", "message": message, "finish_reason": 3}
    chat = parse_chat({"id": 5, "model": ["m"], "usage": "many", "stats": {"stop_reason": 1}, "choices": [choice]})
    assert chat.extra == {"id": 5, "model": ["m"], "usage": "many"}
    assert chat.stats == ServerStats(extra={"stop_reason": 1})
    assert chat.choices[0].extra == {"index": "x", "finish_reason": 3}
    assert chat.choices[0].message == ChatMessage("assistant", "a", extra=message)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_the_servers_own_split_is_kept(name: str) -> None:
    """A thought in a field of its own is the message's reasoning."""
    payload = {"choices": [{"message": {"role": "assistant", "content": "b", name: "a"}}]}
    assert parse_chat(payload).choices[0].message == ChatMessage("assistant", "b", reasoning="a")


def test_a_message_of_tool_calls_has_no_text() -> None:
    """Content null is the empty text, and the calls are whole."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    message = parse_chat({"choices": [{"message": {"content": None, "tool_calls": [call]}}]}).choices[0].message
    assert (message.content, message.tool_calls) == ("", (ToolCall("1", "f", '{"x": 1}'),))


def test_arguments_as_an_object_become_their_json() -> None:
    """A server that has parsed the arguments already gives the same kind of value."""
    call = parse_tool_call({"id": 7, "function": {"name": "f", "arguments": {"city": "Oslo"}}})
    assert (call.id, json.loads(call.arguments)) == ("7", {"city": "Oslo"})


def test_vectors_come_in_the_order_of_the_inputs() -> None:
    """The index counts, not the place in the answer."""
    data = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0, 1.5]}]
    embeddings = parse_embeddings({"data": data, "model": "e"})
    assert embeddings.vectors == ((1.0, 1.5), (2.0,))
    assert (embeddings.model, embeddings.usage) == ("e", None)


@pytest.mark.parametrize("payload", [None, [], "x", 7])
def test_a_usage_that_is_no_object_is_none(payload: Any) -> None:
    """No counts are not counts of zero."""
    assert parse_usage(payload) is None


@pytest.mark.parametrize("value", ["9", 1.5, True, -1, [1], 10**400])
def test_a_count_that_is_none_stays_in_the_rest(value: Any) -> None:
    """What can't be a number of tokens is not taken for one."""
    usage = parse_usage({"prompt_tokens": value, "completion_tokens": 4})
    assert usage == Usage(None, 4, extra={"prompt_tokens": value})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a", "a"),
        (None, ""),
        (7, ""),
        ([], ""),
        ([{"type": "text", "text": "a"}, {"text": None}, {"type": "image_url"}, "x", {"text": "b"}], "ab"),
    ],
)
def test_content_is_a_text_or_parts(content: Any, text: str) -> None:
    """The text of a `content` field, in each of its forms."""
    assert text_of(content) == text


@pytest.mark.parametrize(
    ("parse", "payload"),
    [
        (parse_chat, {}),
        (parse_chat, {"choices": None}),
        (parse_chat, {"choices": {}}),
        (parse_chat, {"choices": [1]}),
        (parse_chat, {"choices": [{}]}),
        (parse_chat, {"choices": [{"message": "x"}]}),
        (parse_chat, {"choices": [{"message": {"tool_calls": [1]}}]}),
        (parse_chat, {"choices": [{"message": {"tool_calls": 1}}]}),
        (parse_completion, {}),
        (parse_completion, {"choices": [None]}),
        (parse_completion, {"choices": [{"message": {}}]}),
        (parse_embeddings, {}),
        (parse_embeddings, {"data": [1]}),
        (parse_embeddings, {"data": [{"embedding": "AAAA"}]}),
        (parse_embeddings, {"data": [{}]}),
    ],
)
def test_what_is_no_answer_is_a_value_error_that_names_the_field(parse: Callable[[Any], Any], payload: Any) -> None:
    """The field is in the words, and nothing else is raised."""
    with pytest.raises(ValueError, match=r"choices|message|text|data|embedding|tool_calls"):
        parse(payload)


JUNK = st.sampled_from([None, True, 0, -1, 1.5, "", "x", [], [None], [1], {}, {"a": 1}])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, held in inner for found in [(*path, key), *places(held, (*path, key))]]


@each_answer
@given(data=st.data())
def test_junk_anywhere_in_an_answer_is_read_or_is_a_value_error(name: str, data: st.DataObject) -> None:
    """No value in any place raises anything else."""
    payload = recorded(name)
    *path, last = data.draw(st.sampled_from(places(payload)))
    inside: Any = payload
    for key in path:
        inside = inside[key]
    inside[last] = data.draw(JUNK)
    with contextlib.suppress(ValueError):
        assert PARSERS[name](payload).extra is not None
