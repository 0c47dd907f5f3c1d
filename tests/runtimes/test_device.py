"""A device is said once, and everything is there. ``meta`` has no values, and takes no part with the processor's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_models import ARCHITECTURES, tiny_model

from elastikv.batch import Batch, SeqTokens
from elastikv.errors import CacheFull, InvalidRequest
from elastikv.kernels import select_kernels
from elastikv.memory import Budget, MemoryOptions
from elastikv.memory.machine import MachineMemory
from elastikv.runtimes.base import RuntimeOptions
from elastikv.runtimes.own import OwnSource
from elastikv.runtimes.torch_runtime import TorchRuntime

META = torch.device("meta")
GIB = 1 << 30


def load_on_meta(path: Path, budget: Budget) -> TorchRuntime:
    options = RuntimeOptions(memory=MemoryOptions(4096, initial=16), budget=budget, n_ubatch=16, device="meta")
    return OwnSource(path).load(options)


def budget_with(n_bytes: int) -> Budget:
    """On the device; the machine keeps no part of it to itself."""
    budget = Budget(None, machine=lambda: MachineMemory(total_bytes=0, available_bytes=GIB))
    budget.add_pool("meta", lambda: MachineMemory(total_bytes=0, available_bytes=n_bytes - budget.pool_bytes("meta")))
    return budget


# Which experts a token goes to is read back to the host; what has no values cannot tell.
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if not name.endswith("moe")])
def test_weights_memory_buffers_and_logits_are_on_the_device(architecture: str, tmp_path: Path) -> None:
    budget = budget_with(GIB)
    engine = load_on_meta(tiny_model(architecture, tmp_path), budget)
    for n_tokens, n_outputs in ((40, 40), (1, 1), (20, 1), (3, 0)):
        batch = Batch([SeqTokens(0, list(range(n_tokens)), n_outputs)])
        for ubatch in engine.memory.init_batch(batch, 16):
            engine._reserve_workspace()
            engine.memory.apply(ubatch)
            logits = engine.model.forward(ubatch, engine.memory, engine._workspace)
            assert logits.device == META
            assert logits.shape == (len(ubatch.output_rows), engine.model.info.n_vocab)
        engine.memory.commit()
    assert budget.pool_bytes("meta") == budget.committed_bytes > 0
    assert budget.pool_bytes("cpu") == 0
    if engine.model.info.architecture in ("llama", "qwen3"):
        assert engine.memory.seq_rm(0, 10, 20)  # which moves K behind it
    engine.close()
    assert budget.committed_bytes == 0


def test_a_full_device_refuses_and_the_host_does_not_help(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    needed = budget_with(GIB)
    load_on_meta(path, needed).close()
    budget = budget_with(needed.peak_bytes + (64 << 10))
    engine = load_on_meta(path, budget)
    before = budget.committed_bytes
    with pytest.raises(CacheFull) as refusal:
        engine.memory.init_batch(Batch([SeqTokens(0, [1] * 4000)]), 16)
    engine.memory.rollback()
    assert refusal.value.resource == "machine"
    assert budget.committed_bytes == before
    assert budget.left() > GIB // 2
    engine.close()


def test_kernels_of_a_processor_serve_no_device() -> None:
    assert select_kernels("auto", "meta").device == META
    with pytest.raises(InvalidRequest, match="the cpu kernels cannot run on meta"):
        select_kernels("cpu", "meta")
