"""Pictures of the page, for the documents: a real server, the demo model, two conversations.

    elastikv serve -c 32768 --kv-budget 512MiB --kv-idle-release 4 &
    python -m tools.page_picture http://127.0.0.1:8080 docs

Writes page.png, page-dark.png, page-phone.png and page-phone-memory.png. Needs the `playwright` package and a Chromium
of the system.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
CODE = (Path(__file__).parents[1] / "src/elastikv/memory/cells.py").read_text()[:1500]
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
CONVERSATIONS = [
    ["How do I read a file line by line?", "What does json.loads return?"],
    [f"Explain this module to me, please:\n```python\n{CODE}\n```", "What does append do?"],
]


def say(page: Page, text: str) -> None:
    page.fill("#draft", text)
    page.press("#draft", "Enter")


def talk(page: Page) -> None:
    """Two conversations whose memory stays; the last reply is still being written."""
    page.evaluate("localStorage.setItem('elastikv-settings', JSON.stringify({max_tokens: '90', seed: '7'}))")
    page.reload()
    for texts in CONVERSATIONS:
        page.click("#add-conversation")
        for text in texts:
            say(page, text)
            page.wait_for_selector(".message.assistant:not(.writing) >> nth=-1")
            page.wait_for_selector("#send", state="visible", timeout=120_000)
    say(page, "Show me a class with a method that removes an item.")
    page.wait_for_selector(".message.assistant.writing .block")
    page.wait_for_timeout(800)


def save(page: Page, path: Path) -> None:
    page.screenshot(path=path)
    # A palette is enough for flat colours, and a third of the bytes.
    palette = Image.Quantize.MAXCOVERAGE
    Image.open(path).convert("RGB").quantize(256, method=palette, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), headless=True, args=FLAGS)
        page = browser.new_page(viewport=DESKTOP)
        page.goto(args.url)
        talk(page)
        save(page, args.folder / "page.png")
        page.emulate_media(color_scheme="dark")
        save(page, args.folder / "page-dark.png")
        page.wait_for_selector("#send", state="visible", timeout=120_000)
        page.set_viewport_size(PHONE)
        save(page, args.folder / "page-phone.png")
        page.emulate_media(color_scheme="light")
        page.click("#toggle-memory")
        page.wait_for_timeout(500)
        save(page, args.folder / "page-phone-memory.png")
        browser.close()


if __name__ == "__main__":
    main()
