"""transformers' `generate` with a cache that grows in place. A model folder as argument; the demo model without one."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from elastikv import ElasticCache, demo

folder = sys.argv[1] if len(sys.argv) > 1 else demo.path()
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("def main(", return_tensors="pt")

cache = ElasticCache(model.config, n_ctx=32768, budget="1GiB")  # nothing is allocated yet
output = model.generate(**inputs, past_key_values=cache, max_new_tokens=32, do_sample=False)
print(tokenizer.decode(output[0]))
print(cache.stats())
print("given back:", cache.shrink_to_fit(), "bytes")
