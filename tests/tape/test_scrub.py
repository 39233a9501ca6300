"""What is taken out of a tape, and what is left alone."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import chunked

from phi4_http.errors import InvalidRequest
from phi4_http.tape.exchange import RecordedRequest
from phi4_http.tape.scrub import Scrubber, find_secrets

from .support import SECRET

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"


def scrubber(*patterns: str, **environment: str) -> Scrubber:
    return Scrubber(patterns, environment=environment)


def scrubbed(made: Scrubber, *pieces: bytes) -> bytes:
    body = made.body()
    return b"".join([*(body.feed(piece) for piece in pieces), body.close()])


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"key {SECRET}, thanks", "key [scrubbed], thanks"),
        ("sk-proj-abcdefghij0123456789", "[scrubbed]"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "[scrubbed]"),
        (JWT, "[scrubbed]"),
        ("Authorization: Bearer abcdef0123456789", "Authorization: Bearer [scrubbed]"),
        ('{"api_key": "abc", "a": 1}', '{"api_key": "[scrubbed]", "a": 1}'),
        ("/v1/models?api_key=abc&x=1", "/v1/models?api_key=[scrubbed]&x=1"),
        ("/v1/models?x=1&access_token=abc", "/v1/models?x=1&access_token=[scrubbed]"),
        ("the bearer certificates are issued", "the bearer certificates are issued"),
        (
            "risk-averse sk-short task-oriented-programming-language",
            "risk-averse sk-short task-oriented-programming-language",
        ),
        ('{"tokens": [1], "max_tokens": 5, "token": " the"}', '{"tokens": [1], "max_tokens": 5, "token": " the"}'),
        ("chatcmpl-mt4r9h14s6wdqhn9esu1e1", "chatcmpl-mt4r9h14s6wdqhn9esu1e1"),
    ],
)
def test_what_looks_like_a_secret_goes(text: str, clean: str) -> None:
    """Tokens are known by their shape and by the name of their field; words and counts of tokens are left alone."""
    made = scrubber()
    assert made.text(text) == clean
    masked = scrubbed(made, text.encode())
    assert len(masked) == len(text)
    assert (masked == text.encode()) is (clean == text)


@pytest.mark.parametrize(
    ("headers", "secret"),
    [
        ([("Authorization", "Bearer correct-horse")], "correct-horse"),
        ([("authorization", "correct-horse")], "correct-horse"),
        ([("Authorization", "Basic dXNlcjpjb3JyZWN0LWhvcnNl")], "correct-horse"),
        ([("Proxy-Authorization", "Bearer correct-horse")], "correct-horse"),
        ([("X-Api-Key", "correct-horse")], "correct-horse"),
        ([("api-key", "correct-horse")], "correct-horse"),
        ([("Cookie", "a=b; sid=correct-horse; c=d")], "correct-horse"),
        ([("Set-Cookie", "sid=correct-horse; Path=/; HttpOnly")], "correct-horse"),
        ([("Set-Cookie", 's[i]d="correct-horse"')], "correct-horse"),
    ],
)
def test_what_was_a_secret_in_a_header_is_one_everywhere(headers: list[tuple[str, str]], secret: str) -> None:
    """A secret that came in a header is taken out of paths, bodies and other headers, however it is spelt there."""
    made = scrubber()
    made.learn(headers)
    assert made.text(f"it is {secret}!") == "it is [scrubbed]!"
    assert scrubbed(made, f"it is {secret}!".encode()) == b"it is " + b"*" * len(secret) + b"!"
    assert made.headers([*headers, ("X-Echo", secret), ("Content-Type", "text/plain")]) == (
        ("X-Echo", "[scrubbed]"),
        ("Content-Type", "text/plain"),
    )


def test_a_secret_is_found_as_json_and_urls_write_it() -> None:
    """A known secret is found with its characters escaped."""
    made = scrubber()
    made.learn([("X-Api-Key", 'p"ss/wörd')])
    assert made.text(r'{"k": "p\"ss/w\u00f6rd"}') == '{"k": "[scrubbed]"}'
    assert made.text("/x?k=p%22ss%2Fw%C3%B6rd") == "/x?k=[scrubbed]"


def test_the_tokens_of_the_environment_are_secrets() -> None:
    """The tokens that clients read from the environment are known from the start."""
    made = scrubber(LM_API_TOKEN="from-the-shell", LMSTUDIO_API_TOKEN="of-the-sdk", HOME="/home/ada")
    assert made.text("from-the-shell of-the-sdk /home/ada") == "[scrubbed] [scrubbed] /home/ada"


@pytest.mark.parametrize("word", ["lm-studio", "not-needed", "x", "EMPTY", "ollama"])
def test_placeholders_are_no_secrets(word: str) -> None:
    """What people write where a client wants some key is not taken out of texts."""
    made = scrubber()
    made.learn([("Authorization", f"Bearer {word}")])
    assert made.text(f"a text with {word} in it") == f"a text with {word} in it"


def test_secrets_in_a_request_are_learnt_before_they_are_looked_for() -> None:
    """A secret field at the end of a body is a secret in a text at its beginning, and in the answer."""
    made = scrubber()
    request = RecordedRequest(
        "POST", "/v1/x?note=open-sesame", {"text": "say open-sesame", "password": "open-sesame", "n": [1, None, True]}
    )
    clean = made.request(request)
    assert clean.body == {"text": "say [scrubbed]", "password": "[scrubbed]", "n": [1, None, True]}
    assert clean.path == "/v1/x?note=[scrubbed]"
    assert scrubbed(made, b"open-sesame") == b"***********"


@pytest.mark.parametrize(
    ("body", "clean"),
    [
        (f"text {SECRET}", "text [scrubbed]"),
        (b"\xff" + SECRET.encode() + b"\xfe", b"\xff[scrubbed]\xfe"),
        (None, None),
    ],
)
def test_bodies_of_every_kind_are_scrubbed(body: object, clean: object) -> None:
    """Texts and bytes are scrubbed as JSON is."""
    assert scrubber().request(RecordedRequest("POST", "/", body)).body == clean


def test_patterns_take_out_their_groups() -> None:
    """A pattern without groups goes whole; of one with groups, only what they match."""
    assert scrubber("[0-9]{3}").text("call 555 now") == "call [scrubbed] now"
    assert scrubber("(ab)c(de)?").text("abcde abc") == "[scrubbed]c[scrubbed] [scrubbed]c"
    assert scrubbed(scrubber("name=(\\w+)"), b"name=ada x") == b"name=*** x"
    with pytest.raises(ValueError, match="is not a regular expression"):
        scrubber("(")


secrets_and_text = st.lists(
    st.sampled_from([SECRET, "open-sesame", "\n", " ", "data: ", '"', "é🙂", "sk-", "open-", "x" * 50]), max_size=30
).map("".join)


@given(secrets_and_text.map(str.encode).flatmap(lambda data: st.tuples(st.just(data), chunked(data))))
@example((b"open-sesame", [b"open", b"-sesame"]))
def test_the_cuts_of_a_body_hide_no_secret(case: tuple[bytes, list[bytes]]) -> None:
    """However a body is cut, the same bytes are masked, and none is added or lost."""
    data, pieces = case
    made = scrubber()
    made.learn([("X-Api-Key", "open-sesame")])
    whole = scrubbed(made, data)
    assert scrubbed(made, *pieces) == whole
    assert len(whole) == len(data)
    assert b"open-sesame" not in whole


@pytest.mark.parametrize("size", [1, 7, 4096, 100_000])
def test_a_body_without_lines_is_scrubbed_as_it_comes(size: int) -> None:
    """In a long body with no line end secrets are found across cuts, with bounded memory and in linear time."""
    made = scrubber()
    text = (("x" * 5000 + " " + SECRET + " ") * 40).encode()
    body, held, out = made.body(), 0, b""
    began = time.process_time()
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        ready = body.feed(piece)
        held = max(held, start + len(piece) - len(out) - len(ready))
        out += ready
    out += body.close()
    assert SECRET.encode() not in out
    assert out.count(b"*") == 40 * len(SECRET)
    assert held <= 3 * 65_536
    assert time.process_time() - began < 5


def test_a_secret_without_an_end_stays_linear() -> None:
    """A line that is one endless secret is masked whole, and looked at a bounded number of times."""
    text = b"sk-" + b"a1" * 50_000
    body, out = scrubber().body(), b""
    began = time.process_time()
    for start in range(0, len(text), 10):
        out += body.feed(text[start : start + 10])
    assert out + body.close() == b"*" * len(text)
    assert time.process_time() - began < 5


def test_what_is_found_is_not_shown_whole() -> None:
    """A check can say what looks like a secret without repeating it; what was masked is none."""
    assert find_secrets([f'{{"api_key": "abcdefgh", "t": "{SECRET}"}}'.encode()]) == ["abcdef…", "sk-lm-…"]
    assert find_secrets([b'{"api_key": "[scrubbed]", "password": "********"}']) == []


# --- the text that a person reads -------------------------------------------------------------------------------------


def event(text: str, field: str = "content", index: int = 0, *, ascii_only: bool = False, late: bool = False) -> bytes:
    """One event with one delta; with `late`, the choice's index stands behind it."""
    choice = {"index": index, "delta": {field: text}}
    choice = dict(reversed(choice.items())) if late else choice
    return b"data: " + json.dumps({"id": "chatcmpl-1", "choices": [choice]}, ensure_ascii=ascii_only).encode() + b"\n\n"


