"""`ReplyDecoder` by hand: no HTTP and no clock, but for the properties that cut the bytes of whole streams."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import chunked, cut_by, glued
from support import CHATS, MESSAGES, AddedUp, Heard, delta, playing, usage

from phi4_http import LMStudio
from phi4_http.errors import (
    ContextOverflow,
    EmptyReply,
    InvalidRequest,
    Phi4Error,
    ServerError,
    ServerUnreachable,
    SilentOverflow,
    StreamCut,
)
from phi4_http.events import Event, Finished, Outcome, Reply, Solution, Stats, Thinking, Thought, ToolCall, Usage
from phi4_http.reply.decoder import ReplyDecoder
from phi4_http.reply.rescue import Rescue

Chunk = tuple[Any, float]
"""A chunk (JSON, or text as it is) and when it came."""


def decode(*chunks: Any, fault: Phi4Error | None = None, event: str = "message", **options: Any) -> Heard:
    """Feed these chunks, close, and return what came of it."""
    return decode_at([(chunk, 0.0) for chunk in chunks], 0.0, fault=fault, event=event, **options)


def decode_at(
    chunks: Iterable[Chunk],
    closed: float,
    *,
    started: float = 0.0,
    fault: Phi4Error | None = None,
    event: str = "message",
    **options: Any,
) -> Heard:
    """As `decode`, with the second at which each came."""
    decoder = ReplyDecoder(started=started, **options)
    events: list[Event] = []
    for chunk, at in chunks:
        events += decoder.feed(chunk if isinstance(chunk, str) else json.dumps(chunk), event, at)
    events += decoder.close(closed, fault)
    return Heard(events, decoder.reply, decoder.error)


STOP = delta(finish="stop")
DONE = "[DONE]"


# --- how it ends ------------------------------------------------------------------------------------------------------


def test_a_whole_reply_is_complete_and_its_last_event_is_the_reply() -> None:
    """Thinking, Thought, Solution, Finished: in this order, and nothing else."""
    heard = decode(delta("<think>a"), delta("</think>"), delta("b"), STOP, DONE)
    assert [type(event).__name__ for event in heard.events] == ["Thinking", "Thought", "Solution", "Finished"]
    assert isinstance(heard.events[-1], Finished)
    assert heard.events[-1].reply is heard.result
    assert heard.reply.outcome is Outcome.COMPLETE


@pytest.mark.parametrize(
    ("chunks", "outcome"),
    [
        ([delta("<think>a</think>b"), STOP], "complete"),
        ([delta("b"), STOP], "complete"),
        ([delta("<think>a</think>b"), delta(finish="length")], "solution_truncated"),
        ([delta("<think>a</think>"), delta(finish="length")], "solution_truncated"),
        ([delta("b"), delta(finish="length")], "solution_truncated"),
        ([delta("<think>a"), STOP], "thought_unclosed"),
        ([delta("<think>a"), delta(finish="length")], "thought_unclosed"),
        ([delta("<think>"), delta(finish="length")], "thought_unclosed"),
        ([delta(reasoning_content="a"), delta(finish="length")], "thought_unclosed"),
        ([delta(reasoning_content="a"), delta("b"), delta(finish="length")], "solution_truncated"),
        ([delta(reasoning="a"), delta("b"), STOP], "complete"),
        ([delta(finish="tool_calls", tool_calls=[{"index": 0, "function": {"name": "f"}}])], "complete"),
        ([delta("<think>a</think>"), delta(finish="tool_calls")], "complete"),
        ([delta("b"), delta(finish="some_new_reason")], "complete"),
    ],
)
def test_a_finish_reason_and_the_text_decide_the_outcome(chunks: Sequence[Any], outcome: str) -> None:
    """What came before the finish reason says whether the reply is whole, and where it stopped."""
    heard = decode(*chunks, DONE)
    assert heard.error is None
    assert str(heard.reply.outcome) == outcome


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        ([delta("", role="assistant"), STOP, usage(3, 0)], EmptyReply),
        ([delta("  \n"), STOP], EmptyReply),
        ([delta("<think>a</think>"), STOP], EmptyReply),
        ([delta("<think>a</think>\n\n"), STOP], EmptyReply),
        ([delta(reasoning_content="all of it"), STOP, usage(0, 0)], EmptyReply),
        ([delta(reasoning_content="all of it"), delta("\n"), STOP], EmptyReply),
        ([STOP, usage(9, 0)], SilentOverflow),
        ([STOP], SilentOverflow),
        ([], SilentOverflow),
        ([delta("a")], StreamCut),
        ([usage(9, 0)], StreamCut),
        ([delta("", role="assistant")], StreamCut),
    ],
)
def test_a_reply_with_no_answer_in_it_is_an_error_that_carries_it(chunks: Sequence[Any], error: type) -> None:
    """White space is no answer, a closed thought alone is none, and a field for thought holds none."""
    heard = decode(*chunks)
    assert type(heard.error) is error
    assert heard.error is not None
    assert heard.error.partial is not None
    assert not any(isinstance(event, Finished) for event in heard.events)


def test_a_silent_overflow_needs_that_no_token_was_counted() -> None:
    """A server that counted tokens and sent none did not refuse the prompt: the reply is empty."""
    heard = decode(STOP, usage(9, 5))
    assert type(heard.error) is EmptyReply


def test_the_reason_of_an_empty_reply_says_where_the_text_went() -> None:
    """Text in a field that holds no answer is told as such, with its length."""
    error = decode(delta(reasoning_content="x" * 1234), STOP).error
    assert error is not None
    assert "1,234 characters" in str(error)
    assert "field" in str(error)


def test_a_fault_of_the_connection_counts_until_the_finish_reason_is_there() -> None:
    """Without a finish reason the fault is the error; with one it does not matter."""
    fault = ServerUnreachable("http://x", "gone")
    assert decode(delta("a"), fault=fault).error is fault
    assert decode(delta("a"), STOP, fault=fault).error is None


def test_a_time_limit_that_ends_before_any_text_is_told_as_such_and_after_it_as_a_cut() -> None:
    """What had come is a cut reply, whatever cut it."""
    late = ServerUnreachable("http://x", "nothing came in time", timed_out=True)
    assert decode(fault=late).error is late
    cut = decode(delta("a"), fault=late).error
    assert type(cut) is StreamCut
    assert "nothing came in time" in str(cut)
    assert cut.partial is not None
    assert cut.partial.solution == "a"


def test_an_error_of_the_server_counts_more_than_a_fault_of_the_connection() -> None:
    """The cause is told, not its effect."""
    heard = decode(delta("a"), {"error": "It broke."}, fault=StreamCut("the connection broke"))
    assert isinstance(heard.error, ServerError)


def test_nothing_is_read_after_done_or_after_an_error() -> None:
    """Events after [DONE], an error, or an unreadable chunk change nothing."""
    for last in (DONE, json.dumps({"error": "It broke."}), "no json"):
        decoder = ReplyDecoder(started=0.0)
        decoder.feed(json.dumps(delta("a")), "message", 0.0)
        decoder.feed(last, "message", 0.0)
        assert decoder.done
        assert decoder.feed(json.dumps(delta("b")), "message", 0.0) == []
        assert decoder.feed(json.dumps({"error": "later"}), "error", 0.0) == []
        decoder.close(0.0)
        assert decoder.reply is not None
        assert decoder.reply.raw == "a"


def test_closing_twice_gives_the_same_end() -> None:
    """The end of a reply is told once."""
    decoder = ReplyDecoder(started=0.0)
    decoder.feed(json.dumps(delta("a", finish="stop")), "message", 0.0)
    assert decoder.close(1.0)
    first = decoder.reply
    assert decoder.close(2.0) == []
    decoder.cancel(3.0)
    assert decoder.reply is first


def test_a_cancelled_reply_has_what_had_come_and_nothing_is_withheld() -> None:
    """What was held back as the start of a tag is in the reply of somebody who left."""
    decoder = ReplyDecoder(started=0.0)
    decoder.feed(json.dumps(delta("<think>a</think>b</th")), "message", 1.0)
    decoder.cancel(2.0)
    assert decoder.reply is not None
    assert (decoder.reply.outcome, decoder.reply.solution) == (Outcome.CANCELLED, "b</th")
    assert decoder.error is None


def test_the_settings_of_the_splitter_are_those_of_the_decoder() -> None:
    """`opener`, `closer` and `profile` reach it, and a wrong one is refused at once."""
    assert decode(delta("a</think>b"), STOP, opener="assumed").reply.thought == "a"
    assert decode(delta("<think>a</think>b</think>c"), STOP, closer="first").reply.thought == "a"
    assert decode(delta(r"<think>a<\think>b"), STOP, profile="plain").reply.solution == ""
    with pytest.raises(InvalidRequest):
        ReplyDecoder(started=0.0, closer="frist")  # type: ignore[arg-type]  # that is the point


# --- what is in the chunks --------------------------------------------------------------------------------------------


def test_only_the_first_of_several_choices_is_read() -> None:
    """Other answers, asked for with `n`, don't run into the first one."""
    two = delta("a")
    two["choices"].append({"index": 1, "delta": {"content": "other"}, "finish_reason": "length"})
    heard = decode(two, STOP)
    assert (heard.reply.solution, heard.reply.finish_reason) == ("a", "stop")


