"""Sessions that leave memory for a folder, and come back: in the same run, after a restart, or not at all."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.history_model import BYTES_PER_CELL, expected_tokens, greedy, prompt

from elastikv.engine.sessions import files as files_module
from elastikv.errors import InvalidRequest, SnapshotError
from elastikv.memory.snapshot import read_header

HYBRID = pytest.mark.parametrize("is_hybrid", [False, True])


def run(rig, tokens: list[int], n: int = 5):
    request = rig.scheduler.submit(tokens, greedy(n))
    rig.run(request)
    assert request.output(0.0).token_ids == expected_tokens(tokens, n)
    return request


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@HYBRID
def test_an_idle_session_is_parked_when_memory_is_wanted_and_restored_by_its_prefix(
    rig, is_hybrid: bool, tmp_path: Path
) -> None:
    r = rig(is_hybrid=is_hybrid, budget=(112 + 48 * is_hybrid) * BYTES_PER_CELL + 500, park_dir=tmp_path)
    first = run(r, prompt(0, 60))
    run(r, prompt(1, 80))
    assert [session.state for session in r.scheduler.sessions()] == ["parked", "idle"]
    assert len(files(tmp_path)) == 1
    computed = r.model.n_computed
    again = run(r, [*first.token_ids, 1, 2])
    assert again.cached_tokens == 64
    assert r.model.n_computed - computed == 3 + 4
    assert "restore" in r.kinds()
    assert [session.id for session in r.scheduler.sessions() if session.state == "idle"] == [0]


@HYBRID
def test_a_preempted_request_is_restored_instead_of_computed(rig, is_hybrid: bool, tmp_path: Path) -> None:
    budget = 64 * BYTES_PER_CELL + 4096 * 4 * is_hybrid + 500
    r = rig(is_hybrid=is_hybrid, budget=budget, n_parallel=2, park_dir=tmp_path)
    requests = [r.scheduler.submit(prompt(i, 10), greedy(50 - 20 * i)) for i in range(2)]
    r.run(*requests)
    for request in requests:
        assert request.output(0).token_ids == expected_tokens(request.token_ids[:10], request.n_generated)
    assert {"preempt", "park", "restore"} <= set(r.kinds())
    # Every token once; a restored one none twice, but for the token that is computed to go on.
    assert r.model.n_computed <= sum(len(request.token_ids) for request in requests) + r.kinds().count("preempt")


def test_parked_sessions_survive_a_restart(rig, tmp_path: Path) -> None:
    first = rig(park_dir=tmp_path)
    request = run(first, prompt(0, 60))
    first.close()
    assert len(files(tmp_path)) == 1
    second = rig(park_dir=tmp_path)
    assert [session.state for session in second.scheduler.sessions()] == ["parked"]
    assert run(second, [*request.token_ids, 1]).cached_tokens == 64
    assert files(tmp_path) == []


def test_after_a_restart_another_conversation_does_not_use_up_a_parked_one(rig, tmp_path: Path) -> None:
    first = rig(park_dir=tmp_path)
    request = run(first, prompt(0, 60))
    first.close()
    second = rig(park_dir=tmp_path)
    run(second, [*request.token_ids[:40], 9, 9, 9])
    assert run(second, [*request.token_ids, 1]).cached_tokens == 64


@HYBRID
def test_after_a_restart_a_conversation_whose_reply_was_rewritten_goes_on(rig, is_hybrid: bool, tmp_path: Path) -> None:
    """Clients drop thoughts from replies. A state cannot be cut, so a hybrid's file is not even read for nothing."""
    first = rig(park_dir=tmp_path, is_hybrid=is_hybrid)
    request = run(first, prompt(0, 60))
    first.close()
    second = rig(park_dir=tmp_path, is_hybrid=is_hybrid)
    again = run(second, [*request.token_ids[:61], 383, 5, 5])
    assert again.cached_tokens == (0 if is_hybrid else 61)
    assert ("restore" in second.kinds()) is not is_hybrid
    assert len(files(tmp_path)) == is_hybrid