def spoken(body: bytes, field: str = "content") -> dict[int, str]:
    """What the events say, choice by choice."""
    said: dict[int, str] = {}
    for line in body.decode().split("\n"):
        if line:
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                said[choice["index"]] = said.get(choice["index"], "") + choice["delta"].get(field, "")
    return said


@pytest.mark.parametrize(
    ("pattern", "body", "clean"),
    [
        (r"Kunde \w+", '{"a": "Kunde Müller ruft"}', '{"a": "************* ruft"}'),
        (r"Kunde \w+", r'{"a": "Kunde M\u00fcller ruft"}', '{"a": "***************** ruft"}'),
        (r"Kunde \w+", "Kunde Müller ruft", "************* ruft"),
        (r"Kunde \w+", r'data: {"arguments": "{\"a\": \"Kunde M\\u00fcller\"}"}', None),
        (r"Kunde (\w+)", '{"Kunde Müller": {"Kunde Ö": 1}}', '{"Kunde *******": {"Kunde **": 1}}'),
        ("[äö]x", '{"a": "äx öy öx"}', '{"a": "*** öy ***"}'),
        ("(?u)Ä+", '"ÄÄ"', '"****"'),
        ("(?i)straße", '{"a": "STRAẞE Straße"}', None),
        (r"\d{4,}", '{"n": 12345, "m": [-1.25, 123, 9999.5]}', '{"n": 0    , "m": [-1.25, 123, 0     ]}'),
        ('"', '{"a": "b\\"c"}', '{"a": "b**c"}'),
        (r"(?s).+", '{"a": "b", "c": ["d"]}', '{"*": "*", "*": ["*"]}'),
        (r"(?s).+", "event: x\r\ndata: yes\r\n\r\n: hi\n", "event: *\r\ndata: ***\r\n\r\n: **\n"),
        (r"(?s)a.*c", "a\nb\r\nc d", "*\n*\r\n* d"),
        ("🙂", r'{"a": "\ud83d\ude42!"}', '{"a": "************!"}'),
        (r"open \w+", '{"a":\n "open sesame",\n "b": "open"}\n', '{"a":\n "***********",\n "b": "open"}\n'),
        (r"open \w+", "[INFO] open sesame", "[INFO] ***********"),
        ("x*", '{"a": "bcx"}', '{"a": "bc*"}'),
    ],
)
def test_patterns_are_for_what_a_person_reads(pattern: str, body: str, clean: str | None) -> None:
    """Escapes are undone, keys are texts too, `\\w` knows every letter; JSON, UTF-8 and lines stay what they were."""
    masked = scrubbed(scrubber(pattern), body.encode())
    assert len(masked) == len(body.encode())
    assert masked.decode() != body
    if clean is not None:
        assert masked.decode() == clean
    else:
        assert "ller" not in masked.decode()
        json.loads(masked.decode().removeprefix("data: "))


