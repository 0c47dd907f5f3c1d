"""Text that is shown is final: whole characters, and no part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from support.tiny_models import tiny_tokenizer

from elastikv.engine.text import TextStream
from elastikv.weights.tokenizer import Tokenizer

STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


class Letters:
    """A decoder whose tokens are letters."""

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def flush(self) -> str:
        return ""


def stream(text: str, stops: list[str]) -> tuple[list[str], TextStream]:
    """Pieces that were shown, letter by letter, until it stopped."""
    shown = TextStream(Letters(), stops)
    pieces = []
    for letter in text:
        pieces.append(shown.push(ord(letter)))
        if shown.stopped:
            break
    return [*pieces, shown.flush()], shown


def plain(pieces: Iterable[str], stops: list[str]) -> str:
    """What may be shown of a text that comes in pieces: up to the stop string that is complete first."""
    text = ""
    for piece in pieces:
        text += piece
        starts = [text.find(stop) for stop in stops if stop in text]
        if starts:
            return text[: min(starts)]
    return text


@given(st.text("abc", max_size=30), STOPS)
def test_the_pieces_are_the_text_before_the_first_stop(text: str, stops: list[str]) -> None:
    pieces, shown = stream(text, stops)
    assert "".join(pieces) == shown.text == plain(text, stops)
    assert shown.stopped == any(stop in text for stop in stops)


@given(st.text("abc", max_size=30), STOPS)
def test_no_more_is_held_back_than_could_become_a_stop(text: str, stops: list[str]) -> None:
    shown = TextStream(Letters(), stops)
    for n, letter in enumerate(text, 1):
        shown.push(ord(letter))
        if shown.stopped:
            break
        held = text[len(shown.text) : n]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_what_looked_like_a_stop_is_shown_once_it_is_none() -> None:
    pieces, _ = stream("xENy", ["END"])
    assert pieces == ["x", "", "", "ENy", ""]


def test_text_behind_a_stop_in_the_same_token_is_dropped() -> None:
    class Words:
        def push(self, token_id: int) -> str:
            return ["one ", "two STOP three"][token_id]

        def flush(self) -> str:
            return "never"

    shown = TextStream(Words(), ["STOP"])
    assert [shown.push(0), shown.push(1), shown.flush()] == ["one ", "two ", ""]


@given(st.text(min_size=1, max_size=12), STOPS)
def test_no_character_is_ever_broken(text: str, stops: list[str]) -> None:
    tokenizer = Tokenizer(tiny_tokenizer().backend_tokenizer)
    token_ids = tokenizer.encode(text)
    decoder = tokenizer.stream_decoder()
    expected = plain([*map(decoder.push, token_ids), decoder.flush()], stops)
    shown = TextStream(tokenizer.stream_decoder(), stops)
    whole = ""
    for token_id in token_ids:
        piece = shown.push(token_id)
        codecs.encode(piece, "utf-8")
        whole += piece
        assert expected.startswith(whole), "a piece was shown that is no part of the text"
        if shown.stopped:
            break
    assert whole + shown.flush() == expected
    assert stops or expected == text
