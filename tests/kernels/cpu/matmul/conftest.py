from __future__ import annotations

import pytest

from elastikv.kernels.cpu.matmul import linear


@pytest.fixture(params=["as here", "without bf16", "portable"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> linear.LinearKernel:
    """The kernel as this processor has it, and as ones have it that lack bf16 or also 8-bit instructions."""
    if request.param != "as here":
        monkeypatch.setattr(linear, "has_fast_bf16", lambda: False)
    if request.param == "portable":
        monkeypatch.setattr(linear, "has_fast_int8", lambda: False)
    return linear.LinearKernel()