@pytest.mark.parametrize(
    ("request_", "path", "body"),
    [
        (RecordedRequest("POST", "/x?n=Kunde%20M%C3%BCller&a=1", None), "/x?n=[scrubbed]&a=1", None),
        (RecordedRequest("POST", "/x?n=Kunde+Ada", None), "/x?n=[scrubbed]", None),
        (RecordedRequest("POST", "/x", {"Kunde Ö": 1, "Kunde Ä": [2]}), "/x", {"[scrubbed]": 1, "[scrubbed] 2": [2]}),
        (RecordedRequest("POST", "/x", r'{"a": 1, "a": "Kunde M\u00fcller"}'), "/x", '{"a": 1, "a": "[scrubbed]"}'),
        (RecordedRequest("POST", "/x", {"a": '{"b": "Kunde M\\u00fc"}'}), "/x", {"a": '{"b": "[scrubbed]"}'}),
        (RecordedRequest("POST", "/x", b"\xff Kunde \xc3\x9c"), "/x", b"\xff [scrubbed]"),
    ],
)
def test_requests_are_scrubbed_as_they_read(request_: RecordedRequest, path: str, body: object) -> None:
    """In paths, keys, texts of JSON and bytes; no two keys become one."""
    clean = scrubber(r"Kunde \w+").request(request_)
    assert (clean.path, clean.body) == (path, body)
    assert scrubber(r"Kunde \w+").request(clean) == clean


