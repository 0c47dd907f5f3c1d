from __future__ import annotations

import hashlib
import posixpath
import re
from pathlib import Path

from running import RunningServer

import elastikv.server.page

STATIC = Path(elastikv.server.page.__file__).parent / "static"
OURS = [file for file in STATIC.rglob("*.*") if file.parent.name != "vendor"]
VENDOR = STATIC / "vendor"


def test_everything_the_page_names_is_served(server: RunningServer) -> None:
    todo, seen = ["/"], set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        response = server.http.get(path)
        assert response.status_code == 200, path
        named = re.findall(r'(?:href|src)="(/[^"]*)"', response.text)
        named += re.findall(r'(?:from|import|import\() ?"(\.[^"]+)"', response.text)
        todo += [posixpath.normpath(posixpath.join(posixpath.dirname(path), name)) for name in named]
    files = [*OURS, *VENDOR.glob("*.js")]
    assert seen == {"/", *(f"/page/{file.relative_to(STATIC)}" for file in files if file.name != "index.html")}


def test_the_page_asks_nobody_else() -> None:
    for file in OURS:
        addresses = re.findall(r"https?://[^\s\"')]+", file.read_text())
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, file.name


def test_nothing_from_elsewhere_may_run(server: RunningServer) -> None:
    headers = server.http.get("/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers["x-dns-prefetch-control"] == "off"


def test_files_are_asked_for_again_and_mostly_have_not_changed(server: RunningServer) -> None:
    first = server.http.get("/page/scripts/app.js")
    assert first.headers["cache-control"] == "no-cache"
    assert server.http.get("/page/scripts/app.js", headers={"If-None-Match": first.headers["etag"]}).status_code == 304


def test_texts_never_become_html() -> None:
    for file in OURS:
        assert "innerHTML" not in file.read_text(), file.name
        assert "insertAdjacentHTML" not in file.read_text(), file.name


def test_the_libraries_are_what_their_list_says() -> None:
    """Their versions, licences and sums: nobody has touched them."""
    rows = re.findall(
        r"^\| (\S+\.js) \|.*\| ([\d,]+) \| [\d,]+ \| ([0-9a-f]{64}) \|$", (VENDOR / "README.md").read_text(), re.M
    )
    assert {name for name, _, _ in rows} == {file.name for file in VENDOR.glob("*.js")}
    for name, size, digest in rows:
        raw = (VENDOR / name).read_bytes()
        assert (f"{len(raw):,}", hashlib.sha256(raw).hexdigest()) == (size, digest), name
        assert (VENDOR / f"{name.partition('.')[0]}.LICENSE").is_file()
