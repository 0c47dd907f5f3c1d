"""Kernels for processors, compiled by numba. Importing this raises ImportError where they cannot run.

Which operation is where:

    ====================================================  ======================================================
    ``Kernels``' operations, from tensors to addresses    ``backend.py``
    whole layers of a few tokens in one compiled call     ``layers.py``; with their weights: ``fused.py``
      a layer of experts; which of them a token goes to   ``experts.py``; ``routing.py``
    x @ weight.T: how many rows, which arithmetic         ``matmul/linear.py``
      a few rows (skinny GEMM)                            ``matmul/skinny.py``, in float32 ``skinny_f32.py``, bfloat16
                                                          ``skinny_bf16.py``
      of several weights at once (grouped GEMM)           ``matmul/grouped.py``
      packed weights, in integers                         ``matmul/gemm_int8.py``
      many rows, dense weights converted in tiles         ``matmul/linear.py``, ``matmul/dequantise.py``
    rotation, QK norms, storing K and V                   ``attention/rope.py``, the storing in ``formats/``
    decode attention                                      ``attention/decode.py``, QK in ``attention/qk.py`` with
                                                          ``formats/``, PV in ``formats/``
    prefill attention                                     ``attention/prefill.py``, ``chunks.py``; its products
                                                          ``products_f32.py``, ``products_int16.py``
    RMS norms, gates, activations                         ``norms.py``
    short convolution; delta rule and its gates           ``recurrent/conv.py``; ``recurrent/delta_rule.py``
    cell formats: store, load, QK, PV                     ``formats/cells.py``: ``plain.py`` (f32, f16, bf16),
                                                          ``q8_0.py``
    packed weights: load, dot products                    ``formats/weights.py``: ``gguf_blocks.py`` (q8_0, q4_0),
                                                          ``k_quants.py`` (q4_k, q5_k, q6_k)
    vector types, loads and stores, arithmetic            ``simd/vector.py``, ``simd/memory.py``, ``simd/math.py``
    products of integers, of bfloat16                     ``simd/int16.py``, ``simd/byte_products.py``; ``simd/bf16.py``
      packed weights: read; times one row of x, a tile    ``simd/int8_panel.py``; ``int8_row.py``, ``int8_tile.py``
      in prefill attention                                ``simd/word_tile.py``, ``simd/panels.py``
    what the processor has                                ``simd/features.py``
    compiling, and keeping what was compiled              ``jit.py``
    ====================================================  ======================================================

Imports go one way: ``simd``, ``formats``, ``norms.py``, then ``matmul``, ``attention``, ``recurrent``, then the other
files here. Kernels take addresses, as integers, and strides in bytes; shapes are of float32 unless said otherwise.
"""

from elastikv.kernels.cpu.simd.features import require_halves

require_halves()

from elastikv.kernels.cpu.backend import CpuKernels  # noqa: E402
from elastikv.kernels.cpu.threads import set_threads  # noqa: E402

__all__ = ["CpuKernels", "set_threads"]
