"""Complete several prompts at once. A model folder or a GGUF file as argument; the demo model without one."""

import sys

from elastikv import LLM, SamplingParams

with LLM(*sys.argv[1:], n_ctx=32768) as llm:  # an upper bound: memory follows what is used
    outputs = llm.generate(["import os\n", "def main(", "class Cache:"], SamplingParams(max_tokens=32, seed=1))
    for output in outputs:
        print(repr(output.text), output.finish_reason, f"{output.timings.predicted_n} tokens")
    print(llm.stats())
