"""Kernels: the operations that a model is made of, per backend. ``select_kernels`` picks one."""

from __future__ import annotations

import logging
from typing import get_args

import torch

from elastikv.errors import InvalidRequest
from elastikv.kernels.base import AttentionPrecision, Kernels

KERNELS = ("auto", "reference", "cpu")

_log = logging.getLogger(__name__)


def select_kernels(
    name: str = "auto", device: torch.device | str = "cpu", attention_precision: AttentionPrecision = "auto"
) -> Kernels:
    """The backend of this name on a device; ``"auto"``: the fastest that it has.

    That is plain torch on any device, and on a processor where the cpu kernels cannot run, with a warning.
    Plain torch attends in float32 anyway. Raises InvalidRequest for an unknown name, and for ``"cpu"`` where it
    cannot run.
    """
    device = torch.device(device)
    if name not in KERNELS:
        raise InvalidRequest(f"kernels must be one of {', '.join(KERNELS)}, got {name!r}")
    if attention_precision not in get_args(AttentionPrecision):
        choices = " or ".join(get_args(AttentionPrecision))
        option = "attention_precision (--attention-precision)"
        raise InvalidRequest(f"{option} must be {choices}, got {attention_precision!r}")
    if name == "cpu" and device.type != "cpu":
        raise InvalidRequest(f"the cpu kernels cannot run on {device}; leave out kernels (--kernels)")
    if name != "reference" and device.type == "cpu":
        try:
            from elastikv.kernels.cpu import CpuKernels

            return CpuKernels(attention_precision)
        except ImportError as error:
            if name == "cpu":
                raise InvalidRequest(f"the cpu kernels cannot run here: {error}") from None
            _log.warning("the cpu kernels cannot run here (%s); plain torch serves", error)
    from elastikv.kernels.reference import ReferenceKernels

    return ReferenceKernels(device)


__all__ = ["KERNELS", "Kernels", "select_kernels"]
