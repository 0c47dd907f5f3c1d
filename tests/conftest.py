"""What all tests share: one thread per process, no clock in property tests, a line on what they could not see."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from support.instruction_sets import PROPERTY, summary

from elastikv.runtimes import own

torch.set_num_threads(1)
settings.register_profile(
    "elastikv", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("elastikv")


@pytest.fixture(scope="session", autouse=True)
def _compile_here() -> Iterator[None]:
    """Tests of models test the kernels that they say, also where none are compiled yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "_can_compile_beside", lambda: False)
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which instruction sets the cpu kernels were tested with, if they were."""
    passed = terminalreporter.getreports("passed")
    tested = {value for report in passed for key, value in report.user_properties if key == PROPERTY}
    if tested:
        terminalreporter.write_line(summary(tested))
