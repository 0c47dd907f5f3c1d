"""The page by keyboard, by screen reader and on a phone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from on_page import replies, say, talk, wait_for_replies
from running import RunningServer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
pytestmark = pytest.mark.slow

TEXT = "<think>\nhm\n</think>\n\n# Head\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\ndef f(): return 1  # one\n```\n[a](https://x.example)"
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def phone(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(browser: Any, echo: RunningServer, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 844})

    def check(what: str) -> None:
        results = axe.Axe().run(page)
        assert results.violations_count == 0, f"{what}: {results.generate_report()}"

    talk(page, echo.url, TEXT)
    page.locator(".hljs-keyword").first.wait_for()
    page.click(".thoughts summary")
    page.click(".again")
    expect(page.locator(".versions")).to_be_visible()
    check("a chat")
    if width == 390:
        for panel in ("conversations", "memory"):
            page.click(f"#toggle-{panel}")
            check(panel)
            page.keyboard.press("Escape")
    page.click("#chat-more")
    check("the menu")
    page.click("#menu >> text=Delete")
    check("a line with Undo")
    page.click("#notice >> text=Undo")
    page.click("#chat-more")
    page.click("#menu >> text=Rename")
    check("a dialog")
    page.keyboard.press("Escape")
    page.click("#open-settings")
    page.evaluate("document.querySelectorAll('#settings details').forEach(details => { details.open = true; })")
    check("the settings")
    page.close()


def test_everything_is_reached_with_the_tab_key_and_seen(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url, TEXT)
    seen: list[str] = []
    for _ in range(80):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """() => {
                const at = document.activeElement;
                const ring = getComputedStyle(at.closest(".box") ?? at);
                return [at.id || at.title || at.textContent, ring.outlineStyle !== "none" || ring.boxShadow !== "none"];
            }"""
        )
        if at[0] in seen and at[0] == "add-conversation":
            break
        if page.evaluate("document.activeElement !== document.body"):
            assert at[1], f"{at[0]} shows no focus"
        seen.append(at[0])
    wanted = [
        "draft",
        "attach",
        "send",
        "theme",
        "open-settings",
        "toggle-memory",
        "add-conversation",
        "search",
        "messages",
    ]
    wanted += [
        "held",
        "chat-more",
        "Copy message",
        "Edit and send again",
        "Another reply",
        "Copy code",
        "shrink",
        "import",
    ]
    assert set(wanted) <= set(seen)


def test_keys_do_what_they_do_elsewhere(page: Any, echo: RunningServer) -> None:
    page.goto(echo.url)
    page.type("#draft", "one")
    page.press("#draft", "Shift+Enter")
    page.type("#draft", "two")
    assert page.input_value("#draft") == "one\ntwo"
    page.press("#draft", "Enter")
    wait_for_replies(page, 1)
    expect(page.locator("#draft")).to_be_focused()
    page.focus("#chat-more")
    page.keyboard.press("Enter")
    expect(page.locator("#menu button").first).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.locator("#menu .danger")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#menu")).to_be_hidden()
    expect(page.locator("#chat-more")).to_be_focused()
    page.focus(".again")
    page.keyboard.press("Enter")
    expect(page.locator(".versions")).to_be_visible()
    expect(page.locator("#messages")).to_be_focused()


def test_a_reply_is_announced_when_it_begins_and_when_it_ends(page: Any, echo: RunningServer) -> None:
    page.goto(echo.url)
    page.evaluate(
        """() => {
            window.heard = [];
            const live = document.querySelectorAll("[role=status], [role=alert], [role=log], [aria-live]");
            const note = () => window.heard.push(
                ...[...live].filter(one => one.checkVisibility()).map(one => one.textContent.trim()).filter(Boolean)
            );
            const every = { childList: true, characterData: true, subtree: true };
            for (const one of live) new MutationObserver(note).observe(one, every);
        }"""
    )
    say(page, "word " * 50)
    wait_for_replies(page, 1)
    expect(page.locator("#announcement")).to_have_text("The reply has ended.")
    assert page.evaluate("[...new Set(window.heard)]") == ["The reply begins.", "The reply has ended."]


def test_the_panels_of_a_phone_are_drawers(phone: Any, echo: RunningServer) -> None:
    page = phone
    talk(page, echo.url, "first " + "word" * 80, f"```\n{'x' * 200}\n```")
    expect(page.locator("#memory")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.evaluate("[...document.querySelectorAll('.said')].every(one => one.getBoundingClientRect().left > 0)")
    page.tap("#held")
    expect(page.locator("#memory .session.current")).to_be_visible()
    expect(page.locator("#memory .close")).to_be_focused()
    assert page.evaluate("document.querySelector('#chat').inert")
    page.keyboard.press("Escape")
    expect(page.locator("#memory")).to_be_hidden()
    expect(page.locator("#toggle-memory")).to_be_focused()
    page.tap("#toggle-conversations")
    page.tap("#add-conversation")
    expect(page.locator("#conversations")).to_be_hidden()
    assert replies(page) == []
    page.tap("#toggle-memory")
    page.touchscreen.tap(8, 400)
    expect(page.locator("#memory")).to_be_hidden()
    assert not page.evaluate("document.querySelector('#chat').inert")


def test_what_fingers_press_is_large_enough(phone: Any, echo: RunningServer) -> None:
    """WCAG 2.2's target size (2.5.8) is 24 pixels; those that are pressed most have 40."""
    page = phone
    talk(page, echo.url, TEXT)
    sizes = page.evaluate(
        """() => [...document.querySelectorAll("button, summary")].filter(one => one.checkVisibility())
            .map(one => [one.id || one.title || one.textContent, Math.round(one.getBoundingClientRect().height)])"""
    )
    assert [size for size in sizes if size[1] < 24] == []
    assert [size for size in sizes if size[1] < 40 and size[0] in ("send", "attach", "chat-more", "Copy message")] == []


def test_a_column_is_put_away_and_stays_away(page: Any, echo: RunningServer) -> None:
    page.goto(echo.url)
    page.click("#toggle-memory")
    expect(page.locator("#memory")).to_be_hidden()
    page.reload()
    expect(page.locator("#draft")).to_be_focused()
    expect(page.locator("#memory")).to_be_hidden()
    page.click("#toggle-memory")
    expect(page.locator("#memory")).to_be_visible()


def test_a_reader_who_has_scrolled_up_stays_there(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url, "line\n\n" * 60)
    page.evaluate("document.querySelector('#messages').scrollTop = 100")
    page.wait_for_selector("#to-end")
    echo.engine.hold = asyncio.Event()
    page.click(".again")
    echo.call(echo.engine.hold.set)
    wait_for_replies(page, 1)
    echo.engine.hold = None
    page.evaluate("document.querySelector('#messages').scrollTop = 100")
    page.click("#to-end")
    assert page.evaluate("messages.scrollHeight - messages.scrollTop - messages.clientHeight") < 2
