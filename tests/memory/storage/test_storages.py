"""One contract, three storages: mmap, copy on pages, copy on plain tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from elastikv.errors import CacheFull
from elastikv.memory import Budget
from elastikv.memory.storage import Plane, Storage
from elastikv.memory.storage import blocks as blocks_module
from elastikv.memory.storage import mmap as mmap_module
from elastikv.memory.storage.blocks import TensorBlock
from elastikv.memory.storage.copy import CopyStorage
from elastikv.memory.storage.mmap import MmapStorage

PAGE = 4096
LAYERS = [
    (Plane("k", (2, 8), torch.float16), Plane("v", (2, 24), torch.float16)),
    (Plane("k", (700,), torch.float32), Plane("v", (1,), torch.int8)),
    (Plane("k", (3, 2, 8), torch.bfloat16),),
]
CPU = torch.device("cpu")


def open_mmap(budget: Budget, limit: int) -> Storage:
    return MmapStorage(LAYERS, limit, budget)


def open_copy(budget: Budget, limit: int) -> Storage:
    return CopyStorage(LAYERS, limit, budget, CPU)


def open_tensors(budget: Budget, limit: int) -> Storage:
    return CopyStorage(LAYERS, limit, budget, CPU, lambda n_bytes, device, _: TensorBlock(n_bytes, device))


Opener = Callable[[Budget, int], Storage]
EVERY = pytest.mark.parametrize("opener", [open_mmap, open_copy, open_tensors])
PAGED = pytest.mark.parametrize("opener", [open_mmap, open_copy])


@pytest.fixture(autouse=True)
def tensors_count_as_they_are(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    callspec = getattr(request.node, "callspec", None)
    if callspec and callspec.params.get("opener") is open_tensors:
        monkeypatch.setattr(blocks_module, "_has_pages", lambda device: False)


def fill(storage: Storage, start: int, stop: int, salt: int = 0) -> None:
    for layer in range(len(LAYERS)):
        for index, tensor in enumerate(storage.tensors(layer)):
            for row in range(start, stop):
                tensor[row] = (row * 7 + layer * 3 + index + salt) % 100


def holds(storage: Storage, start: int, stop: int, salt: int = 0) -> bool:
    return all(
        (tensor[row] == (row * 7 + layer * 3 + index + salt) % 100).all()
        for layer in range(len(LAYERS))
        for index, tensor in enumerate(storage.tensors(layer))
        for row in range(start, stop)
    )


def addresses_of(storage: Storage) -> list[int]:
    return [tensor.data_ptr() for layer in range(len(LAYERS)) for tensor in storage.tensors(layer)]


@EVERY
def test_nothing_is_committed_before_it_is_asked_for(opener: Opener) -> None:
    budget = Budget()
    storage = opener(budget, 1000)
    assert (storage.capacity, storage.committed_bytes, budget.kv_bytes) == (0, 0, 0)
    assert all(len(tensor) == 0 for tensor in storage.tensors(0))


@EVERY
def test_growing_keeps_rows_and_charges_what_is_committed(opener: Opener) -> None:
    budget = Budget()
    storage = opener(budget, 1000)
    for before, after in ((0, 10), (10, 33), (33, 700), (700, 1000)):
        generation = storage.generation
        storage.grow(after, before)
        storage.check()
        assert storage.generation != generation
        assert [tensor.shape for tensor in storage.tensors(2)] == [(after, 3, 2, 8)]
        assert holds(storage, 0, before)
        assert budget.kv_bytes == storage.committed_bytes
        assert storage.committed_bytes >= after * sum(plane.row_bytes for layer in LAYERS for plane in layer)
        assert storage.reserved_bytes >= storage.committed_bytes
        fill(storage, before, after)


@EVERY
def test_shrinking_gives_back_and_keeps_rows(opener: Opener) -> None:
    budget = Budget()
    storage = opener(budget, 1000)
    storage.grow(900, 0)
    fill(storage, 0, 20)
    storage.shrink(20, 20)
    storage.check()
    expected = opener(Budget(), 1000)
    expected.grow(20, 0)
    assert storage.committed_bytes == expected.committed_bytes == budget.kv_bytes
    assert holds(storage, 0, 20)
    storage.grow(500, 20)
    fill(storage, 20, 500)
    assert holds(storage, 0, 500)
    assert budget.kv_bytes == storage.committed_bytes


@EVERY
def test_closing_gives_all_back(opener: Opener) -> None:
    budget = Budget()
    storage = opener(budget, 1000)
    storage.grow(100, 0)
    storage.close()
    assert (storage.capacity, storage.committed_bytes, budget.kv_bytes) == (0, 0, 0)


@EVERY
def test_bounds_are_errors_of_the_caller(opener: Opener) -> None:
    storage = opener(Budget(), 100)
    storage.grow(50, 0)
    with pytest.raises(ValueError, match="cannot grow"):
        storage.grow(101, 0)
    with pytest.raises(ValueError, match="cannot grow"):
        storage.grow(50, 0)
    with pytest.raises(ValueError, match="cannot shrink"):
        storage.shrink(10, 11)


@EVERY
def test_a_refused_growth_changes_nothing(opener: Opener) -> None:
    probe = opener(Budget(), 1000)
    probe.grow(40, 0)
    budget = Budget(probe.committed_bytes + probe.peak_bytes(400) - 1)
    storage = opener(budget, 1000)
    storage.grow(40, 0)
    fill(storage, 0, 40)
    committed = storage.committed_bytes
    with pytest.raises(CacheFull) as refusal:
        storage.grow(400, 40)
    assert refusal.value.resource == "kv-budget"
    storage.check()
    assert (storage.capacity, storage.committed_bytes, budget.kv_bytes) == (40, committed, committed)
    assert holds(storage, 0, 40)
    budget.set_limit(probe.committed_bytes + probe.peak_bytes(400))
    storage.grow(400, 40)
    assert budget.peak_bytes == budget.limit_bytes


def test_copying_never_holds_more_than_the_new_size_and_one_layer() -> None:
    budget = Budget()
    storage = CopyStorage([LAYERS[0]] * 8, 4096, budget, CPU)
    storage.grow(1024, 0)
    one_layer = storage.committed_bytes // 8
    storage.grow(4096, 1024)
    assert budget.peak_bytes == storage.committed_bytes + one_layer


class _FailingAllocator:
    """Fails once, at the ``fail_at``-th allocation."""

    def __init__(self, fail_at: int, error: BaseException, allocate: Callable[..., object]) -> None:
        self.left = fail_at
        self.error = error
        self.allocate = allocate

    def __call__(self, *args: object) -> object:
        self.left -= 1
        if self.left == -1:
            raise self.error
        return self.allocate(*args)


N_PLANES = sum(len(layer) for layer in LAYERS)


@pytest.mark.parametrize("error", [MemoryError("none left"), KeyboardInterrupt()], ids=["memory", "interrupt"])
@pytest.mark.parametrize("fail_at", range(N_PLANES))
@EVERY
def test_a_growth_that_fails_half_way_is_undone(
    opener: Opener, fail_at: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget()
    storage = opener(budget, 1000)
    storage.grow(40, 0)
    fill(storage, 0, 40)
    committed = storage.committed_bytes
    addresses, generation = addresses_of(storage), storage.generation
    with monkeypatch.context() as patch:
        if isinstance(storage, CopyStorage):
            patch.setattr(storage, "_allocate", _FailingAllocator(fail_at, error, storage._allocate))
        else:
            failing = _FailingAllocator(fail_at, error, storage._region.commit)  # type: ignore[attr-defined]
            patch.setattr(storage._region, "commit", failing)  # type: ignore[attr-defined]
        with pytest.raises(CacheFull if isinstance(error, MemoryError) else KeyboardInterrupt):
            storage.grow(900, 40)
    storage.check()
    assert (storage.capacity, storage.committed_bytes, budget.kv_bytes) == (40, committed, committed)
    assert addresses_of(storage) == addresses or storage.generation != generation
    assert holds(storage, 0, 40)
    storage.grow(900, 40)
    assert holds(storage, 0, 40)
    storage.check()


def test_where_not_even_the_undoing_finds_room_the_larger_block_is_kept_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks_module, "_has_pages", lambda device: False)
    budget = Budget()
    storage = open_tensors(budget, 1000)
    storage.grow(40, 0)
    fill(storage, 0, 40)

    def fail(*_: object) -> object:
        raise MemoryError("none left, ever")

    allocate = storage._allocate  # type: ignore[attr-defined]
    calls = iter([allocate, allocate, fail])
    monkeypatch.setattr(storage, "_allocate", lambda *args: next(calls, fail)(*args))
    with pytest.raises(CacheFull):
        storage.grow(900, 40)
    storage.check()
    assert storage.capacity == 40
    assert holds(storage, 0, 40)
    assert budget.kv_bytes == storage.committed_bytes


@PAGED
def test_rows_in_front_can_be_given_back(opener: Opener) -> None:
    budget = Budget()
    storage = opener(budget, 1000)
    storage.grow(300, 0)
    fill(storage, 0, 300)
    n_bytes = storage.release_front(1, 200)
    assert n_bytes == 200 * 2800 // PAGE * PAGE
    assert storage.release_front(1, 100) == 0
    assert storage.released(1) == 200
    assert budget.kv_bytes == storage.committed_bytes
    storage.grow(500, 300)
    storage.check()
    assert budget.kv_bytes == storage.committed_bytes
    k, _ = storage.tensors(1)
    assert all((k[row] == (row * 7 + 3) % 100).all() for row in range(200, 300))
    assert holds_layer_0(storage)
    storage.shrink(250, 250)
    storage.check()
    assert budget.kv_bytes == storage.committed_bytes
    storage.close()
    assert budget.kv_bytes == 0


def holds_layer_0(storage: Storage) -> bool:
    return all(
        (tensor[row] == (row * 7 + index) % 100).all()
        for index, tensor in enumerate(storage.tensors(0))
        for row in range(300)
    )


def test_plain_tensors_keep_what_is_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "_has_pages", lambda device: False)
    storage = open_tensors(Budget(), 1000)
    storage.grow(300, 0)
    assert storage.release_front(1, 200) == 0
    assert storage.released(1) == 0


def test_mmap_addresses_never_change() -> None:
    storage = MmapStorage(LAYERS, 1000, Budget())
    storage.grow(1, 0)
    addresses = [tensor.data_ptr() for tensor in storage.tensors(1)]
    storage.grow(1000, 1)
    storage.shrink(3, 1)
    assert [tensor.data_ptr() for tensor in storage.tensors(1)] == addresses


def test_large_planes_start_where_a_huge_page_may() -> None:
    storage = MmapStorage([(Plane("k", (1024,), torch.float32),)] * 2, 1000, Budget())
    assert storage.reserved_bytes == 2 * mmap_module.pages.HUGE_PAGE * 2


@EVERY
def test_a_tensor_that_outlives_its_storage_can_still_be_read(opener: Opener) -> None:
    storage = opener(Budget(), 1000)
    storage.grow(300, 0)
    tensor = storage.tensors(0)[0]
    storage.close()
    assert tensor.float().sum().isfinite()
