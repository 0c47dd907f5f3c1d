"""Which instructions each operation is compiled to here, in words for people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from elastikv.kernels.base import AttentionPrecision
from elastikv.kernels.cpu import jit
from elastikv.kernels.cpu.simd import features

_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avxvnni",
    "avx512f",
    "avx512bw",
    "avx512vnni",
    "avx512bf16",
    "neon",
    "dotprod",
    "i8mm",
)


def processor_features() -> list[str]:
    """Those that kernels could gain by, in LLVM's spelling."""
    return [feature for feature in _FEATURES if features.has(feature)]


def instructions(attention_precision: AttentionPrecision = "auto") -> dict[str, str]:
    """Operation: what computes it. attention_precision: see ``CpuKernels``."""
    f32 = f"float32 multiply-add, {_width()}"
    word = f"16-bit integers, {_words()}, {_width()}"
    in_integers = attention_precision == "auto" and features.has_fast_int16()
    has_bytes, has_bf16 = features.has_byte_products(), features.has_bf16()
    return {
        "packed weights (q8_0, q4_0, k-quants)": f"8-bit integers, {_bytes()}" if has_bytes else f32,
        "bf16 weights, one row of x": f32,
        "bf16 weights, up to 16 rows": f"bfloat16, VDPBF16PS, {_width()}" if has_bf16 else f32,
        "bf16 weights, more rows": f"torch.mm in {'bfloat16' if has_bf16 else 'float32'}",
        "f32 and f16 weights, up to 8 rows": f32,
        "f32 and f16 weights, more rows": "torch.mm in float32",
        "decode attention, f32, f16 and bf16 cells": f32,
        "decode attention, q8_0 cells": word,
        "prefill attention": word if in_integers else f32,
        "delta rule, convolution, norms": f32,
    }


class Compiled(NamedTuple):
    """Kernels on disk, of these sources. folders: where they are or would be; none: no folder can be written."""

    folders: tuple[Path, ...]
    n_files: int
    n_bytes: int


def compiled() -> Compiled:
    """What need not be compiled any more. A file is one kernel for one kind of arguments."""
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{__package__}.")]
    folders = {jit.kept_in(value) for module in modules for value in vars(module).values()} - {None}
    files = [file for folder in folders if folder for file in jit.compiled_files(folder)]
    return Compiled(tuple(sorted(filter(None, folders))), len(files), sum(file.stat().st_size for file in files))


def _width() -> str:
    if features.has("avx512f"):
        return "512 bits"
    return "256 bits" if features.has("avx2") else "as wide as the processor has"


def _bytes() -> str:
    if features.has("dotprod"):
        return "SDOT"
    if features.has("avx512vnni"):
        return "VPDPBUSD (AVX-512 VNNI)"
    if features.has("avxvnni"):
        return "VPDPBUSD (AVX-VNNI)"
    return "VPMADDUBSW (AVX-512 BW)" if features.has("avx512bw") else "VPMADDUBSW (AVX2)"


def _words() -> str:
    if features.has_vnni():
        return "VPDPWSSD"
    return "VPMADDWD" if features.has("avx2") else "no instruction of their own"