@pytest.mark.parametrize("pattern", ["(", "[", "(?P<a", "a{99999999999}", "(?L)a", "(" * 5000 + ")" * 5000, b"a", 5])
def test_a_pattern_that_is_none_is_refused_at_once(pattern: Any) -> None:
    """Before anything is recorded, in the words of this library."""
    with pytest.raises(InvalidRequest, match="is not a regular expression"):
        scrubber(pattern)


SAID = st.sampled_from(["content", "reasoning_content", "reasoning", "text"])


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.data(),
)
def test_a_secret_is_found_over_any_deltas(before: str, after: str, data: st.DataObject) -> None:
    """However a model spells it out, beside another choice that talks too: every event stays what it was but for it."""
    secret, field = "Kunde Müller-🙂", data.draw(SAID)
    text = before + secret + after
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    style = {"ascii_only": data.draw(st.booleans()), "late": data.draw(st.booleans())}
    events = []
    for start, end in itertools.pairwise(cuts):
        events += [event(text[start:end], field, **style), event("so ", field, 1, **style)]
    body = b"".join(events)
    masked = scrubbed(scrubber("Kunde Müller-🙂"), *data.draw(chunked(body)))
    assert len(masked) == len(body)
    said = spoken(masked, field)
    assert secret not in said[0]
    assert said[0].startswith(before)
    assert said[0].endswith(after)
    assert set(said[0][len(before) : len(said[0]) - len(after)]) == {"*"}
    assert said[1] == "so " * (len(cuts) - 1)


