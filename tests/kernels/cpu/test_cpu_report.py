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


@pytest.mark.slow
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


FOR_ARM = """
import llvmlite.binding
from llvmlite import ir
from elastikv.kernels.cpu.formats import gguf_blocks, k_quants
from elastikv.kernels.cpu.simd import int8_row
from elastikv.kernels.cpu.simd.vector import I64, F32x16, pointer

llvmlite.binding.initialize_all_targets()
llvmlite.binding.initialize_all_asmprinters()
target = llvmlite.binding.Target.from_triple("aarch64-unknown-linux-gnu")
machine = target.create_target_machine(cpu="neoverse-n1", features="+neon,+dotprod,+fullfp16")
for panel, read in (
    (gguf_blocks._Q8_0_PANEL, gguf_blocks._read_q8_0),
    (gguf_blocks._Q4_0_PANEL, gguf_blocks._read_q4_0),
    (k_quants._Q4_K_PANEL, k_quants._read_q4_k),
    (k_quants._Q6_K_PANEL, k_quants._read_q6_k),
):
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 5), "product")
    builder = ir.IRBuilder(function.append_basic_block())
    rows, offset, x, ahead, out = function.args
    sums = builder.load(pointer(builder, out), align=1, typ=F32x16)
    code = int8_row._RowCode(builder, panel, [rows, offset, x, ahead, sums])
    read(code)
    builder.store(code.sums, pointer(builder, out), align=1)
    builder.ret_void()
    assembly = machine.emit_assembly(llvmlite.binding.parse_assembly(str(module)))
    print(panel.highest, assembly.count("sdot"))
"""


@pytest.mark.slow
def test_products_are_compiled_for_arm() -> None:
    """Four instructions for each eighth of a block of sixteen rows. None of this has ever run."""
    asked = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+neon,+dotprod,+f16c"}
    environment = os.environ | asked | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FOR_ARM]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["None", "32", "15", "32", "15", "256", "63", "256"]
