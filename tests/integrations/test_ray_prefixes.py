from __future__ import annotations

import json

from elastikv.integrations.ray.prefixes import BLOCK_ENDS, HeldMarks, Marks, mark_of_session, marks_of, prompt_parts

SYSTEM = {"role": "system", "content": "be brief " * 40}
TURNS = [
    {"role": "user", "content": "hello " * 20},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "more " * 40},
]


def marks_of_body(**body: object) -> Marks:
    return marks_of(*prompt_parts(json.dumps(body).encode()))


def n_shared(a: Marks, b: Marks) -> int:
    return len(a.keys() & b.keys())


def test_a_turn_more_has_all_marks_of_the_turn_before() -> None:
    before = marks_of_body(messages=[SYSTEM, TURNS[0]], temperature=1)
    after = marks_of_body(temperature=0, stream=True, messages=[SYSTEM, *TURNS])
    assert before.items() <= after.items()
    assert len(after) > len(before) > 4


def test_what_was_said_tells_conversations_apart_however_short() -> None:
    talks = [marks_of_body(messages=[SYSTEM, {"role": "user", "content": text}]) for text in ("yes", "no")]
    assert n_shared(*talks) == len(talks[0]) - 1 == len(talks[1]) - 1


def test_texts_share_marks_up_to_where_they_part() -> None:
    one, other = "a" * 1000 + "b" * 1000, "a" * 1000 + "c" * 1000
    shared = n_shared(marks_of(one), marks_of(other))
    assert BLOCK_ENDS[shared - 1] <= 1000 < BLOCK_ENDS[shared]
    assert list(marks_of(one).items())[:shared] == list(marks_of(other).items())[:shared]


def test_a_longer_prompt_of_any_protocol_begins_like_the_shorter() -> None:
    text = "once upon a time " * 20
    for part in ("prompt", "input"):
        before, after = marks_of_body(**{part: text}), marks_of_body(**{part: text * 2})
        assert n_shared(before, after) >= len(before) - 1  # the end of the shorter is a line's end
    system = marks_of_body(system="s" * 500, messages=TURNS[:1])
    assert n_shared(system, marks_of_body(messages=TURNS, system="s" * 500)) >= 7


def test_models_share_nothing() -> None:
    assert not n_shared(marks_of_body(model="a", messages=TURNS), marks_of_body(model="b", messages=TURNS))


def test_a_book_has_few_marks_and_a_word_one() -> None:
    assert len(marks_of("word")) == 1
    assert 100 < len(marks_of("x" * 1_000_000)) < 300


def test_what_is_no_request_has_no_parts() -> None:
    for body in (b"", b"[]", b"7", b"{", b"\xff", b'{"prompt": null}', b"[" * 100_000):
        assert prompt_parts(body) == []
    assert len(marks_of_body(prompt=[1, 2, 3] * 100)) > 1
    assert marks_of(*prompt_parts(b'{"prompt": "\\ud800' + b"x" * 100 + b'"}'))


def test_a_session_has_a_mark_of_its_own() -> None:
    name = "x" * 64
    assert mark_of_session(name) != mark_of_session("y" * 64)
    assert mark_of_session(name) not in marks_of(name)


def test_a_replica_reports_what_its_sessions_hold_the_newest_first() -> None:
    held = HeldMarks(limit=3)
    held.add(1, (10, 11))
    held.add(2, (10, 20, 21))
    assert held.report() == [10, 20, 21]
    held.add(1, (10, 11))
    assert held.report() == [10, 11, 20]
    held.keep({2})
    assert held.report() == [10, 20, 21]
    held.keep(())
    assert held.report() == []
