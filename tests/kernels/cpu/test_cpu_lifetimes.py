"""Kernels work with addresses: what these point to must live as long as they are used."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import torch
from elastikv.kernels.weights import PackedTensor
from elastikv.kernels.cpu import CpuKernels
from elastikv.kernels import quants

torch.manual_seed(0)
for kind in ("q8_0", "q4_0"):
    packed = quants.pack(torch.randn(64, 3072), kind)
    weight, values = PackedTensor(kind, (64, 3072), packed), quants.unpack(packed, kind)
    for n in (1, 3, 8):
        x = torch.randn(n, 3072)
        out = CpuKernels().linear(x, weight, None, torch.empty(n, 64))
        print(float((out - x @ values.t()).norm() / (x @ values.t()).norm()))
"""


def test_no_freed_memory_is_read() -> None:
    """With glibc's allocator told to overwrite what is freed, results stay what they are."""
    perturbed = {"MALLOC_PERTURB_": "165", "GLIBC_TUNABLES": "glibc.malloc.perturb=165"}
    ended = subprocess.run(
        [sys.executable, "-c", CODE], env=os.environ | perturbed, capture_output=True, text=True, check=True
    )
    errors = [float(line) for line in ended.stdout.split()]
    assert len(errors) == 6
    assert max(errors) < 8e-3
