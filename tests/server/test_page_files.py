from __future__ import annotations

import re
from pathlib import Path

from running import RunningServer

import elastikv.server.page

STATIC = Path(elastikv.server.page.__file__).parent / "static"


def test_everything_the_page_names_is_served(server: RunningServer) -> None:
    todo, seen = ["/"], set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        response = server.http.get(path)
        assert response.status_code == 200, path
        todo += re.findall(r'(?:href|src)="(/[^"]*)"', response.text)
        todo += [f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', response.text)]
    assert seen == {"/", *(f"/page/{file.name}" for file in STATIC.iterdir() if file.name != "index.html")}


def test_the_page_asks_nobody_else() -> None:
    for file in STATIC.iterdir():
        addresses = re.findall(r"https?://[^\s\"')]+", file.read_text())
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, file.name


def test_nothing_from_elsewhere_may_run(server: RunningServer) -> None:
    policy = server.http.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


def test_texts_never_become_html() -> None:
    for file in STATIC.glob("*.js"):
        assert "innerHTML" not in file.read_text()
        assert "insertAdjacentHTML" not in file.read_text()
