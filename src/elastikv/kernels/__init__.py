"""Kernels: the operations that a model is made of, per backend. ``select_kernels`` picks one."""

from __future__ import annotations

import logging

from elastikv.errors import InvalidRequest
from elastikv.kernels.base import Kernels

KERNELS = ("auto", "reference", "cpu")

_log = logging.getLogger(__name__)


def select_kernels(name: str = "auto") -> Kernels:
    """The backend of this name; ``"auto"``: the fast one, or plain torch, with a warning, where it cannot run.

    Raises InvalidRequest for an unknown name, and for ``"cpu"`` where it cannot run.
    """
    if name not in KERNELS:
        raise InvalidRequest(f"kernels must be one of {', '.join(KERNELS)}, got {name!r}")
    if name != "reference":
        try:
            from elastikv.kernels.cpu import CpuKernels

            return CpuKernels()
        except ImportError as error:
            if name == "cpu":
                raise InvalidRequest(f"the cpu kernels cannot run here: {error}") from None
            _log.warning("the cpu kernels cannot run here (%s); plain torch serves", error)
    from elastikv.kernels.reference import ReferenceKernels

    return ReferenceKernels()


__all__ = ["KERNELS", "Kernels", "select_kernels"]