def test_another_choice_in_chunks_of_its_own_is_not_read() -> None:
    """Nor do they where each comes in its own chunks, of the same shape as the first one's."""
    other = delta("x")
    other["choices"][0]["index"] = 1
    assert decode(delta("a"), other, delta("b"), other, STOP).reply.solution == "ab"


def test_a_choice_without_a_number_is_the_first() -> None:
    """A server that leaves the index out, or null, has one answer to give."""
    for index in ({}, {"index": None}):
        assert decode({"choices": [{"delta": {"content": "a"}, **index}]}, STOP).reply.solution == "a"


def test_content_in_parts_is_read_as_its_text() -> None:
    """A list of parts is their text, one after the other."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "image"}]
    chunk = {"choices": [{"delta": {"content": parts}}]}
    assert decode(chunk, STOP).reply.solution == "ab"


def test_a_whole_message_in_a_stream_is_read() -> None:
    """A server that puts the whole message into one chunk is understood, its reasoning and calls too."""
    call = {"id": "7", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "b", "reasoning_content": "a", "tool_calls": [call]}
    reply = decode({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}).reply
    assert (reply.thought, reply.solution, reply.tool_calls) == ("a", "b", (ToolCall("7", "f", "{}"),))


def test_a_raw_completion_is_read_from_its_text() -> None:
    """`choices[].text` is what a continuation of a raw prompt says."""
    heard = decode({"choices": [{"text": "<think>a"}]}, {"choices": [{"text": "</think>b", "finish_reason": "stop"}]})
    assert (heard.reply.thought, heard.reply.solution) == ("a", "b")


def test_an_empty_delta_gives_no_event() -> None:
    """A role, a null or an empty text says nothing, and no event says so."""
    chunks = [delta("", role="assistant"), delta(None, role="assistant"), {"choices": [{"delta": {"content": None}}]}]
    assert decode(*chunks, delta("", reasoning_content=""), usage(1, 1)).events == []


def test_a_text_that_stays_the_same_shape_is_read_to_its_end() -> None:
    """A field that appears or vanishes between chunks of text is seen, and no text is lost with it."""
    chunks = [delta("a"), delta("b"), {**delta("c"), "timings": {"predicted_n": 3}}, delta("d"), delta("e", "stop")]
    reply = decode(*chunks).reply
    assert (reply.solution, reply.stats.server) == ("abcde", {"predicted_n": 3})


def test_an_error_beside_text_of_the_same_shape_is_seen() -> None:
    """An error in the place of another field of a chunk is an error."""
    failed = {name: value for name, value in delta("c").items() if name != "created"} | {"error": "It broke."}
    heard = decode(delta("a"), delta("b"), failed)
    assert isinstance(heard.error, ServerError)


def test_names_come_from_the_first_chunk_that_has_them() -> None:
    """Model and completion id are kept, and a later chunk without them takes nothing away."""
    last = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    reply = decode(delta("a"), {"id": "other", "model": "other", "choices": []}, last).reply
    assert (reply.id, reply.model) == ("chatcmpl-1", "phi")


def test_fields_that_nobody_knows_are_kept() -> None:
    """What this library does not know is in `extra`, the newest value of each."""
    reply = decode({**delta("a"), "news": 1}, {**delta("b"), "news": 2, "more": {"x": None}}, STOP).reply
    assert reply.extra == {"news": 2, "more": {"x": None}}


@pytest.mark.parametrize("name", ["stats", "timings"])
def test_the_servers_own_figures_are_kept_as_they_came(name: str) -> None:
    """LM Studio's `stats` and llama.cpp's `timings` are in `stats.server`, unknown fields too."""
    figures = {"tokens_per_second": 27.5, "predicted_n": 4, "news": "x"}
    stats = decode(delta("a"), {**STOP, name: figures}).reply.stats
    assert (stats.server, stats.server_tokens_per_second) == (figures, 27.5)


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, Usage(1, 2, 3)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage(0, 0, 0)),
        ({"prompt_tokens": 1}, Usage(1)),
        ({"prompt_tokens": "1"}, Usage(extra={"prompt_tokens": "1"})),
        (
            {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 7}},
            Usage(1, cached_tokens=7, extra={"prompt_tokens_details": {"cached_tokens": 7}}),
        ),
        (
            {"completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 1}},
            Usage(None, 2, extra={"completion_tokens_details": {"reasoning_tokens": 1}}),
        ),
    ],
)
def test_token_counts_are_kept_in_every_form(counts: Any, wanted: Usage) -> None:
    """Counts that are there are numbers, those that are not are None, and the rest stays reachable."""
    assert decode(delta("a"), STOP, {"choices": [], "usage": counts}).reply.usage == wanted


def test_a_usage_of_null_in_every_chunk_is_none() -> None:
    """OpenAI's form with `"usage": null` until the last chunk gives the last one's counts."""
    chunks = [{**delta("a"), "usage": None}, {**STOP, "usage": None}, usage(1, 2), {"choices": [], "usage": None}]
    assert decode(*chunks).reply.usage == Usage(1, 2, 3)
    assert decode(*chunks[:2]).reply.usage is None


# --- tool calls -------------------------------------------------------------------------------------------------------


def part(index: int, arguments: str = "", **head: Any) -> dict[str, Any]:
    name = head.pop("name", None)
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {"index": index, "function": function, **head}


def test_tool_calls_are_put_together_by_their_index() -> None:
    """Pieces of two calls that come in turn, in one chunk or several, don't mix; the order is that of the indices."""
    chunks = [
        delta(tool_calls=[part(1, id="b", type="function", name="second")]),
        delta(tool_calls=[part(0, id="a", type="function", name="first")]),
        delta(tool_calls=[part(0, '{"x"'), part(1, "[1")]),
        delta(tool_calls=[part(1, ", 2]")]),
        delta(tool_calls=[part(0, ": 1}")], finish="tool_calls"),
    ]
    assert decode(*chunks).reply.tool_calls == (
        ToolCall("a", "first", '{"x": 1}'),
        ToolCall("b", "second", "[1, 2]"),
    )


