"""A budget that is too small: the refusal comes before a page is touched, and nothing is lost.

A model folder or a GGUF file as argument; the demo model without one.
"""

import sys

from elastikv import LLM, GenerationCut, SamplingParams

with LLM(*sys.argv[1:], n_ctx=32768) as llm:
    prompt = llm.tokenizer.encode("def main(")
    llm.generate(prompt, SamplingParams(max_tokens=1))
    llm.clear()
    llm.set_budget(llm.stats().peak_committed_bytes)  # what a short generation and the compute buffers take
    try:
        output = llm.generate(prompt, SamplingParams(max_tokens=300, ignore_eos=True, seed=1))[0]
    except GenerationCut as cut:
        print(cut)  # how much was asked for, what was left, and what to turn to get more
        output = cut.output
    print(f"{len(output.token_ids)} tokens so far: {output.text[:60]!r} ...")

    llm.set_budget("none")
    output = llm.generate(prompt + output.token_ids, SamplingParams(max_tokens=32, seed=1))[0]
    print(f"went on: {output.cached_tokens} of {output.prompt_tokens} tokens were still in memory")
