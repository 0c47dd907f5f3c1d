"""Settings on the page: kept, sent with each request, set back; the memory's budget; the theme."""

from __future__ import annotations

from typing import Any

import pytest
from on_page import asked, say, talk, wait_for_replies
from running import RunningServer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
pytestmark = pytest.mark.slow


def fill(page: Any, **values: str) -> None:
    page.click("#open-settings")
    page.evaluate("document.querySelectorAll('#settings details').forEach(details => { details.open = true; })")
    for name, value in values.items():
        page.fill(f"#settings [name={name}]", value)


def save(page: Any) -> None:
    page.click("#settings .primary")
    page.wait_for_selector("#settings", state="hidden")


def body(page: Any, text: str = "hi") -> dict[str, Any]:
    """What is sent besides the messages and the wish for a stream."""
    bodies = asked(page)
    say(page, text)
    wait_for_replies(page, 1)
    return {name: value for name, value in bodies[0].items() if name not in ("stream", "stream_options")}


def test_settings_are_kept_and_sent(page: Any, echo: RunningServer) -> None:
    page.goto(echo.url)
    fill(
        page,
        system="Be brief.",
        temperature="0.3",
        top_k="7",
        xtc_probability="0.5",
        dry_multiplier="0.8",
        samplers="top_k, temperature",
        stop="END\nFIN",
        further='{"logit_bias": {"15": -100}}',
    )
    page.select_option("#settings [name=thinking]", "off")
    save(page)
    page.reload()
    sent = body(page)
    assert sent.pop("messages") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]
    assert sent == {
        "temperature": 0.3,
        "top_k": 7,
        "xtc_probability": 0.5,
        "dry_multiplier": 0.8,
        "samplers": ["top_k", "temperature"],
        "stop": ["END", "FIN"],
        "enable_thinking": False,
        "logit_bias": {"15": -100},
    }


def test_defaults_are_the_servers_and_come_back(page: Any, echo: RunningServer) -> None:
    page.goto(echo.url)
    page.wait_for_selector("#model:has-text('fake-model')")
    fill(page, temperature="0.3")
    assert page.get_attribute("#settings [name=temperature]", "placeholder") == "0.8"
    assert page.get_attribute("#settings [name=dry_base]", "placeholder") == "1.75"
    save(page)
    fill(page)
    assert page.input_value("#settings [name=temperature]") == "0.3"
    page.click("#reset-settings")
    save(page)
    assert body(page) == {"messages": [{"role": "user", "content": "hi"}]}


def test_every_setting_of_the_page_is_one_that_the_server_serves(page: Any, echo: RunningServer) -> None:
    """With all of them filled in a reply comes; a value out of range is told in the conversation."""
    page.goto(echo.url)
    page.wait_for_selector("#model:has-text('fake-model')")
    fill(page)
    inputs = page.locator("#settings input[type=number]")
    values = {
        inputs.nth(n).get_attribute("name"): inputs.nth(n).get_attribute("placeholder") for n in range(inputs.count())
    }
    assert len(values) == 19
    for name, value in values.items():
        page.fill(f"#settings [name={name}]", value if value != "default" else "8")
    save(page)
    say(page, "all")
    wait_for_replies(page, 1)
    params = echo.engine.requests[-1]
    assert (params.xtc_threshold, params.dry_allowed_length, params.seed) == (0.1, 2, 8)
    fill(page, top_p="7")
    save(page)
    say(page, "more")
    expect(page.locator("#problem")).to_contain_text("top_p must be above 0 and at most 1, got 7")


def test_further_parameters_that_are_no_object_are_refused(page: Any, echo: RunningServer) -> None:
    page.goto(echo.url)
    fill(page, further="[1")
    page.click("#settings .primary")
    expect(page.locator("#settings-error")).to_contain_text("not JSON")
    page.fill("#settings [name=further]", "[1]")
    page.click("#settings .primary")
    expect(page.locator("#settings-error")).to_contain_text("must be a JSON object")
    page.press("#settings [name=further]", "Escape")
    page.wait_for_selector("#settings", state="hidden")
    assert body(page) == {"messages": [{"role": "user", "content": "hi"}]}


def test_a_budget_can_be_set_from_the_page(page: Any, server: RunningServer) -> None:
    page.goto(server.url)
    fill(page, budget="much")
    page.click("#settings .primary")
    expect(page.locator("#settings-error")).to_contain_text("not a size")
    page.fill("#settings [name=budget]", "2GiB")
    page.press("#settings [name=budget]", "Enter")
    page.wait_for_selector("#settings", state="hidden")
    assert server.engine.calls == [("budget", "2GiB")]


def test_the_theme_is_switched_and_kept(page: Any, echo: RunningServer) -> None:
    talk(page, echo.url)
    background = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    page.click("#theme")
    assert page.get_attribute("#theme", "title") == "Theme: light"
    light = page.evaluate(background)
    assert light != dark
    page.reload()
    assert page.evaluate(background) == light
    page.click("#theme")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) == dark