def test_sessions_of_another_model_are_left_alone(rig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig_of_one = rig(park_dir=tmp_path)
    run(rig_of_one, prompt(0, 60))
    rig_of_one.close()
    with caplog.at_level(logging.WARNING):
        other = rig(park_dir=tmp_path, fingerprint="another")
    assert "another model" in caplog.text
    assert other.scheduler.sessions() == []
    assert run(other, prompt(0, 60)).cached_tokens == 0
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "garbage", "gone"])
@pytest.mark.parametrize("when", ["before the start", "after the start"])
def test_a_damaged_file_costs_one_line_and_a_recomputation(
    rig, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, when: str
) -> None:
    first = rig(park_dir=tmp_path)
    request = run(first, prompt(0, 60))
    first.close()
    (path,) = files(tmp_path)
    second = rig(park_dir=tmp_path) if when == "after the start" else None
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        changed = {
            "flip": data[:-10] + bytes([data[-10] ^ 1]) + data[-9:],
            "truncate": data[: len(data) // 2],
            "empty": b"",
            "garbage": b"garbage" * 100,
        }
        path.write_bytes(changed[damage])
    with caplog.at_level(logging.WARNING):
        second = second or rig(park_dir=tmp_path)
        again = run(second, [*request.token_ids, 1])
    assert again.cached_tokens == 0
    lines = [record for record in caplog.records if "parked session" in record.getMessage()]
    assert len(lines) == (damage != "gone")  # another server may have taken that


def test_what_a_killed_writer_left_is_cleaned_up_and_never_served(rig, tmp_path: Path) -> None:
    unfinished = tmp_path / ".0123.safetensors.abc.tmp"
    unfinished.write_bytes(b"half of a session")
    r = rig(park_dir=tmp_path)
    assert r.scheduler.sessions() == []
    assert not unfinished.exists()


def _lead_nowhere(path: Path) -> None:
    path.symlink_to(path.parent / "gone")


def _lead_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [_lead_nowhere, _lead_to_itself, os.mkfifo, Path.mkdir])
@pytest.mark.parametrize("name", ["odd.safetensors", ".odd.safetensors.abc.tmp"])
def test_what_is_no_file_costs_one_line_and_is_never_opened(
    rig, tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None], name: str
) -> None:
    first = rig(park_dir=tmp_path)
    request = run(first, prompt(0, 60))
    first.close()
    make(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        second = rig(park_dir=tmp_path)
    assert run(second, [*request.token_ids, 1]).cached_tokens == 64
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (not name.startswith("."))
    assert all("odd.safetensors" in line for line in lines)


def test_a_file_that_vanishes_while_the_folder_is_read_costs_one_line(
    rig, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Path.glob

    def and_one_more(folder: Path, pattern: str) -> list[Path]:
        return [*found(folder, pattern), folder / "vanished.safetensors"]

    monkeypatch.setattr(Path, "glob", and_one_more)
    with caplog.at_level(logging.WARNING):
        rig(park_dir=tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "vanished.safetensors: No such file" in line


def test_sessions_on_disk_are_their_owners_alone(rig, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        r = rig(park_dir=tmp_path / "new" / "park", max_idle=0)
        run(r, prompt(0, 60))
        r.scheduler.store.save(0, tmp_path / "saved")
        r.scheduler.tend()
    finally:
        os.umask(before)
    (parked,) = files(tmp_path / "new" / "park")
    modes = [path.stat().st_mode & 0o777 for path in (parked.parent, parked, tmp_path / "saved")]
    assert modes == [0o700, 0o600, 0o600]


def test_a_disk_that_is_full_drops_the_session_with_one_line(
    rig, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_module, "save_sequence", full)
    r = rig(budget=112 * BYTES_PER_CELL + 500, park_dir=tmp_path)
    run(r, prompt(0, 60))
    with caplog.at_level(logging.WARNING):
        run(r, prompt(1, 80))
    assert "No space left" in caplog.text
    assert [session.state for session in r.scheduler.sessions()] == ["idle"]


def test_the_folder_keeps_only_so_many(rig, tmp_path: Path) -> None:
    r = rig(park_dir=tmp_path, max_idle=0, max_parked=2)
    for i in range(4):
        r.clock.now += 1
        run(r, prompt(i, 20))
        r.scheduler.step()
    assert [session.id for session in r.scheduler.sessions()] == [2, 3]
    assert len(files(tmp_path)) == 2


def test_a_session_that_idles_too_long_is_parked(rig, tmp_path: Path) -> None:
    r = rig(park_dir=tmp_path, idle_drop_seconds=30)
    run(r, prompt(0, 20))
    r.clock.now = 30
    r.scheduler.tend()
    assert [session.state for session in r.scheduler.sessions()] == ["parked"]
    assert r.memory.stats().committed_bytes == 0


# A folder that several servers share


def test_what_one_server_parks_another_restores_without_a_restart(rig, tmp_path: Path) -> None:
    one, other = rig(park_dir=tmp_path), rig(park_dir=tmp_path)
    request = run(one, prompt(0, 60))
    one.scheduler.store.park(one.scheduler.store.find(0))
    assert run(other, [*request.token_ids, 1]).cached_tokens == 64
    assert list(tmp_path.iterdir()) == []
    assert run(one, [*request.token_ids, 1, 2]).cached_tokens == 0
    assert [session.state for session in one.scheduler.sessions()] == ["idle"]


def test_a_file_is_one_server_s_alone(rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen it, and the second asks while the first reads."""
    one, other = rig(park_dir=tmp_path), rig(park_dir=tmp_path)
    request = run(one, prompt(0, 60))
    one.scheduler.store.park(one.scheduler.store.find(0))
    run(other, prompt(1, 10))
    assert len(other.scheduler.store.parked()) == 1
    other.scheduler.store._files._owner = ("elsewhere", "1")
    load = files_module.load_sequence

    def while_the_other_asks(*arguments: object) -> object:
        monkeypatch.setattr(files_module, "load_sequence", load)
        assert not other.scheduler.store.restore(other.scheduler.store.parked()[0])
        return load(*arguments)

    monkeypatch.setattr(files_module, "load_sequence", while_the_other_asks)
    assert run(one, [*request.token_ids, 1]).cached_tokens == 64
    assert other.scheduler.store.parked() == []


def test_a_server_without_room_leaves_the_file_to_others(rig, tmp_path: Path) -> None:
    one, other = rig(park_dir=tmp_path), rig(park_dir=tmp_path, budget=30 * BYTES_PER_CELL + 500)
    request = run(one, prompt(0, 60))
    one.scheduler.store.park(one.scheduler.store.find(0))
    (parked,) = files(tmp_path)
    run(other, prompt(1, 4))
    assert not other.scheduler.store.restore(other.scheduler.store.parked()[0])
    assert parked in files(tmp_path)
    assert run(one, [*request.token_ids, 1]).cached_tokens == 64


@pytest.mark.parametrize(
    ("owner", "age", "ended"),
    [
        ("here.0", 0, True),  # no process has it
        ("here.1", 0, False),
        ("there.0", 0, False),
        ("there.0", 4000, True),
    ],
)
def test_what_a_server_had_in_hand_is_free_again_once_it_has_ended(
    rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str, age: float, ended: bool
) -> None:
    first = rig(park_dir=tmp_path)
    request = run(first, prompt(0, 60))
    first.close()
    (path,) = files(tmp_path)
    path.rename(tmp_path / f".{path.name}.{owner}.taken")
    (tmp_path / f".0123.{owner}.safetensors.abc.tmp").touch()
    now = files_module.time.time()
    monkeypatch.setattr(files_module.platform, "node", lambda: "here")
    monkeypatch.setattr(files_module.psutil, "pid_exists", lambda number: number > 0)
    monkeypatch.setattr(files_module.time, "time", lambda: now + age)
    second = rig(park_dir=tmp_path)
    assert run(second, [*request.token_ids, 1]).cached_tokens == 64 * ended
    assert len(list(tmp_path.glob(".*"))) == 2 * (not ended)


# Saved by the user


@HYBRID
def test_a_saved_session_comes_back_as_a_new_one(rig, is_hybrid: bool, tmp_path: Path) -> None:
    r = rig(is_hybrid=is_hybrid)
    request = run(r, prompt(0, 60))
    assert r.scheduler.store.save(0, tmp_path / "session") == 64
    r.scheduler.store.erase(0)
    assert r.memory.seq_ids() == []
    restored = r.scheduler.store.load(tmp_path / "session")
    assert [(session.id, session.used_cells) for session in r.scheduler.sessions()] == [(restored, 64)]
    assert run(r, [*request.token_ids, 1]).cached_tokens == 64
    assert (tmp_path / "session").exists()


def test_restoring_makes_idle_sessions_give_way(rig, tmp_path: Path) -> None:
    r = rig(budget=112 * BYTES_PER_CELL + 500)
    run(r, prompt(0, 60))
    r.scheduler.store.save(0, tmp_path / "session")
    run(r, prompt(1, 80))
    restored = r.scheduler.store.load(tmp_path / "session")
    assert [session.id for session in r.scheduler.sessions()] == [restored]


def test_a_session_of_another_model_is_refused(rig, tmp_path: Path) -> None:
    r, other = rig(), rig(fingerprint="another")
    run(r, prompt(0, 60))
    r.scheduler.store.save(0, tmp_path / "session")
    with pytest.raises(SnapshotError):
        other.scheduler.store.load(tmp_path / "session")
    assert other.scheduler.sessions() == []


def test_a_running_session_cannot_be_erased_and_an_unknown_one_not_found(rig) -> None:
    r = rig()
    request = r.scheduler.submit(prompt(0, 20), greedy(20))
    r.scheduler.step()
    with pytest.raises(InvalidRequest, match="running"):
        r.scheduler.store.erase(request.session.id)
    with pytest.raises(InvalidRequest, match="no session 99"):
        r.scheduler.store.erase(99)


_PARK_FOR_EVER = """
import sys
from pathlib import Path
from support.history_model import Rig
from elastikv.engine.params import SamplingParams

rig = Rig(park_dir=Path(sys.argv[1]), max_idle=0, n_ctx=4096)
for seed in range(10_000):
    tokens = [(seed * 37 + i * 11) % 384 for i in range(600)]
    request = rig.scheduler.submit(tokens, SamplingParams(temperature=0, max_tokens=2))
    while rig.scheduler.has_work:
        rig.scheduler.step()
    rig.scheduler.tend()
    print(seed, flush=True)
"""


def test_a_writer_that_is_killed_leaves_nothing_broken(rig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Killed at some moment of writing one session after the other; what is found afterwards is whole."""
    tests = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    writer = subprocess.Popen(
        [sys.executable, "-c", _PARK_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert writer.stdout is not None
    for _ in range(5):
        assert writer.stdout.readline()
    writer.kill()
    writer.wait(timeout=60)
    writer.stdout.close()
    with caplog.at_level(logging.WARNING):
        r = rig(park_dir=tmp_path, n_ctx=4096, n_batch=1024, n_ubatch=1024)
        found = len(r.scheduler.sessions())
        assert found >= 5
        while waiting := files(tmp_path):
            run(r, [*read_header(waiting[0]).token_ids, 7])
    assert caplog.text == ""
    assert r.kinds().count("restore") == found
    assert list(tmp_path.glob(".*")) == []
