from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from memory_helpers import (
    KV_LAYERS,
    RECURRENT_LAYERS,
    AnyMemory,
    attention_of,
    decode,
    k_and_v,
    recurrent_of,
    rotate_by_adding,
    state_sums,
)
from safetensors import safe_open

from elastikv.errors import CacheFull, InvalidRequest, SnapshotError
from elastikv.memory import Budget, KVCache, KVLayer, MemoryOptions, make_memory
from elastikv.memory.snapshot import load_sequence, read_header, save_sequence

KINDS = pytest.mark.parametrize(
    "layers", [KV_LAYERS, RECURRENT_LAYERS, [*RECURRENT_LAYERS, *KV_LAYERS]], ids=["attention", "recurrent", "hybrid"]
)


def open_memory(layers: Any = (*KV_LAYERS, *RECURRENT_LAYERS), **options: Any) -> AnyMemory:
    chosen: dict[str, Any] = {"n_ctx": 500, "growth": "step:8", "rotate": rotate_by_adding, **options}
    return make_memory(layers, MemoryOptions(**chosen), Budget())


def saved(path: Path, memory: AnyMemory | None = None, n_tokens: int = 100) -> Path:
    memory = memory or open_memory()
    decode(memory, {2: range(n_tokens)})
    save_sequence(path, memory, 2, range(n_tokens), "model-a")
    return path


@KINDS
@pytest.mark.parametrize("storages", [("mmap", "copy"), ("copy", "mmap")])
@pytest.mark.parametrize("cell_type", ["f16", "q8_0"])
def test_a_restored_sequence_goes_on(layers: Any, storages: tuple[str, str], cell_type: str, tmp_path: Path) -> None:
    options = {"k_type": cell_type, "v_type": cell_type}
    path = saved(tmp_path / "a.session", open_memory(layers, storage=storages[0], **options))
    memory = open_memory(layers, storage=storages[1], **options)
    decode(memory, {7: [3]})
    assert load_sequence(path, memory, 7, "model-a").token_ids == list(range(100))
    decode(memory, {7: [50]})
    memory.check()
    attention, recurrent = attention_of(memory), recurrent_of(memory)
    if attention:
        assert k_and_v(attention, 7) == (list(range(101)), [*range(100), 50])
    if recurrent:
        assert state_sums(recurrent, 7) == {sum(range(100)) + 50}


def test_the_header_is_read_alone(tmp_path: Path) -> None:
    header = read_header(saved(tmp_path / "a.session"))
    assert (header.fingerprint, header.n_tokens, header.token_ids) == ("model-a", 100, list(range(100)))


def test_the_file_is_a_safetensors_file(tmp_path: Path) -> None:
    with safe_open(saved(tmp_path / "a.session"), framework="pt") as file:
        assert file.metadata()["format"] == "elastikv-session 1"
        assert file.get_tensor("attention.1.v").shape == (100, 1, 40)
        assert (file.get_tensor("recurrent.1.0") == sum(range(100))).all()


def test_the_first_position_is_kept(tmp_path: Path) -> None:
    memory = open_memory(KV_LAYERS)
    decode(memory, {0: range(20)})
    memory.seq_rm(0, 0, 5)
    save_sequence(tmp_path / "a", memory, 0, range(20), "m")
    load_sequence(tmp_path / "a", memory, 1, "m")
    assert isinstance(memory, KVCache)
    assert k_and_v(memory, 1) == (list(range(5, 20)), list(range(5, 20)))


def test_rows_behind_a_window_are_not_saved(tmp_path: Path) -> None:
    memory = open_memory([KVLayer(2, 32, 32, window=16), KVLayer(2, 32, 32)], n_ctx=5000)
    assert isinstance(memory, KVCache)
    for _ in range(20):
        decode(memory, {0: [1] * 100}, n_ubatch=64)
    save_sequence(tmp_path / "a", memory, 0, [1] * 2000, "m")
    assert os.path.getsize(tmp_path / "a") < 1.25 * 2000 * 2 * 2 * 64
    load_sequence(tmp_path / "a", memory, 1, "m")
    memory.check()
    first, second = memory._streams.get(0), memory._streams.get(1)
    assert first
    assert second
    assert second.storage.released(0) == first.storage.released(0) > 0
    decode(memory, {1: [2]})


def test_the_last_file_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.session")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        saved(path, n_tokens=50)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.session"]
    assert len(load_sequence(path, open_memory(), 0, "model-a").token_ids) == 100


@pytest.mark.parametrize("size", [0, 7, 8, 100, 3000, -1])
def test_truncated_files_are_refused(size: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.session")
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    assert_refused(path)


@pytest.mark.parametrize("where", [0.02, 0.2, 0.5, 0.9, 0.999])
def test_altered_files_are_refused(where: float, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.session")
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)
    assert_refused(path)


@pytest.mark.parametrize("text", [b"hello, this is no session at all", b"\x10" + 7 * b"\0" + b'{"a": 1}        ', b""])
def test_other_files_are_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    path.write_bytes(text)
    assert_refused(path)
    assert_refused(tmp_path / "none.session")


def assert_refused(
    path: Path, memory: AnyMemory | None = None, fingerprint: str = "model-a", match: str | None = None
) -> None:
    memory = memory or open_memory()
    decode(memory, {0: [1, 2, 3]})
    before = memory.stats()
    with pytest.raises(SnapshotError, match=match) as refusal:
        load_sequence(path, memory, 0, fingerprint)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert (memory.stats().sequences, memory.stats().used_cells) == (before.sequences, before.used_cells)
    memory.shrink_to_fit()
    memory.check()
    recurrent = recurrent_of(memory)
    assert recurrent is None or state_sums(recurrent, 0) == {6}


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.session")
    assert_refused(path, fingerprint="model-b", match="another model")
    assert_refused(path, open_memory(k_type="f32"), match="KV types")
    assert_refused(path, open_memory(KV_LAYERS), match="layers")


def test_without_room_nothing_changes(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.session")
    memory = open_memory()
    memory.budget.set_limit(20_000)
    with pytest.raises(CacheFull):
        load_sequence(path, memory, 0, "model-a")
    memory.shrink_to_fit()
    memory.check()
    small = open_memory(n_ctx=50)
    with pytest.raises(CacheFull) as refusal:
        load_sequence(path, small, 0, "model-a")
    assert refusal.value.resource == "n_ctx"


def test_an_empty_sequence_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        save_sequence(tmp_path / "a.session", open_memory(), 3, [], "m")
    assert not list(tmp_path.iterdir())
