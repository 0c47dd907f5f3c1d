"""What a person does on the page, and what it then shows."""

from __future__ import annotations

import json
from typing import Any

CHATS = "**/v1/chat/completions"


def say(page: Any, text: str) -> None:
    page.fill("#draft", text)
    page.press("#draft", "Enter")


def wait_for_replies(page: Any, n: int) -> None:
    """Until ``n`` messages of the shown conversation are replies that have ended."""
    ended = page.locator(".message.assistant:not(.writing)")
    ended.nth(n - 1).wait_for()
    assert ended.count() == n


def replies(page: Any) -> list[str]:
    return page.locator(".message.assistant .text").all_inner_texts()


def questions(page: Any) -> list[str]:
    return page.locator(".message.user .said").all_inner_texts()


def titles(page: Any) -> list[str]:
    return page.locator("#list .opener").all_inner_texts()


def talk(page: Any, url: str, *texts: str) -> None:
    """Say some things on a fresh page, and wait for each reply."""
    page.goto(url)
    for n, text in enumerate(texts, 1):
        say(page, text)
        wait_for_replies(page, n)


def answer_with(page: Any, **answer: Any) -> None:
    """From now on the page gets this instead of what the server would say to a chat."""
    page.unroute(CHATS)
    page.route(CHATS, lambda route: route.fulfill(**answer))


def stream(*choices: dict[str, Any], is_whole: bool = True) -> dict[str, Any]:
    """An answer of events, as the server might give them; without its end it breaks off."""
    chunks = [json.dumps({"choices": [choice], "id_slot": 0}) for choice in choices]
    body = "".join(f"data: {chunk}\n\n" for chunk in [*chunks, *(["[DONE]"] if is_whole else [])])
    return {"content_type": "text/event-stream", "body": body}


def asked(page: Any) -> list[dict[str, Any]]:
    """What the page asks for from now on; the answer is always the same."""
    bodies: list[dict[str, Any]] = []

    def take(route: Any) -> None:
        bodies.append(route.request.post_data_json)
        route.fulfill(**stream({"delta": {"content": "ok"}, "finish_reason": "stop"}))

    page.unroute(CHATS)
    page.route(CHATS, take)
    return bodies
