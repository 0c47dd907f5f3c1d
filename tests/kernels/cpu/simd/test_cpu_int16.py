"""Products of integers, with each set of instructions that they are written for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from support.instruction_sets import PROPERTY, SETS, compile_for

CODE = """
import numpy as np
from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.simd import int16 as w
from elastikv.kernels.cpu.simd.memory import store_f32

@inlined
def products(a, b, out):
    sums = w.add_dots(w.load_i8_as_i16(a), w.load_i16(b), w.zero_sums())
    store_f32(out, w.to_float(w.add_dots(w.load_i8_as_i16_part(a, 21), w.splat_i16_pair(b + 4), sums)))
    x, y = w.load_i16(b), w.load_i8_as_i16(a)
    store_f32(out + 64, w.to_float(w.add_dots(w.interleave_low(x, y), w.splat_i16_pair(b), w.zero_sums())))
    store_f32(out + 128, w.to_float(w.add_dots(w.interleave_high(x, y), w.splat_i16_pair(b), w.zero_sums())))

rng = np.random.default_rng(0)
a = rng.integers(-128, 128, 32).astype(np.int8)
b = rng.integers(-30000, 30000, 32).astype(np.int16)
a[0], b[0], b[1] = -128, -32768, 32767
out = np.full(48, np.nan, np.float32)
products(a.ctypes.data, b.ctypes.data, out.ctypes.data)

a, b = a.astype(np.int64), b.astype(np.int64)
part = np.where(np.arange(32) < 21, a, 0)
dots = (a * b).reshape(16, 2).sum(1) + (part.reshape(16, 2) * b[2:4]).sum(1)
pairs = b * b[0] + a * b[1]
assert np.array_equal(out, np.concatenate([dots, pairs]).astype(np.float32)), out
"""

SELECTION = """
from elastikv.kernels import select_kernels
print(select_kernels().name)
"""


def run(code: str, name: str) -> subprocess.CompletedProcess[str]:
    """In a process that compiles for this instruction set."""
    program = [sys.executable, "-c", code]
    ended = subprocess.run(program, env=compile_for(name), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.mark.parametrize("name", [name for name in SETS if name != "SSE4.2"])
def test_products(name: str) -> None:
    run(CODE, name)


def test_torch_serves_where_float16_cannot_be_converted(record_property: Callable[[str, object], None]) -> None:
    """LLVM would end the process."""
    ended = run(SELECTION, "SSE4.2")
    assert ended.stdout == "reference\n"
    assert "lacks F16C); plain torch serves" in ended.stderr
    record_property(PROPERTY, "SSE4.2")
