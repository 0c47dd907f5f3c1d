"""What the processor that kernels are compiled for can do."""

from __future__ import annotations

import functools
import platform

import llvmlite.binding
import numba


@functools.cache
def _features() -> dict[str, bool]:
    """This processor's, or those that NUMBA_CPU_FEATURES names (``+avx2,+fma``), as numba takes them."""
    named = numba.config.CPU_FEATURES
    if named is None:
        return dict(llvmlite.binding.get_host_cpu_features())
    return {feature[1:]: feature[0] == "+" for feature in named.split(",") if feature}


def has(feature: str) -> bool:
    """Whether there is a feature, in LLVM's spelling (``avx512vnni``)."""
    return _features().get(feature, False)


def has_bf16() -> bool:
    """Whether ``bf16.dot_pairs`` runs here."""
    return has("avx512bf16")


def has_vnni() -> bool:
    """Whether there is an instruction for the products of bytes, and one for those of int16."""
    return has("avx512vnni") or has("avxvnni")


def has_fast_int16() -> bool:
    """Whether products of int16 (``int16.add_dots``) are faster than those of half as many float32.

    With AVX2 their two instructions spread over more ports than a multiply-add does; the first processors with AVX-512
    have no such ports for 512 bits.
    """
    return has_vnni() or (has("avx2") and not has("avx512bw"))


def has_byte_dots() -> bool:
    """Whether one instruction multiplies bytes and adds the products up by fours."""
    return has_vnni() or has("dotprod")


def has_byte_products() -> bool:
    """Whether products of bytes (``byte_products``) run here, by one instruction or in steps."""
    return has("avx2") or has("dotprod")


def require_halves() -> None:
    """Raises ImportError where LLVM would look for a function to convert float16, find none, and end the process."""
    if platform.machine() in ("x86_64", "AMD64") and not has("f16c"):
        raise ImportError("this processor cannot convert float16: it lacks F16C")
