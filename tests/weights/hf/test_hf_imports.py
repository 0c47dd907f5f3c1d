"""What a model's start does not need is not imported: transformers takes a second."""

from __future__ import annotations

import subprocess
import sys

START = """
import sys
sys.modules["transformers"] = None  # importing it fails
from elastikv import LLM
from elastikv.demo import path
with LLM(path(), n_ctx=64, n_threads=1, kernels="reference") as llm:
    print(len(llm.tokenizer.encode("hello")))
"""


def test_a_folder_that_we_read_ourselves_starts_without_transformers() -> None:
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