def test_tool_calls_after_text_keep_the_text() -> None:
    """A reply may say something and call a tool."""
    reply = decode(delta("<think>a</think>b"), delta(tool_calls=[part(0, "{}", id="1", name="f")]), STOP).reply
    assert (reply.outcome, reply.thought, reply.solution) == (Outcome.COMPLETE, "a", "b")
    assert reply.tool_calls == (ToolCall("1", "f", "{}"),)


def test_a_call_that_was_cut_is_in_the_partial_reply() -> None:
    """As much of the arguments as came is there, and it is an error."""
    heard = decode(delta(tool_calls=[part(0, '{"x', id="1", name="f")]))
    assert isinstance(heard.error, StreamCut)
    assert heard.reply.tool_calls == (ToolCall("1", "f", '{"x'),)


# --- times ------------------------------------------------------------------------------------------------------------


def test_times_are_counted_from_the_moment_the_request_went_out() -> None:
    """First token, thought and whole, by the clock that was handed in."""
    chunks = [
        (delta(role="assistant"), 100.5),
        (delta("<think>"), 101.0),
        (delta("a"), 102.0),
        (delta("a"), 103.0),
        (delta("</think>"), 105.0),
        (delta("b"), 106.0),
        (delta("b"), 107.0),
        (STOP, 108.0),
        (usage(9, 12), 108.0),
    ]
    stats = decode_at(chunks, 108.0, started=100.0).reply.stats
    assert stats == Stats(
        time_to_first_token=2.0, time_thinking=4.0, total_time=8.0, tokens_per_second=2.0, server_tokens_per_second=None
    )


def test_a_revision_makes_all_the_time_before_it_time_in_thought() -> None:
    """Text that turned out to be thought was thought from its first character on."""
    chunks = [(delta("a"), 1.0), (delta("a"), 2.0), (delta("</think>"), 5.0), (delta("b"), 7.0), (STOP, 8.0)]
    stats = decode_at(chunks, 8.0).reply.stats
    assert (stats.time_to_first_token, stats.time_thinking, stats.total_time) == (1.0, 6.0, 8.0)


def test_a_thought_that_went_on_later_is_counted_up_to_its_last_closer() -> None:
    """A second closing tag moves the end of the thought."""
    chunks = [(delta("<think>a"), 1.0), (delta("</think>b"), 3.0), (delta("</think>"), 6.0), (delta("c"), 7.0)]
    stats = decode_at([*chunks, (STOP, 8.0)], 8.0).reply.stats
    assert stats.time_thinking == 5.0


