from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import FakeAsyncLLM
from running import RunningServer, running


@pytest.fixture
def saving(engine: FakeAsyncLLM, tmp_path: Path) -> Iterator[RunningServer]:
    with running(engine, slot_save_path=tmp_path / "slots") as server:
        (tmp_path / "slots").mkdir()
        assert server.post("/v1/completions", prompt="hello").status_code == 200
        yield server


def act(server: RunningServer, slot: int, action: str, filename: object = "chat-1.bin"):
    return server.http.post(f"/slots/{slot}?action={action}", json={"filename": filename})


def test_slots_tell_what_each_session_holds(server: RunningServer) -> None:
    server.post("/v1/completions", prompt="hello")
    (slot,) = server.http.get("/slots").json()
    assert slot["id"] == 0
    assert (slot["state"], slot["is_processing"]) == ("idle", False)
    assert (slot["used_cells"], slot["capacity_cells"], slot["n_ctx"]) == (10, 256, 512)
    assert slot["committed_bytes"] == 256 * 1024


def test_no_free_place_is_a_503_if_asked() -> None:
    engine = FakeAsyncLLM(n_parallel=1, step=0.05)
    with running(engine) as server:
        assert server.http.get("/slots?fail_on_no_slot=1").status_code == 200
        with server.http.stream("POST", "/v1/completions", json={"prompt": "x" * 100, "stream": True}):
            assert server.http.get("/slots?fail_on_no_slot=1").status_code == 503
            assert server.http.get("/slots").status_code == 200


def test_a_session_goes_to_a_file_and_back(saving: RunningServer, tmp_path: Path) -> None:
    saved = act(saving, 0, "save").json()
    assert (saved["id_slot"], saved["filename"], saved["n_saved"]) == (0, "chat-1.bin", 10)
    assert saved["n_written"] == (tmp_path / "slots" / "chat-1.bin").stat().st_size
    restored = act(saving, 0, "restore").json()
    assert (restored["id_slot"], restored["n_restored"]) == (1, 10)
    assert restored["timings"]["restore_ms"] >= 0


def test_an_erased_session_is_gone(saving: RunningServer) -> None:
    assert saving.http.post("/slots/0?action=erase").json() == {"id_slot": 0, "erased": True}
    assert saving.http.get("/slots").json() == []
    assert saving.http.post("/slots/0?action=erase").status_code == 400


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", ".hidden", "-x", "a\0b", "a\n", "x" * 129, "ä", None]
)
def test_only_plain_names_inside_the_folder(saving: RunningServer, tmp_path: Path, name: object) -> None:
    for action in ("save", "restore"):
        response = act(saving, 0, action, name)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "filename"
    assert list((tmp_path / "slots").iterdir()) == []


def test_a_file_that_is_not_there(saving: RunningServer) -> None:
    assert act(saving, 0, "restore", "other").status_code == 404


def test_a_file_of_something_else_is_refused(saving: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "slots" / "alien").write_text("no session")
    response = act(saving, 0, "restore", "alien")
    assert response.status_code == 400
    assert "not a saved session" in response.json()["error"]["message"]


def test_a_disk_that_fails(saving: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "slots" / "folder").mkdir()
    response = act(saving, 0, "save", "folder")
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "cannot save folder: Is a directory"


def test_without_a_folder_nothing_is_saved(server: RunningServer) -> None:
    response = act(server, 0, "save")
    assert response.status_code == 501
    assert "--slot-save-path" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/slots/0", "/slots/0?action=eat", "/slots/x?action=save"])
def test_what_is_no_action(saving: RunningServer, path: str) -> None:
    assert saving.http.post(path, json={"filename": "x"}).status_code == 400
