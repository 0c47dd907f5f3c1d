"""The page in a real browser: a turn, stop, the memory going up and down, the key, errors. Skipped without Chromium."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import BYTES_PER_CELL, FakeAsyncLLM
from on_page import CHATS, answer_with, questions, replies, say, stream, talk, titles, wait_for_replies
from running import RunningServer, running
from serve_process import ServeProcess, serving
from support.tiny_models import tiny_model

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[ServeProcess]:
    model = tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")
    # A random model draws the end-of-text token after some hundred tokens: too soon for a slow browser to press stop.
    with serving(model, "-c", "16384", "--ignore-eos", "--kv-idle-drop", "2") as process:
        yield process


def committed(page: Any) -> float:
    number, unit = page.inner_text("#committed").split()
    return float(number) * {"B": 1, "KiB": 1024, "MiB": 1024**2}[unit]


def test_a_turn_and_a_stop_while_the_memory_goes_up_and_down(page: Any, process: ServeProcess) -> None:
    page.goto(process.url)
    expect(page.locator("#committed")).to_have_text("0 B")
    say(page, "hello " * 200)
    page.wait_for_selector(".message.assistant")
    expect(page.locator("#committed")).not_to_have_text("0 B")
    # The bar of the session that computes it is this conversation's.
    expect(page.locator(".session.current .state")).to_have_text("running")
    expect(page.locator(".session.current .name")).to_contain_text("hello")
    expect(page.locator("#held")).to_contain_text("iB")
    grown = committed(page)
    page.click("#stop")
    page.wait_for_selector(".note:has-text('stopped')")
    expect(page.locator("#send")).to_be_visible()
    assert grown > 0
    expect(page.locator("#committed")).to_have_text("0 B")
    page.wait_for_selector(".events .kind:has-text('release')")
    expect(page.locator(".session")).to_have_count(0)


def test_conversations_keep_their_own_words_while_both_are_answered(page: Any, server: RunningServer) -> None:
    page.goto(server.url)
    server.engine.hold = asyncio.Event()
    say(page, "first")
    page.wait_for_selector("#list .busy")
    page.click("#add-conversation")
    say(page, "second")
    expect(page.locator("#list .busy")).to_have_count(2)
    server.call(server.engine.hold.set)
    wait_for_replies(page, 1)
    assert replies(page) == ["<user>second"]
    page.click("#list .opener:has-text('first')")
    wait_for_replies(page, 1)
    say(page, "again")
    wait_for_replies(page, 2)
    assert replies(page) == ["<user>first", "<user>first<assistant><user>first<user>again"]


def test_idle_sessions_of_others_are_folded_into_one_line(page: Any, server: RunningServer) -> None:
    for text in ("one", "two"):
        server.post("/v1/completions", prompt=text)
    talk(page, server.url, "mine")
    expect(page.locator("#sessions .session")).to_have_count(1)
    expect(page.locator("#sessions .session.current .name")).to_have_text("mine")
    expect(page.locator("#idle-summary")).to_have_text("2 other idle sessions · 512 KiB")
    expect(page.locator("#idle .session").first).not_to_be_visible()
    page.click("#idle-summary")
    expect(page.locator("#idle .session")).to_have_count(2)
    page.click("#add-conversation")
    page.click("#sessions .name")
    assert replies(page) == ["<user>mine"]


def test_a_deleted_conversation_gives_its_memory_back(page: Any, server: RunningServer) -> None:
    talk(page, server.url, "mine")
    expect(page.locator(".session")).to_have_count(1)
    page.click("#chat-more")
    page.click("#menu >> text=Delete")
    expect(page.locator(".session")).to_have_count(0)
    assert server.http.get("/slots").json() == []


def test_the_key_is_asked_for_once_and_kept_for_the_tab(page: Any) -> None:
    with running(FakeAsyncLLM(), api_keys=("secret",)) as server:
        page.goto(server.url)
        page.wait_for_selector("#key[open]")
        page.fill("#key input", "wrong")
        page.press("#key input", "Enter")
        page.wait_for_selector("#key-error:visible")
        page.fill("#key input", "secret")
        page.press("#key input", "Enter")
        page.wait_for_selector("#model:has-text('fake-model')")
        page.reload()
        page.wait_for_selector("#model:has-text('fake-model')")
        assert not page.locator("#key").is_visible()
        say(page, "hi")
        wait_for_replies(page, 1)


def test_a_refused_turn_is_back_in_the_box_and_forgotten(page: Any, server: RunningServer) -> None:
    talk(page, server.url, "first")
    say(page, "y" * 600)
    expect(page.locator("#problem")).to_contain_text("context size of 512")
    expect(page.locator("#problem")).to_contain_text("Shorten the message")
    expect(page.locator("#draft")).to_have_value("y" * 600)
    assert questions(page) == ["first"]
    say(page, "again")
    wait_for_replies(page, 2)
    assert replies(page)[1] == "<user>first<assistant><user>first<user>again"
    expect(page.locator("#problem")).to_be_empty()


def test_a_first_turn_that_is_refused_leaves_a_new_conversation(page: Any, server: RunningServer) -> None:
    page.goto(server.url)
    say(page, "z" * 600)
    expect(page.locator("#problem")).not_to_be_empty()
    assert page.inner_text("#title") == "New chat"
    assert page.locator(".message").count() == 0


REFUSALS = [
    (503, {"message": "the model is still loading", "code": "unavailable"}, "still loading. Try again in a moment."),
    (400, {"message": "KV cache is full", "code": "cache_full"}, "KV cache is full. Delete a conversation"),
    (429, {"message": "64 requests wait", "code": "queue_full"}, "64 requests wait. Try again in 3 seconds."),
    (413, {"message": "the body is too large", "code": "body_too_large"}, "Attach less."),
    (502, None, "the server answered 502. Try again."),
]


def test_a_refusal_says_what_to_do_and_loses_nothing(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url, "first")
    for status, error, told in REFUSALS:
        answer_with(page, status=status, headers={"Retry-After": "3"}, json={"error": error} if error else [])
        say(page, f"say {status}")
        expect(page.locator("#problem")).to_contain_text(told)
        expect(page.locator("#draft")).to_have_value(f"say {status}")
    page.reload()
    expect(page.locator("#draft")).to_have_value("say 502")
    assert (questions(page), replies(page)) == (["first"], ["first"])


def test_a_reply_that_breaks_off_is_kept_and_goes_on(page: Any, echo: RunningServer) -> None:
    page.goto(echo.url)
    answer_with(page, **stream({"delta": {"content": "half a "}}, is_whole=False))
    say(page, "speak")
    expect(page.locator(".message .problem")).to_contain_text("Continue goes on from there")
    page.reload()
    wait_for_replies(page, 1)
    assert replies(page) == ["half a"]
    page.unroute(CHATS)
    page.click(".continue")
    expect(page.locator(".message .problem")).to_be_hidden()
    wait_for_replies(page, 1)
    # The server goes on with what the last message says, and the template here repeats what was asked.
    assert replies(page) == ["half a speakhalf a"]


def test_a_server_that_is_gone_is_told_and_one_that_is_back_is_met(page: Any) -> None:
    with running(FakeAsyncLLM()) as server:
        talk(page, server.url, "first")
        port = server.url.rpartition(":")[2]
    say(page, "hello?")
    expect(page.locator("#problem")).to_contain_text("does not answer. Send it again when the server is back.")
    page.wait_for_selector("body.stale")
    expect(page.locator("#model")).to_have_text("The server does not answer.")
    assert titles(page) == ["first"]
    with running(FakeAsyncLLM(), port=int(port)) as server:
        page.wait_for_selector("body:not(.stale)")
        page.press("#draft", "Enter")
        wait_for_replies(page, 2)
        # Ids of the life before say nothing now: session 0 of this one is what was computed just now.
        expect(page.locator(".session.current .id")).to_have_text("Session 0")


def test_a_sessions_bar_shows_cells_and_not_its_fixed_state(page: Any, server: RunningServer) -> None:
    server.engine.llm.cost.n_bytes = lambda n_cells: 100_000 + n_cells * BYTES_PER_CELL
    talk(page, server.url, "hi")
    expect(page.locator(".session .of")).to_contain_text("16 of 256 cells")
    assert page.evaluate("document.querySelector('.session .fill').style.width") == "6.25%"
