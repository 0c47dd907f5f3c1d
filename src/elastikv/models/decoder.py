"""What all the models share: embed, then blocks of a mixer and an MLP, then logits.

    residual --norm--> mixer --+--> residual --norm--> MLP --+--> residual ...

A mixer is what differs: attention, or a recurrent layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from elastikv.batch import UBatch
from elastikv.kernels.base import Buffers, Kernels, MlpWeights
from elastikv.memory import HybridMemory, KVCache, RecurrentMemory
from elastikv.memory.base import LayerMemory, Memory
from elastikv.memory.options import RotateK
from elastikv.models.base import ModelInfo
from elastikv.models.rope import Rope
from elastikv.weights.linear import Embedding, FusedLinear


@dataclass(frozen=True, slots=True)
class Step:
    """What a mixer needs of the ubatch that is computed. cos, sin: ``[n_tokens, rotary_dim / 2]``."""

    ubatch: UBatch
    memory: Memory
    buffers: Buffers
    cos: torch.Tensor
    sin: torch.Tensor

    @property
    def attention(self) -> KVCache:
        memory = self.memory.attention if isinstance(self.memory, HybridMemory) else self.memory
        assert isinstance(memory, KVCache)
        return memory

    @property
    def recurrent(self) -> RecurrentMemory:
        memory = self.memory.recurrent if isinstance(self.memory, HybridMemory) else self.memory
        assert isinstance(memory, RecurrentMemory)
        return memory

    def view(self, name: str, *shape: int) -> torch.Tensor:
        return self.buffers.view(name, (self.ubatch.n_tokens, *shape))


class Mixer(Protocol):
    """Mixes tokens of a sequence. ``layer``: its ordinal among the layers with the same kind of memory.

    buffer_widths: floats per token of each buffer it views by name.
    """

    buffer_widths: dict[str, int]

    def __call__(self, x: torch.Tensor, step: Step, out: torch.Tensor) -> None:
        """x (normalised), out: ``[n_tokens, hidden_size]``."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """The norms' weights are f32 ``[hidden_size]``; gate_up gives the gate first, then up."""

    input_norm: torch.Tensor
    mixer: Mixer
    post_norm: torch.Tensor
    gate_up: FusedLinear
    down: FusedLinear


class _Mlp:
    """The second half of a block, from what the mixer gave to what the next mixer takes."""

    def __init__(self, block: Block, next_norm: torch.Tensor, eps: float, kernels: Kernels) -> None:
        self._gate_up = block.gate_up
        self._down = block.down
        self._weights = MlpWeights(block.post_norm, next_norm, eps)
        self._kernels = kernels
        self._bound = kernels.bind_mlp(block.gate_up.parts, block.down.parts, self._weights)
        self.buffer_widths = {"wide": block.gate_up.n_out, "inner": block.down.n_in}

    def __call__(self, delta: torch.Tensor, residual: torch.Tensor, normed: torch.Tensor, step: Step) -> None:
        """All ``[n, hidden_size]``: delta is added to the residual, and what the MLP makes of it too.

        n is at most the step's tokens.
        """
        kernels, weights = self._kernels, self._weights
        wide, inner = (step.view(name, width)[: len(delta)] for name, width in self.buffer_widths.items())
        if self._bound is not None and self._bound(delta, residual, normed, wide, inner):
            return
        kernels.add_rms_norm(delta, residual, weights.norm, weights.eps, out=normed)
        self._gate_up(normed, out=wide)
        kernels.silu_mul(wide, out=inner)
        self._down(inner, out=delta)
        kernels.add_rms_norm(delta, residual, weights.next_norm, weights.eps, out=normed)


class Decoder:
    """A ``Model``. Buffers are shared by all blocks; ``residual`` alone lives through the whole forward."""

    def __init__(
        self,
        info: ModelInfo,
        memory_layers: Sequence[LayerMemory],
        *,
        embedding: Embedding,
        blocks: Sequence[Block],
        final_norm: torch.Tensor,
        head: FusedLinear,
        rope: Rope,
        rms_norm_eps: float,
        kernels: Kernels,
    ) -> None:
        self.info = info
        self.memory_layers = tuple(memory_layers)
        self.rope = rope
        self._embedding = embedding
        self._first_norm = blocks[0].input_norm
        next_norms = (*(block.input_norm for block in blocks[1:]), final_norm)
        self._blocks = [
            (block.mixer, _Mlp(block, next_norm, rms_norm_eps, kernels))
            for block, next_norm in zip(blocks, next_norms, strict=True)
        ]
        self._head = head
        self._eps = rms_norm_eps
        self._kernels = kernels

    @property
    def rotate_k(self) -> RotateK:
        return self.rope.rotate_k

    def buffer_bytes(self, n_ubatch: int) -> dict[str, int]:
        hidden, half = self._embedding.width, self.rope.dim // 2
        widths = {"residual": hidden, "normed": hidden, "delta": hidden, "cos": half, "sin": half}
        for mixer, mlp in self._blocks:
            for name, width in (*mlp.buffer_widths.items(), *mixer.buffer_widths.items()):
                widths[name] = max(widths.get(name, 0), width)
        return {name: 4 * n_ubatch * width for name, width in widths.items()}

    @torch.no_grad()
    def forward(self, ubatch: UBatch, memory: Memory, buffers: Buffers) -> torch.Tensor:
        """float32 logits ``[n_outputs, n_vocab]``, a tensor of the caller's own."""
        step = self._begin(ubatch, memory, buffers)
        residual, normed, delta = (step.view(name, self._embedding.width) for name in ("residual", "normed", "delta"))

        self._embedding(torch.from_numpy(ubatch.token_ids), out=residual)
        self._kernels.rms_norm(residual, self._first_norm, self._eps, out=normed)
        for mixer, mlp in self._blocks[:-1]:
            mixer(normed, step, out=delta)
            mlp(delta, residual, normed, step)

        mixer, mlp = self._blocks[-1]
        mixer(normed, step, out=delta)
        n_outputs = len(ubatch.output_rows)
        if n_outputs == 0:
            return torch.empty((0, self._head.n_out))
        if n_outputs < ubatch.n_tokens:  # memory has what it needs of the others
            rows = torch.from_numpy(ubatch.output_rows)
            delta, residual, normed = delta[rows], residual[rows], normed[:n_outputs]
        mlp(delta, residual, normed, step)
        return self._head(normed)

    def _begin(self, ubatch: UBatch, memory: Memory, buffers: Buffers) -> Step:
        shape = (ubatch.n_tokens, self.rope.dim // 2)
        cos, sin = buffers.view("cos", shape), buffers.view("sin", shape)
        self.rope.angles(torch.from_numpy(ubatch.positions), cos, sin)
        return Step(ubatch, memory, buffers, cos, sin)