def test_a_thought_that_never_closes_lasts_until_the_end() -> None:
    """With no solution, all the time from the first text on is time in thought."""
    stats = decode_at([(delta("<think>a"), 1.0), (delta(finish="length"), 9.0)], 10.0).reply.stats
    assert stats.time_thinking == 9.0


def test_without_a_thought_there_is_no_time_in_it() -> None:
    """None, not zero."""
    assert decode_at([(delta("a"), 1.0), (STOP, 2.0)], 2.0).reply.stats.time_thinking is None


def test_a_reply_with_no_text_has_no_first_token_and_no_speed() -> None:
    """What did not happen has no time."""
    stats = decode_at([(delta("", role="assistant"), 1.0), (STOP, 2.0), (usage(3, 5), 2.0)], 2.0).reply.stats
    assert (stats.time_to_first_token, stats.tokens_per_second, stats.total_time) == (None, None, 2.0)


def test_all_in_one_instant_has_no_speed() -> None:
    """A clock that did not move divides nothing by zero."""
    assert decode(delta("a"), STOP, usage(1, 9)).reply.stats.tokens_per_second is None


def test_the_speed_is_that_of_the_servers_count_and_the_clients_clock() -> None:
    """Without a usage, llama.cpp's own count of predicted tokens is taken; without any count there is no speed."""
    chunks = [(delta("a"), 1.0), (delta("b"), 2.0)]
    timed = decode_at([*chunks, ({**STOP, "timings": {"predicted_n": 6, "predicted_per_second": 99.0}}, 4.0)], 4.0)
    assert timed.reply.stats.tokens_per_second == 2.0
    assert timed.reply.stats.server_tokens_per_second == 99.0
    assert decode_at([*chunks, (STOP, 4.0)], 4.0).reply.stats.tokens_per_second is None


# --- what has arrived by now ------------------------------------------------------------------------------------------


def test_a_partial_reply_has_what_the_events_have_said() -> None:
    """Between two events, `partial` is the sum of the events so far; what is withheld is not in it."""
    decoder, events = ReplyDecoder(started=0.0), []
    for text in ("<thi", "nk>a", "b</th", "ink>\n\nc", " <", "d"):
        events += decoder.feed(json.dumps(delta(text)), "message", 1.0)
        added, partial = AddedUp(events), decoder.partial(2.0)
        assert (added.thought or "", added.solution) == (partial.thought or "", partial.solution)
        assert partial.outcome is Outcome.CANCELLED
    assert decoder.partial(2.0).solution == "c <d"


@given(glued().flatmap(chunked))
def test_what_has_arrived_never_shrinks(texts: list[str]) -> None:
    """`partial` only grows: raw text at its end, thought at its end, and thought and solution together in length."""
    decoder = ReplyDecoder(started=0.0)
    before = decoder.partial(0.0)
    for text in texts:
        decoder.feed(json.dumps(delta(text)), "message", 0.0)
        now = decoder.partial(0.0)
        assert now.raw == before.raw + text
        assert (now.thought or "").startswith(before.thought or "")
        assert len(now.thought or "") + len(now.solution) >= len(before.thought or "") + len(before.solution)
        assert now.revisions >= before.revisions
        assert not before.thought_closed or now.revisions > before.revisions or now.solution.startswith(before.solution)
        before = now
    decoder.close(0.0)
    assert decoder.partial(1.0) is decoder.reply


# --- properties -------------------------------------------------------------------------------------------------------

STREAMS = [name for name, exchange in CHATS.items() if exchange.response.is_event_stream and exchange.content.size]
SHORT_STREAMS = [name for name in STREAMS if CHATS[name].content.size < 10_000]


def over_http(pieces: Sequence[bytes]) -> Heard:
    """What httpx, httpx-sse and the decoder make of a body in these pieces."""
    heard = Heard()
    with LMStudio(transport=playing(*pieces)) as client:
        stream = client.stream_chat_completion("phi", MESSAGES)
        try:
            with stream as events:
                heard.events.extend(events)
            heard.result = stream.result
        except Phi4Error as error:
            heard.error = error
    return heard


def timeless(reply: Reply) -> Reply:
    """The reply without what the clock says."""
    return dataclasses.replace(reply, stats=Stats(server=reply.stats.server))


def merged(events: Sequence[Event]) -> list[Any]:
    """The events with neighbours of one kind joined, and without the times of the last one."""
    found: list[Any] = []
    for event in events:
        if isinstance(event, (Thinking, Solution)) and found and type(found[-1]) is type(event):
            found[-1] = type(event)(found[-1].text + event.text)
        else:
            found.append(Finished(timeless(event.reply)) if isinstance(event, Finished) else event)
    return found


def same(one: Heard, other: Heard) -> None:
    assert timeless(one.reply) == timeless(other.reply)
    assert merged(one.events) == merged(other.events)
    assert type(one.error) is type(other.error)
    assert (one.error and one.error.facts) == (other.error and other.error.facts)


WHOLE = {name: over_http([CHATS[name].body]) for name in STREAMS}


@given(st.sampled_from(STREAMS), st.binary(max_size=24).map(lambda seed: b"\0" + seed))
def test_a_stream_reads_the_same_wherever_its_bytes_are_cut(name: str, seed: bytes) -> None:
    """Cuts inside events, lines, characters and tags change neither reply nor events, but for the times."""
    same(over_http(cut_by(seed, CHATS[name].body)), WHOLE[name])


@pytest.mark.parametrize("name", SHORT_STREAMS)
def test_a_stream_reads_the_same_byte_by_byte(name: str) -> None:
    """So does a stream that comes one byte at a time."""
    body = CHATS[name].body
    same(over_http([body[place : place + 1] for place in range(len(body))]), WHOLE[name])


