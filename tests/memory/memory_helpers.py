"""Writes recognisable values into memories, the way a model's forward does, and reads them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from elastikv.batch import Batch, SeqTokens, UBatch
from elastikv.memory import Cells, HybridMemory, KVCache, KVLayer, RecurrentLayer, RecurrentMemory
from elastikv.memory.formats import CellTensor
from elastikv.memory.hybrid import halves

KV_LAYERS = [KVLayer(2, 8, 4), KVLayer(1, 32, 40)]
RECURRENT_LAYERS = [RecurrentLayer(((3, 2), (2, 4, 4))), RecurrentLayer(((5,),))]

AnyMemory = KVCache | RecurrentMemory | HybridMemory


def rotate_by_adding(layer: int, k: torch.Tensor, delta: int) -> torch.Tensor:
    """Stands in for RoPE: exact in every cell type, and shows by how much and in which layer."""
    return k + delta


def attention_of(memory: AnyMemory) -> KVCache | None:
    return halves(memory).attention


def recurrent_of(memory: AnyMemory) -> RecurrentMemory | None:
    return halves(memory).recurrent


def forward(memory: AnyMemory, ubatch: UBatch) -> None:
    """K of a token is its position, V its id; a state is the running sum of the ids."""
    attention, recurrent = attention_of(memory), recurrent_of(memory)
    for span in ubatch.spans:
        ids = torch.as_tensor(ubatch.token_ids[span.start : span.stop], dtype=torch.float32)
        positions = torch.as_tensor(ubatch.positions[span.start : span.stop], dtype=torch.float32)
        if attention:
            for layer in range(len(attention.layers)):
                cells = attention.cells(layer, span.seq_id)
                rows = slice(span.pos - cells.first, span.end - cells.first)
                _write(cells.k, rows, positions)
                _write(cells.v, rows, ids)
        if recurrent:
            for layer in range(len(recurrent.layers)):
                sources, targets = recurrent.source(layer, span.seq_id), recurrent.target(layer, span.seq_id)
                for source, target in zip(sources, targets, strict=True):
                    torch.add(source, ids.sum(), out=target)


def decode(memory: AnyMemory, tokens: Mapping[int, Sequence[int]], n_ubatch: int = 4) -> None:
    batch = Batch(SeqTokens(seq_id, token_ids) for seq_id, token_ids in tokens.items())
    for ubatch in memory.init_batch(batch, n_ubatch):
        memory.apply(ubatch)
        forward(memory, ubatch)
    memory.commit()


def k_and_v(cache: KVCache, seq_id: int) -> tuple[list[int], list[int]]:
    """What the cells of a sequence say: positions (from K) and token ids (from V), equal in all layers."""
    n_cells = cache.n_cells(seq_id)
    if not n_cells:
        return [], []
    found = [_read(cache.cells(layer, seq_id), n_cells) for layer in range(len(cache.layers))]
    assert all(each == found[0] for each in found)
    return found[0]


def state_sums(memory: RecurrentMemory, seq_id: int) -> set[int]:
    """The distinct values in a sequence's committed state; one, if it is whole."""
    tensors = memory.seq_tensors(seq_id)
    assert tensors
    return {int(value) for tensor in tensors.values() for value in tensor.flatten().tolist()}


def _write(cells: CellTensor, rows: slice, values: torch.Tensor) -> None:
    cells.store(rows, values[:, None, None].expand(-1, cells.n_heads, cells.dim).contiguous())


def _read(cells: Cells, n_cells: int) -> tuple[list[int], list[int]]:
    rows = slice(0, n_cells)
    return _only_value(cells.k.load(rows)), _only_value(cells.v.load(rows))


def _only_value(rows: torch.Tensor) -> list[int]:
    flat = rows.flatten(1)
    assert torch.allclose(flat, flat[:, :1].expand_as(flat), rtol=2e-3), "a row is torn"
    return [round(value) for value in flat[:, 0].tolist()]
