"""The picture of the page in the README: a real server, the demo model, two conversations.

    elastikv serve -c 32768 --kv-budget 512MiB --kv-idle-release 4 --kv-idle-drop 15 &
    python -m tools.page_picture http://127.0.0.1:8080 docs/page.png

Needs the `playwright` package and a Chromium of the system.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
CODE = (Path(__file__).parents[1] / "src/elastikv/memory/cells.py").read_text()[:2200]
# Conversation, what is said, and seconds until the next one: long enough for memory to go down in between.
TURNS = [
    (0, "How do I read a file line by line?", 3),
    (1, f"Explain this module to me, please:\n```python\n{CODE}\n```", 3),
    (1, "What does append do?", 7),
    (0, "And how do I write one?", 24),
    (1, "Show me a class with a method that removes an item.", 7),
    (0, "What does json.loads return?", 6),
]


def say(page: Page, conversation: int, text: str) -> None:
    box = page.locator(".conversation textarea").nth(conversation)
    box.fill(text)
    box.press("Enter")


def talk(page: Page) -> None:
    page.click("#add-conversation")
    page.click("#open-settings")
    page.fill("#settings input[name=maxTokens]", "60")
    page.click("#settings .primary")
    for conversation, text, seconds in TURNS:
        say(page, conversation, text)
        page.locator(".conversation").nth(conversation).locator(".send").wait_for(timeout=60_000)
        time.sleep(seconds)
    say(page, 1, "def shrink(self, n_cells: int) -> int:")
    time.sleep(1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), headless=True, args=FLAGS)
        page = browser.new_page(color_scheme="dark" if args.dark else "light", viewport={"width": 1440, "height": 900})
        page.goto(args.url)
        talk(page)
        page.screenshot(path=args.out)
        browser.close()
    # A palette is enough for flat colours, and a third of the bytes.
    Image.open(args.out).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