def test_a_token_of_a_tool_call_is_found_over_its_events() -> None:
    """The arguments of two calls that come in turns are two texts, by the index that counts them."""
    parts = [(0, "sk-lm-Ab3dEf"), (1, "nothing "), (0, "9h:Zy8xWv7u"), (1, "of it"), (0, "Ts6rQp5o!")]
    events = []
    for index, text in parts:
        call = {"function": {"arguments": text}, "index": index}
        events.append(b"data: " + json.dumps({"choices": [{"delta": {"tool_calls": [call]}}]}).encode() + b"\n\n")
    calls = [json.loads(line[6:]) for line in scrubbed(scrubber(), *events).splitlines() if line]
    said = [call["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] for call in calls]
    assert said == ["*" * 12, "nothing ", "*" * 11, "of it", "*" * 8 + "!"]


def test_a_secret_is_found_far_down_a_long_stream() -> None:
    """Also where what is held back of a stream has been let go of many times."""
    made = scrubber()
    words = [event(f"word{n} ") for n in range(4000)]
    spelt = [event(letter) for letter in SECRET]
    body = scrubbed(made, *words, *spelt, event(" "), *words, *spelt)
    assert SECRET not in spoken(body)[0]
    assert spoken(body)[0].count("*") == 2 * len(SECRET)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@given(
    ANY_JSON,
    st.sampled_from([".", r"\w+", r"[\W\d]", r"(?s).*", "[^a]{2}", r"\\", '"|:', r"\s"]),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_json_stays_json(value: Any, pattern: str, ascii_only: bool, indent: int | None, framed: bool) -> None:
    """Whatever a pattern takes out of it, it is JSON of the same shape and length."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=None if framed else indent)
    body = (f"data: {text}\n\n" if framed else text).encode("utf-8", "replace")
    masked = scrubbed(scrubber(pattern), body)
    assert len(masked) == len(body)
    if isinstance(value, dict | list):
        read = json.loads(masked.decode().removeprefix("data: "))
        assert type(read) is type(value)
        assert len(read) <= len(value)  # two keys of one length may be the same now


@given(st.binary(max_size=300).flatmap(lambda data: st.tuples(st.just(data), chunked(data))))
@example((b'data: {"a": "\\', [b'data: {"a": "\\']))
@example((b'{"a": "\xf0\x9f', [b'{"a": "\xf0', b"\x9f"]))
@example((b'{"a": "b\n"}\r\n\r\n]]}}"', [b'{"a": "b\n"}\r', b'\n\r\n]]}}"']))
def test_any_bytes_pass(case: tuple[bytes, list[bytes]]) -> None:
    """What is nothing in particular is kept byte for byte, and scrubbed the same for every cut."""
    data, pieces = case
    assert scrubbed(scrubber("no such text"), *pieces) == data
    assert scrubbed(scrubber(r"\w+"), *pieces) == scrubbed(scrubber(r"\w+"), data)


def test_a_quadratic_pattern_ends() -> None:
    """A pattern is tried on stretches of a text, so that one that tries each character anew is no trap."""
    began = time.process_time()
    body = json.dumps({"a": "a b " * 25_000}).encode()
    assert scrubbed(scrubber(r"[\w ]+@"), body) == body
    assert time.process_time() - began < 20


@pytest.mark.parametrize("size", [65_530, 65_535, 65_536, 65_537, 131_072])
@pytest.mark.parametrize("escape", [r"\"", r"\\", r"\u00fc", r"\ud83d\ude42"])
def test_a_long_line_is_not_cut_inside_an_escape(size: int, escape: str) -> None:
    """Where it is taken in pieces, a string goes on in the next one, with all its escapes."""
    for shift in range(7):
        body = ('{"a": "' + "x" * (size - shift - 7) + escape + 'Kunde Ada", "b": 1}').encode()
        masked = scrubbed(scrubber(r"Kunde \w+"), body)
        assert masked == body.replace(b"Kunde Ada", b"*" * 9)
