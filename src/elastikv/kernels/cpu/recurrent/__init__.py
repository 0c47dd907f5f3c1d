"""The recurrent operations of a gated delta net."""

from elastikv.kernels.cpu.recurrent.conv import MAX_TAPS, causal_conv
from elastikv.kernels.cpu.recurrent.delta_rule import delta_gates, gated_delta_rule

__all__ = ["MAX_TAPS", "causal_conv", "delta_gates", "gated_delta_rule"]
