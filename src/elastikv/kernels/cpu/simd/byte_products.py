"""Products of bytes without sign (weights) with int8 values, neighbouring ones added up by fours to int32.

x86's instruction for it is VPDPBUSD (with AVX-512 VNNI, or AVX-VNNI on half as many). Processors without do it in three
steps: VPMADDUBSW adds neighbouring products up to int16, VPMADDWD neighbouring ones of these to int32, VPADDD to
the sums. ARM's is SDOT, which takes weights to have signs: it has been compiled, but never run. Only kernels whose
callers asked ``features.has_byte_products`` may use this.
"""

from __future__ import annotations

import llvmlite.binding
from llvmlite import ir

from elastikv.kernels.cpu.simd.features import has, has_byte_dots
from elastikv.kernels.cpu.simd.int16 import dots_of_pairs
from elastikv.kernels.cpu.simd.vector import I8, I32, I16x32, I32x16, assembly, call_intrinsic, halves, shuffled

llvmlite.binding.initialize_native_asmparser()

I8x64 = ir.VectorType(I8, 64)


class ByteProducts:
    """Writes such products, sixty-four at a time: weights and x are ``<64 x i8>``, sums sixteen int32.

    highest: the largest weight, at most 127 where SDOT is. None: weights have signs after all, and are as large as they
    may be; for processors without VPDPBUSD only, because sums of two products of 255 with 127 do not fit 16 bits there.

    at_once: how many products ``add`` may add up before ``total`` must be called.
    """

    def __init__(self, builder: ir.IRBuilder, highest: int | None) -> None:
        self._builder = builder
        self._signed = highest is None
        self._in_steps = not has_byte_dots()
        self.at_once = 1 if highest is None else min((1 << 15) // (2 * 127 * highest), 8) if self._in_steps else 8

    def add(self, weights: ir.Value, x: ir.Value, partial: ir.Value | None, sums: ir.Value) -> ir.Value:
        """``partial`` plus products. None at first: plus ``sums`` where they are added to these straight away."""
        if not self._in_steps:
            return _dot(self._builder, weights, x, sums if partial is None else partial)
        if self._signed:
            weights, x = self._without_sign(weights, x)
        pairs = _of_registers(self._builder, "pmaddubs", I16x32, weights, x)
        return pairs if partial is None else self._builder.add(partial, pairs)

    def total(self, partial: ir.Value, sums: ir.Value) -> ir.Value:
        """``sums`` plus what was added up."""
        if not self._in_steps:
            return partial
        return self._builder.add(sums, dots_of_pairs(self._builder, partial, ir.Constant(I16x32, [1] * 32)))

    def _without_sign(self, weights: ir.Value, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The signs of weights moved to x."""
        arguments = [weights, ir.Constant(ir.IntType(1), 0)]
        sizes = call_intrinsic(self._builder, "llvm.abs.v64i8", I8x64, arguments)
        if not has("avx512bw"):
            return sizes, _of_registers(self._builder, "psign", I8x64, x, weights)
        negative = self._builder.icmp_signed("<", weights, ir.Constant(I8x64, None))
        return sizes, self._builder.select(negative, self._builder.sub(ir.Constant(I8x64, None), x), x)


_NAMES = {"pmaddubs": ("avx512.pmaddubs.w.512", "avx2.pmadd.ub.sw"), "psign": (None, "avx2.psign.b")}


def _of_registers(builder: ir.IRBuilder, name: str, result: ir.VectorType, a: ir.Value, b: ir.Value) -> ir.Value:
    """An instruction of AVX-512 or of AVX2, which takes half as much at a time."""
    wide, narrow = _NAMES[name]
    if has("avx512bw"):
        return call_intrinsic(builder, f"llvm.x86.{wide}", result, [a, b])
    half = ir.VectorType(result.element, result.count // 2)
    pairs = zip(halves(builder, a), halves(builder, b), strict=True)
    low, high = (call_intrinsic(builder, f"llvm.x86.{narrow}", half, list(pair)) for pair in pairs)
    return shuffled(builder, low, high, list(range(result.count)))


def _dot(builder: ir.IRBuilder, weights: ir.Value, x: ir.Value, sums: ir.Value) -> ir.Value:
    """VPDPBUSD, written as text because LLVM's own name for it changes from release to release; or SDOT."""
    if has("dotprod"):
        name, quarter = "llvm.aarch64.neon.sdot.v4i32.v16i8", ir.VectorType(I32, 4)
        split = zip(*(_quarters(builder, value) for value in (sums, weights, x)), strict=True)
        a, b, c, d = (call_intrinsic(builder, name, quarter, list(each)) for each in split)
        low, high = (shuffled(builder, *pair, list(range(8))) for pair in ((a, b), (c, d)))
        return shuffled(builder, low, high, list(range(16)))
    if has("avx512vnni"):
        return assembly(builder, "vpdpbusd $3, $2, $0", I32x16, "=v,0,v,v", [sums, weights, x])
    parts = zip(halves(builder, sums), halves(builder, weights), halves(builder, x), strict=True)
    half, constraint = ir.VectorType(I32, 8), "=x,0,x,x"
    low, high = (assembly(builder, "{vex} vpdpbusd $3, $2, $0", half, constraint, list(each)) for each in parts)
    return shuffled(builder, low, high, list(range(16)))


def _quarters(builder: ir.IRBuilder, value: ir.Value) -> list[ir.Value]:
    return [quarter for half in halves(builder, value) for quarter in halves(builder, half)]
