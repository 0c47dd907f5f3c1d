"""Planes in bands: ``[bands, rows, *shape]``, each band growing at its own end, in both storages."""

from __future__ import annotations

import pytest
import torch

from elastikv.errors import CacheFull
from elastikv.memory.budget import Budget
from elastikv.memory.storage import Plane, Storage, open_storage

BANDS = Plane("k", (10,), torch.float32, bands=3)
FLAT = Plane("v", (2, 4), torch.float16)


def _storage(kind: str, budget: Budget | None = None, limit: int = 5000) -> Storage:
    return open_storage(kind, [(BANDS, FLAT), (BANDS,)], limit, budget or Budget())  # type: ignore[arg-type]


def _fill(storage: Storage) -> list[torch.Tensor]:
    tensors = [tensor for layer in range(2) for tensor in storage.tensors(layer)]
    for tensor in tensors:
        tensor.copy_(torch.randn(tensor.shape))
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("kind", ["mmap", "copy"])
def test_shape_and_contents_through_growth_and_shrinking(kind: str) -> None:
    storage = _storage(kind)
    assert storage.tensors(0)[0].shape == (3, 0, 10)
    storage.grow(100, 0)
    before = _fill(storage)
    assert [tuple(tensor.shape) for tensor in before] == [(3, 100, 10), (100, 2, 4), (3, 100, 10)]

    storage.grow(3000, 100)
    storage.shrink(70, 70)
    after = [tensor for layer in range(2) for tensor in storage.tensors(layer)]
    for tensor, expected, plane in zip(after, before, (BANDS, FLAT, BANDS), strict=True):
        assert torch.equal(tensor, expected.narrow(plane.row_dim, 0, 70))
    storage.check()


@pytest.mark.parametrize("kind", ["mmap", "copy"])
def test_every_band_is_charged(kind: str) -> None:
    budget = Budget()
    storage = _storage(kind, budget)
    storage.grow(1024, 0)
    assert storage.committed_bytes == budget.kv_bytes == 1024 * (3 * 40 + 16 + 3 * 40)
    storage.close()
    assert budget.kv_bytes == 0


@pytest.mark.parametrize("kind", ["mmap", "copy"])
def test_refused_growth_changes_nothing(kind: str) -> None:
    storage = _storage(kind, Budget(1 << 20))
    storage.grow(512, 0)
    before = _fill(storage)
    with pytest.raises(CacheFull):
        storage.grow(5000, 512)
    assert storage.capacity == 512
    assert torch.equal(storage.tensors(1)[0], before[2])


def test_mmap_bands_keep_their_addresses() -> None:
    storage = _storage("mmap")
    storage.grow(10, 0)
    address, stride = storage.tensors(1)[0].data_ptr(), storage.tensors(1)[0].stride()
    storage.grow(5000, 10)
    assert (storage.tensors(1)[0].data_ptr(), storage.tensors(1)[0].stride()) == (address, stride)
