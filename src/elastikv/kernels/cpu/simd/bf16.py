"""Products of bfloat16 pairs, thirty-two values at a time, as x86 processors with AVX-512 BF16 have them.

Only kernels whose callers asked ``features.has_bf16`` may use them; each has a twin that does without. Instructions are
written as text because LLVM's own names for them change from release to release.
"""

from __future__ import annotations

import llvmlite.binding
from llvmlite import ir
from numba import types

from elastikv.kernels.cpu.simd.vector import F32x16, I16x32, assembly, bf16_type, operation, pointer, vector_type

# Also a function that only calls such kernels, loaded from disk, is compiled together with their text.
llvmlite.binding.initialize_native_asmparser()


@operation(bf16_type, types.intp)
def load_bf16_pairs(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """``load_bf16_pairs(address)``: 32 bfloat16."""
    return builder.load(pointer(builder, address), align=1, typ=I16x32)


@operation(vector_type, bf16_type, bf16_type, vector_type)
def dot_pairs(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, sums: ir.Value) -> ir.Value:
    """``dot_pairs(a, b, sums)``: sums + a * b, two neighbouring products to each of the sixteen float32 sums."""
    return assembly(builder, "vdpbf16ps $3, $2, $0", F32x16, "=v,0,v,v", [sums, a, b])
