"""The page in a real browser: a turn, stop, the memory going up and down, the key. Skipped without Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import BYTES_PER_CELL, FakeAsyncLLM
from running import running
from serve_process import ServeProcess, serving
from support.tiny_models import tiny_model

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that tolerates no error in its scripts and asks nobody but this machine."""
    context = browser.new_context()
    context.set_default_timeout(15_000)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: "//127.0.0.1:" in request.url or problems.append(request.url))
    yield page
    context.close()
    assert problems == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    model = tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")
    # A random model draws the end-of-text token after some hundred tokens: too soon for a slow browser to press stop.
    with serving(model, "-c", "16384", "--ignore-eos", "--kv-idle-drop", "2") as process:
        yield process


def committed(page: Any) -> float:
    number, unit = page.inner_text("#committed").split()
    return float(number) * {"B": 1, "KiB": 1024, "MiB": 1024**2}[unit]


def say(page: Any, text: str, conversation: int = 0) -> None:
    box = page.locator(".conversation textarea").nth(conversation)
    box.fill(text)
    box.press("Enter")


def test_a_turn_and_a_stop_while_the_memory_goes_up_and_down(page: Any, server: ServeProcess) -> None:
    page.goto(server.url)
    expect(page.locator("#committed")).to_have_text("0 B", timeout=15_000)
    say(page, "hello " * 200)
    page.wait_for_selector(".message.assistant")
    expect(page.locator("#committed")).not_to_have_text("0 B", timeout=15_000)
    expect(page.locator(".session .state").first).to_have_text("running", timeout=15_000)
    grown = committed(page)
    page.click(".stop")
    page.wait_for_selector(".note:has-text('stopped')")
    expect(page.locator(".send")).to_be_visible()
    assert grown > 0
    expect(page.locator("#committed")).to_have_text("0 B", timeout=15_000)
    page.wait_for_selector(".events .kind:has-text('release')")
    expect(page.locator(".session")).to_have_count(0)


def test_conversations_stand_side_by_side_and_keep_their_own_words(page: Any) -> None:
    with running(FakeAsyncLLM()) as server:
        page.goto(server.url)
        page.click("#add-conversation")
        say(page, "first", 0)
        say(page, "second", 1)
        expect(page.locator(".note")).to_have_count(2)
        replies = page.locator(".message.assistant").all_inner_texts()
        assert replies == ["<user>first", "<user>second"]
        say(page, "again", 0)
        expect(page.locator(".note")).to_have_count(3)
        assert page.locator(".message.assistant").nth(1).inner_text() == "<user>first<assistant><user>first<user>again"
        expect(page.locator(".session")).to_have_count(3)


def test_code_is_shown_as_code_and_markup_as_text(page: Any) -> None:
    with running(FakeAsyncLLM()) as server:
        page.goto(server.url)
        say(page, "<img src=x onerror=alert(1)>\n```python\nprint(1)\n```\nend")
        page.wait_for_selector(".note")
        reply = page.locator(".message.assistant")
        assert reply.locator("pre").inner_text() == "print(1)"
        assert "<img src=x onerror=alert(1)>" in reply.inner_text()
        assert page.locator("main img").count() == 0


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
        page.wait_for_selector(".note")


def test_errors_are_told_in_the_conversation(page: Any) -> None:
    with running(FakeAsyncLLM()) as server:
        page.goto(server.url)
        say(page, "x" * 600)
        page.wait_for_selector(".message.error:has-text('n_ctx is 512')")
        assert page.locator(".send").is_visible()


def test_a_refused_turn_is_back_in_the_box_and_forgotten(page: Any) -> None:
    with running(FakeAsyncLLM()) as server:
        page.goto(server.url)
        say(page, "first")
        expect(page.locator(".note")).to_have_count(1)
        say(page, "y" * 600)
        page.wait_for_selector(".message.error:has-text('n_ctx is 512')")
        assert page.input_value(".conversation textarea") == "y" * 600
        assert page.locator(".message.user").all_inner_texts() == ["first"]
        say(page, "again")
        expect(page.locator(".note")).to_have_count(2)
        replies = page.locator(".message.assistant").all_inner_texts()
        assert replies[1] == "<user>first<assistant><user>first<user>again"


def test_a_first_turn_that_is_refused_leaves_a_new_conversation(page: Any) -> None:
    with running(FakeAsyncLLM()) as server:
        page.goto(server.url)
        say(page, "z" * 600)
        page.wait_for_selector(".message.error")
        assert page.inner_text(".conversation h2") == "Conversation 1"
        assert page.locator(".message.user, .message.assistant").count() == 0


def test_a_sessions_bar_shows_cells_and_not_its_fixed_state(page: Any) -> None:
    engine = FakeAsyncLLM(step=0.01)
    with running(engine) as server:
        engine.llm.cost.n_bytes = lambda n_cells: 100_000 + n_cells * BYTES_PER_CELL
        page.goto(server.url)
        say(page, "hi")
        page.wait_for_selector(".note")
        expect(page.locator(".session .of")).to_contain_text("16 of 256 cells")
        assert page.evaluate("document.querySelector('.session .fill').style.width") == "6.25%"


def test_a_server_that_is_gone_is_told(page: Any) -> None:
    with running(FakeAsyncLLM()) as server:
        page.goto(server.url)
        expect(page.locator("#committed")).to_have_text("0 B")
    say(page, "hello?")
    page.wait_for_selector(".message.error:has-text('does not answer')")
    page.wait_for_selector("body.stale")


def test_a_budget_can_be_set_from_the_page(page: Any) -> None:
    engine = FakeAsyncLLM()
    with running(engine) as server:
        page.goto(server.url)
        page.click("#open-settings")
        page.fill("#settings input[name=budget]", "much")
        page.click("#settings .primary")
        page.wait_for_selector("#settings-error:has-text('not a size')")
        page.fill("#settings input[name=budget]", "2GiB")
        page.click("#settings .primary")
        page.wait_for_selector("#settings", state="hidden")
        assert engine.calls == [("budget", "2GiB")]


def test_nothing_is_wider_than_a_phone(browser: Any) -> None:
    with running(FakeAsyncLLM()) as server:
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.goto(server.url)
        say(page, "word" * 80)
        page.wait_for_selector(".note")
        page.click("#add-conversation")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.close()
