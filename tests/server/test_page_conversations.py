"""Conversations that outlive a reload: listed, renamed, deleted, exported, imported, and in two tabs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from on_page import questions, replies, say, talk, titles, wait_for_replies
from running import RunningServer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
pytestmark = pytest.mark.slow


def choose(page: Any, what: str) -> None:
    page.click("#chat-more")
    page.click(f"#menu >> text={what}")


def test_they_are_there_again_after_a_reload(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url, "one", "two")
    page.click("#add-conversation")
    page.fill("#draft", "not sent yet")
    page.reload()
    expect(page.locator("#draft")).to_have_value("not sent yet")
    assert titles(page) == ["New chat", "one"]
    page.click("#list .opener:has-text('one')")
    wait_for_replies(page, 2)
    assert (questions(page), replies(page)) == (["one", "two"], ["one", "two"])
    assert page.input_value("#draft") == ""
    page.go_back()
    expect(page.locator("#draft")).to_have_value("not sent yet")


def test_what_storage_has_not_confirmed_yet_survives_a_reload(page: Any, echo: RunningServer) -> None:
    """A browser gives up a transaction that is under way when the page goes; here none gets through at all."""
    page.goto(echo.url)
    page.wait_for_selector("#draft:enabled")  # what was kept has been read
    page.evaluate("IDBDatabase.prototype.transaction = () => ({ objectStore: () => ({ put() {} }) })")
    page.fill("#draft", "not sent yet")
    page.wait_for_timeout(600)
    page.reload()
    expect(page.locator("#draft")).to_have_value("not sent yet")


def test_one_is_found_by_what_it_says(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url, "apples\nand pears")
    page.click("#add-conversation")
    say(page, "plums")
    wait_for_replies(page, 1)
    page.fill("#search", "PEAR")
    assert titles(page) == ["apples"]
    page.fill("#search", "kiwi")
    expect(page.locator("#no-conversations")).to_have_text("None of them says that.")


def test_a_title_is_changed_and_stays(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url, "one")
    choose(page, "Rename")
    page.fill("#rename input", "Fruit")
    page.press("#rename input", "Enter")
    expect(page.locator("#title")).to_have_text("Fruit")
    choose(page, "Rename")
    page.fill("#rename input", "Stones")
    page.press("#rename input", "Escape")
    page.reload()
    expect(page.locator("#title")).to_have_text("Fruit")
    assert titles(page) == ["Fruit"]


def test_a_deleted_one_can_be_taken_back(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url, "one")
    choose(page, "Delete")
    expect(page.locator("#title")).to_have_text("New chat")
    assert titles(page) == []
    page.click("#notice >> text=Undo")
    assert replies(page) == ["one"]
    choose(page, "Delete")
    expect(page.locator("#list .opener")).to_have_count(0)
    page.wait_for_timeout(100)  # storage takes its time
    page.reload()
    expect(page.locator("#no-conversations")).to_be_visible()
    assert titles(page) == []


def test_one_that_is_deleted_in_mid_reply_stays_deleted(page: Any, echo: RunningServer) -> None:
    page.goto(echo.url)
    echo.engine.hold = asyncio.Event()
    say(page, "one")
    page.wait_for_selector(".message.assistant.writing")
    choose(page, "Delete")
    echo.call(echo.engine.hold.set)
    echo.engine.hold = None
    say(page, "two")
    wait_for_replies(page, 1)
    assert titles(page) == ["two"]


def test_an_export_as_json_is_imported_again(page: Any, echo: RunningServer, tmp_path: Path) -> None:
    talk(page, echo.url, "one", "two")
    with page.expect_download() as download:
        choose(page, "Export as JSON")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name.startswith("one-")
    choose(page, "Delete")
    page.set_input_files("#import-file", file)
    expect(page.locator("#title")).to_have_text("one")
    assert (questions(page), replies(page)) == (["one", "two"], ["one", "two"])


def test_what_is_no_export_is_refused_in_a_line(page: Any, echo: RunningServer, tmp_path: Path) -> None:
    page.goto(echo.url)
    loop = [{"id": 1, "parent": 2, "role": "user"}, {"id": 2, "parent": 1, "role": "user"}]
    for content, told in [
        ("{", "not a file of conversations"),
        ('{"format": "other"}', "not a file of conversations"),
        (
            json.dumps({"format": "elastikv-conversations", "conversations": [{"messages": loop}]}),
            "do not follow each other",
        ),
    ]:
        (tmp_path / "file.json").write_text(content)
        page.set_input_files("#import-file", tmp_path / "file.json")
        expect(page.locator("#notice")).to_contain_text(told)
    assert titles(page) == []


def test_an_import_cannot_bring_a_script_or_a_picture(page: Any, echo: RunningServer, tmp_path: Path) -> None:
    evil = (
        "<script>alert(1)</script><img src=http://tracker.example/a>![b](http://tracker.example/b) <b onclick=x>c</b>"
    )
    messages = [
        {"id": 1, "parent": None, "role": "user", "content": evil, "files": [{"name": evil, "text": evil}]},
        {"id": 2, "parent": 1, "role": "assistant", "content": evil, "thoughts": evil, "problem": evil, "usage": evil},
    ]
    file = {"format": "elastikv-conversations", "conversations": [{"title": evil, "messages": messages, "leaf": 7}]}
    (tmp_path / "file.json").write_text(json.dumps(file))
    page.goto(echo.url)
    page.set_input_files("#import-file", tmp_path / "file.json")
    wait_for_replies(page, 1)
    assert page.locator("#chat :is(img, script, b, [onclick])").count() == 0
    assert replies(page)[0].startswith("<script>alert(1)</script>")


def test_an_export_as_markdown_is_what_is_read(page: Any, echo: RunningServer, tmp_path: Path) -> None:
    talk(page, echo.url, "<think>\nhm\n</think>\n\n**yes**")
    with page.expect_download() as download:
        choose(page, "Export as Markdown")
    download.value.save_as(tmp_path / "file.md")
    text = (tmp_path / "file.md").read_text()
    assert text.endswith("## Reply\n\n> hm\n\n**yes**\n")
    assert "## You\n\n<think>" in text


def test_two_tabs_do_not_overwrite_each_other(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url, "one")
    page.wait_for_timeout(600)  # written by then
    other = page.context.new_page()
    other.goto(page.url)
    wait_for_replies(other, 1)
    other.fill("#draft", "three")
    say(page, "two")
    wait_for_replies(page, 2)
    wait_for_replies(other, 2)
    assert other.input_value("#draft") == "three"
    other.press("#draft", "Enter")
    wait_for_replies(other, 3)
    wait_for_replies(page, 3)
    assert questions(page) == ["one", "two", "three"]


def test_a_browser_that_keeps_nothing_is_told(page: Any, echo: RunningServer) -> None:
    page.add_init_script("IDBFactory.prototype.open = () => { throw new Error('storage is off'); }")
    talk(page, echo.url, "one")
    expect(page.locator("#notice")).to_contain_text("keeps no conversations (storage is off)")


def test_a_full_storage_is_told_and_the_words_stay(page: Any, echo: RunningServer) -> None:
    page.add_init_script(
        "IDBObjectStore.prototype.put = () => { throw new DOMException('no room', 'QuotaExceededError'); }"
    )
    talk(page, echo.url, "one")
    expect(page.locator("#notice")).to_contain_text("storage is full: export and delete conversations")
    assert replies(page) == ["one"]
