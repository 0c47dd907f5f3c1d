"""llama.cpp's answers about a GGUF, from the xllamacpp package, in a process of its own.

Run as a script it reads ``{"path", "prompts", "texts"}`` as JSON from standard input and prints
``{"logprobs": [[per token id] per prompt], "tokens": [[ids] per text]}``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

_NOT_THE_END = 40


def ask_llama_cpp(path: Path, prompts: list[list[int]], texts: list[str]) -> dict[str, Any]:
    """Log-probabilities of every next token after each prompt, and the tokens of each text."""
    question = json.dumps({"path": str(path), "prompts": prompts, "texts": texts})
    done = subprocess.run([sys.executable, __file__], input=question, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def _start(path: str) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_ctx = 512
    parameters.fit_params = False
    parameters.warmup = False
    parameters.verbosity = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    # Its flash attention rounds to 16 bits whatever the cache's type.
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(parameters)


def _logprobs(server: Any, prompt: list[int]) -> list[float]:
    n_vocab = 1 << 20  # more than there are: all of them
    # The bias is on what is sampled, not on what is reported: a token that ends the text would report nothing.
    request = {
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": -1,
        "logprobs": n_vocab,
        "logit_bias": [[_NOT_THE_END, 1000.0]],
        "cache_prompt": False,
    }
    answer = server.handle_completions(request)
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    by_id = {entry["id"]: entry["logprob"] for entry in top}
    return [by_id[token_id] for token_id in range(len(by_id))]


def _tokens(server: Any, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
    request = urllib.request.Request(
        f"{server.listening_address}/tokenize", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())["tokens"]


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    running = _start(asked["path"])
    answers = {
        "logprobs": [_logprobs(running, prompt) for prompt in asked["prompts"]],
        "tokens": [_tokens(running, text) for text in asked["texts"]],
    }
    print(json.dumps(answers), flush=True)
