"""Every ``$ elastikv ...`` of the README and of ``docs/`` is a command line that the parser takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from elastikv.cli.main import _parse

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    {
        line
        for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for line in re.findall(r"^\$ elastikv (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_it_parses(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert callable(_parse([word for word in words if word != "&"]).run)
