"""TorchRuntime.decode: all or nothing, in the order of the batch."""

from __future__ import annotations

import pytest
import torch
from support.history_model import BYTES_PER_CELL, Rig, expected_tokens

from elastikv.batch import Batch, SeqTokens
from elastikv.errors import CacheFull

HYBRID = pytest.mark.parametrize("is_hybrid", [False, True])


def snapshot(rig: Rig) -> list[tuple]:
    """What an outsider can see of the memory; a spare recurrent state may stay, for the next call."""
    kv_bytes = 0 if rig.model.is_hybrid else rig.budget.kv_bytes
    return [rig.memory.stats().sequences, rig.memory.seq_ids(), kv_bytes]


@HYBRID
def test_logits_come_in_the_order_of_the_batch(rig, is_hybrid: bool) -> None:
    r = rig(is_hybrid=is_hybrid, n_ubatch=4)
    logits = r.engine.decode(Batch([SeqTokens(5, [1, 2, 3, 4, 5, 6]), SeqTokens(2, [9], 0), SeqTokens(3, [7, 8], 2)]))
    assert logits.dtype == torch.float32
    assert logits.shape == (3, r.model.info.n_vocab)
    assert logits.argmax(1).tolist() == [
        *expected_tokens([1, 2, 3, 4, 5, 6], 1),
        *expected_tokens([7], 1),
        *expected_tokens([7, 8], 1),
    ]
    r.memory.clear()


@HYBRID
@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("at", [0, 2])
def test_a_failed_forward_leaves_the_memory_as_before(rig, is_hybrid: bool, error: BaseException, at: int) -> None:
    r = rig(is_hybrid=is_hybrid, n_ubatch=4)
    r.engine.decode(Batch([SeqTokens(0, list(range(10)))]))
    before = snapshot(r)
    calls = iter(range(100))

    def fail(ubatch) -> None:
        if next(calls) == at:
            raise error

    r.model.before_forward = fail
    batch = Batch([SeqTokens(0, [10, 11, 12]), SeqTokens(1, list(range(40)))])
    with pytest.raises(type(error)):
        r.engine.decode(batch)
    assert snapshot(r) == before
    r.memory.check()
    r.model.before_forward = lambda ubatch: None
    logits = r.engine.decode(batch)
    assert logits.argmax(1).tolist() == [*expected_tokens(list(range(13)), 1), *expected_tokens(list(range(40)), 1)]
    r.memory.clear()


@HYBRID
def test_a_refused_growth_leaves_the_memory_as_before(rig, is_hybrid: bool) -> None:
    r = rig(is_hybrid=is_hybrid, budget=64 * BYTES_PER_CELL)
    r.engine.decode(Batch([SeqTokens(0, list(range(20)))]))
    before = snapshot(r)
    with pytest.raises(CacheFull):
        r.engine.decode(Batch([SeqTokens(0, [20]), SeqTokens(1, list(range(100)))]))
    assert snapshot(r) == before
    assert r.engine.decode(Batch([SeqTokens(0, [20])])).argmax().item() == expected_tokens(list(range(21)), 1)[0]
    r.memory.clear()


def test_a_workspace_that_is_refused_undoes_the_growth_of_the_same_call(rig) -> None:
    """Scratch is one byte a cell here: cells for 208 tokens fit, and the scratch for them does not."""
    r = rig(n_ctx=4096)
    r.engine.decode(Batch([SeqTokens(0, list(range(20)))]))
    before = snapshot(r)
    r.budget.set_limit(r.budget.committed_bytes + 176 * BYTES_PER_CELL + 10)
    with pytest.raises(CacheFull):
        r.engine.decode(Batch([SeqTokens(0, [1] * 188)]))
    assert snapshot(r) == before
    r.memory.check()
    assert r.engine.decode(Batch([SeqTokens(0, [20])])).argmax().item() == expected_tokens(list(range(21)), 1)[0]
    r.memory.clear()


def test_the_workspace_follows_the_capacity_in_the_same_call(rig) -> None:
    r = rig(n_ctx=4096)
    r.engine.decode(Batch([SeqTokens(0, [1] * 10)]))
    small = r.workspace.committed_bytes
    r.engine.decode(Batch([SeqTokens(0, [1] * 500)]))
    assert r.workspace.committed_bytes - small == r.memory.max_capacity - 16
    r.memory.clear()
