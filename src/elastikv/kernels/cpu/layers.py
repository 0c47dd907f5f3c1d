"""Whole layers for a few tokens, each in one compiled call.

While a step's weights stream through the processor's caches, the interpreter's own memory is pushed out of them. Every
kernel that Python calls therefore costs about 20 us more than it does on its own: in a model of 28 layers 4 ms a step.
Here compiled functions call the same kernels, one after the other, with the same results, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from elastikv.kernels.cpu import norms, recurrent
from elastikv.kernels.cpu.attention import decode as decode_attention
from elastikv.kernels.cpu.attention import rope
from elastikv.kernels.cpu.jit import fused, inlined
from elastikv.kernels.cpu.matmul.skinny import multiply


@inlined
def linear(product: Any, parts: np.ndarray, x: int, n_in: int, n: int, out: int, n_out: int) -> None:
    """x ``[n, n_in]`` to out ``[n, n_out]``. parts: int64 ``[n_parts, 6]``, a ``Matrix`` and its first column."""
    for index in range(len(parts)):
        part = parts[index]
        multiply(product, (part[0], part[1], part[2], part[3], part[4]), (x, n_in * 4, n, out + part[5] * 4, n_out * 4))


@inlined
def mixed_linear(matrices: Any, x: int, n_in: int, n: int, out: int, n_out: int) -> None:
    """x ``[n, n_in]`` to out ``[n, n_out]``. matrices: a product and its parts (see ``linear``), and another's."""
    linear(matrices[0], matrices[1], x, n_in, n, out, n_out)
    linear(matrices[2], matrices[3], x, n_in, n, out, n_out)


@inlined
def add_norm(tensors: Any, norm_weights: Any, n: int, hidden: int, eps: float) -> None:
    """What a sublayer begins with. tensors: delta, residual, normed, ...; norm_weights: before, after, ..."""
    norms.add_rms_norm(tensors[0], tensors[1], norm_weights[0], n, hidden, eps, tensors[2])


@inlined
def norm_after(tensors: Any, norm_weights: Any, n: int, hidden: int, eps: float) -> None:
    """What a sublayer ends with, if it has a norm there (its address is not 0)."""
    if norm_weights[1]:
        norms.rms_norm(tensors[0], hidden * 4, norm_weights[1], n, hidden, eps, tensors[0])


@fused
def mlp(
    gate_up: Any,
    gate_up_parts: np.ndarray,
    other: Any,
    other_parts: np.ndarray,
    down: Any,
    down_parts: np.ndarray,
    norm_weights: tuple[int, int],
    eps: float,
    shape: tuple[int, int, int],
    tensors: tuple[int, int, int, int, int],
) -> None:
    """``composed.Mlp`` for a few tokens.

    norm_weights: addresses of the norms' before and after (0: none); shape: (n, hidden size, inner width); tensors:
    addresses of delta, residual, normed, wide ``[n, 2 * width]`` and inner ``[n, width]``.
    """
    n, hidden, width = shape
    delta, _, normed, wide, inner = tensors
    add_norm(tensors, norm_weights, n, hidden, eps)
    mixed_linear((gate_up, gate_up_parts, other, other_parts), normed, hidden, n, wide, 2 * width)
    norms.silu_mul(wide, 2 * width * 4, n, width, inner)
    linear(down, down_parts, inner, width, n, delta, hidden)
    norm_after(tensors, norm_weights, n, hidden, eps)


