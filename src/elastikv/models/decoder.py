"""What all the models share: embed, then blocks of two sublayers, then logits.

    residual --norm--> mixer --+--> residual --norm--> MLP --+--> residual ... --norm--> head

A mixer is what lets tokens of a sequence see each other: attention, or a recurrent layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch

from elastikv.batch import UBatch
from elastikv.kernels.base import Buffers, ForwardPass, Kernels, Sublayer
from elastikv.kernels.weights import (
    AttentionWeights,
    FeedForwardWeights,
    LinearWeights,
    MixerWeights,
    MlpWeights,
    Norms,
    Weight,
)
from elastikv.memory import KVCache, RecurrentMemory
from elastikv.memory.base import LayerMemory, Memory
from elastikv.memory.hybrid import halves
from elastikv.models.base import ModelInfo


class BlockWeights(NamedTuple):
    """One layer: the memory that it asks for, and its two halves."""

    memory: LayerMemory
    mixer: MixerWeights
    feed_forward: FeedForwardWeights


@dataclass(frozen=True, slots=True, eq=False)
class DecoderWeights:
    """A whole model as data. Several decoders, each of another backend, may be made of the same weights.

    norm: the one between the last block and the head.
    """

    info: ModelInfo
    embedding: Weight
    embedding_scale: float
    blocks: tuple[BlockWeights, ...]
    norm: Norms
    head: LinearWeights


class Block(NamedTuple):
    """The two halves of one layer."""

    mixer: Sublayer
    feed_forward: Sublayer


class Decoder:
    """A ``Model``. Layers share all buffers; ``residual`` and ``delta`` alone live through the whole forward."""

    def __init__(self, weights: DecoderWeights, kernels: Kernels) -> None:
        self.weights = weights
        self.info = weights.info
        self.memory_layers = tuple(block.memory for block in weights.blocks)
        self._embedding = kernels.embedding_layer(weights.embedding, weights.embedding_scale)
        self._blocks = tuple(_blocks(weights.blocks, kernels))
        self._norm = weights.norm
        self._head = kernels.linear_layer(weights.head)
        self._kernels = kernels
        self._ropes = [block.mixer.rope for block in self._blocks if block.mixer.rope is not None]
        self.device = kernels.device
        self._angles = [(rope, f"cos.{i}", f"sin.{i}") for i, rope in enumerate(dict.fromkeys(self._ropes))]

    def rotate_k(self, layer: int, k: torch.Tensor, delta: int) -> torch.Tensor:
        """See ``RotateK``: K of an attention layer as if computed ``delta`` positions later."""
        return self._ropes[layer].rotate(k, delta)

    def buffer_bytes(self, n_ubatch: int) -> dict[str, int]:
        """Bytes of each buffer that ``forward`` views by name, for ubatches of up to ``n_ubatch`` tokens."""
        hidden = len(self._norm.before)
        widths = {"residual": hidden, "delta": hidden, "normed": hidden}
        widths |= {name: rope.half for rope, *names in self._angles for name in names}
        for layer in (layer for block in self._blocks for layer in block):
            for name, width in layer.buffer_widths.items():
                widths[name] = max(widths.get(name, 0), width)
        return {name: 4 * n_ubatch * width for name, width in widths.items()}

    def scratch_bytes(self, n_ubatch: int, max_capacity: int) -> int:
        """Bytes of scratch that the kernels hold at most."""
        return self._kernels.scratch_bytes(n_ubatch, max_capacity)

    @torch.no_grad()
    def forward(self, ubatch: UBatch, memory: Memory, buffers: Buffers) -> torch.Tensor:
        """float32 logits ``[n_outputs, n_vocab]``, a tensor of the caller's own."""
        hidden = self.hidden(ubatch, memory, buffers)
        logits = torch.empty((len(hidden), self.info.n_vocab), device=self.device)
        return self._head(hidden, out=logits) if len(hidden) else logits

    @torch.no_grad()
    def hidden(self, ubatch: UBatch, memory: Memory, buffers: Buffers) -> torch.Tensor:
        """float32 ``[n_outputs, n_hidden]`` after the last norm: what the head gets; good until the next ubatch."""
        n_outputs, shape = len(ubatch.output_rows), (ubatch.n_tokens, len(self._norm.before))
        residual, delta = buffers.view("residual", shape), buffers.view("delta", shape)
        self._embedding(torch.from_numpy(ubatch.token_ids).to(self.device), out=residual)
        delta.zero_()

        forward = self._begin(ubatch, memory, buffers)
        for mixer, feed_forward in self._blocks[:-1]:
            mixer(delta, residual, forward)
            feed_forward(delta, residual, forward)

        mixer, feed_forward = self._blocks[-1]
        mixer(delta, residual, forward)
        if n_outputs == 0:
            return torch.empty((0, shape[1]), device=self.device)
        if n_outputs < ubatch.n_tokens:  # memory has what it needs of the others
            rows = torch.from_numpy(ubatch.output_rows).to(self.device)
            delta, residual = delta[rows], residual[rows]
        feed_forward(delta, residual, forward)
        normed = buffers.view("normed", tuple(delta.shape))
        self._kernels.add_rms_norm(delta, residual, self._norm.before, self._norm.eps, out=normed)
        return normed

    def _begin(self, ubatch: UBatch, memory: Memory, buffers: Buffers) -> ForwardPass:
        attention, recurrent = halves(memory)
        positions, rotations = torch.from_numpy(ubatch.positions).to(self.device), {}
        for rope, cos_name, sin_name in self._angles:
            shape = (ubatch.n_tokens, rope.half)
            cos, sin = rotations[rope] = buffers.view(cos_name, shape), buffers.view(sin_name, shape)
            rope.angles(positions, cos, sin)
        return ForwardPass(ubatch, cast(KVCache, attention), cast(RecurrentMemory, recurrent), buffers, rotations)


def _blocks(blocks: Sequence[BlockWeights], kernels: Kernels) -> Iterator[Block]:
    """Layers of a backend. Mixers count those before them that have the same kind of memory."""
    seen: Counter[type] = Counter()
    for memory, mixer, feed_forward in blocks:
        yield Block(_mixer(mixer, seen[type(memory)], kernels), _feed_forward(feed_forward, kernels))
        seen[type(memory)] += 1


def _mixer(weights: MixerWeights, ordinal: int, kernels: Kernels) -> Sublayer:
    if isinstance(weights, AttentionWeights):
        return kernels.attention_layer(weights, ordinal)
    return kernels.delta_net_layer(weights, ordinal)


def _feed_forward(weights: FeedForwardWeights, kernels: Kernels) -> Sublayer:
    return kernels.mlp_layer(weights) if isinstance(weights, MlpWeights) else kernels.experts_layer(weights)
