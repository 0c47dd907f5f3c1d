"""A session that outlives its process: parked in a file, and found again by what a prompt begins with.

A model folder or a GGUF file as argument; the demo model without one.
"""

import sys
import tempfile

from elastikv import LLM, SamplingParams, SchedulerOptions

with tempfile.TemporaryDirectory() as folder:
    history: list[int] = []
    for text in ("def read_lines(path):\n", "\n\ndef write_lines(path, lines):\n"):
        with LLM(*sys.argv[1:], n_ctx=32768, scheduler=SchedulerOptions(park_dir=folder)) as llm:
            history += llm.tokenizer.encode(text)
            output = llm.generate(history, SamplingParams(max_tokens=24, temperature=0))[0]
            history += output.token_ids
            print(f"{output.prompt_tokens} tokens of prompt, {output.cached_tokens} of them from the session before")
        # Closing it has parked the session.