@fused
def attention(
    projection: Any,
    projection_parts: np.ndarray,
    other: Any,
    other_parts: np.ndarray,
    output: Any,
    output_parts: np.ndarray,
    k_layout: Any,
    v_layout: Any,
    norm_weights: tuple[int, int, int, int],
    eps: tuple[float, float],
    scale: float,
    window: int,
    gated: bool,
    shape: tuple[int, int, int, int, int],
    cells: np.ndarray,
    rows: np.ndarray,
    positions: np.ndarray,
    ends: np.ndarray,
    tensors: tuple[int, int, int, int, int, int, int, int],
) -> None:
    """``composed.Attention`` for a few tokens.

    norm_weights: addresses of the norms' before, after, of q and of k (0: none); eps: of the first two and of the
    others; window 0: none; shape: (hidden size, n_heads, n_kv_heads, head_dim, rotary_dim / 2); cells:
    ``KVCache.addresses``, one line per row; rows: 0, 1, ...; ends: positions + 1; tensors: addresses of delta,
    residual, normed, wide (q, k, v and, if gated, the gate), inner, cos, sin, scratch as ``attention.decode.attend``
    wants it.
    """
    hidden, n_heads, n_kv_heads, d, half = shape
    delta, _, normed, wide, inner, cos, sin, scratch = tensors
    n, head_bytes = len(positions), d * 4
    k = wide + n_heads * head_bytes
    v = k + n_kv_heads * head_bytes
    gate = v + n_kv_heads * head_bytes
    width = (n_heads * (2 if gated else 1) + 2 * n_kv_heads) * d
    strides = (width * 4, head_bytes)
    add_norm(tensors, norm_weights, n, hidden, eps[0])
    mixed_linear((projection, projection_parts, other, other_parts), normed, hidden, n, wide, width)
    rope.rope_store(
        k_layout,
        v_layout,
        (wide, k, v, cos, sin),
        (*strides, *strides, *strides),
        (norm_weights[2], norm_weights[3]),
        eps[1],
        (n_heads, n_kv_heads, d, d, half),
        cells,
        rows,
        positions,
    )
    heads = (n_heads, n_kv_heads, d, d)
    decode_attention.attend(k_layout, v_layout, cells, ends, window, wide, strides, heads, scale, scratch, inner)
    if gated:
        norms.sigmoid_mul(inner, gate, width * 4, n, n_heads * d)
    linear(output, output_parts, inner, n_heads * d, n, delta, hidden)
    norm_after(tensors, norm_weights, n, hidden, eps[0])


@fused
def delta_net(
    projection: Any,
    projection_parts: np.ndarray,
    other: Any,
    other_parts: np.ndarray,
    output: Any,
    output_parts: np.ndarray,
    norm_weights: tuple[int, int],
    vectors: tuple[int, int, int, int],
    eps: tuple[float, float],
    shape: tuple[int, int, int, int, int, int, int],
    conv_states: np.ndarray,
    rule_states: np.ndarray,
    tensors: tuple[int, int, int, int, int, int, int],
) -> None:
    """``composed.DeltaNet`` for a few tokens.

    norm_weights: addresses of the norms' before and after (0: none); vectors: addresses of conv, rate, bias, norm;
    eps: of the first two norms and of the last; shape: (n, hidden size, n_k_heads, n_v_heads, k_dim, v_dim, taps);
    conv_states, rule_states: as ``recurrent`` takes them; tensors: addresses of delta, residual, normed, wide (q, k,
    v, z, b, a), conv (q, k, v), gates and inner.
    """
    n, hidden, n_k_heads, n_v_heads, dk, dv, taps = shape
    delta, _, normed, wide, conv, gates, inner = tensors
    keys, values = n_k_heads * dk, n_v_heads * dv
    channels = 2 * keys + values
    stride = (channels + values + 2 * n_v_heads) * 4
    z = wide + channels * 4
    b = z + values * 4
    a = b + n_v_heads * 4
    add_norm(tensors, norm_weights, n, hidden, eps[0])
    mixed_linear((projection, projection_parts, other, other_parts), normed, hidden, n, wide, stride // 4)
    decay, beta = gates, gates + n * n_v_heads * 4
    recurrent.delta_gates(a, b, stride, vectors[1], vectors[2], n, n_v_heads, decay, beta)
    recurrent.causal_conv(conv_states, wide, stride, vectors[0], channels, taps, conv)
    row, key_bytes, value_bytes = channels * 4, dk * 4, dv * 4
    recurrent.gated_delta_rule(
        rule_states,
        (conv, conv + keys * 4, conv + 2 * keys * 4, decay, beta, inner),
        (row, key_bytes, row, key_bytes, row, value_bytes, n_v_heads * 4, n_v_heads * 4),
        (n_k_heads, n_v_heads, dk, dv),
    )
    inner_strides = (values * 4, value_bytes)
    norms.gated_rms_norm(inner, inner_strides, z, (stride, value_bytes), vectors[3], (n, n_v_heads, dv), eps[1], inner)
    linear(output, output_parts, inner, values, n, delta, hidden)
    norm_after(tensors, norm_weights, n, hidden, eps[0])