@given(st.sampled_from(SHORT_STREAMS), st.data())
def test_a_stream_that_breaks_off_anywhere_ends_in_a_known_way(name: str, data: st.DataObject) -> None:
    """Cut after any byte, a reply is a prefix of the whole one, and without its finish reason it is an error."""
    body = CHATS[name].body
    heard = over_http([body[: data.draw(st.integers(0, len(body)))]])
    full = WHOLE[name].reply
    assert full.raw.startswith(heard.reply.raw)
    if heard.reply.finish_reason is None:
        assert heard.error is not None
    else:
        assert heard.reply.outcome is full.outcome


def test_characters_that_only_python_takes_for_line_ends_don_t_end_a_line() -> None:
    """U+2028, U+0085 and their like may stand unescaped in JSON, and are part of the text."""
    text = "a\u2028b\u2029c\u0085d\x7fe"
    chunks = [json.dumps(chunk, ensure_ascii=False) for chunk in (delta(text), STOP)]
    body = "".join(f"data: {chunk}\n\n" for chunk in chunks).encode()
    assert over_http([body]).reply.solution == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_in_any_of_the_three_ways(end: str) -> None:
    """The standard allows LF, CRLF and CR; comments, ids and retries between events mean nothing."""
    lines = [": hello", "id: 7", "retry: 10", "", f"data:{json.dumps(delta('a'))}", "", f"data: {json.dumps(STOP)}", ""]
    assert over_http([(end.join(lines) + end).encode()]).reply.solution == "a"


def test_data_on_several_lines_is_one_event() -> None:
    """A chunk that a proxy has broken into lines is put together."""
    text = json.dumps(delta("a", "stop"), indent=1)
    body = "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"
    assert over_http([body.encode()]).reply.solution == "a"


JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 7, 1.5, 1e308, float("nan"), float("inf"), 2**63, 10**400),
    *("", " ", "a", "0", "stop", "length", "<think>", "</think>", "\ud800", "n_keep (,) >= n_ctx (,)"),
    *([], [0], [None], ["a"], [[]], [{}], [{"text": 1}], [{"index": 0}], {}, {"a": 1}, {"message": []}, {"index": {}}),
]
"""What may stand where something else was meant."""
CALL = {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OVERFLOWING = {"message": "x", "code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8}
FIGURES = {"tokens_per_second": 1.5, "predicted_n": 7, "predicted_per_second": 2.5}
BASES: list[list[Any]] = [
    [delta("", role="assistant"), delta("<think>"), delta("a"), delta("b"), delta("</think>"), delta("c"), STOP],
    [delta("c"), {**STOP, "timings": FIGURES}, usage(9, 7, prompt_tokens_details={"cached_tokens": 1})],
    [delta(reasoning_content="a"), delta(reasoning="b"), delta("c"), {**STOP, "stats": FIGURES}],
    [delta(tool_calls=[CALL, {**CALL, "index": 1}]), delta(tool_calls=[CALL]), delta(finish="tool_calls")],
    [{"choices": [{"index": 0, "message": {"content": [{"text": "a"}], "tool_calls": [CALL]}}]}, STOP],
    [{"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}],
    [delta("a"), {"error": OVERFLOWING}],
    [delta("a"), {"error": {"error": "x", "detail": "y"}, "message": "z"}],
    [delta("a"), {"error": "Input does not fit in context length. It has 9 tokens, it only supports 8 tokens."}],
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, held in inner for found in [(*path, key), *places(held, (*path, key))]]


@st.composite
def broken_streams(draw: st.DrawFn) -> list[tuple[Any, str]]:
    """A good stream with junk in some places; with each chunk, the name of its event."""
    chunks = json.loads(json.dumps(draw(st.sampled_from(BASES))))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(places(chunks)))
        inside = chunks
        for key in path:
            inside = inside[key]
        inside[last] = copy.deepcopy(draw(st.sampled_from(JUNK)))
    return [(chunk, draw(st.sampled_from(["", "", "", "message", "error"]))) for chunk in chunks]


@given(broken_streams())
@example([({"choices": [{"delta": {"tool_calls": [{"index": [0]}]}}]}, "")])
@example([({"choices": [{"delta": {"tool_calls": [{"index": 0}, {"index": "a"}]}}]}, "")])
@example([({"choices": [{"delta": {"tool_calls": [{"function": "f"}]}}]}, "")])
@example([({"choices": [{"delta": {"tool_calls": [{"function": {"arguments": {"x": 1}}}]}}]}, "")])
@example([({"choices": [{"delta": {"content": [{"text": 1}]}}]}, "")])
@example([({"choices": [{"delta": {"content": "a"}}], "timings": {"predicted_n": "7"}}, "")])
@example([({"choices": [{"delta": {"content": "a"}}], "usage": {"completion_tokens": 10**400}}, "")])
@example([({"error": {"message": "x", "code": {}}}, "")])
@example([({"error": {"code": "context_length_exceeded", "n_ctx": "many"}}, "")])
@example([({"error": {"code": "context_length_exceeded", "n_ctx": True}}, "")])
@example([({"error": "n_keep (,) >= n_ctx (,)"}, "")])
def test_whatever_json_comes_the_reply_ends_in_a_known_way(chunks: list[tuple[Any, str]]) -> None:
    """No JSON breaks the decoder: there is a reply, its outcome is known, and every error makes its sentence."""
    decoder = ReplyDecoder(started=0.0)
    events: list[Event] = []
    for at, (chunk, event) in enumerate(chunks):
        events += decoder.feed(json.dumps(chunk), event, float(at))
        decoder.partial(float(at))
    events += decoder.close(float(len(chunks)))
    reply, error = decoder.reply, decoder.error
    assert reply is not None
    assert isinstance(reply.outcome, Outcome)
    assert reply.outcome is not Outcome.CANCELLED
    added = AddedUp(events)
    assert (added.thought or "", added.solution) == (reply.thought or "", reply.solution)
    for call in reply.tool_calls:
        assert [type(value) for value in dataclasses.astuple(call)] == [str] * 4
    assert isinstance(reply.finish_reason, (str, type(None)))
    if error is None:
        assert added.finished is reply
        assert reply.finish_reason
    else:
        assert error.partial is reply
        assert str(error)
        if isinstance(error, ContextOverflow):
            assert {type(error.needed), type(error.limit)} <= {int, type(None)}


@given(st.text())
@example('"a"')
@example("null")
@example("\ufeff")
@example(" [DONE] ")
def test_whatever_text_comes_in_the_place_of_json_the_reply_ends_in_a_known_way(text: str) -> None:
    """A chunk that is no JSON object is no text of the reply: it is cut there."""
    heard = decode(delta("a"), text)
    assert isinstance(heard.error, StreamCut)
    assert heard.reply.solution == "a"


@pytest.mark.parametrize("piece", ["[", '{"a":', "9"])
def test_a_chunk_too_deep_or_too_long_to_read_is_no_json(piece: str) -> None:
    """Nor is what makes Python's own reader give up."""
    assert isinstance(decode(delta("a"), piece * 100_000).error, StreamCut)


# --- characters that come in halves -----------------------------------------------------------------------------------

HIGH, LOW = "\ud83e", "\udde0"
"""The two UTF-16 units of 🧠."""


def units(text: str) -> list[str]:
    """The UTF-16 units of a text, as the strings that JSON's escapes make of them."""
    raw = text.encode("utf-16-le", "surrogatepass")
    return [chr(int.from_bytes(raw[at : at + 2], "little")) for at in range(0, len(raw), 2)]


def told(heard: Heard) -> str:
    """All that events, reply and error say."""
    error = heard.error
    return repr((heard.events, heard.reply, error and error.facts, str(error)))


def is_whole(told: str) -> bool:
    """Whether no half of a character is in what `repr` tells, which writes one as an escape."""
    return re.search(r"(?<!\\)(?:\\\\)*\\ud[89a-f][0-9a-f]{2}", told) is None


def test_a_half_is_seen_where_there_is_one() -> None:
    """The check of the tests below can fail."""
    assert not is_whole(repr({HIGH: 1}))
    assert not is_whole(repr(f"\\{LOW}"))
    assert is_whole(repr("🧠 \\ud83e"))


@pytest.mark.parametrize("ascii_only", [True, False])
def test_halves_of_a_character_are_joined_when_they_meet(ascii_only: bool) -> None:
    """A server that cuts its text by UTF-16 unit says the same as one that doesn't."""
    chunks = [json.dumps(delta(text), ensure_ascii=ascii_only) for text in (f"ok {HIGH}", f"{LOW}!")]
    heard = decode(*chunks, STOP)
    assert (heard.reply.solution, heard.reply.raw) == ("ok 🧠!", "ok 🧠!")
    assert heard.events[:-1] == [Solution("ok "), Solution("🧠!")]


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
def test_halves_are_joined_in_thought_and_fields(field: str) -> None:
    """Character by character, whatever was said before in the same form."""
    chunks = [delta("a", **{}) if field == "content" else delta(**{field: "a"})] * 3
    chunks += [delta(unit) if field == "content" else delta(**{field: unit}) for unit in units("x🧠🧠y")]
    reply = decode(delta("<think>"), *chunks, delta("</think>b"), STOP).reply if field == "content" else None
    reply = reply or decode(*chunks, delta("b"), STOP).reply
    assert (reply.thought, reply.solution) == ("aaax🧠🧠y", "b")


@pytest.mark.parametrize(
    ("chunks", "thought", "solution"),
    [
        ([delta(f"a{HIGH}")], None, "a\ufffd"),
        ([delta(f"a{LOW}")], None, "a\ufffd"),
        ([delta(f"{HIGH}{HIGH}"), delta(f"{HIGH}a{LOW}")], None, "\ufffd\ufffd\ufffda\ufffd"),
        ([delta("a"), delta("a"), delta(HIGH), delta("b")], None, "aa\ufffdb"),
        ([delta(reasoning=f"a{HIGH}"), delta("b")], "a\ufffd", "b"),
        ([delta(reasoning=f"a{HIGH}"), delta(f"{LOW}b")], "a\ufffd", "\ufffdb"),
        ([delta(f"a{HIGH}"), delta(reasoning="x"), delta(f"{LOW}b")], "x", "a🧠b"),
        ([delta(reasoning=f"a{HIGH}"), delta("\n"), delta(reasoning=f"{LOW}x"), delta("b")], "a🧠x", "b"),
        ([delta(f"<think>{HIGH}"), delta("</think>b")], "\ufffd", "b"),
        ([{"choices": [{"text": f"<think>a</think>{HIGH}"}]}, {"choices": [{"text": LOW}]}], "a", "🧠"),
        (
            [
                {"choices": [{"delta": {"content": [{"text": HIGH}]}}]},
                {"choices": [{"delta": {"content": [{"text": LOW}]}}]},
            ],
            None,
            "🧠",
        ),
    ],
)
def test_a_lone_half_is_the_replacement_character(chunks: list[Any], thought: str | None, solution: str) -> None:
    """One for each, where it stood; a change of the field or the end of the stream takes nothing away."""
    heard = decode(*chunks, STOP)
    assert (heard.reply.thought, heard.reply.solution) == (thought, solution)
    added = AddedUp(heard.events)
    assert (added.thought, added.solution) == (thought, solution)
    assert is_whole(told(heard))
    thoughts = [event.text for event in heard.events if isinstance(event, Thought)]
    assert thoughts == ([] if thought is None else [thought])


def test_who_leaves_gets_no_half_either() -> None:
    """Nor does a partial reply have it."""
    decoder = ReplyDecoder(started=0.0)
    decoder.feed(json.dumps(delta(f"a{HIGH}")), "message", 0.0)
    assert decoder.partial(0.0).raw == "a"
    decoder.cancel(0.0)
    assert decoder.reply is not None
    assert (decoder.reply.raw, decoder.reply.solution) == ("a\ufffd", "a\ufffd")


def test_a_thought_that_ends_on_a_half_is_continued_as_it_is_told() -> None:
    """What the model goes on from is what the reply says that it had written."""
    for said in ({"content": f"<think>a{HIGH}"}, {"reasoning_content": f"a{HIGH}"}):
        decoder = ReplyDecoder(started=0.0, rescue=Rescue(on_unclosed="answer"))
        decoder.feed(json.dumps({"choices": [{"delta": said, "finish_reason": "stop"}]}), "message", 0.0)
        assert decoder._wants_answer()
        assert decoder._wants_answer()
        assert decoder._continued("P") == "P<think>a\ufffd\n</think>\n\n"
        decoder._answer(0.0, template="own turn", prompt_tokens=None, requests=0)
        decoder.feed(json.dumps({"choices": [{"text": "So"}]}), "message", 0.0)
        assert not decoder._wants_answer()
        assert decoder.partial(0.0).thought == "a\ufffd\n"


def test_halves_in_a_tool_call_are_joined() -> None:
    """In its arguments, its name and its id; a lone one is replaced."""
    pieces = [part(0, '{"x": "', name=f"f{HIGH}", id=f"1{HIGH}"), part(0, HIGH, name=LOW), part(0, f'{LOW}{LOW}"}}')]
    heard = decode(*(delta(tool_calls=[piece]) for piece in pieces), delta(finish="tool_calls"))
    assert heard.reply.tool_calls == (ToolCall("1\ufffd", "f🧠", '{"x": "🧠\ufffd"}'),)


def test_halves_anywhere_else_are_replaced() -> None:
    """Names, figures, fields that nobody knows, and errors."""
    odd = {"x": [HIGH], HIGH: {"y": LOW}}
    chunk = {**delta("a"), "id": HIGH, "model": LOW, "usage": {"odd": odd}, "timings": odd, "news": odd}
    assert is_whole(told(decode(chunk, delta(finish=HIGH))))
    assert is_whole(told(decode(chunk, {"error": {"message": f"It broke {HIGH}", "code": LOW}})))


TEXTS = st.text(st.one_of(st.sampled_from("🧠👩🏽\u200d🚀a\n<"), st.characters()), min_size=1, max_size=8)


@given(
    st.lists(st.tuples(st.sampled_from(["content", "reasoning_content", "reasoning"]), TEXTS), max_size=5), st.data()
)
def test_text_cut_by_utf_16_unit_reads_the_same(segments: list[tuple[str, str]], data: st.DataObject) -> None:
    """In any order of the fields, the reply and its events are those of the text uncut."""
    uncut = [delta(text) if field == "content" else delta(None, **{field: text}) for field, text in segments]
    cut: list[Any] = []
    for field, text in segments:
        for piece in data.draw(chunked("".join(units(text)))):
            cut.append(delta(piece) if field == "content" else delta(None, **{field: piece}))
    wanted, found = decode(*uncut, STOP), decode(*cut, STOP)
    assert found.reply == wanted.reply
    assert merged(found.events) == merged(wanted.events)
    assert is_whole(told(found))


@given(st.lists(st.tuples(st.sampled_from(["content", "reasoning"]), st.sampled_from(["a", HIGH, LOW])), max_size=20))
def test_content_is_joined_across_other_fields(pieces: list[tuple[str, str]]) -> None:
    """Its verbatim text is all of it, joined, and no half is in anything that is told."""
    decoder, events = ReplyDecoder(started=0.0), []
    for field, piece in pieces:
        chunk = delta(piece) if field == "content" else delta(None, reasoning=piece)
        events += decoder.feed(json.dumps(chunk), "message", 0.0)
        assert is_whole(repr((events, decoder.partial(0.0))))
    events += decoder.close(0.0)
    assert decoder.reply is not None
    written = "".join(piece for field, piece in pieces if field == "content")
    joined = written.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert decoder.reply.raw == joined
    assert is_whole(repr((events, decoder.reply)))


# --- chunks that are alike --------------------------------------------------------------------------------------------


@given(broken_streams(), st.integers(1, 4))
def test_chunks_that_are_alike_read_as_those_that_are_not(chunks: list[tuple[Any, str]], times: int) -> None:
    """White space inside the JSON, another in each chunk, makes each one new: and all that comes of it is the same."""
    alike, new = ReplyDecoder(started=0.0), ReplyDecoder(started=0.0)
    heard: list[Event] = []
    again: list[Event] = []
    for at, (chunk, event) in enumerate([one for one in chunks for _ in range(times)]):
        written = json.dumps(chunk)
        heard += alike.feed(written, event, float(at))
        again += new.feed(written.replace("{", "{" + " " * at, 1), event, float(at))
        assert alike.partial(float(at)) == new.partial(float(at)) or "nan" in written.lower()
    heard += alike.close(99.0)
    again += new.close(99.0)
    assert repr(heard) == repr(again)
    assert repr(alike.reply) == repr(new.reply)
    assert type(alike.error) is type(new.error)


def test_the_token_counts_that_came_last_are_those_of_a_reply() -> None:
    """With counts in every chunk, also for somebody who leaves early."""
    decoder = ReplyDecoder(started=0.0)
    for number in range(1, 58):
        chunk = {**delta("a"), "usage": {"prompt_tokens": 9, "completion_tokens": number, "total_tokens": 9 + number}}
        decoder.feed(json.dumps(chunk), "message", float(number))
    assert decoder.partial(60.0).usage == Usage(9, 57, 66)
    decoder.cancel(60.0)
    assert decoder.reply is not None
    assert decoder.reply.usage == Usage(9, 57, 66)


def test_what_nobody_knows_is_the_newest_of_each_field_in_chunks_that_look_alike() -> None:
    """Fields and figures that come with every piece of text."""
    chunks = [{**delta("a"), "news": number, "timings": {"predicted_n": number}} for number in (1, 2, 2, 3, 3, 2)]
    reply = decode(*chunks, fault=StreamCut("x")).reply
    assert reply.extra == {"news": 2}
    assert reply.stats.server == {"predicted_n": 2}


# --- more of what servers say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"code": 500}, {"choices": []}, {"choices": None}])
def test_an_error_of_null_with_a_message_is_told_by_its_message(more: dict[str, Any]) -> None:
    """The message is the server's text."""
    heard = decode(delta("a"), {"error": None, "message": "boom", **more})
    assert isinstance(heard.error, ServerError)
    assert heard.error.message == "boom"
    assert heard.reply.solution == "a"


def test_an_error_event_with_an_error_of_null_is_told_by_its_message() -> None:
    """An event named `error`, too."""
    error = decode({"error": None, "message": "boom"}, event="error").error
    assert isinstance(error, ServerError)
    assert error.message == "boom"


def test_an_error_of_null_and_a_message_beside_text_are_no_failure() -> None:
    """A server that says both in each chunk of a good reply has not failed."""
    assert decode({**delta("a"), "error": None, "message": "ok"}, STOP).reply.solution == "a"


def test_log_probabilities_are_kept() -> None:
    """Those of a chat as one object; other shapes one after the other; those of other choices are not among them."""
    tokens = [{"token": text, "logprob": -0.5} for text in "abc"]

    def chunk(logprobs: Any, index: int = 0) -> dict[str, Any]:
        return {"choices": [{"index": index, "delta": {"content": "a"}, "logprobs": logprobs}]}

    chat = [chunk({"content": [token], "refusal": None}) for token in tokens]
    other = chunk({"content": [{"token": "x"}]}, index=1)
    assert decode(chat[0], other, chat[1], chat[1], chat[2], STOP).reply.extra["logprobs"] == {
        "content": [tokens[0], tokens[1], tokens[1], tokens[2]],
        "refusal": None,
    }
    raw = [{"tokens": ["a"], "token_logprobs": [-0.5]}, {"tokens": ["b"], "token_logprobs": [-0.1]}]
    assert decode(*map(chunk, raw), STOP).reply.extra["logprobs"] == raw
    assert "logprobs" not in decode(chunk(None), chunk({}), STOP).reply.extra


def test_further_answers_are_told_in_a_note() -> None:
    """How many there were, and that only the first was read."""
    chunks = [delta("a"), *({"choices": [{"index": n, "delta": {"content": "x"}}]} for n in (1, 2, 1))]
    (note,) = decode(*chunks, STOP).reply.notes
    assert "2 more answers" in note
    (note,) = decode(*chunks[:2], STOP).reply.notes
    assert "one more answer" in note
    assert decode(delta("a"), STOP).reply.notes == ()


def test_a_missing_thought_is_noted_only_where_one_is_expected() -> None:
    """Where the reply is bound to a format, no thought is possible and nothing is odd."""
    (note,) = decode(delta("{}"), STOP, expects_thought=True).reply.notes
    assert note.startswith("There was no thought")
    assert decode(delta("{}"), STOP, expects_thought=False).reply.notes == ()


def nested(levels: int) -> Any:
    """Lists and objects inside each other."""
    value: Any = "x"
    for level in range(levels):
        value = [value] if level % 2 else {"x": value}
    return value


DEEP: list[Any] = [
    {**delta("b"), "news": nested(500)},
    {**delta("b"), "usage": {"prompt_tokens": 1, "more": nested(500)}},
    {**delta("b"), "timings": nested(501)},
    {**delta("b"), "model": nested(500)},
    {**delta("b"), "id": nested(500)},
    {"choices": [{"delta": {"content": "b"}, "logprobs": nested(501)}]},
    {"choices": [{"delta": {"content": "b"}, "finish_reason": nested(500)}]},
    {"choices": [{"delta": {"content": [{"text": nested(500)}]}}]},
    {"choices": [{"delta": {"content": "b"}, "index": nested(500)}]},
    {"choices": [{"delta": {"tool_calls": [{"id": nested(500), "function": {"arguments": nested(500)}}]}}]},
    {"choices": [{"delta": {"content": nested(500), "reasoning": nested(500)}}]},
    {"choices": nested(500)},
    {"error": nested(500)},
    {"error": {"message": nested(500), "code": nested(500)}},
    {"error": None, "message": "x", "detail": nested(500)},
    nested(501),
]


@pytest.mark.parametrize("chunk", DEEP)
def test_json_nested_very_deep_makes_no_recursion_error(chunk: Any) -> None:
    """Neither in the decoder nor in what is done with a reply afterwards."""
    heard = decode(delta("a"), chunk, STOP)
    again = copy.deepcopy(dataclasses.asdict(heard.reply))
    assert json.dumps(again, default=str)
    assert heard.reply == dataclasses.replace(heard.reply)
    assert told(heard)


def test_silence_after_the_finish_reason_takes_nothing_from_a_reply() -> None:
    """It is finished, whatever was asked for in case that the thought would not end."""
    fault = ServerUnreachable("http://x", "nothing came within the time limit", timed_out=True)
    for rescue in (None, Rescue(on_unclosed="answer"), Rescue(thinking_budget=3, on_loop="answer")):
        heard = decode(delta("<think>a</think>b"), STOP, fault=fault, rescue=rescue)
        assert (heard.error, heard.reply.outcome) == (None, Outcome.COMPLETE)


def test_silence_after_the_finish_reason_is_not_told_for_the_end_of_a_thought() -> None:
    """What was held back of a thought comes at its end, and fills the budget when there is nothing left to end."""
    fault = ServerUnreachable("http://x", "nothing came within the time limit", timed_out=True)
    heard = decode(delta("<think>a"), delta("</th", finish="stop"), fault=fault, rescue=Rescue(thinking_budget=2))
    assert (heard.error, heard.reply.outcome) == (None, Outcome.THOUGHT_UNCLOSED)
    assert heard.reply.thought == "a</th"
