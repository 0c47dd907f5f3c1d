"""Chat, and print the reply as it comes. A model folder or a GGUF file as argument; the demo model without one."""

import sys

from elastikv import LLM, SamplingParams

messages = []
with LLM(*sys.argv[1:], n_ctx=32768) as llm:
    for question in ("What does os.path.join do?", "Thanks"):
        messages.append({"role": "user", "content": question})
        print(f"\n> {question}")
        text = ""
        for delta in llm.chat(messages, SamplingParams(max_tokens=48, seed=1), stream=True):
            print(delta.text, end="", flush=True)
            text += delta.text
        messages.append({"role": "assistant", "content": text})
    print()
