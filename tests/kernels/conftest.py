from __future__ import annotations

from collections.abc import Callable

import pytest
from support.instruction_sets import PROPERTY, ours


@pytest.fixture(autouse=True)
def _told(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Which instructions the kernels of this process are made of."""
    if request.module.__name__.startswith("test_cpu_"):
        record_property(PROPERTY, ours())
