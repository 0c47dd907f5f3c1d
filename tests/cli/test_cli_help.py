"""What needs no model does not wait for torch."""

from __future__ import annotations

import subprocess
import sys

HELP = """
import contextlib, sys
sys.modules["torch"] = None  # importing it fails
from elastikv.cli.main import COMMANDS, main
for command in COMMANDS:
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
"""


def test_help_of_every_command_imports_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") > 8
