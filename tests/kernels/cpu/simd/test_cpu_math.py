"""Arithmetic on vectors of the cpu kernels against float64."""

from __future__ import annotations

import numpy as np

from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.simd.math import exp
from elastikv.kernels.cpu.simd.memory import load_f32, store_f32


@inlined
def _exp_all(source: int, out: int, n: int) -> None:
    for start in range(0, n, 16):
        store_f32(out + start * 4, exp(load_f32(source + start * 4)))


def _exp(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    _exp_all(x.ctypes.data, out.ctypes.data, len(x))
    return out


def test_exp() -> None:
    x = np.linspace(-87.3, 88.0, 1 << 14, dtype=np.float32)
    np.testing.assert_allclose(_exp(x), np.exp(x.astype(np.float64)), rtol=3e-7)


def test_exp_of_what_is_masked_is_zero() -> None:
    """Also just below the smallest normal number; nothing between but a few values that are denormal themselves."""
    x = np.concatenate([-np.geomspace(87.7, 1e30, 31, dtype=np.float32), np.float32([-np.inf])])
    assert not _exp(x).any()
