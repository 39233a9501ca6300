"""What is taken out of a tape, and what is left alone."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import chunked

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
    assert held <= 2 * (4096 + len(SECRET))
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


def test_event_streams_are_never_held_back() -> None:
    """What ends with a line end is passed on whole."""
    body = scrubber().body()
    assert body.feed(b"data: 1\n\n") == b"data: 1\n\n"
    assert body.feed(b"data: 2") == b""
    assert body.feed(b"\n\n") == b"data: 2\n\n"


def test_what_is_found_is_not_shown_whole() -> None:
    """A check can say what looks like a secret without repeating it; what was masked is none."""
    assert find_secrets(f'{{"api_key": "abcdefgh", "t": "{SECRET}"}}') == ["sk-lm-…", "abcdef…"]
    assert find_secrets('{"api_key": "[scrubbed]", "password": "********"}') == []
