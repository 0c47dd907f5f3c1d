"""What kernels say that they are compiled to, and what they really are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.instruction_sets import SETS

_ALDER_LAKE = ("alderlake", f"{SETS['AVX2'][1]},+avxvnni")

PROGRAM = """
import re
from numba import njit, types
from elastikv.kernels.cpu import report
from elastikv.kernels.cpu.formats.gguf_blocks import Q4_0_BLOCKS
from elastikv.kernels.cpu.simd.memory import load_f32, store_f32

@njit
def product(rows, x, sums):
    store_f32(sums, Q4_0_BLOCKS.multiply_block(rows, 0, x, rows, load_f32(sums)))

product.compile((types.intp,) * 3)
(code,) = product.inspect_asm().values()
print(report.instructions()["packed weights (q8_0, q4_0, k-quants)"])
print(" ".join(sorted(set(re.findall("vp[a-z]+", code)))))
"""


@pytest.mark.parametrize(
    ("processor", "said", "instruction"),
    [
        (SETS["AVX2"], "VPMADDUBSW (AVX2)", "vpmaddubsw"),
        (_ALDER_LAKE, "VPDPBUSD (AVX-VNNI)", "vpdpbusd"),
        (SETS["AVX-512"], "VPMADDUBSW (AVX-512 BW)", "vpmaddubsw"),
        (SETS["AVX-512 VNNI"], "VPDPBUSD (AVX-512 VNNI)", "vpdpbusd"),
    ],
    ids=["AVX2", "AVX-VNNI", "AVX-512", "AVX-512 VNNI"],
)
def test_products_are_compiled_to_what_is_said(processor: tuple[str, str], said: str, instruction: str) -> None:
    """To be compiled it takes no such processor: AVX-VNNI has never run."""
    name, names = processor
    asked = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": names, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    line, compiled = ended.stdout.splitlines()
    assert line.endswith(said)
    assert instruction in compiled.split()
