"""A tiny model on disk, and a way to call the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.tiny_models import tiny_model

from elastikv.cli.main import main


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("qwen3_5", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def elastikv(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """``elastikv("run", "-p", "x")`` -> exit code and what was printed, by Python and by anything below it."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call
